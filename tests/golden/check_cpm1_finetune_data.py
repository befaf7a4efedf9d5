"""The fine-tuning program's data: ChID for training and without it, dialogues of STC in parts, batches of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from golden_case import Case, Reading, needed

from hanlin.core.batch import IGNORED, Batch
from hanlin.models.common.text_processor import TextOptions, TextProcessor
from hanlin.models.cpm1.config import Cpm1Config
from hanlin.models.cpm1.tasks.chid import choice_records, passage_records
from hanlin.models.cpm1.tasks.stc import dialogue_record
from hanlin.models.cpm1.tokenizer import load_tokenizer

PAD = 5


def check(case: Case, vocab: Path) -> None:
    needed(vocab / "cpm1" / "chinese_vocab.model")
    tokenizer = load_tokenizer(vocab / "cpm1")

    def processor(**options: Any) -> TextProcessor:
        return TextProcessor(tokenizer, Cpm1Config(), TextOptions(**options))

    expected = case.arrays()
    if case.holds("chid_raw.json", "chid_answer.json"):
        rows, answers = case.data("chid_raw.json"), case.data("chid_answer.json")
        if case.holds("chid_finetune.json"):
            _check_chid(case, rows, answers, processor(ends=False), expected)
        if case.holds("chid_zeroshot.json"):
            _check_passages(case, rows, answers, processor(ends=False))
    if case.holds("stc.json"):
        _check_dialogues(case, processor(overlap=False), expected)


def _check_chid(case: Case, rows: list, answers: dict, processor: TextProcessor, expected: Reading) -> None:
    records = [record for row in rows for record in choice_records(row, answers)]
    digits, wanted = case.data("chid_finetune.json")
    made = [processor.sample(record) for record in records]
    assert [[*one.inputs["tokens"].tolist(), int(one.labels[-1])] for one in made] == [one["sent"] for one in wanted]
    for record in records:
        options = [int(processor.sample(option).labels[-1]) for option in processor.candidates(record)]
        assert options == digits[: len(options)]
    truths = [one["truth"] for one in wanted]
    assert [processor.gold(record)[0] for record in records] == [str(truth) for truth in truths]
    if "chid_truth" in expected:
        assert expected["chid_truth"].tolist() == truths
    if _is_whole("chid", expected):
        _check_batch(processor.collate([[one] for one in made], expected["chid_input_ids"].shape[1]), "chid", expected)


def _check_passages(case: Case, rows: list, answers: dict, processor: TextProcessor) -> None:
    """Without training: the blank filled with each idiom, all other blanks left out."""
    wanted = case.json("chid_zeroshot.json")
    contents, labels, places = [], [], []
    for record in (record for row in rows for record in passage_records(row, answers)):
        candidates = processor.candidates(record)
        made = [processor.sample({**candidate, "ends": False}) for candidate in candidates]
        contents += [[*one.inputs["tokens"].tolist(), int(one.labels[-1])] for one in made]
        places += [(len(labels), number) for number in range(len(made))]
        labels.append([processor.gold(candidate) for candidate in candidates].index(processor.gold(record)))
    assert contents == wanted["contents"]
    assert labels == wanted["labels"]
    assert places == list(zip(wanted["sids"], wanted["cids"], strict=True))


def _check_dialogues(case: Case, processor: TextProcessor, expected: Reading) -> None:
    facts = case.json("stc.json")
    records = [dialogue_record(*pair) for pair in facts["pairs"]]
    assert [record["text"] for record in records] == facts["lines"]
    length = facts["seq_length"]
    parts = [part for record in records for part in processor.fit(record, length, "split")]
    made = [processor.sample(part) for part in parts]
    assert [_ids(one) for one in made if len(one.labels) == length] == [
        ids for ids in facts["samples"] if PAD not in ids
    ]
    if _is_whole("stc", expected):
        # The original keeps a last part of one token, which teaches nothing.
        taught = expected["stc_loss_mask"].any(1)
        _check_batch(processor.collate([[one] for one in made], length), "stc", expected, taught)


def _is_whole(name: str, expected: Reading) -> bool:
    return all(f"{name}_{part}" in expected for part in ("input_ids", "labels", "loss_mask"))


def _check_batch(batch: Batch, name: str, expected: Reading, where: Any = ...) -> None:
    mask = expected[f"{name}_loss_mask"][where]
    tokens = batch.inputs["tokens"]
    # The original also reads the last token of a text, from which nothing follows.
    assert tokens.equal(torch.where(tokens == PAD, PAD, expected[f"{name}_input_ids"][where]))
    assert batch.weights.equal(mask)
    assert batch.labels.equal(torch.where(mask > 0, expected[f"{name}_labels"][where], IGNORED))


def _ids(sample: Any) -> list[int]:
    return [*sample.inputs["tokens"].tolist(), int(sample.labels[-1])]
