"""Questions on their way to probabilities, with tiny models of all families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decision_cases import FAMILIES, LABELS, PREDICATE, QUESTIONS, TEXT, asked, engine_of_family, label_engine, poll

from hanlin.core.errors import DataError
from hanlin.data.forms.content import MultipleChoice
from hanlin.evaluation.decisions import reading_once
from hanlin.evaluation.decisions.answers import answer_of, probabilities_of
from hanlin.evaluation.decisions.asking import poll_of_record, spoken_options
from hanlin.evaluation.decisions.scoring import OptionScores, score_polls, scored_in_steps
from hanlin.evaluation.run import evaluate
from hanlin.evaluation.tasks.likelihood import predict
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.cpm1.tasks import TASKS

OPTIONS = GreedySettings(max_new_tokens=4, batch_size=3)


def decided(engine: Engine, questions: list[dict[str, Any]], text: str = TEXT) -> list[dict[str, Any]]:
    polls = [poll(engine, question, text) for question in asked(questions)]
    scored = score_polls(engine, polls, 3)
    return [answer_of(one, probabilities_of(own)) for one, own in zip(asked(questions), scored, strict=True)]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "predictions/classify.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def as_records(engine: Engine) -> list[Any]:
    """The questions with their first option as the gold answer, as `hanlin evaluate` takes them."""
    processor: Any = engine.processor
    described = "明月\n霜：地上"
    records = [
        processor.choice_record(MultipleChoice(described, TEXT, spoken_options(asked(QUESTIONS)[0]))),
        processor.choice_record(MultipleChoice("望", TEXT, spoken_options(asked(QUESTIONS)[1]))),
    ]
    return [processor.candidates(record)[0] for record in records]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_task_likelihood(family: str) -> None:
    engine = engine_of_family(family)
    rows = dict(predict(engine, enumerate(as_records(engine)), OPTIONS, 0))
    scored = score_polls(engine, [poll(engine, question) for question in asked(QUESTIONS)], OPTIONS.batch_size)
    for number, scores in enumerate(scored):
        assert list(scores.scores) == list(rows[number]["scores"].values())
        best = int(np.argmax(probabilities_of(scores)))
        assert rows[number]["answer"] == list(rows[number]["scores"])[best]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_does_not_depend_on_those_beside_it(family: str) -> None:
    engine = engine_of_family(family)
    together = decided(engine, QUESTIONS * 3)
    alone = [decided(engine, [question])[0] for question in QUESTIONS]
    for number, answer in enumerate(together):
        found = [one["probability"] for one in answer["probabilities"]]
        assert found == pytest.approx([one["probability"] for one in alone[number % 2]["probabilities"]], abs=1e-12)
        assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "cpm_bee"])
def test_the_order_of_options_does_not_matter_where_they_are_not_listed(family: str) -> None:
    engine = engine_of_family(family)
    choice = {**QUESTIONS[0], "choices": [{"value": one} for one in ("霜", "明月光", "明")]}
    turned = {**choice, "choices": choice["choices"][::-1]}
    first, second = decided(engine, [choice, turned])
    assert first["choice"] == second["choice"]
    chances = [one["probability"] for one in first["probabilities"]]
    assert chances == pytest.approx([one["probability"] for one in second["probabilities"]][::-1], abs=1e-12)


def test_options_of_one_length_get_the_probabilities_of_the_model_itself() -> None:
    """Those of "<option_0>", ... renormalised: what the first token of the answer says, since all end alike."""
    scores = OptionScores((-0.5, -1.0, -2.0), tokens=2.0)
    likelihoods = np.exp([-1.0, -2.0, -4.0])
    assert probabilities_of(scores) == pytest.approx(list(likelihoods / likelihoods.sum()))


def test_labels_are_scored_as_the_task_classify_scores_them(tmp_path: Path) -> None:
    engine = label_engine()
    record = {"prompt": TEXT, "response": "坏"}
    evaluate(engine, [record], ["classify"], OPTIONS, tmp_path)
    [score] = score_polls(engine, [poll_of_record(engine.processor, {"prompt": TEXT}, None)], 2)
    [row] = read_rows(tmp_path)
    assert probabilities_of(score) == pytest.approx(list(row["scores"].values()), rel=1e-6)
    choice = {"type": "choice", "instructions": "", "choices": [{"value": name} for name in LABELS]}
    predicates = [{"type": "predicate", "instructions": name} for name in LABELS]
    chosen, *said = decided(engine, [choice, *predicates])
    assert [one["probability"] for one in chosen["probabilities"]] == pytest.approx(probabilities_of(score))
    assert [one["probability"] for one in said] == pytest.approx(probabilities_of(score))
    some = decided(engine, [{**choice, "choices": [{"value": "月"}, {"value": "好"}]}])[0]
    ratio = row["scores"]["月"] / (row["scores"]["月"] + row["scores"]["好"])
    assert some["probabilities"][0]["probability"] == pytest.approx(ratio, rel=1e-6)


def test_of_several_labels_each_is_a_predicate_of_its_own(tmp_path: Path) -> None:
    engine = label_engine("several")
    evaluate(engine, [{"prompt": TEXT, "response": ["坏"]}], ["classify"], OPTIONS, tmp_path)
    [row] = read_rows(tmp_path)
    said = decided(engine, [{"type": "predicate", "instructions": name} for name in LABELS])
    assert [one["probability"] for one in said] == pytest.approx(list(row["scores"].values()), rel=1e-6)
    with pytest.raises(DataError, match="ask a predicate for each"):
        poll_of_record(engine.processor, {"prompt": TEXT}, None)


@pytest.mark.parametrize(
    ("engine", "question", "message"),
    [
        (label_engine, {**QUESTIONS[0], "instructions": "?"}, "descriptions out"),
        (label_engine, {**QUESTIONS[1], "levels": [{"label": "好"}, {"label": "坏"}]}, "follows no instructions"),
        (label_engine, PREDICATE, "none of the model's labels 好, 坏, 月"),
        (lambda: label_engine("several"), {**QUESTIONS[1], "instructions": ""}, "a predicate for each"),
        (lambda: label_engine("number"), PREDICATE, "quantities"),
        (lambda: engine_of_family("cpm2"), PREDICATE, "'是' and '否' are the same tokens"),
        (
            lambda: engine_of_family("cpm1"),
            {"type": "choice", "instructions": "月", "choices": [{"value": "是"}, {"value": True}]},
            "two options read '是'",
        ),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused(engine: Any, question: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        poll(engine(), asked([question])[0])


def test_nothing_at_all_is_no_question() -> None:
    empty = {**QUESTIONS[1], "instructions": ""}
    with pytest.raises(DataError, match="nothing is asked"):
        poll(engine_of_family("cpm1"), asked([empty])[0], text=" ")


def test_instructions_with_a_place_for_the_option_are_zero_shot(tmp_path: Path) -> None:
    """The record is the one that the zero-shot tasks of CPM-1 make of their raw files."""
    (tmp_path / "labels.json").write_text(
        '{"label": "1", "label_desc": "明月"}\n{"label": "2", "label_desc": "故乡"}\n'
    )
    (tmp_path / "test.json").write_text('{"label": "1", "label_desc": "明月", "sentence": "床前明月光"}\n')
    [(_, [record])] = list(TASKS["tnews-all"](tmp_path / "test.json"))
    engine = engine_of_family("cpm1")
    processor: Any = engine.processor
    made = processor.choice_record(MultipleChoice("这是关于{}的文章：", TEXT, ("明月", "故乡")))
    assert {**made, "label": "明月"} == record


def test_true_and_false_are_said_in_the_language_of_the_instructions() -> None:
    chinese, english, mixed = asked(
        [
            {"type": "predicate", "instructions": "客户生气了"},
            {"type": "predicate", "instructions": "The customer is angry"},
            {
                "type": "choice",
                "instructions": "Angry?",
                "choices": [{"value": False}, {"value": True}, {"value": "?"}],
            },
        ]
    )
    assert spoken_options(chinese) == ("是", "否")
    assert spoken_options(english) == ("yes", "no")
    assert spoken_options(mixed) == ("no", "yes", "?")


def test_every_step_runs_one_batch() -> None:
    engine = engine_of_family("cpm1")
    polls = [poll(engine, question) for question in asked(QUESTIONS)]
    *before, last = scored_in_steps(engine, polls, 2)
    assert before == [[], []]  # of five samples two are read at a time
    assert [len(one.scores) for one in last] == [3, 2]


@pytest.mark.parametrize("family", ["cpm1", "cpm2", "cpm_bee"])
def test_a_step_has_a_bound_in_positions(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sizes = engine_of_family(family), []
    polls = [poll(engine, question) for question in asked(QUESTIONS)]
    collate = engine.processor.collate
    monkeypatch.setattr(
        engine.processor, "collate", lambda rows, length: sizes.append((len(rows), length)) or collate(rows, length)
    )
    expected, longest = score_polls(engine, polls, 9), max(length for _, length in sizes)
    for most in (1, 2 * longest):
        sizes.clear()
        *_, last = scored_in_steps(engine, polls, 9, most)
        assert all(rows == 1 or rows * length <= most for rows, length in sizes)
        for one, other in zip(last, expected, strict=True):
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["chatglm2", "cpm1"])
def test_what_options_begin_with_is_read_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is long enough; the scores stay what they are."""
    engine, sizes = engine_of_family(family), []
    polls = [poll(engine, question) for question in asked(QUESTIONS)]
    expected = score_polls(engine, polls, 2)
    hook = engine.model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(given["tokens"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(reading_once, "_WORTH", 1)
    for most in (None, 4):
        sizes.clear()
        *before, last = scored_in_steps(engine, polls, 2, most)
        assert not any(before)
        assert len(before) + 1 == len(sizes)
        assert sum(sizes) < sum(one.num_tokens for one in polls)
        assert most is None or sizes[0] == most
        for one, other in zip(last, expected, strict=True):
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    hook.remove()


@pytest.mark.parametrize("family", ["cpm2", "cpm1_t5"])
def test_what_an_encoder_reads_is_read_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rows = engine_of_family(family), []
    polls = [poll(engine, question) for question in asked(QUESTIONS)]
    expected = score_polls(engine, polls, 2)
    hook = engine.model.register_forward_pre_hook(
        lambda _, args, given: rows.append((len(given["encoder_tokens"]), len(given["tokens"]))), with_kwargs=True
    )
    monkeypatch.setattr(reading_once, "_WORTH", 1)
    for size in (3, 2):
        rows.clear()
        for one, other in zip(score_polls(engine, polls, size), expected, strict=True):
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-6)
        assert {encoded for encoded, _ in rows} == {1}
        assert sum(decoded for _, decoded in rows) == sum(len(one.samples) for one in polls)
        assert max(decoded for _, decoded in rows) == size
    hook.remove()


def test_the_answer_of_a_row_with_options_is_one_of_them() -> None:
    processor = engine_of_family("chatglm2").processor
    row = {"prompt": TEXT, "response": "霜", "options": ["霜", "光"]}
    processor.check(row)
    with pytest.raises(DataError, match="'雪' is none of the options 霜, 光; where \"options\" is something else"):
        processor.check({**row, "response": "雪"})
