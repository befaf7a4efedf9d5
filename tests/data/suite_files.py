"""Tiny files of suites, in the forms in which their authors publish them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

ROW = {"question": "床前明月", "A": "光", "B": "霜", "C": "月", "D": "地", "answer": "B", "explanation": "1. 思"}
FEWCLUE: dict[str, list[dict[str, Any]]] = {
    "eprstmt": [{"id": 23, "sentence": "感觉不错", "label": "Positive"}],
    "csldcp": [{"id": 1, "content": "床前明月光", "label": "天文学"}, {"id": 2, "content": "霜", "label": "大气科学"}],
    "tnews": [{"label": "102", "label_desc": "news_entertainment", "sentence": "举头望明月", "keywords": "", "id": 3}],
    "iflytek": [{"id": 4, "label": "110", "label_des": "社区超市", "sentence": "低头"},
                {"id": 5, "label": "3", "label_des": "租车", "sentence": "故乡"}],
    "ocnli": [{"id": 0, "sentence1": "明月", "sentence2": "月", "label": "entailment", "label0": "entailment"},
              {"id": 1, "sentence1": "明月", "sentence2": "光", "label": "-"}],
    "bustm": [{"id": 5, "sentence1": "明月", "sentence2": "月明", "label": "1"}],
    "chid": [{"id": 7, "candidates": ["明月", "故乡", "地上"], "content": "举头望#idiom#，低头思", "answer": 0}],
    "csl": [{"id": 8, "abst": "床前明月光", "keyword": ["月", "光"], "label": "0"}],
    "cluewsc": [{"idx": 9, "label": "false", "text": "床前明月光", "target": {
        "span1_text": "床", "span1_index": 0, "span2_text": "月", "span2_index": 3}}],
}  # fmt: skip


def write_csv(path: Path, rows: list[dict[str, Any]], names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_ceval(folder: Path, *subjects: str, rows: int = 3) -> Path:
    names = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    for subject in subjects:
        write_csv(folder / f"dev/{subject}_dev.csv", [{"id": n, **ROW, "answer": "ABCDA"[n]} for n in range(5)], names)
        asked = [{"id": n, **ROW, "question": f"举头{n}"} for n in range(rows)]
        write_csv(folder / f"val/{subject}_val.csv", asked, names[:-1])
        write_csv(folder / f"test/{subject}_test.csv", asked, names[:-2])
    return folder


def write_cmmlu(folder: Path, *subjects: str) -> Path:
    names = ["", "Question", "A", "B", "C", "D", "Answer"]
    rows = [{**ROW, "": n, "Question": f"低头{n}", "Answer": "C"} for n in range(2)]
    for part in ("dev", "test"):
        for subject in subjects:
            write_csv(folder / part / f"{subject}.csv", rows, names)
    return folder


def write_mmlu(folder: Path, *subjects: str, rows: int = 1) -> Path:
    options = ["light", "frost", "moon", "ground"]
    for subject in subjects:
        for part, asked in (("dev", ["Before my bed"]), ("test", [f"I raise my head, {n}" for n in range(rows)])):
            (folder / part).mkdir(parents=True, exist_ok=True)
            with (folder / part / f"{subject}_{part}.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([[text, *options, "B"] for text in asked])
    return folder


def write_clue(folder: Path, tasks: dict[str, list[dict[str, Any]]], *parts: str) -> Path:
    for task, rows in tasks.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        for part in parts:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / task / f"{part}.json").write_text(text, "utf-8")
    return folder
