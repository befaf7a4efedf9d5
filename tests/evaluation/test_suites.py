"""Suites are read from tiny files in their authors' own forms, asked as they write it, and summed up as they do."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decision_cases import engine_of_family
from suite_files import FEWCLUE, write_ceval, write_clue, write_cmmlu, write_mmlu

from hanlin.core.errors import ConfigError, DataError, HanlinError
from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.evaluation.continuations import score_continuations
from hanlin.evaluation.suites.prompts import prompt_of
from hanlin.evaluation.suites.questions import Subject, SuiteQuestion
from hanlin.evaluation.suites.run import SUITES, AskedHow, _asked, read_suite, run_suite
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings

ZERO = AskedHow(0, "text", 4)


def test_the_suites_have_their_subjects() -> None:
    counts = {name: len(suite.subjects) for name, suite in SUITES.items()}
    assert counts == {"ceval": 52, "cmmlu": 67, "mmlu": 57, "fewclue": 9, "clue": 6}
    groups = [group for one in SUITES["cmmlu"].subjects.values() for group in one["groups"]]  # type: ignore[attr-defined]
    assert {one: groups.count(one) for one in groups} == {
        "STEM": 17, "Humanities": 13, "Social Science": 22, "Other": 15, "China specific": 15
    }  # fmt: skip
    groups = [group for one in SUITES["ceval"].subjects.values() for group in one["groups"]]  # type: ignore[attr-defined]
    assert {one: groups.count(one) for one in groups} == {
        "STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11, "Hard": 8
    }  # fmt: skip


def test_ceval_is_asked_as_its_authors_write_it(tmp_path: Path) -> None:
    [subject] = read_suite("ceval", write_ceval(tmp_path, "law"), None, ["law"], None)
    [first, *_] = subject.questions
    options = "\nA. 光\nB. 霜\nC. 月\nD. 地\n答案："
    head = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
    assert prompt_of(subject, first, 0, "text", continues=True) == f"{head}举头0{options}"
    shown = f"床前明月{options}A\n\n床前明月{options}B\n\n"
    assert prompt_of(subject, first, 2, "text", continues=True) == f"{head}{shown}举头0{options}"
    asked = prompt_of(subject, first, 1, "chat", continues=True)
    assert isinstance(asked, Conversation)
    assert [one.text for one in asked.messages] == [f"{head}床前明月{options}", "A", f"举头0{options}"]
    assert (first.id, first.gold, list(first.options)) == ("0", "B", ["A", "B", "C", "D"])


def test_cmmlu_is_asked_as_its_authors_write_it(tmp_path: Path) -> None:
    [subject] = read_suite("cmmlu", write_cmmlu(tmp_path, "arts"), None, ["arts"], 1)
    assert len(subject.questions) == 1
    assert prompt_of(subject, subject.questions[0], 0, "text", continues=True) == (
        "以下是关于艺术学的单项选择题，请直接给出正确答案的选项。\n\n题目：低头0\nA. 光\nB. 霜\nC. 月\nD. 地\n答案是："
    )


def test_mmlu_is_asked_as_its_authors_write_it(tmp_path: Path) -> None:
    [subject] = read_suite("mmlu", write_mmlu(tmp_path, "college_physics"), None, ["college_physics"], 1)
    [question] = subject.questions
    head = "The following are multiple choice questions (with answers) about college physics.\n\n"
    options = "\nA. light\nB. frost\nC. moon\nD. ground\nAnswer:"
    asked = f"{head}Before my bed{options} B\n\nI raise my head, 0{options}"
    assert prompt_of(subject, question, 1, "text", continues=True) == asked
    assert (question.gold, question.options["B"]) == ("B", " B")
    rounds = prompt_of(subject, question, 1, "chat", continues=True)
    assert isinstance(rounds, Conversation)
    assert rounds.messages[1].text == "B"


def test_a_category_of_mmlu_is_the_share_of_its_questions(tmp_path: Path) -> None:
    names = {"college_physics": 1, "anatomy": 2, "astronomy": 4}
    for name, rows in names.items():
        write_mmlu(tmp_path, name, rows=rows)
    engine = engine_of_family("cpm_bee")
    subjects = read_suite("mmlu", tmp_path, None, list(names), None)
    for told in (0, 1):  # the second time with other right answers, so that the numbers of a suite differ
        subjects = [
            replace(one, questions=[replace(q, gold="ABCD"[(n + told) % 4]) for n, q in enumerate(one.questions)])
            for one in subjects
        ]
        scores = run_suite(engine, "mmlu", subjects, ZERO, tmp_path / str(told))
        right = {name: round((scores.accuracies[name] or 0) * rows) for name, rows in names.items()}
        assert scores.groups["STEM"] == (right["college_physics"] + right["astronomy"]) / 5
        assert scores.groups["Other"] == right["anatomy"] / 2


def test_fewclue_is_read_from_its_files(tmp_path: Path) -> None:
    subjects = read_suite("fewclue", write_clue(tmp_path, FEWCLUE, "test_public", "train_few_all"), None, [], None)
    first = {one.name: one.questions[0] for one in subjects}
    assert first.keys() == FEWCLUE.keys()
    assert {name: one.gold for name, one in first.items()} == {
        "eprstmt": "Positive", "csldcp": "天文学", "tnews": "news_entertainment", "iflytek": "社区超市",
        "ocnli": "entailment", "bustm": "1", "chid": "0", "csl": "0", "cluewsc": "false",
    }  # fmt: skip
    assert first["eprstmt"].text == "感觉不错这句话的情感是"
    assert first["csldcp"].options == {"大气科学": "大气科学", "天文学": "天文学"}
    assert first["tnews"].options["news_entertainment"] == "娱乐"
    assert first["csl"].text == "床前明月光与下面的关键词：月,光，"
    assert first["cluewsc"].text == "床前明月光其中月是床,这是"
    assert (first["chid"].text, first["chid"].options["1"]) == ("举头望", "故乡，低头思")
    assert first["chid"].asked == "举头望____，低头思\n横线处的成语是："
    assert first["chid"].answers == {"0": "明月", "1": "故乡", "2": "地上"}
    assert [len(one.questions) for one in subjects if one.name == "ocnli"] == [1]  # annotators of the other disagree


def test_clue_is_read_from_its_archives(tmp_path: Path) -> None:
    rows = {
        "afqmc_public": [{"sentence1": "明月", "sentence2": "月", "label": "0"}],
        "cluewsc2020_public": FEWCLUE["cluewsc"],
        "tnews": FEWCLUE["tnews"],
    }
    subjects = read_suite("clue", write_clue(tmp_path, rows, "dev"), None, ["afqmc", "wsc", "tnews"], None)
    assert [(one.name, one.questions[0].gold) for one in subjects] == [
        ("afqmc", "0"), ("wsc", "false"), ("tnews", "news_entertainment")
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["cpm1", "cpm_bee"])
def test_the_likeliest_option_is_the_answer(family: str, tmp_path: Path) -> None:
    engine = engine_of_family(family)
    subjects = read_suite("fewclue", write_clue(tmp_path, FEWCLUE, "test_public"), None, ["chid", "eprstmt"], None)
    scores = run_suite(engine, "fewclue", subjects, ZERO, tmp_path / "out")
    for subject in subjects:
        [row] = [json.loads(line) for line in (tmp_path / f"out/predictions/{subject.name}.jsonl").open("rb")]
        [question] = subject.questions
        continues = family == "cpm1"
        context = prompt_of(subject, question, 0, "text", continues=continues)
        told = question.options if continues or question.answers is None else question.answers
        found = dict(score_continuations(engine, [(context, text) for text in told.values()], 1))
        expected = [found[number].log_likelihood / found[number].tokens for number in range(len(told))]
        assert list(row["scores"].values()) == pytest.approx(expected, abs=1e-4)
        assert row["answer"] == list(told)[expected.index(max(expected))]
        assert scores.accuracies[subject.name] == float(row["answer"] == question.gold)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("family", ["cpm1", "cpm_bee"])
def test_scores_that_are_no_numbers_are_no_answers(family: str, value: float, tmp_path: Path) -> None:
    """JSON has neither: nothing is written of a subject whose scores a reader could not read."""
    engine = engine_of_family(family)
    model = copy.deepcopy(engine.model)
    model.register_forward_hook(lambda model, given, logits: torch.full_like(logits, value))
    broken = Engine(model, engine.processor, max_length=engine.max_length)
    subjects = read_suite("fewclue", write_clue(tmp_path, FEWCLUE, "test_public"), None, ["chid"], None)
    with pytest.raises(HanlinError, match="not numbers"):
        run_suite(broken, "fewclue", subjects, ZERO, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["about.json"]


def test_means_are_over_subjects_and_over_questions(tmp_path: Path) -> None:
    def subject(name: str, golds: str, *groups: str) -> Subject:
        options = {"A": "明", "B": "光"}
        questions = [SuiteQuestion(str(number), "月", options, gold) for number, gold in enumerate(golds)]
        return Subject(name, name, questions, groups=groups)

    engine = engine_of_family("cpm1")
    [(_, a), (_, b)] = score_continuations(engine, [("月", "明"), ("月", "光")], 2)
    best, other = ("A", "B") if a.log_likelihood / a.tokens > b.log_likelihood / b.tokens else ("B", "A")
    subjects = [subject("one", best + other + other + other, "STEM", "Hard"), subject("two", best, "STEM")]
    scores = run_suite(engine, "ceval", subjects, ZERO, tmp_path)
    assert scores.accuracies == {"one": 0.25, "two": 1.0}
    assert scores.groups == {"STEM": 0.625, "Hard": 0.25}
    assert (scores.overall, scores.by_question) == (0.625, 0.4)
    told = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert told["ceval"] == {"accuracy": 0.625, "accuracy by question": 0.4, "STEM": 0.625, "Hard": 0.25}
    assert told["subjects"] == scores.accuracies


def test_what_is_to_be_sent_in_has_cevals_form(tmp_path: Path) -> None:
    engine = engine_of_family("cpm1")
    subjects = read_suite("ceval", write_ceval(tmp_path / "data", "law", "logic"), "test", ["law", "logic"], None)
    scores = run_suite(engine, "ceval", subjects, AskedHow(1, "text", 4), tmp_path / "out")
    assert scores.overall is None
    sent = json.loads((tmp_path / "out/submission.json").read_text("utf-8"))
    assert sent.keys() == {"law", "logic"}
    assert all(list(one) == ["0", "1", "2"] and set(one.values()) <= set("ABCD") for one in sent.values())


def test_a_model_may_think_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanlin.evaluation.suites.run._THOUGHT_TOKENS", 4)
    engine = engine_of_family("chatglm2")
    subject = Subject("law", "法学", [SuiteQuestion("0", "月", {"A": "A", "B": "B"}, "A")])
    run_suite(engine, "ceval", [subject], AskedHow(0, "reasoned", 2), tmp_path / "out")
    row = json.loads((tmp_path / "out/predictions/law.jsonl").read_text("utf-8"))
    [answer] = engine.generate([{"prompt": "月"}], GreedySettings(max_new_tokens=4))
    assert row["thought"] == answer["response"]
    concluding = Conversation((ChatMessage("user", f"月{row['thought']}\n综上所述，ABCD中正确的选项是："),))
    found = [one for _, one in sorted(score_continuations(engine, [(concluding, "A"), (concluding, "B")], 1))]
    assert list(row["scores"].values()) == pytest.approx([one.log_likelihood / one.tokens for one in found], abs=1e-4)
    with pytest.raises(ConfigError, match="does not suit fewclue"):
        run_suite(engine, "fewclue", [subject], AskedHow(0, "reasoned", 2), tmp_path / "few")


def test_what_is_done_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of_family("cpm1")
    subjects = read_suite("cmmlu", write_cmmlu(tmp_path / "data", "arts"), None, ["arts"], None)
    first = run_suite(engine, "cmmlu", subjects, ZERO, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("hanlin.evaluation.suites.run._asked", lambda *_: pytest.fail("asked again"))
        assert run_suite(engine, "cmmlu", subjects, replace(ZERO, batch_size=1), tmp_path / "out") == first
    other = AskedHow(1, "text", 4)
    with pytest.raises(DataError, match="holds answers of other weights, or to other questions"):
        run_suite(engine, "cmmlu", subjects, other, tmp_path / "out")
    run_suite(engine, "cmmlu", subjects, other, tmp_path / "out", overwrite=True)
    assert math.isfinite(first.overall or 0)


def test_more_subjects_join_those_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, data = engine_of_family("cpm1"), write_cmmlu(tmp_path / "data", "arts", "virology")
    run_suite(engine, "cmmlu", read_suite("cmmlu", data, None, ["arts"], None), ZERO, tmp_path / "out")
    asked: list[str] = []
    monkeypatch.setattr(
        "hanlin.evaluation.suites.run._asked", lambda *given: (asked.append(given[1].name), _asked(*given))[1]
    )
    both = run_suite(
        engine, "cmmlu", read_suite("cmmlu", data, None, ["virology", "arts"], None), ZERO, tmp_path / "out"
    )
    assert asked == ["virology"]
    assert both.accuracies.keys() == {"virology", "arts"}
    with pytest.raises(DataError, match="to other questions"):
        run_suite(engine, "cmmlu", read_suite("cmmlu", data, None, ["arts"], 1), ZERO, tmp_path / "out")
    written = (tmp_path / "out/metrics.json").read_text("utf-8")
    with pytest.raises(DataError, match=r"answers to virology too, which the scores would lose"):
        run_suite(engine, "cmmlu", read_suite("cmmlu", data, None, ["arts"], None), ZERO, tmp_path / "out")
    assert (tmp_path / "out/metrics.json").read_text("utf-8") == written
    assert asked == ["virology"]


def test_thoughts_are_asked_for_in_chinese_alone(tmp_path: Path) -> None:
    subjects = read_suite("mmlu", write_mmlu(tmp_path, "anatomy"), None, ["anatomy"], None)
    with pytest.raises(ConfigError, match="asks in Chinese for one of A, B, C, D, which does not suit mmlu"):
        run_suite(engine_of_family("chatglm2"), "mmlu", subjects, AskedHow(0, "reasoned", 2), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"id": "1"', '"id": "7"', r"arts.jsonl:2: is no answer to question '1'; remove the file"),
        ('"correct": (true|false)', '"correct": 1.5', "is no answer to question"),
        ('"answer": "', '"answer": "Z', r"arts.jsonl:1: is no answer to question '0'"),
        ('{"id": "1"', '{"id"', r"arts.jsonl:2: not JSON.*; remove the file, and its questions are asked again"),
        ('{"id": "0"', '{"id": "0"}\n{"id": "0"', "has 3 answers to 2 questions; remove the file"),
    ],
)
def test_damaged_answers_are_not_counted(old: str, new: str, said: str, tmp_path: Path) -> None:
    engine = engine_of_family("cpm1")
    subjects = read_suite("cmmlu", write_cmmlu(tmp_path / "data", "arts"), None, ["arts", "arts"], None)
    run_suite(engine, "cmmlu", subjects, ZERO, tmp_path / "out")
    path = tmp_path / "out/predictions/arts.jsonl"
    path.write_text(re.sub(old, new, path.read_text("utf-8"), count=1), "utf-8")
    with pytest.raises(DataError, match=said):
        run_suite(engine, "cmmlu", subjects, ZERO, tmp_path / "out")
    path.unlink()
    assert len(run_suite(engine, "cmmlu", subjects, ZERO, tmp_path / "out").accuracies) == 1
    (tmp_path / "out/about.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match=r"about\.json"):
        run_suite(engine, "cmmlu", subjects, ZERO, tmp_path / "out")


def test_files_as_a_table_program_saves_them_are_read(tmp_path: Path) -> None:
    folder = write_ceval(tmp_path, "law")
    path = folder / "val/law_val.csv"
    expected = read_suite("ceval", folder, None, ["law"], None)
    text = path.read_text("utf-8")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_suite("ceval", folder, None, ["law"], None) == expected
    path.write_text(text.replace("\n1,", "\n0,"), "utf-8")
    with pytest.raises(DataError, match=r"law_val\.csv: the id '0' stands there twice"):
        read_suite("ceval", folder, None, ["law"], None)
    path.write_text(text + '3,"' + "月" * 200_000, "utf-8")
    with pytest.raises(DataError, match=r"law_val.csv: near line \d+: no CSV can be read from it \(field larger"):
        read_suite("ceval", folder, None, ["law"], None)


def test_odd_files_say_what_to_do(tmp_path: Path) -> None:
    folder = write_ceval(tmp_path, "law")
    with pytest.raises(DataError, match=r"logic_val.csv: there is no such file; .*\(--subjects\)"):
        read_suite("ceval", folder, None, ["law", "logic"], None)
    with pytest.raises(ConfigError, match="--subjects: ceval has no cooking; known: computer_network"):
        read_suite("ceval", folder, None, ["cooking"], None)
    with pytest.raises(ConfigError, match="--split: ceval has no train; known: val, test"):
        read_suite("ceval", folder, "train", ["law"], None)
    path = folder / "val/law_val.csv"
    text = path.read_text("utf-8")
    path.write_bytes(text.encode("gbk"))
    with pytest.raises(DataError, match=r"is not UTF-8; .*iconv -f GB18030"):
        read_suite("ceval", folder, None, ["law"], None)
    path.write_text(text.replace("question", "title"), "utf-8")
    with pytest.raises(DataError, match="names id, title, A, B, C, D, answer, and question is missing"):
        read_suite("ceval", folder, None, ["law"], None)
    path.write_text(text.replace(",B\n", ",E\n"), "utf-8")
    with pytest.raises(DataError, match="row 1: answer is 'E', expected one of A, B, C, D"):
        read_suite("ceval", folder, None, ["law"], None)
    path.write_text(text.splitlines()[0] + "\n", "utf-8")
    with pytest.raises(DataError, match="holds no questions"):
        read_suite("ceval", folder, None, ["law"], None)
    clue = write_clue(
        tmp_path, {"eprstmt": [{"sentence": "月", "label": "Odd"}], "csl": [{"abst": "月"}]}, "test_public"
    )
    with pytest.raises(DataError, match="'Odd', which is no label of eprstmt: Negative, Positive"):
        read_suite("fewclue", clue, None, ["eprstmt"], None)
    with pytest.raises(DataError, match=r"test_public.json:1: no text under 'keyword' \(the row has: abst\)"):
        read_suite("fewclue", clue, None, ["csl"], None)
    with pytest.raises(DataError, match=r"tnews/test_public.json: there is no such file"):
        read_suite("fewclue", clue, None, ["tnews"], None)


def test_examples_that_are_not_there_are_told(tmp_path: Path) -> None:
    subjects = read_suite("ceval", write_ceval(tmp_path, "law"), None, ["law"], None)
    with pytest.raises(DataError, match="--shots 6: law has not so many examples"):
        run_suite(engine_of_family("cpm1"), "ceval", subjects, AskedHow(6, "text", 4), tmp_path / "out")
