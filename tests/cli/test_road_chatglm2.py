"""The recipes of ChatGLM2 by commands on a tiny model: the original's folder -> trained -> scored -> Glm's folder."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_rows
from tiny_folder import write_original

from hanlin.adapters.opening import is_adapter
from hanlin.cli.main import main
from hanlin.formats.files import open_weights
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import family

RECIPES = Path(__file__).parents[2] / "recipes"
ADGEN = [
    {"content": "类型#裤*颜色#黑色", "summary": "黑色九分裤，简单百搭。"},
    {"content": "颜色#黑色", "summary": "黑色百搭。"},
    {"content": "类型#裤", "summary": "九分裤"},
    {"content": "类型#裤", "summary": ""},
]
CHAT = [
    {"prompt": "你好", "response": "你好，世界！", "history": []},
    {"prompt": "世界？", "response": "黑色世界", "history": [["你好", "你好，世界！"]]},
    {"prompt": "黑色？", "response": "简单", "history": [["你好" * 40, "你好"], ["世界", "黑色"]]},
]
SENTIMENT = [
    {"text": "黑色百搭", "label": "正面"},
    {"text": "世界你好，简单" * 80, "label": "负面"},
    {"text": "你好", "label": "正面"},
    {"text": "九分裤", "label": "负面"},
]
SCORES = {"bleu-4 characters method3", "rouge-1 jieba sets", "rouge-2 jieba sets", "rouge-l jieba sets"}


@dataclass(frozen=True)
class Twin:
    """A recipe, its rows, and how far it is shortened."""

    recipe: str
    rows: list[dict[str, Any]]
    changes: tuple[str, ...] = ()

    @property
    def tuning(self) -> str:
        return self.recipe.rpartition("_")[2]


TWINS = [
    Twin("chatglm2_adgen_ptuning", ADGEN, ("tuning.length=4",)),
    Twin("chatglm2_adgen_full", ADGEN, ("train.lr=1e-2",)),
    Twin("chatglm2_chat_lora", CHAT, ("data.max_length=64", "train.warmup_steps=2", "train.eval_every=4")),
]
COMMON = ("train.steps=8", "train.save_every=8", "train.batch_size=4", "train.precision=fp32",
          "parallel.checkpoint_activations=none", "generate.max_new_tokens=8", "run.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the layout of THUDM/chatglm2-6b."""
    return write_original(tmp_path_factory.mktemp("chatglm2") / "original")


def command(twin: Twin, original: Path, folder: Path) -> list[str]:
    """The recipe's file and the changes that make it tiny."""
    rows = write_rows(folder / "rows.json", twin.rows)
    scored = write_rows(folder / "scored.json", [row for row in twin.rows if all(row.values()) or "history" in row])
    held_out = "data.eval" if twin.tuning == "lora" else "evaluate.data"
    paths = (f"model.base={original}", f"data.train={rows}", f"{held_out}={scored}", f"run.folder={folder / 'run'}",
             f"data.cache={folder / 'cache'}")  # fmt: skip
    return [str(RECIPES / f"{twin.recipe}.yaml"), *COMMON, *twin.changes, *paths]


def predictions(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run/evaluation/predictions/generate.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.recipe)
def test_a_recipe_goes_from_the_original_s_files_and_back(twin: Twin, original: Path, tmp_path: Path) -> None:
    words = command(twin, original, tmp_path)
    assert main(["check", *words]) == 0
    assert main(["train", *words]) == 0
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 8

    assert main(["evaluate", *words]) == 0
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["generate"]
    assert metrics.keys() >= SCORES
    assert all(row["scores"].keys() == SCORES for row in predictions(tmp_path))

    trained = tmp_path / "run/last"
    assert is_adapter(trained) == (twin.tuning != "full")
    if twin.tuning == "ptuning":
        check_prefix_back(original, trained, tmp_path, words)
    else:
        check_glm(original, trained, tmp_path)


def check_prefix_back(original: Path, trained: Path, folder: Path, words: list[str]) -> None:
    """The prefix in the original's layout scores the same as ours, and is told from its files."""
    theirs = folder / "checkpoint-8"
    assert main(["convert", str(trained), str(theirs), "--base", str(original), "--to", "original"]) == 0
    assert list(open_weights(theirs)) == ["transformer.prefix_encoder.embedding.weight"]
    ours = [row["answer"] for row in predictions(folder)]
    assert main(["evaluate", *words, "--weights", str(theirs)]) == 0
    assert [row["answer"] for row in predictions(folder)] == ours


def check_glm(original: Path, trained: Path, folder: Path) -> None:
    """The folder for transformers holds the same model as the trained one."""
    merged, glm = folder / "merged", folder / "glm"
    if is_adapter(trained):
        assert main(["convert", str(original), str(glm), "--merge", str(trained), "--to", "huggingface"]) == 0
        assert main(["convert", str(original), str(merged), "--merge", str(trained)]) == 0
    else:
        assert main(["convert", str(trained), str(glm), "--to", "huggingface"]) == 0
        merged = trained
    tokens = torch.arange(20)[None] + 3
    with torch.no_grad():
        expected = logits_of(merged, tokens)
        assert logits_of(glm, tokens).equal(expected)
        assert not logits_of(original, tokens).allclose(expected, atol=1e-3)
        try:
            from transformers import GlmForCausalLM
        except ImportError:
            return  # the layout itself is checked by the golden case chatglm2_to_glm
        theirs = GlmForCausalLM.from_pretrained(glm, attn_implementation="sdpa")
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-6)


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.device("meta"):
        model = family.model()(read_config(folder, family))
    load_into(model, folder, family, dtype=torch.float32)
    return model.eval()(tokens=tokens)


def test_a_whole_checkpoint_takes_the_place_of_the_base(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = command(TWINS[1], original, tmp_path)
    assert main(["evaluate", *words, "--weights", str(original)]) == 0
    assert main(["evaluate", *words, "--weights", str(tmp_path / "nowhere")]) == 2
    assert "nowhere; expected best, last, base or a path" in capsys.readouterr().err


def test_dialogues_are_answered_from_and_to_files(original: Path, tmp_path: Path) -> None:
    questions = [{name: row[name] for name in ("prompt", "history")} for row in CHAT]
    rows, out = write_rows(tmp_path / "in.jsonl", questions), tmp_path / "out.jsonl"
    words = ["--base", str(original), "--input", str(rows), "--output", str(out)]
    assert main(["generate", *words, "generate.max_new_tokens=4", "run.threads=1"]) == 0
    answered = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [{**row, "response": "x"} for row in answered] == [{**row, "response": "x"} for row in questions]
    assert all("response" in row for row in answered)


def test_a_chat_remembers_until_it_is_told_to_forget(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def ask(samples: Any, question: str, history: Any) -> dict[str, Any]:
        asked.append((question, len(history)))
        return {"prompt": question, "history": [list(pair) for pair in history]}

    monkeypatch.setattr("hanlin.models.chatglm2.processor.ChatGlm2Processor.ask", ask)
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n\n世界\nclear\n黑色\nstop\n你好\n"))
    words = ["generate.method=greedy", "generate.max_new_tokens=5", "run.threads=1"]
    assert main(["chat", "--base", str(original), *words]) == 0
    last = dict(asked)  # what fits is tried from the newest round on
    assert last == {"你好": 0, "世界": 1, "黑色": 0}
    assert capsys.readouterr().out.count("\n") >= 3


def test_a_long_chat_loses_its_oldest_rounds(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines = ["你好" * 20] * 5
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    words = ["generate.method=greedy", "generate.max_new_tokens=40", "run.threads=1"]
    assert main(["chat", "--base", str(original), *words]) == 0


def test_a_question_that_cannot_be_answered_does_not_end_a_chat(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines = ["你好" * 2000, "你".encode()[:2], b"\xc4\xe3\xba\xc3", "a\0b", "世界"]
    typed = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    words = ["generate.method=greedy", "generate.max_new_tokens=3", "run.threads=1"]
    assert main(["chat", "--base", str(original), *words]) == 0
    streams = capsys.readouterr()
    complaints = [line for line in streams.err.splitlines() if line.startswith("hanlin:")]
    says = ("shorten", "0xe4 at column 1", "0xc4 at column 1", "NUL")
    assert len(complaints) == len(says)
    assert all(part in line for part, line in zip(says, complaints, strict=True)), complaints
    assert streams.out.count("\n") >= 1


def test_a_record_on_the_command_line_that_is_no_utf8_is_said(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = '{"prompt": "你好"}'.encode()[:13].decode(errors="surrogateescape") + '"}'
    assert main(["generate", "--base", str(original), "--record", record, "run.threads=1"]) == 2
    assert "--record:1: not UTF-8: byte 0xe4" in capsys.readouterr().err


def test_a_family_without_dialogues_cannot_be_talked_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    case = Path(__file__).parents[1] / "golden/cases/bee_generate"
    monkeypatch.setattr("sys.stdin", io.StringIO("你好"))
    assert main(["chat", "--base", str(case), "--vocab", str(case / "vocab.txt")]) == 2
    assert "cannot be talked with" in capsys.readouterr().err


CLASSIFY = Twin("chatglm2_classify_lora", SENTIMENT, ("data.max_length=64", "data.options.prompt_length=64",
                "train.epochs=null", "train.warmup_steps=2", "train.eval_every=8", "train.lr=2e-2"))  # fmt: skip


@pytest.mark.parametrize("tuning", ["lora", "full", "prefix"])
def test_a_classifier_goes_from_a_language_model_to_the_original_s_files(
    tuning: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its labels, scores and answers are the same as an adapter or a base, in our layout and in the original's."""
    words = [*command(CLASSIFY, original, tmp_path), *CLASSIFIED[tuning]]
    assert main(["check", *words]) == 0
    assert main(["evaluate", *words, "--weights", "base"]) == 2
    assert "a language model and has no head for them" in capsys.readouterr().err
    assert main(["train", *words]) == 0
    assert "head for labels: drawn fresh" in (tmp_path / "run/log.txt").read_text()
    assert main(["evaluate", *words]) == 0
    assert json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["classify"]["accuracy"] == 1
    ours = classified(tmp_path)
    assert [row["gold"] for row in ours] == [row["label"] for row in SENTIMENT]
    assert all(sum(row["scores"].values()) == pytest.approx(1) for row in ours)

    trained, theirs = tmp_path / "run/best", tmp_path / "theirs"
    if tuning == "lora":
        assert main(["convert", str(original), str(theirs), "--merge", str(trained), "--to", "original"]) == 0
    else:
        base = ["--base", str(original)] if tuning == "prefix" else []
        assert main(["convert", str(trained), str(theirs), *base, "--to", "original"]) == 0
    assert {"classifier_head.weight", "classifier_head.bias"} < set(open_weights(theirs))
    assert main(["evaluate", *words, "--weights", str(theirs)]) == 0
    for row, before in zip(classified(tmp_path), ours, strict=True):
        assert row["scores"] == pytest.approx(before["scores"], abs=1e-5)

    # Without the recipe the labels come out of the files; this is the way of batches that are padded on the left.
    rows = write_rows(tmp_path / "in.jsonl", [{"text": row["text"]} for row in SENTIMENT])
    model = ["--base", str(theirs if tuning != "prefix" else original), "--vocab", str(original)]
    model += ["--adapter", str(theirs)] if tuning == "prefix" else []
    options = ["data.options={prompt_column: text, response_column: label, template: plain, prompt_length: 64}"]
    out = tmp_path / "out.jsonl"
    assert main(["generate", *model, "--input", str(rows), "--output", str(out), *options, "run.threads=1"]) == 0
    answered = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["label"] for row in answered] == [row["answer"] for row in ours]


CLASSIFIED = {
    "lora": (),
    "full": ("tuning={method: full}", "train.lr=1e-2"),
    "prefix": (
        "tuning={method: prefix, length: 4}",
        "train.steps=40",
        "train.save_every=40",
        "train.eval_every=40",
    ),
}


def classified(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run/evaluation/predictions/classify.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["number", "several"])
def test_numbers_and_several_labels_are_learnt_and_scored(kind: str, original: Path, tmp_path: Path) -> None:
    labels = {"number": ([0.5, -1], [2, 1.5], [-1, 0]), "several": (["x"], ["y", "x"], [])}[kind]
    rows = [{"text": text, "label": label} for text, label in zip(("黑色", "你好世界", "九分裤"), labels, strict=True)]
    twin = replace(CLASSIFY, rows=rows, changes=(*CLASSIFY.changes, "model.config.labels=[x, y]",
                   "model.config.label_dropout=0", f"model.config.label_kind={kind}", "train.steps=150",
                   "train.save_every=150", "train.eval_every=150", "tuning.dropout=0"))  # fmt: skip
    words = command(twin, original, tmp_path)
    scored = write_rows(tmp_path / "scored.json", rows)
    assert main(["train", *words, f"data.eval={scored}"]) == 0
    assert main(["evaluate", *words, f"data.eval={scored}", "evaluate.tasks=[classify, loss]"]) == 0
    metrics, found = json.loads((tmp_path / "run/evaluation/metrics.json").read_text()), classified(tmp_path)
    if kind == "several":
        assert metrics["classify"]["accuracy"] == 1
        assert [row["answer"] for row in found] == [["x"], ["x", "y"], []]
        return
    assert metrics["classify"]["squared_error"] < 0.05
    assert metrics["classify"]["squared_error"] == pytest.approx(metrics["loss"]["loss"], rel=1e-5)
    errors = [[(row["answer"][name] - row["gold"][name]) ** 2 for name in ("x", "y")] for row in found]
    assert [row["squared_error"] for row in found] == pytest.approx([sum(pair) / 2 for pair in errors])
