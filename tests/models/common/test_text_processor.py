"""Samples of texts: what is learned, how long texts are cut, how rows and prompts look, what an answer becomes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.models.common.text_processor import TextOptions, TextProcessor
from hanlin.models.cpm1.config import shape
from hanlin.tokens.wordpiece import WordPiece

WORDS = ["<unk>", "<pad>", "<eod>", "<mask>", "<sep>", *"床前明月光疑是地上霜，。"]
PAD, EOD, MASK = 1, 2, 3
CONFIG = shape(8, 1, 2, vocab_size=len(WORDS) + 3, max_length=16)


def make(**options: Any) -> TextProcessor:
    return TextProcessor(WordPiece(WORDS), CONFIG, TextOptions(**options))


def ids(text: str) -> list[int]:
    return [WORDS.index(letter) for letter in text]


def test_all_of_a_text_is_learned_but_its_first_token() -> None:
    sample = make().sample({"text": "床前明月光"})
    assert sample.inputs["tokens"].tolist() == ids("床前明月光")
    assert sample.labels.tolist() == [*ids("前明月光"), EOD]
    assert sample.weights.tolist() == [1.0] * 5
    assert make(ends=False).sample({"text": "床前明"}).labels.tolist() == ids("前明")


def test_of_a_prompt_with_its_answer_the_answer_is_learned() -> None:
    sample = make().sample({"prompt": "床前", "answer": "明月"})
    assert sample.inputs["tokens"].tolist() == ids("床前明月")
    assert sample.labels.tolist() == [IGNORED, *ids("明月"), EOD]
    cut = make(answer_length=1).sample({"prompt": "床前", "answer": "明月"})
    assert cut.labels.tolist() == [IGNORED, *ids("明")]


def test_pieces_are_encoded_each_by_itself() -> None:
    prompt = ["床前", {"token": "<mask>"}, 7, "", "光"]
    sample = make().sample({"prompt": prompt, "answer": [{"token": "明"}], "ends": False})
    assert sample.inputs["tokens"].tolist() == [*ids("床前"), MASK, 7, *ids("光")]
    assert sample.labels[-1] == WORDS.index("明")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"content": "床"}, 'no column "prompt" .the row has: content'),
        ({"prompt": "床"}, 'no column "answer"'),
        ({"prompt": "床", "answer": ""}, '"answer" is empty'),
        ({"text": 3}, '"text": expected a text or a list of pieces, found 3'),
        ({"text": [{"token": "<nothing>"}]}, "the vocabulary lacks '<nothing>'"),
        ({"text": [99]}, "99 is no id"),
        ({"text": "床", "ends": False}, "a single token"),
        ({"options": {"甲": {"text": "床前"}}, "label": "乙"}, "'乙' is none of the options 甲"),
        ("床", "expected an object"),
    ],
)
def test_wrong_records_are_named(record: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make().check(record)


def test_a_split_text_is_learned_to_the_last_token() -> None:
    processor, record = make(), {"text": "床前明月光疑是地上霜", "id": 1}
    parts = processor.fit(record, 4, "split")
    assert {part["id"] for part in parts} == {1}
    made = [processor.sample(part) for part in parts]
    assert [token for one in made for token in one.labels.tolist()] == [*ids("前明月光疑是地上霜"), EOD]
    assert max(one.length for one in made) == 4
    [cut] = processor.fit(record, 4, "truncate")
    assert processor.sample(cut).inputs["tokens"].tolist() == ids("床前明月")


def test_parts_may_share_nothing() -> None:
    processor = make(overlap=False)
    made = [processor.sample(part) for part in processor.fit({"text": "床前明月光疑是地上霜"}, 4, "split")]
    # Eleven ids: the last one stands alone, and teaches nothing.
    assert [one.inputs["tokens"].tolist() for one in made] == [ids("床前明月"), ids("疑是地上")]


def test_a_long_prompt_loses_its_beginning() -> None:
    processor, record = make(), {"prompt": "床前明月光", "answer": "疑是"}
    [cut] = processor.fit(record, 4, "truncate")
    sample = processor.sample(cut)
    assert sample.length == 4
    assert sample.inputs["tokens"].tolist() == ids("月光疑是")
    with pytest.raises(DataError, match="answer alone makes 3 tokens"):
        processor.fit(record, 2, "truncate")
    with pytest.raises(DataError, match="cannot be split"):
        processor.fit(record, 4, "split")


def test_a_piece_of_the_stream_is_read_as_the_flags_say() -> None:
    tokens = np.array([5, 6, EOD, 7, EOD, 8, 9])
    plain = make().window(tokens)
    assert set(plain.inputs) == {"tokens"}
    assert plain.labels.tolist() == tokens[1:].tolist()
    flags = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}
    sample = make(**flags).window(tokens)
    assert sample.inputs["tokens"].tolist() == tokens[:-1].tolist()
    assert sample.inputs["positions"].tolist() == [0, 1, 2, 0, 1, 0]
    assert sample.inputs["spans"].tolist() == [0, 0, 0, 1, 1, 2]
    assert sample.labels.tolist() == [6, EOD, IGNORED, EOD, IGNORED, 9]
    assert make().window_tokens(16) == 17
    with pytest.raises(ConfigError, match="only 16 positions"):
        make().window_tokens(17)


def test_samples_of_a_row_are_told_apart() -> None:
    processor = make(reset_attention_mask=True, reset_position_ids=True)
    window = processor.window(np.array([5, EOD, 6, 7]))
    text = processor.sample({"text": "床前"})
    batch = processor.collate([[window, text], [text]], 7)
    assert batch.inputs["spans"].tolist() == [[0, 0, 1, 2, 2, -1, -1], [0, 0, *[-1] * 5]]
    assert batch.inputs["positions"].tolist() == [[0, 1, 0, 0, 1, 0, 0], [0, 1, *[0] * 5]]
    assert batch.inputs["tokens"][1].tolist() == [*ids("床前"), *[PAD] * 5]
    assert "spans" not in processor.collate([[text], [text]], 4).inputs


def test_prompts_go_on_where_they_end() -> None:
    processor = make()
    prompts = [processor.prompt({"prompt": "床前明"}), processor.prompt({"prompt": ""})]
    batch = processor.collate_prompts(prompts)
    assert batch.inputs["tokens"].tolist() == [ids("床前"), [PAD, PAD]]
    assert batch.inputs["spans"].tolist() == [[0, 0], [-1, -1]]
    assert [cursor.inputs()["tokens"] for cursor in batch.cursors] == [ids("明")[0], EOD]
    assert list(batch.banned[0]) == [len(WORDS) + extra for extra in range(3)]
    alone = processor.collate_prompts(prompts[1:])
    assert alone.inputs["tokens"].tolist() == [[PAD]]


def test_an_answer_ends_with_its_document() -> None:
    processor = make()
    prompt = processor.prompt({"text": "床前"})
    cursor = prompt.cursor.advance(ids("明")[0])
    assert cursor.inputs() == {"tokens": ids("明")[0], "positions": 2, "spans": 0}
    assert not cursor.is_done
    assert cursor.advance(EOD).is_done
    assert processor.answer(prompt, [*ids("明月"), EOD]) == {"text": "床前", "answer": "明月"}


def test_options_are_answers_or_whole_records() -> None:
    processor = make()
    listed = {"prompt": "床前", "answer": "明", "options": ["明", [{"token": "月"}]]}
    assert [processor.gold(one) for one in processor.candidates(listed)] == [["明"], ["月"]]
    named = {"options": {"甲": {"prompt": "床", "answer": "前"}, "乙": {"text": "床前"}}, "label": "乙"}
    processor.check(named)
    assert [processor.gold(one) for one in processor.candidates(named)] == [["甲"], ["乙"]]
    assert processor.gold(named) == ["乙"]
    assert processor.sample(named).inputs["tokens"].tolist() == ids("床前")
    with pytest.raises(DataError, match='"options"'):
        processor.candidates({"text": "床前"})


def test_what_is_learned_is_shown() -> None:
    processor = make()
    assert processor.show(processor.sample({"prompt": "床前", "answer": "明"})) == [("床前", False), ("明<eod>", True)]


def test_a_vocabulary_must_fit() -> None:
    with pytest.raises(ConfigError, match="lacks <eod>"):
        TextProcessor(WordPiece(["<unk>", "床"]), CONFIG)
    with pytest.raises(ConfigError, match="the model only 4"):
        TextProcessor(WordPiece(WORDS), shape(8, 1, 2, vocab_size=4))
    with pytest.raises(ConfigError, match="answer_length is 0"):
        TextOptions(answer_length=0)
    with pytest.raises(ConfigError, match="text_column is empty"):
        TextOptions(text_column="")


def test_many_records_at_once_are_as_one_by_one() -> None:
    processor = make()
    records = [
        {"text": "床前明月光"},
        {"prompt": ["床", {"token": "<mask>"}], "answer": "月"},
        {"text": 3},
        "床",
        {"text": "床前"},
    ]
    for record, found in zip(records, processor.process_many(records), strict=True):
        if isinstance(found, DataError):
            with pytest.raises(DataError, match=re.escape(str(found))):
                processor.sample(record)
        else:
            assert found.inputs["tokens"].tolist() == processor.sample(record).inputs["tokens"].tolist()
            assert found.labels.tolist() == processor.sample(record).labels.tolist()


@pytest.mark.parametrize("answer", ["光", ["明", "月"], [{"token": "<mask>"}]])
def test_an_answer_is_one_of_its_options(answer: Any) -> None:
    record = {"prompt": "床", "options": ["明", ["月"]]}
    processor = make()
    for good in ("明", ["明"], "月"):
        processor.check({**record, "answer": good})
    with pytest.raises(DataError, match="is none of the options 明, 月"):
        processor.check({**record, "answer": answer})
    [error] = processor.process_many([{**record, "answer": answer}])
    assert isinstance(error, DataError)
    assert processor.prompt(record)
