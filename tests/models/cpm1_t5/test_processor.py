"""The T5's samples: spans taken out and given back, sources with targets, rows, prompts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.processor import Cpm1T5Options, Cpm1T5Processor
from hanlin.tokens.wordpiece import WordPiece

LETTERS = "床前明月光疑是地上霜举头望低思故乡，。"
MARKS = [f"<s_{number}>" for number in range(12)]
WORDS = ["<unk>", "<pad>", "<eod>", *LETTERS, *MARKS]
PAD, EOD, FIRST = 1, 2, 3 + len(LETTERS)
CONFIG = Cpm1T5Config(vocab_size=len(WORDS), hidden_size=8, num_heads=2, head_dim=4, ffn_size=8, max_length=64)


def make(**options: Any) -> Cpm1T5Processor:
    return Cpm1T5Processor(WordPiece(WORDS), CONFIG, Cpm1T5Options(**options))


def ids(text: str) -> list[int]:
    return [WORDS.index(letter) for letter in text]


def put_back(context: list[int], target: list[int]) -> list[int]:
    """The text that what is read and what is wanted make together."""
    starts = [place for place, id in enumerate(target) if id >= FIRST]
    spans = {target[start]: target[start + 1 : end] for start, end in pairwise([*starts, len(target)])}
    return [id for one in context for id in spans.get(one, [one])]


def test_a_source_stands_for_a_document_whose_end_is_wanted() -> None:
    sample = make().sample({"source": "床前", "target": "明月光"})
    assert sample.inputs["encoder_tokens"].tolist() == [*ids("床前"), FIRST]
    assert sample.inputs["tokens"].tolist() == [FIRST, *ids("明月光"), EOD]
    assert sample.labels.tolist() == [*ids("明月光"), EOD, IGNORED]


def test_a_source_may_mark_the_places_of_what_is_wanted() -> None:
    record = {"source": ["床", {"token": "<s_0>"}, "明"], "target": "前", "ends": False}
    sample = make().sample(record)
    assert sample.inputs["encoder_tokens"].tolist() == [*ids("床"), FIRST, *ids("明")]
    assert sample.labels.tolist() == [*ids("前"), FIRST + 1, IGNORED]


def test_spans_of_a_text_are_taken_out_anew_in_each_epoch() -> None:
    processor, record = make(density=0.4), {"text": LETTERS}
    assert processor.varies(record)
    first = processor.sample(record)
    assert np.array_equal(processor.sample(record).labels, first.labels)
    others = [processor.sample(record, np.random.default_rng(seed)) for seed in range(4)]
    assert {one.length for one in others} == {first.length}
    assert len({one.labels.tobytes() for one in others}) > 1
    for one in others:
        assert put_back(one.inputs["encoder_tokens"].tolist(), one.inputs["tokens"].tolist()) == [*ids(LETTERS), EOD]


def test_a_piece_of_the_stream_keeps_its_documents_apart() -> None:
    stream = np.array([*ids("床前明月光疑是地上霜，"), EOD, *ids("举头望明月，低头思故乡。"), EOD, *ids("床前")])
    processor = make(reset_attention_mask=True, reset_position_ids=True)
    sample = processor.window(stream, np.random.default_rng(0))
    context, tokens = sample.inputs["encoder_tokens"], sample.inputs["tokens"]
    labels = sample.labels[: len(tokens)]
    assert put_back(context.tolist(), tokens.tolist()) == stream.tolist()
    assert labels[tokens == EOD].tolist() == [IGNORED] * int((tokens == EOD).sum())
    for side in ("", "encoder_"):
        spans, positions = sample.inputs[f"{side}spans"], sample.inputs[f"{side}positions"]
        assert spans.max() == 2
        assert positions[np.flatnonzero(np.diff(spans)) + 1].tolist() == [0, 0]


def test_pieces_of_the_stream_are_equally_long() -> None:
    processor, rng = make(), np.random.default_rng(0)
    for length in (20, 33, 64):
        size = processor.window_tokens(length)
        for share in (0.0, 0.1, 0.9):
            tokens = np.where(rng.random(size) < share, EOD, 5)
            sample = processor.window(tokens, rng)
            assert sample.length == length
            assert len(sample.inputs["encoder_tokens"]) <= length
    with pytest.raises(ConfigError, match="only 64 positions"):
        processor.window_tokens(65)


def test_what_is_wanted_is_cut_to_its_length() -> None:
    context, target = np.array([5, FIRST, 6, FIRST + 1]), np.array([FIRST, 7, 8, FIRST + 1, 9, EOD, FIRST + 2])
    sample = make(target_length=4).pair(context, target)
    assert sample.inputs["tokens"].tolist() == target[:4].tolist()
    assert sample.labels.tolist() == target[1:5].tolist()
    assert make().pair(context, target).length == 6


def test_samples_of_a_row_are_told_apart_on_both_sides() -> None:
    processor = make()
    pair = processor.sample({"source": "床前", "target": "明月光"})
    other = processor.sample({"source": "床前明月光", "target": "霜"})
    batch = processor.collate([[pair, other], [other]], pair.length + other.length)
    assert batch.inputs["encoder_spans"].tolist() == [[0] * 3 + [1] * 6, [0] * 6 + [-1] * 3]
    assert batch.inputs["spans"].tolist() == [[0] * 5 + [1] * 3, [0] * 3 + [-1] * 5]
    assert batch.inputs["positions"].tolist() == [[*range(5), *range(3)], [*range(3), *[0] * 5]]
    assert batch.labels[0].tolist() == [*ids("明月光"), EOD, IGNORED, *ids("霜"), EOD, IGNORED]
    assert batch.labels.shape == batch.inputs["tokens"].shape


def test_a_prompt_waits_for_its_target() -> None:
    processor = make()
    prompts = [processor.prompt({"source": "床前"}), processor.prompt({"source": ["床", {"token": "<s_0>"}, "明月"]})]
    batch = processor.collate_prompts(prompts)
    assert batch.inputs["tokens"].tolist() == [[PAD], [PAD]]
    assert batch.inputs["spans"].tolist() == [[-1], [-1]]
    assert batch.inputs["encoder_spans"].tolist() == [[0, 0, 0, -1], [0] * 4]
    cursor = batch.cursors[0]
    assert cursor.inputs() == {"tokens": FIRST, "positions": 0, "spans": 0}
    assert cursor.advance(EOD).is_done
    assert cursor.advance(FIRST + 1).is_done
    assert not cursor.advance(5).is_done
    assert processor.answer(prompts[0], [*ids("明"), EOD]) == {"source": "床前", "target": "明"}


def test_long_records_are_cut() -> None:
    processor = make()
    parts = processor.fit({"text": LETTERS * 3}, 20, "split")
    assert all(processor.sample(part).length <= 20 for part in parts)
    assert sum(len(part["text"]) for part in parts) == 3 * len(LETTERS) + 1
    record = {"source": "床前明月光", "target": "霜"}
    [cut] = processor.fit(record, 4, "truncate")
    assert processor.sample(cut).inputs["encoder_tokens"].tolist() == [*ids("床前明"), FIRST]
    with pytest.raises(DataError, match="cannot be split"):
        processor.fit(record, 4, "split")
    with pytest.raises(DataError, match="target alone makes 3 tokens"):
        processor.fit(record, 2, "truncate")


@pytest.mark.parametrize(
    ("record", "says"),
    [({"text": "床前"}, "fewer than 10 tokens"), ({"source": "床"}, 'no column "target"'), ([], "expected an object")],
)
def test_wrong_records_are_named(record: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make().check(record)


def test_the_vocabulary_must_mark_spans() -> None:
    with pytest.raises(ConfigError, match="no tokens <s_0>"):
        Cpm1T5Processor(WordPiece(["<unk>", "<eod>"]), CONFIG)
    wrong: list[dict[str, Any]] = [{"density": 1.0}, {"mean_span": 0.5}, {"target_length": 1}, {"source_column": ""}]
    for options in wrong:
        with pytest.raises(ConfigError):
            Cpm1T5Options(**options)
