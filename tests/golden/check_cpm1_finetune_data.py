"""The fine-tuning program's data: ChID for training and without it, dialogues of STC in parts, batches of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Batch
from hanlin.models.common.text_processor import TextOptions, TextProcessor
from hanlin.models.cpm1.config import Cpm1Config
from hanlin.models.cpm1.tasks.chid import choice_records, passage_records
from hanlin.models.cpm1.tasks.stc import dialogue_record
from hanlin.models.cpm1.tokenizer import load_tokenizer

PAD = 5


def check(case: Path, vocab: Path) -> None:
    tokenizer = load_tokenizer(vocab / "cpm1")

    def processor(**options: Any) -> TextProcessor:
        return TextProcessor(tokenizer, Cpm1Config(), TextOptions(**options))

    expected = dict(np.load(case / "expected.npz"))
    _check_chid(case, processor(ends=False), expected)
    _check_passages(case, processor(ends=False))
    _check_dialogues(case, processor(overlap=False), expected)


def _check_chid(case: Path, processor: TextProcessor, expected: dict[str, np.ndarray]) -> None:
    rows, answers = _read(case / "chid_raw.json"), _read(case / "chid_answer.json")
    records = [record for row in rows for record in choice_records(row, answers)]
    digits, wanted = _read(case / "chid_finetune.json")
    made = [processor.sample(record) for record in records]
    assert [[*one.inputs["tokens"].tolist(), int(one.labels[-1])] for one in made] == [one["sent"] for one in wanted]
    for record in records:
        options = [int(processor.sample(option).labels[-1]) for option in processor.candidates(record)]
        assert options == digits
    golds = [processor.gold(record)[0] for record in records]
    assert golds == [str(one["truth"]) for one in wanted]
    _check_batch(processor.collate([[one] for one in made], expected["chid_input_ids"].shape[1]), "chid", expected)


def _check_passages(case: Path, processor: TextProcessor) -> None:
    """Without training: the blank filled with each idiom, all other blanks left out."""
    rows, answers = _read(case / "chid_raw.json"), _read(case / "chid_answer.json")
    wanted = _read(case / "chid_zeroshot.json")
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


def _check_dialogues(case: Path, processor: TextProcessor, expected: dict[str, np.ndarray]) -> None:
    facts = _read(case / "stc.json")
    records = [dialogue_record(*pair) for pair in facts["pairs"]]
    assert [record["text"] for record in records] == facts["lines"]
    parts = [part for record in records for part in processor.fit(record, facts["seq_length"], "split")]
    made = [processor.sample(part) for part in parts]
    # The original keeps a last part of one token, which teaches nothing.
    taught = expected["stc_loss_mask"].any(1)
    kept = {name: rows[taught] for name, rows in expected.items() if name.startswith("stc")}
    assert [_ids(one) for one in made if len(one.labels) == facts["seq_length"]] == [
        ids for ids in facts["samples"] if PAD not in ids
    ]
    _check_batch(processor.collate([[one] for one in made], facts["seq_length"]), "stc", kept)


def _check_batch(batch: Batch, name: str, expected: dict[str, np.ndarray]) -> None:
    mask = expected[f"{name}_loss_mask"]
    tokens = batch.inputs["tokens"].numpy()
    # The original also reads the last token of a text, from which nothing follows.
    assert np.array_equal(tokens, np.where(tokens == PAD, PAD, expected[f"{name}_input_ids"]))
    assert np.array_equal(batch.weights.numpy(), mask)
    labels = np.where(mask > 0, expected[f"{name}_labels"], IGNORED)
    assert np.array_equal(batch.labels.numpy(), labels)


def _ids(sample: Any) -> list[int]:
    return [*sample.inputs["tokens"].tolist(), int(sample.labels[-1])]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
