"""The sister programs' data sets by command: raw files in, records out, odd ones named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hanlin.cli.main import main

CHID = {"content": ["他#idiom000001#，从不#idiom000002#。"], "candidates": ["一心一意", "三心二意", "画蛇添足"]}
LABELS = [{"label": str(100 + number), "label_desc": f"类{number}", "label_des": f"类{number}"} for number in range(6)]


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def read(kind: str, raw: Path, folder: Path) -> list[dict[str, Any]]:
    target = folder / f"{kind}-{raw.name.rpartition(':')[2]}.jsonl"
    assert main(["prepare", "--from", f"cpm1:{kind}", str(raw), str(target)]) == 0
    return [json.loads(line) for line in target.read_text("utf-8").splitlines()]


def test_each_blank_of_chid_becomes_a_question(tmp_path: Path) -> None:
    raw = write(tmp_path / "dev.json", CHID)
    write(tmp_path / "dev_answer.json", {"#idiom000001#": 0, "#idiom000002#": 1})
    first, second = read("chid", raw, tmp_path)
    assert first["prompt"][:5] == ["上下文:", "他", {"token": "<mask>"}, "，从不。", {"token": "<eod>"}]
    assert first["answer"] == [{"token": "\u25810"}] == first["options"][0]
    assert second["answer"] == second["options"][1]
    passages = read("chid-zero-shot", raw, tmp_path)
    assert [passage["label"] for passage in passages] == ["一心一意", "三心二意"]
    assert passages[1]["options"]["画蛇添足"] == {"text": "他，从不画蛇添足。"}


def test_dialogues_lose_the_blanks_of_their_words(tmp_path: Path) -> None:
    raw = write(tmp_path / "STC.json", {"train": [["今天 真 好", "是 啊"]], "valid": [["甲", "乙"], ["丙", "丁"]]})
    assert read("stc", tmp_path / "STC.json:train", tmp_path) == [{"text": "对话上文:今天真好 回复:是啊\n"}]
    assert len(read("stc", tmp_path / "STC.json:valid", tmp_path)) == 2
    assert main(["prepare", "--from", "cpm1:stc", str(raw), str(tmp_path / "out.jsonl")]) == 2


def test_texts_stand_after_the_prompts_of_their_classes(tmp_path: Path) -> None:
    rows = [{"sentence1": "下雨了", "sentence2": "地湿", "label": label} for label in ("entailment", "-")]
    [record] = read("ocnli", write(tmp_path / "ocnli.json", *rows), tmp_path)
    assert record["label"] == "entailment"
    assert record["options"]["neutral"] == {"prompt": "下雨了？也许，", "answer": "地湿", "ends": False}

    write(tmp_path / "labels.json", *LABELS)
    raw = write(tmp_path / "dev.json", {"sentence": "新闻", "label": "103", "label_des": "类3"})
    [record] = read("tnews", raw, tmp_path)
    assert list(record["options"])[-1] == record["label"] == "类3"
    assert len(record["options"]) == 4
    assert record["options"]["类3"]["prompt"] == "这是关于类3的文章："
    [record] = read("iflytek-all", raw, tmp_path)
    assert list(record["options"]) == [f"类{number}" for number in range(6)]
    assert record["options"]["类0"]["prompt"] == "这是关于类0的应用程序："


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("chid", CHID, "the file of answers has none for #idiom000002#"),
        ("chid", {**CHID, "candidates": ["甲", "甲"]}, '"candidates": expected up to 10 different idioms'),
        ("tnews", {"sentence": "新闻", "label": "99"}, "its label is none of the 6 in labels.json"),
        ("ocnli", {"sentence1": "a", "label": "neutral"}, '"sentence2": expected a str'),
        (
            "ocnli",
            {"sentence1": "a", "sentence2": "b", "label": "nonsense"},
            "expected entailment, contradiction, neutral or -",
        ),
        ("ocnli", {"sentence1": "a", "sentence2": " ", "label": "neutral"}, '"sentence2" is empty'),
        ("tnews", {"sentence": "", "label": "101"}, '"sentence" is empty'),
        ("iflytek", {"sentence": "应用", "label_des": ["类1"]}, "its label is none of the 6 in labels.json"),
        ("chid", {**CHID, "content": [5]}, "expected a list of texts, found 5"),
        ("chid", {**CHID, "candidates": ["甲", None]}, "expected texts that are not empty"),
        ("nothing", CHID, "expected one of jsonl, bee, arrow, indexed, cpm1:chid"),
    ],
)
def test_wrong_rows_are_named(kind: str, row: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw = write(tmp_path / "dev.json", row)
    write(tmp_path / "dev_answer.json", {"#idiom000001#": 0})
    write(tmp_path / "labels.json", *LABELS)
    assert main(["prepare", "--from", f"cpm1:{kind}", str(raw), str(tmp_path / "out.jsonl")]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("number", [-1, 3, 12, True, "1", 1.0, None])
def test_an_answer_of_chid_is_the_number_of_a_candidate(
    number: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw = write(tmp_path / "dev.json", CHID, {**CHID, "content": ["他#idiom000001#。"]})
    write(tmp_path / "dev_answer.json", {"#idiom000001#": 0, "#idiom000002#": number})
    command = ["prepare", "--from", "cpm1:chid", str(raw), str(tmp_path / "out.jsonl")]
    assert main(command) == 2
    assert f"dev.json:1: the answer to #idiom000002# is {number!r}" in capsys.readouterr().err
    assert main([*command, "--bad-rows", "drop"]) == 0
    assert "1 rows, 1 left out" in capsys.readouterr().out


@pytest.mark.parametrize("pair", [["你好", None], ["你好"], "你好", ["你好", "  "], ["", "好"], {"post": "a"}])
def test_a_pair_of_stc_is_two_texts(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw = write(tmp_path / "STC.json", {"train": [["你 好", "好"], pair]})
    assert main(["prepare", "--from", "cpm1:stc", str(raw), str(tmp_path / "out.jsonl")]) == 2
    assert "STC.json: train 2: expected a post and a reply" in capsys.readouterr().err


def test_rows_without_a_label_that_was_agreed_on_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"sentence1": "下雨了", "sentence2": "地湿", "label": label} for label in ("entailment", "-")]
    raw = write(tmp_path / "ocnli.json", *rows)
    assert main(["prepare", "--from", "cpm1:ocnli", str(raw), str(tmp_path / "out.jsonl")]) == 0
    assert "1 rows, 1 left out" in capsys.readouterr().out
