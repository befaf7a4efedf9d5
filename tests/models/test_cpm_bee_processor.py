from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hanlin.core.batch import IGNORED, Batch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.processor import CpmBeeOptions, CpmBeeProcessor
from hanlin.models.cpm_bee.record import relation_table
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
TOKENIZER = CpmBeeTokenizer([*MARKS, "<", ">", "input", "options", *"abcdefgxyz今天气好坏问题"])
CONFIG = replace(CpmBeeConfig(), vocab_size=TOKENIZER.vocab_size)
UNK, MASK, START, END, OPTION = (TOKENIZER.marks[mark] for mark in ("<unk>", "<mask>", "<s>", "</s>", "<option>"))

PLAIN = {"input": "今天", "<ans>": "好"}
CHOICE = {"input": "ab", "options": {"<option_4>": "x", "<option_1>": "好"}, "<ans>": "<option_1>"}
CLOZE = {"input": "a<mask_0>b<mask_1>", "<ans>": {"<mask_0>": "c", "<mask_1>": "dd"}}
UNKNOWN = {"input": "😀b😁", "<ans>": "😁x"}
NESTED = {"a": {"b": {"c": "x"}, "d": "y"}, "<ans>": {"e": {"f": "x", "g": "yz"}, "z": "a"}}
RECORDS: list[dict[str, Any]] = [PLAIN, CHOICE, CLOZE, UNKNOWN, NESTED]


@pytest.fixture
def processor() -> CpmBeeProcessor:
    return CpmBeeProcessor(TOKENIZER, CONFIG)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def test_an_answer_predicts_its_tokens_and_its_end(processor: CpmBeeProcessor) -> None:
    sample = processor.sample(PLAIN)
    parts = ["<s><root></s>", "<s>input</s>", "<s>今天</s>", "<s><ans></s>", "<s>好"]
    assert sample.inputs["tokens"].tolist() == [token for part in parts for token in ids(part)]
    assert sample.labels.tolist() == [IGNORED] * (sample.length - 2) + [*ids("好"), END]
    assert sample.weights.tolist() == (sample.labels != IGNORED).tolist()
    assert sample.inputs["is_context"].tolist() == (sample.labels == IGNORED).tolist()


def test_strings_outside_the_vocabulary_are_numbered_within_their_kind(processor: CpmBeeProcessor) -> None:
    inputs = processor.sample(CHOICE).inputs
    options = inputs["subs"][inputs["tokens"] == OPTION]
    assert options.tolist() == [0, 1, 1]  # <option_4>, <option_1> and <option_1> again
    inputs = processor.sample(UNKNOWN).inputs
    assert inputs["subs"][inputs["tokens"] == UNK].tolist() == [0, 1, 1]


def test_relations_count_the_steps_to_the_common_ancestor() -> None:
    # root, key, its value, another key, its value
    table = relation_table((0, 1, 2, 1, 2), 8).reshape(5, 5)
    assert table[1, 2] == 2  # down 1
    assert table[2, 1] == 9  # up 1
    assert table[1, 3] == 10  # up 1, down 1
    assert table[2, 3] == 18  # up 2, down 1
    assert table[2, 4] == 19  # up 2, down 2
    assert table.diagonal().tolist() == [0] * 5


def test_relations_of_a_large_record_are_those_of_a_small_one() -> None:
    depths = (0, *(1, 2, 3, 3, 2) * 40)
    table, small = (relation_table(one, 8).reshape(len(one), -1) for one in (depths, depths[:31]))
    np.testing.assert_array_equal(table[:31, :31], small)
    assert table[1, 196] == table[1, 6]


@pytest.mark.parametrize("inside", [False, True])
def test_a_record_of_too_many_keys_is_refused_before_they_are_related(processor: CpmBeeProcessor, inside: bool) -> None:
    many = {f"k{number}": "a" for number in range(5000)}
    record = {"input": "a", "<ans>": many} if inside else {**many, "<ans>": "a"}
    for read in (processor.check, processor.sample, processor.prompt):
        with pytest.raises(DataError, match="more than 4,096 keys and texts"):
            read(record)


@pytest.mark.parametrize("record", RECORDS)
def test_the_prompt_is_the_context_of_the_training_sample(processor: CpmBeeProcessor, record: dict) -> None:
    sample, prompt = processor.sample(record), processor.prompt(record)
    context = sample.inputs["is_context"]
    for name in ("tokens", "subs", "segments", "num_segments", "sample_ids", "relation_offsets"):
        np.testing.assert_array_equal(prompt.inputs[name], sample.inputs[name][context], err_msg=name)
    np.testing.assert_array_equal(prompt.inputs["relations"], sample.inputs["relations"])
    assert prompt.inputs["positions"].tolist() == list(range(context.sum()))


@pytest.mark.parametrize("record", RECORDS)
def test_writing_the_gold_answers_gives_the_record_back(processor: CpmBeeProcessor, record: dict) -> None:
    before = copy.deepcopy(record)
    prompts = [processor.prompt(other) for other in (CLOZE, record, CHOICE)]
    batch = processor.collate_prompts(prompts)
    columns = {text: column for column, text in prompts[1].state.by_id.items()}
    chosen, cursor = [], batch.cursors[1]
    for text in processor.gold(record):
        assert text is not None
        assert cursor.inputs()["tokens"] == START
        assert cursor.inputs()["positions"] == 0
        for token in [*TOKENIZER.tokenize(text), None]:
            column = END if token is None else columns.get(token.text, (ids(token.source) or [0])[0])
            chosen.append(column)
            cursor = cursor.advance(column)
    assert cursor.is_done
    assert processor.answer(prompts[1], chosen) == record
    assert record == before


def test_a_cursor_feeds_what_training_saw(processor: CpmBeeProcessor) -> None:
    prompt = processor.prompt(CHOICE)
    batch = processor.collate_prompts([processor.prompt(CLOZE), prompt])
    column = next(column for column, text in prompt.state.by_id.items() if text == "<option_1>")
    cursor = batch.cursors[1].advance(column)
    inputs = processor.sample(CHOICE).inputs
    fed = cursor.inputs()
    assert {name: fed[name] for name in ("tokens", "subs", "segments", "num_segments")} == {
        name: inputs[name][-1] for name in ("tokens", "subs", "segments", "num_segments")
    }
    assert fed["positions"] == 1
    assert not cursor.is_done


def test_answers_that_were_not_begun_are_none(processor: CpmBeeProcessor) -> None:
    prompt = processor.prompt(CLOZE)
    assert processor.answer(prompt, [*ids("c"), END, *ids("dd")])["<ans>"] == {"<mask_0>": "c", "<mask_1>": "dd"}
    assert processor.answer(prompt, [*ids("c"), END])["<ans>"] == {"<mask_0>": "c", "<mask_1>": None}
    assert processor.answer(prompt, [END, END])["<ans>"] == {"<mask_0>": "", "<mask_1>": ""}
    assert processor.answer(prompt, [])["<ans>"] == {"<mask_0>": None, "<mask_1>": None}


def test_answers_keep_the_escaped_form_unless_told_otherwise(processor: CpmBeeProcessor) -> None:
    prompt = processor.prompt(PLAIN)
    bare = CpmBeeProcessor(TOKENIZER, CONFIG, CpmBeeOptions(unescape_answers=True))
    assert processor.answer(prompt, ids("a<<b"))["<ans>"] == "a<<b"
    assert bare.answer(prompt, ids("a<<b"))["<ans>"] == "a<b"


def test_a_prompt_has_its_own_table_and_unused_rows_are_banned() -> None:
    wide = CpmBeeProcessor(TOKENIZER, replace(CONFIG, vocab_size=TOKENIZER.vocab_size + 2))
    batch = wide.collate_prompts([wide.prompt(record) for record in (PLAIN, CLOZE, UNKNOWN)])
    known = TOKENIZER.vocab_size
    assert batch.inputs["ext_tokens"].tolist() == [[0], [MASK], [UNK]]
    assert batch.banned == [[UNK, known, known + 1], [UNK, known, known + 1], [known, known + 1]]


def test_prompts_are_padded_on_the_left(processor: CpmBeeProcessor) -> None:
    prompts = [processor.prompt(PLAIN), processor.prompt(NESTED)]
    inputs = processor.collate_prompts(prompts).inputs
    missing = prompts[1].length - prompts[0].length
    assert inputs["tokens"][0].tolist() == [0] * missing + prompts[0].inputs["tokens"].tolist()
    assert inputs["num_segments"][0, :missing].tolist() == [0] * missing
    assert inputs["ext_tokens"].shape == (2, 0)


def test_a_row_keeps_each_sample_whatever_stands_before_it(processor: CpmBeeProcessor) -> None:
    encoded = [processor.sample(record) for record in RECORDS]
    first = processor.collate([encoded], 200)
    second = processor.collate([encoded[::-1]], 200)
    for number, sample in enumerate(encoded):
        assert _own(first, number, sample) == _own(second, len(encoded) - 1 - number, sample)


def _own(batch: Batch, span: int, sample: Sample) -> list[tuple]:
    """What the model makes of one sample of row 0: its tokens, its labels by meaning, the relations of its tokens."""
    inputs = {name: tensor[0].numpy() for name, tensor in batch.inputs.items()}
    inside = (inputs["spans"] == span) & (inputs["num_segments"] > 0)
    entries = list(zip(inputs["ext_tokens"].tolist(), inputs["ext_subs"].tolist(), strict=True))
    labels = batch.labels[0].numpy()[inside].tolist()
    meant = [entries[label - CONFIG.vocab_size] if label >= CONFIG.vocab_size else label for label in labels]
    segments = inputs["segments"][inside]
    offsets = inputs["relation_offsets"][inside] + segments * inputs["num_segments"][inside]
    relations = inputs["relations"][offsets[:, None] + segments[None, :]].tolist()
    assert inside.sum() == sample.length
    return list(zip(inputs["tokens"][inside].tolist(), inputs["subs"][inside].tolist(), meant, relations, strict=True))


def test_windows_cover_each_sample_once(processor: CpmBeeProcessor) -> None:
    encoded = [processor.sample(record) for record in RECORDS * 2]
    windows = processor.collate([encoded, encoded[:3]], 400).inputs["windows"]
    total = [sum(sample.length for sample in row) for row in (encoded, encoded[:3])]
    for row, size in zip(windows, total, strict=True):
        assert sorted(row[row >= 0].tolist()) == list(range(size))
    spans = processor.collate([encoded, encoded[:3]], 400).inputs["spans"][0].numpy()
    owners = [set(spans[window[window >= 0].numpy()]) for window in windows[0]]
    assert sum(map(len, owners)) == len(encoded)
    assert "windows" not in processor.collate([[encoded[0]]], encoded[0].length).inputs


def test_a_string_has_one_number_in_a_sample_and_its_examples(processor: CpmBeeProcessor) -> None:
    main = processor.sample({"a": "<option_3><option_5><mask_0>", "<ans>": "<option_5>"})
    one = processor.sample({"a": "<option_5><option_1><option><mask_7>", "<ans>": "<option_1>"})
    two = processor.sample({"a": "<s_4><option_9><option_1>", "<ans>": "<option_3>"})
    joined = processor.join(main, [one, two])
    kinds = {TOKENIZER.marks[mark]: mark for mark in ("<option>", "<mask>", "<s>")}
    numbered = [
        (kinds[token], sub)
        for token, sub in zip(joined.inputs["tokens"].tolist(), joined.inputs["subs"].tolist(), strict=True)
        if kinds.get(token, "<s>") != "<s>" or sub
    ]
    o, m = "<option>", "<mask>"
    assert numbered == [
        *[(o, 0), (o, 1), (m, 0), (o, 1)],
        *[(o, 1), (o, 2), (o, 0), (m, 1), (o, 2)],  # a mark without a number stays as it is
        *[(o, 3), (o, 2), (o, 0)],
    ]
    assert one.inputs["subs"].max() == 1  # as it was
    assert processor.join(main, []).inputs["subs"].tolist() == main.inputs["subs"].tolist()


def test_in_context_samples_are_context_of_their_own(processor: CpmBeeProcessor) -> None:
    main, example = processor.sample(CHOICE), processor.sample(CLOZE)
    joined = processor.join(main, [example, example])
    assert joined.length == main.length + 2 * example.length
    assert joined.loss_tokens == main.loss_tokens
    assert joined.inputs["is_context"][main.length :].all()
    ids_of = joined.inputs["sample_ids"][[0, main.length, -1]].tolist()
    assert ids_of == [0, 1, 2]
    offsets = joined.inputs["relation_offsets"][[0, main.length, -1]].tolist()
    assert offsets == [
        0,
        main.inputs["relations"].size,
        main.inputs["relations"].size + example.inputs["relations"].size,
    ]


def test_a_generator_shuffles_answers_and_nothing_else(processor: CpmBeeProcessor) -> None:
    assert [processor.varies(record) for record in RECORDS] == [False, False, True, False, True]
    orders = set()
    for seed in range(20):
        sample = processor.sample(CLOZE, np.random.default_rng(seed))
        assert sample.length == processor.sample(CLOZE).length
        orders.add(tuple(sample.inputs["tokens"]))
    assert len(orders) == 2


def test_names_that_are_no_marks_are_literal_unless_strict(processor: CpmBeeProcessor) -> None:
    record = {"input": "<问题>a<mask_0>", "<ans>": "<好>"}
    assert processor.sample(record).inputs["tokens"].tolist()[6:13] == [START, *ids("<<问题>a"), MASK]
    assert processor.gold(record) == ["<<好>"]
    with pytest.raises(DataError, match="<问题>"):
        CpmBeeProcessor(TOKENIZER, CONFIG, CpmBeeOptions(strict=True)).sample(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input": "a<b", "<ans>": "x"}, 'input: character 2: the "<" in'),
        ({"input": "<问题>a<b", "<ans>": "x"}, 'input: character 6: the "<" in'),
        ({"a": {"b": {"c": 5}}, "<ans>": "x"}, 'a.b.c: expected a text or a dict, found 5; write it as a text: "5"'),
        ({"options": ["a"], "<ans>": "x"}, "options: expected a text or a dict, found a list"),
        ({"input": None, "<ans>": "x"}, "input: .* found null"),
        ({1: "a", "<ans>": "x"}, "1: a key must be a text"),
        ({"input": "a"}, 'no "<ans>" at the top of the record; its keys are input'),
        ({"input": "a", "ans": "b"}, 'is "ans" meant'),
        ({"input": "a", "<ans>": {}}, "holds no place for an answer"),
        ({"input": "a", "<ans>": ""}, '"<ans>" is empty'),
        ({"input": "\ud83d", "<ans>": "a"}, "input: character 1 is half a character"),
        ("text", "a record is a dict"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_place(
    processor: CpmBeeProcessor, record: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        processor.check(record)


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="the vocabulary has"):
        CpmBeeProcessor(TOKENIZER, replace(CONFIG, vocab_size=TOKENIZER.vocab_size - 1))


def test_nesting_beyond_the_relations_of_the_model_is_refused() -> None:
    with pytest.raises(DataError, match="num_relation_buckets"):
        CpmBeeProcessor(TOKENIZER, replace(CONFIG, num_relation_buckets=12)).check(NESTED)


def test_truncation_keeps_the_answer_and_the_marks(processor: CpmBeeProcessor) -> None:
    record = {"input": "abcdefg<mask_0>abcd", "x": "abc", "<ans>": {"<mask_0>": "今天气好坏"}}
    length = processor.sample(record).length
    for excess in range(1, 13):
        [cut] = processor.fit(record, length - excess, "truncate")
        assert processor.sample(cut).length == length - excess
        assert cut["<ans>"] == record["<ans>"]
        assert "<mask_0>" in cut["input"]
    assert processor.fit(record, length, "truncate") == [record]
    assert processor.fit(record, length - 3, "truncate")[0]["input"] == "abcdefg<mask_0>a"
    with pytest.raises(DataError, match="1 tokens too long even with"):
        processor.fit(record, length - 13, "truncate")


@pytest.mark.parametrize(
    "record", [{"input": "abcdefgabcd<mask>x<<y", "<ans>": "好"}, {"x": "a", "<ans>": "abcdefgab😀"}]
)
def test_splitting_loses_nothing(processor: CpmBeeProcessor, record: dict) -> None:
    length = processor.sample(record).length
    pieces = processor.fit(record, length - 7, "split")
    assert len(pieces) > 1
    assert all(processor.sample(piece).length <= length - 7 for piece in pieces)
    longest = max(record, key=lambda key: len(record[key]))
    assert "".join(piece[longest] for piece in pieces) == record[longest]
    with pytest.raises(DataError, match="too long to split"):
        processor.fit(record, 5, "split")


def test_the_report_shows_which_tokens_carry_loss(processor: CpmBeeProcessor) -> None:
    shown = processor.show(processor.sample(CHOICE))
    assert [text for text, is_learnt in shown if is_learnt] == ["<option>#1</s>"]
    assert "".join(text for text, is_learnt in processor.show(processor.sample(CLOZE)) if is_learnt) == "c</s>dd</s>"
    assert shown[0][0].startswith("<s><root></s><s>input</s><s>ab</s>")


def test_many_records_get_the_samples_of_each(processor: CpmBeeProcessor) -> None:
    *found, empty, odd = processor.process_many([*RECORDS, {"input": "a", "<ans>": ""}, {"input": "a"}])
    for record, sample in zip(RECORDS, found, strict=True):
        assert isinstance(sample, Sample)
        expected = processor.sample(record)
        assert sample.inputs["tokens"].tolist() == expected.inputs["tokens"].tolist()
        assert sample.labels.tolist() == expected.labels.tolist()
    for record, error in (({"input": "a", "<ans>": ""}, empty), ({"input": "a"}, odd)):
        with pytest.raises(DataError) as expected_error:
            processor.check(record)
        assert str(error) == str(expected_error.value)
