"""`hanlin.load` and what a model does: as the commands, and as often and from as many threads as a program likes."""

from __future__ import annotations

import copy
import inspect
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from api_cases import BEE, ROWS
from family_cases import case_of

import hanlin
from hanlin.api.conversion import ConvertSettings
from hanlin.api.decisions import identity_of_weights
from hanlin.api.generation import chatting, check_length
from hanlin.cli._answers import identity_of


def test_a_run_a_recipe_and_weights_with_an_adapter_are_the_same_model(bee: dict[str, Any]) -> None:
    run = Path(bee["run"]["folder"])
    of_run, of_recipe = hanlin.load(run), hanlin.load(bee)
    of_weights = hanlin.load(
        str(BEE), {"generate": bee["generate"]}, adapter=run / "best", vocab=BEE / "vocab.txt", family="cpm_bee"
    )
    untuned = hanlin.load(bee, weights="base")
    assert of_run.generate(ROWS) == of_recipe.generate(ROWS) == of_weights.generate(ROWS) == ROWS
    assert untuned.generate(ROWS) != ROWS
    assert (of_run.family, of_run.device.type, of_run.tokenizer.vocab_size > 0) == ("cpm_bee", "cpu", True)
    assert repr(of_run) == f"<hanlin.Model cpm_bee, {run / 'best'}, fp32 on cpu>"


def test_one_gives_one_and_several_give_several(bee: dict[str, Any]) -> None:
    model, asked = hanlin.load(bee), copy.deepcopy(ROWS)
    assert model.generate("北京") == "ab"
    assert model.generate(["北京", "北京"]) == ["ab", "ab"]
    assert model.generate({"input": "北京", "<ans>": ""}) == ROWS[1]
    assert model.generate(row for row in asked) == ROWS
    assert "".join(model.generate("北京", stream=True)) == "ab"
    assert asked == ROWS


def test_settings_of_generation_have_their_names_in_a_recipe(bee: dict[str, Any]) -> None:
    model = hanlin.load(bee)
    assert model.generate("北京", max_new_tokens=1) == "a"
    assert model.generate("北京", method="beam", beams=2) == "ab"
    drawn = [model.generate("今天", method="sample", temperature=5.0, top_p=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(hanlin.ConfigError, match=r"generate\.top_pp: there is no such setting; did you mean"):
        model.generate("北京", top_pp=0.5)
    with pytest.raises(hanlin.ConfigError, match=r"generate\.top_p: is a setting of method sample, not of greedy"):
        model.generate("北京", top_p=0.5)
    with pytest.raises(hanlin.HanlinError, match=r"choose generate\.method=greedy or sample"):
        model.generate("北京", stream=True, method="beam", beams=2)
    with pytest.raises(hanlin.DataError, match="one text or record at a time"):
        model.generate(["北京"], stream=True)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_record_that_cannot_be_asked_is_named(bee: dict[str, Any]) -> None:
    with pytest.raises(hanlin.DataError, match="record 2: "):
        hanlin.load(bee).generate([ROWS[0], {"没有": "答案"}])


def test_a_score_is_the_log_likelihood_of_the_answer(bee: dict[str, Any]) -> None:
    model = hanlin.load(bee)
    loss = hanlin.evaluate(bee, {"evaluate.limit": 2}, quiet=True)["loss"]
    scores = model.score(ROWS, batch_size=1)
    assert sum(one.tokens for one in scores) == loss["tokens"]
    assert -sum(one.log_likelihood for one in scores) == pytest.approx(loss["loss"] * loss["tokens"], rel=1e-5)
    assert model.score(ROWS[0]).perplexity == pytest.approx(scores[0].perplexity)
    assert model.score(ROWS[0]).per_token > model.score({**ROWS[0], "<ans>": "坏"}).per_token
    with pytest.raises(hanlin.DataError, match="record 1: "):
        model.score([{"input": "北京"}])


@pytest.mark.parametrize("family", ["cpm1", "chatglm2"])
def test_a_text_is_scored_token_by_token(family: str, tmp_path: Path) -> None:
    case = case_of(family, tmp_path)
    values = {key: getattr(case.config, key) for key in ("hidden_size", "num_layers", "num_heads", "head_dim")}
    values |= {"ffn_size": case.config.ffn_size, "max_length": 64}
    if family == "chatglm2":
        values["num_kv_heads"] = case.config.num_kv_heads
    model = hanlin.load(
        {"model": {"family": family, "config": values, "vocab": case.vocab}, "run": {"folder": tmp_path / "run"}},
        weights="base",
    )
    text = case.texts[0]
    before = list(model.tokenizer.prefix) if family == "chatglm2" else [model.tokenizer.find("<eod>")]  # pyright: ignore[reportAttributeAccessIssue]
    ids = model.tokenizer.encode(text)
    with torch.no_grad():
        logits = model.network(tokens=torch.tensor([before + ids]))[0].log_softmax(-1)
    wanted = sum(logits[len(before) + place - 1, id].item() for place, id in enumerate(ids))
    score = model.score([text, text])[1]
    assert score.tokens == len(ids)
    assert score.log_likelihood == pytest.approx(wanted, rel=1e-5)


def test_what_scores_no_bare_text_says_so(tmp_path: Path) -> None:
    case = case_of("cpm1_t5", tmp_path)
    config = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "ffn_size": 24, "max_length": 64}
    recipe = {"model": {"family": "cpm1_t5", "config": config, "vocab": case.vocab}, "run": {"folder": "nowhere"}}
    model = hanlin.load(recipe, weights="base")
    assert isinstance(model.generate("床前明月光", max_new_tokens=3), str)
    with pytest.raises(hanlin.ConfigError, match="score records with an answer, not bare texts"):
        model.score("床前明月光")
    with pytest.raises(hanlin.ConfigError, match="cannot be talked with"):
        model.chat("你好")


# --- dialogues ---

DIALOGUE = [
    {"role": "user", "content": "床前"},
    {"role": "assistant", "content": "明月光"},
    {"role": "user", "content": "疑是"},
]


def test_a_dialogue_is_the_record_with_its_history(talker: hanlin.Model) -> None:
    said = talker.chat(DIALOGUE, method="greedy", max_new_tokens=12)
    record = {"prompt": "疑是", "history": [["床前", "明月光"]]}
    assert said == talker.generate(record, method="greedy")["response"]
    assert said != talker.chat("疑是", method="greedy", max_new_tokens=12)
    assert "".join(talker.chat(DIALOGUE, stream=True, method="greedy", max_new_tokens=12)) == said


def test_what_was_read_before_changes_no_answer(talker: hanlin.Model) -> None:
    wanted = talker.chat(DIALOGUE, seed=3)
    pieces = talker.chat([*DIALOGUE, {"role": "assistant", "content": "x"}, *DIALOGUE[:1]], stream=True)
    next(pieces)
    pieces.close()  # not read to its end
    assert talker.chat(DIALOGUE, seed=3) == wanted
    assert talker.chat("别的", seed=3) != wanted
    assert talker.chat(DIALOGUE, seed=3) == wanted


def test_oldest_rounds_leave_where_they_leave_no_room(talker: hanlin.Model) -> None:
    long = [turn for _ in range(12) for turn in DIALOGUE[:2]]
    assert talker.chat([*long, *DIALOGUE], method="greedy", max_new_tokens=100) is not None
    shared = [{"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]} for one in long]
    asked = [*shared, {"from": "human", "value": "疑是"}]
    wanted = talker.chat([*long, DIALOGUE[-1]], method="greedy", max_new_tokens=100)
    assert talker.chat(asked, method="greedy", max_new_tokens=100) == wanted
    with pytest.raises(hanlin.DataError, match=r"lower generate\.max_new_tokens"):
        talker.chat(DIALOGUE, max_new_tokens=256)


def test_only_a_lack_of_room_shortens_a_dialogue(talker: hanlin.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Any] = []

    def refuse(record: Any) -> Any:
        tries.append(record)
        raise hanlin.DataError("no")

    monkeypatch.setattr(talker._engine.processor, "prompt", refuse)
    with pytest.raises(hanlin.DataError, match="no"):
        talker.chat([*DIALOGUE[:2] * 9, DIALOGUE[-1]])
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "the dialogue has no question"),
        (DIALOGUE[:2], "the last one is the assistant's"),
        ([{"role": "martian", "content": "你好"}], "unknown role 'martian'"),
        ([*DIALOGUE[:2], {"role": "user", "content": None}], "message 3, by the user"),
        ([*DIALOGUE, {"role": "user", "content": "又"}], "message 4, by the user: two user turns in a row"),
        (["你好"], "found the text .你好. .turn 1"),
        ([{"role": "system", "content": "x"}, *DIALOGUE], "has no place in this template"),
    ],
)
def test_messages_that_cannot_be_answered_are_named(talker: hanlin.Model, messages: Any, told: str) -> None:
    with pytest.raises(hanlin.DataError, match=told):
        talker.chat(messages)


def test_rows_of_other_forms_are_asked_and_scored(talker: hanlin.Model, bee: dict[str, Any]) -> None:
    row = {"messages": DIALOGUE}
    answered = talker.generate(row, method="greedy")
    said = talker.chat(DIALOGUE, method="greedy", max_new_tokens=12)
    assert answered == {"messages": [*DIALOGUE, {"role": "assistant", "content": said}]}
    assert talker.score({"messages": DIALOGUE[:2]}) == talker.score({"prompt": "床前", "response": "明月光"})
    of_bee = hanlin.load(bee).generate({"instruction": "北京"})
    assert of_bee == {"instruction": "北京", "output": "ab"}


def test_options_of_convert_are_its_settings() -> None:
    found = set(inspect.signature(hanlin.convert).parameters)
    assert found == {"source", "target", "tuning", *ConvertSettings.__dataclass_fields__}


def test_who_remembers_nothing_takes_one_question(tmp_path: Path) -> None:
    case = case_of("cpm1", tmp_path)
    config = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_size": 64, "max_length": 64}
    recipe = {"model": {"family": "cpm1", "config": config, "vocab": case.vocab}, "run": {"folder": "nowhere"}}
    model = hanlin.load(recipe, weights="base")
    assert model.chat("床前", max_new_tokens=3, method="greedy") == model.generate(
        "床前", max_new_tokens=3, method="greedy"
    )
    for question in ("床前", "床" * 40):  # the length of whose answer nobody states
        room = min(32, 64 - model._engine.processor.prompt(model._engine.processor.ask(question, [])).length)
        assert model.chat(question, method="greedy") == model.generate(question, max_new_tokens=room, method="greedy")
    with pytest.raises(hanlin.DataError, match="64"):
        model.chat("床前", max_new_tokens=64)
    with pytest.raises(hanlin.ConfigError, match="reads at most 64 tokens"):
        check_length(chatting(model.recipe.generate.model_copy(update={"max_new_tokens": 64}), []), 64)
    with pytest.raises(hanlin.ConfigError, match="remember nothing of earlier messages"):
        model.chat(DIALOGUE)


# --- threads ---


def test_threads_and_models_do_not_disturb_each_other(bee: dict[str, Any], talker: hanlin.Model) -> None:
    model = hanlin.load(bee)
    alone = [talker.chat(DIALOGUE, seed=1), talker.chat("床前", seed=2)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        said = [threads.submit(talker.chat, *asked) for asked in ((DIALOGUE,), ("床前",)) for _ in range(1)]
        talked = [threads.submit(lambda n=n: talker.chat((DIALOGUE, "床前")[n], seed=n + 1)) for n in (0, 1, 0, 1)]
        answered = [threads.submit(model.generate, ROWS) for _ in range(3)]
        loaded = threads.submit(lambda: hanlin.load(bee).generate(ROWS))
        assert [one.result() for one in talked] == alone * 2
        assert all(one.result() == ROWS for one in [*answered, loaded])
        assert all(isinstance(one.result(), str) for one in said)
    assert torch.equal(torch.get_rng_state(), before)


# --- files ---


def test_a_saved_model_stands_alone(bee: dict[str, Any], tmp_path: Path) -> None:
    model, target = hanlin.load(bee), tmp_path / "saved"
    written = model.save(target)
    assert written.num_bytes == sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    again = hanlin.load(target, {"generate": bee["generate"]})
    assert again.generate(ROWS) == ROWS
    with pytest.raises(hanlin.CheckpointError, match="saved"):
        model.save(target)
    with torch.no_grad():
        for weight in again.network.parameters():
            weight.mul_(0)  # in memory, where it is saved from
    again.save(target, overwrite=True)
    assert all(weight.abs().sum() == 0 for weight in hanlin.load(target).network.parameters())


def test_weights_are_converted_as_by_the_command(bee: dict[str, Any], tmp_path: Path) -> None:
    best = Path(bee["run"]["folder"]) / "best"
    hanlin.convert(BEE, tmp_path / "merged", family="cpm_bee", vocab=BEE / "vocab.txt", merge=best)
    assert hanlin.load(tmp_path / "merged", {"generate": bee["generate"]}).generate(ROWS) == ROWS
    with pytest.raises(hanlin.ConfigError, match="there is no"):
        hanlin.convert(tmp_path / "nowhere", tmp_path / "out")


def test_what_cannot_be_loaded_is_told(bee: dict[str, Any], tmp_path: Path) -> None:
    best = Path(bee["run"]["folder"]) / "best"
    for asked, told in (
        (lambda: hanlin.load(best), "is an adapter; load its run folder, or the base"),
        (lambda: hanlin.load(BEE, weights="best"), "only of a recipe or a run folder"),
        (lambda: hanlin.load(bee, family="cpm1"), "only for weights"),
        (lambda: hanlin.load(bee, adapter=best, weights="last"), "give weights or adapter, not both"),
        (lambda: hanlin.load(bee, device="cuda:99"), "run.device"),
        (lambda: hanlin.load(bee, {"train.lrr": 1}), "overrides: train.lrr: there is no such setting"),
        (lambda: hanlin.load({**bee, "run": {"folder": tmp_path}}, weights="best"), "train first"),
    ):
        with pytest.raises(hanlin.HanlinError, match=told):
            asked()


PREDICATE = {"type": "predicate", "instructions": "好"}
MISUSES: dict[str, tuple[Callable[[hanlin.Model], Any], str]] = {
    "a number to answer": (lambda model: model.generate(5), "expected a text, a row (a dict), or several"),  # pyright: ignore
    "nothing to answer": (lambda model: model.generate(None), "expected a text, a row (a dict), or several"),  # pyright: ignore
    "bytes to score": (lambda model: model.score(b"ab"), "expected a text, a row (a dict), or several"),  # pyright: ignore
    "a text without a question": (lambda model: model.decide("好"), "questions: a text asks nothing by itself"),
    "texts without a question": (lambda model: model.decide(["好"]), "questions: a text asks nothing by itself"),
    "a number to decide": (lambda model: model.decide(5, PREDICATE), "expected a text, a row"),  # pyright: ignore
    "a number to calibrate by": (lambda model: model.calibrate(5), "expected a text, a row"),  # pyright: ignore
    "a seed that is none": (lambda model: model.generate("好", seed=-1), "seed: expected a whole number, 0 or above"),
    "no batch": (lambda model: model.score("好", batch_size=0), "batch_size: expected a whole number above 0"),
    "a number to save to": (lambda model: model.save(5), "folder: expected the path of a file or folder"),  # pyright: ignore
    "a number to load": (lambda _: hanlin.load(5), "expected a folder, a recipe (a file, a dict or settings), found 5"),  # pyright: ignore
    "a number to train by": (lambda _: hanlin.train(5), "expected a folder, a recipe (a file, a dict"),  # pyright: ignore
    "numbers to convert": (lambda _: hanlin.convert(5, 6), "source: expected the path of a file or folder"),  # pyright: ignore
    "an unknown layout": (lambda model: model.save("copy", to="nosuch"), "known layouts: base, original"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_what_no_call_takes_is_told(name: str, talker: hanlin.Model) -> None:
    call, told = MISUSES[name]
    with pytest.raises(hanlin.HanlinError, match=re.escape(told)):
        call(talker)


def test_notes_beside_an_adapter_are_no_part_of_it(bee: dict[str, Any], tmp_path: Path) -> None:
    """What is answered with it may be gone on with after it was calibrated."""
    adapter = tmp_path / "adapter"
    shutil.copytree(Path(bee["run"]["folder"]) / "best", adapter)
    components = hanlin.load(bee, weights="base", adapter=adapter)._components
    before = identity_of(components, "rows"), identity_of_weights(components)
    for name in ("calibration.json", "calibration.png", "README.md", "README.zh-CN.md", ".note"):
        (adapter / name).write_text("{}", "utf-8")
    assert (identity_of(components, "rows"), identity_of_weights(components)) == before
    (adapter / "adapter.json").write_text("{}", "utf-8")
    assert identity_of(components, "rows") != before[0]
    assert identity_of_weights(components) != before[1]
