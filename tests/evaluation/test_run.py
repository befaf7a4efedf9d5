from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import DataError, HanlinError
from hanlin.evaluation.results import EvaluatedFiles
from hanlin.evaluation.run import evaluate, metrics_table, write_metrics
from hanlin.formats.fingerprint import weights_fingerprint
from hanlin.generate.engine import Engine
from hanlin.generate.methods.beam import BeamSettings
from hanlin.models.cpm_bee import CpmBeeConfig, CpmBeeTokenizer, family
from hanlin.models.cpm_bee.processor import CpmBeeProcessor

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
WORDS = [*MARKS, "<", "input", "options", *"今天气好坏abcdx"]
ALL = ("generate", "likelihood", "loss")
OPTIONS = BeamSettings(beams=2, max_new_tokens=6)


def options(*texts: str) -> dict[str, str]:
    return {f"<option_{number}>": text for number, text in enumerate(texts)}


RECORDS = [
    {"input": "今天", "options": options("好", "坏"), "<ans>": "<option_1>"},
    {"input": "天气天气", "选项": options("a", "b", "c"), "<ans>": "<option_0>"},
    {"input": "x", "options": options("ab", "cd"), "<ans>": "<option_0>"},
    {"input": "abcd", "candidates": options("好天气", "b"), "<ans>": "<option_1>"},
    {"input": "好坏好", "options": options("x", "x"), "<ans>": "<option_1>"},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = CpmBeeTokenizer(WORDS)
    config = CpmBeeConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        ffn_size=24,
        num_distance_buckets=32,
        num_relation_buckets=64,
        max_distance=64,
        half_frequencies=False,
    )
    model = family.model()(config).double()
    model.init_weights(torch.Generator().manual_seed(1))
    torch.nn.init.normal_(model.embedding.weight, std=2.0, generator=torch.Generator().manual_seed(2))
    return Engine(model.eval(), CpmBeeProcessor(tokenizer, config))


def rows_of(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / f"{task}.jsonl").read_text("utf-8").splitlines()]


def test_the_numbers_do_not_depend_on_the_batch_size(engine: Engine, tmp_path: Path):
    results = []
    for size in (1, 4):
        sized = OPTIONS.model_copy(update={"batch_size": size})
        results.append(evaluate(engine, RECORDS, ALL, sized, tmp_path / str(size)))
    for task in ALL:
        assert results[0][task] == pytest.approx(results[1][task], rel=1e-12)
        first, second = (rows_of(tmp_path / size, task) for size in "14")
        assert [row.get("answer") for row in first] == [row.get("answer") for row in second]


def test_files_hold_a_line_per_record_with_the_gold_answer(engine: Engine, tmp_path: Path):
    metrics = evaluate(engine, RECORDS, ALL, OPTIONS, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [f"{task}.jsonl" for task in ALL]
    written = rows_of(tmp_path, "generate")
    assert [row["record"] for row in written] == [1, 2, 3, 4, 5]
    assert [row["gold"] for row in written] == [[record["<ans>"]] for record in RECORDS]
    assert metrics["generate"]["exact_match"] == sum(row["correct"] for row in written) / 5
    assert metrics["generate"]["records"] == 5


def test_likelihood_takes_the_option_with_the_best_mean_log_probability(engine: Engine, tmp_path: Path):
    metrics = evaluate(engine, RECORDS, ["likelihood"], OPTIONS, tmp_path)["likelihood"]
    rows = rows_of(tmp_path, "likelihood")
    for record, row in zip(RECORDS, rows, strict=True):
        expected = {option: mean_log_probability(engine, {**record, "<ans>": option}) for option in row["scores"]}
        assert row["scores"] == pytest.approx(expected)
        assert row["answer"] == max(expected, key=lambda option: expected[option])
        assert row["correct"] == (row["answer"] == record["<ans>"])
    assert metrics["accuracy"] == sum(row["correct"] for row in rows) / 5
    assert metrics["chance"] == pytest.approx((4 / 2 + 1 / 3) / 5)


def test_loss_is_the_mean_over_all_answer_tokens(engine: Engine, tmp_path: Path):
    metrics = evaluate(engine, RECORDS, ["loss"], OPTIONS, tmp_path)["loss"]
    # Each answer is one mark and its end.
    losses = [-2 * mean_log_probability(engine, record) for record in RECORDS]
    assert metrics["tokens"] == 10
    assert metrics["loss"] == pytest.approx(sum(losses) / 10)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def mean_log_probability(engine: Engine, record: dict) -> float:
    """From the whole logits of a single row."""
    sample = engine.processor.sample(record)
    batch = engine.processor.collate([[sample]], sample.length)
    with torch.no_grad():
        logits = engine.model(**batch.inputs).log_softmax(-1)[0]
    places = batch.labels[0] >= 0
    return logits[places].gather(-1, batch.labels[0][places][:, None]).mean().item()


class Counted(CpmBeeProcessor):
    """Counts the prompts; can break down, as a killed process does."""

    def __init__(self, processor, prompts_left: int = 99) -> None:
        super().__init__(processor.tokenizer, processor.config)
        self.prompts_left = prompts_left
        self.prompted = 0

    def answer(self, prompt, tokens):
        if self.prompts_left == 0:
            raise KeyboardInterrupt
        self.prompts_left -= 1
        self.prompted += 1
        return super().answer(prompt, tokens)


def test_what_was_predicted_is_not_predicted_again(engine: Engine, tmp_path: Path):
    whole = evaluate(engine, RECORDS, ["generate"], OPTIONS, tmp_path / "whole")
    killed = Engine(engine.model, Counted(engine.processor, prompts_left=3))
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, RECORDS, ["generate"], OPTIONS.model_copy(update={"batch_size": 1}), tmp_path / "cut")
    part = tmp_path / "cut" / "predictions" / "generate.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"record": 1, "ke')
    again = Counted(engine.processor)
    assert evaluate(Engine(engine.model, again), RECORDS, ["generate"], OPTIONS, tmp_path / "cut") == whole
    assert again.prompted == 2
    assert evaluate(Engine(engine.model, again), RECORDS, ["generate"], OPTIONS, tmp_path / "cut") == whole
    assert again.prompted == 2
    name = Path("predictions") / "generate.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", ["answer", "correct", "key", "sum"])
def test_a_line_that_was_altered_on_the_disk_is_made_again(engine: Engine, tmp_path: Path, name: str, caplog):
    counted = Counted(engine.processor)
    whole = evaluate(Engine(engine.model, counted), RECORDS, ["generate"], OPTIONS, tmp_path)
    path = (tmp_path / "predictions" / "generate.jsonl").resolve()
    before = path.read_bytes()
    path.write_bytes(before.replace(f'"{name}"'.encode(), f'"{name}s"'.encode(), 1))
    assert evaluate(Engine(engine.model, counted), RECORDS, ["generate"], OPTIONS, tmp_path) == whole
    assert counted.prompted == 5 + 1
    assert path.read_bytes() == before
    assert "line 1 is not as it was written" in caplog.text


@pytest.mark.parametrize("change", ["weights", "options", "record", "network"])
def test_what_changed_is_predicted_again(engine: Engine, tmp_path: Path, change: str):
    counted = Counted(engine.processor)
    evaluate(Engine(engine.model, counted), RECORDS, ["generate"], OPTIONS, tmp_path)
    records, settings = list(RECORDS), OPTIONS
    if change == "options":
        settings = OPTIONS.model_copy(update={"beams": 1})
    if change == "record":
        records[2] = {**records[2], "input": "b"}
    before = engine.model.norm.weight.detach().clone()
    try:
        if change == "weights":
            engine.model.norm.weight.data[3] *= 1.5
        network = "another configuration" if change == "network" else ""
        evaluate(Engine(engine.model, counted), records, ["generate"], settings, tmp_path, network=network)
    finally:
        engine.model.norm.weight.data.copy_(before)
    assert counted.prompted == 5 + (1 if change == "record" else 5)


def test_the_fingerprint_follows_the_weights(engine: Engine):
    before = weights_fingerprint(engine.model.named_parameters())
    assert before == weights_fingerprint(engine.model.named_parameters())
    other = Engine(family.model()(engine.model.config).double(), engine.processor)
    other.model.init_weights(torch.Generator().manual_seed(9))
    assert weights_fingerprint(other.model.named_parameters()) != before


@pytest.mark.parametrize(
    ("record", "task", "message"),
    [
        ({"input": "a", "<ans>": ""}, "generate", "record 2: .*no answer"),
        ({"input": "a"}, "loss", "record 2: .*<ans>"),
        ({"input": "a", "<ans>": "b"}, "likelihood", "record 2: it has no options"),
        ({"input": "a", "options": options("b"), "<ans>": {"a": "b"}}, "likelihood", "record 2: .* one answer only"),
        (
            {"input": "a", "options": options("b"), "<ans>": "c"},
            "likelihood",
            "record 2: .*none of the options <option_0>",
        ),
    ],
)
def test_a_record_that_cannot_be_scored_is_named(engine: Engine, tmp_path: Path, record: dict, task: str, message: str):
    with pytest.raises(DataError, match=message):
        evaluate(engine, [RECORDS[0], record], [task], OPTIONS, tmp_path)


def test_no_records_are_an_error(engine: Engine, tmp_path: Path):
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(engine, [], ALL, OPTIONS, tmp_path)


def test_the_table_shows_every_metric(engine: Engine, tmp_path: Path):
    metrics = evaluate(engine, RECORDS, ALL, OPTIONS, tmp_path)
    assert metrics_table(metrics).row_count == sum(map(len, metrics.values()))


def test_further_metrics_stand_beside_each_answer_and_are_averaged(engine: Engine, tmp_path: Path):
    results = evaluate(engine, RECORDS, ("generate", "loss"), OPTIONS, tmp_path, metrics=("bleu4",))
    [name] = results["generate"].keys() & {"bleu-4 characters method3"}
    own = [row["scores"][name] for row in rows_of(tmp_path, "generate")]
    assert results["generate"][name] == pytest.approx(sum(own) / len(own))
    assert name not in results["loss"]
    before = (tmp_path / "predictions" / "generate.jsonl").read_bytes()
    assert evaluate(engine, RECORDS, ("generate", "loss"), OPTIONS, tmp_path, metrics=("bleu4",)) == results
    assert (tmp_path / "predictions" / "generate.jsonl").read_bytes() == before


@pytest.mark.parametrize("task", ["loss", "likelihood", "generate"])
def test_what_is_no_number_is_no_result(engine: Engine, tmp_path: Path, task: str) -> None:
    broken = Engine(copy.deepcopy(engine.model), engine.processor)
    torch.nn.init.constant_(broken.model.norm.weight, torch.nan)
    with pytest.raises(HanlinError, match="not numbers"):
        evaluate(broken, RECORDS, [task], OPTIONS, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    assert not [path for path in tmp_path.rglob("*.jsonl*") if path.read_bytes()]


def test_what_has_no_value_is_null(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"loss": {"loss": math.nan, "tokens": 0.0}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": {"loss": None, "tokens": 0.0}}


def test_results_say_whose_they_are_and_those_of_others_stay(engine: Engine, tmp_path: Path, caplog):
    counted = Counted(engine.processor)

    def score(records: list[dict], network: str = "") -> Path:
        files = EvaluatedFiles(("run/best",), ("rows.jsonl",))
        evaluate(Engine(engine.model, counted), records, ["generate"], OPTIONS, tmp_path, network=network, files=files)
        return (tmp_path / "predictions").resolve().parent

    first = score(RECORDS)
    kept = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    about = json.loads((first / "about.json").read_text())
    assert about["weights"]["files"] == ["run/best"]
    assert about["data"]["files"] == ["rows.jsonl"]
    other_data, other_weights = score(RECORDS[:3]), score(RECORDS, "another model")
    assert len({first, other_data, other_weights}) == 3
    assert all(path.name.startswith("best-") for path in (first, other_data, other_weights))
    assert json.loads((other_weights / "about.json").read_text())["data"] == about["data"]
    assert json.loads((other_data / "about.json").read_text())["weights"] == about["weights"]
    assert {path: path.read_bytes() for path in kept} == kept
    assert counted.prompted == 5 + 0 + 5  # the same weights had answered those records
    with caplog.at_level(logging.INFO, "hanlin"):
        assert score(RECORDS) == first
    assert "predictions reused=5 left=0" in caplog.text
    assert str(first.name) in caplog.text
    assert counted.prompted == 10
    assert json.loads((tmp_path / "metrics.json").read_text())["generate"]["records"] == 5


def test_results_of_before_are_kept(engine: Engine, tmp_path: Path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    evaluate(engine, RECORDS, ["loss"], OPTIONS, tmp_path)
    assert (tmp_path / "metrics.before.json").read_text() == "{}"
    assert (tmp_path / "predictions.before").is_dir()
