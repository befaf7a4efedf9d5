import json
from typing import Any

import numpy as np
import pytest

from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import EOS, ChatGlm2Tokenizer

CONFIG = ChatGlm2Config(vocab_size=512, max_length=256)
RECORD = {"prompt": "类型#裤", "response": "黑色九分裤"}
DIALOGUE = {"prompt": "好", "response": "你好", "history": [["黑色" * 5, "简单"], ["九分", "百搭"]]}


@pytest.fixture
def make(tokenizer: ChatGlm2Tokenizer):
    def processor(config: ChatGlm2Config = CONFIG, **options: Any) -> ChatGlm2Processor:
        return ChatGlm2Processor(tokenizer, config, ChatGlm2Options(**options))

    return processor


def test_the_answer_and_its_end_carry_the_loss(make, tokenizer):
    sample = make().sample(RECORD)
    answer = tokenizer.encode("黑色九分裤")
    prompt = tokenizer.encode_prompt("[Round 1]\n\n问：类型#裤\n\n答：")
    assert sample.inputs["tokens"].tolist() == [*prompt, *answer, EOS]
    assert sample.labels.tolist() == [IGNORED] * (len(prompt) - 1) + [*answer, EOS, IGNORED]
    assert sample.loss_tokens == len(answer) + 1 == int(sample.weights.sum())


def test_a_cut_answer_does_not_teach_to_stop(make, tokenizer):
    answer = tokenizer.encode("简单, 12 世界")[:2]
    sample = make(answer_length=2).sample({**RECORD, "response": "简单, 12 世界"})
    assert sample.labels[sample.labels != IGNORED].tolist() == answer


def test_a_long_dialogue_loses_its_oldest_rounds_and_never_its_question(make):
    full = make().sample(DIALOGUE)
    shorter = {**DIALOGUE, "history": DIALOGUE["history"][1:]}
    expected = make().sample(shorter).inputs["tokens"].tolist()
    limit = len(expected) - 2  # without the answer
    assert make(prompt_length=limit).sample(DIALOGUE).inputs["tokens"].tolist()[:limit] == expected[:limit]
    assert make().fit(DIALOGUE, full.length - 1, "truncate") == [shorter]
    assert make().fit(DIALOGUE, full.length, "truncate") == [DIALOGUE]


def test_what_cannot_be_shortened_is_refused(make):
    alone = make().sample({**DIALOGUE, "history": []}).length
    assert make().sample({**DIALOGUE, "history": ""}).length == alone
    with pytest.raises(DataError, match="newest question and its answer alone"):
        make().fit(DIALOGUE, alone - 1, "truncate")
    with pytest.raises(DataError, match="cannot be split"):
        make().fit(DIALOGUE, 10, "split")
    with pytest.raises(DataError, match="prompt_length allows 5"):
        make(prompt_length=5).check(RECORD)
    with pytest.raises(DataError, match="model's max_length allows 4"):
        make(ChatGlm2Config(vocab_size=512, max_length=5)).prompt(RECORD)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "expected an object"),
        ({"prompt": "你好"}, 'no column "response"'),
        ({"content": "你好", "response": "a"}, r'no column "prompt" \(the row has: content, response\)'),
        ({**RECORD, "response": ""}, '"response" is empty'),
        ({**RECORD, "response": None}, '"response": expected a string, found None'),
        ({**RECORD, "prompt": ["你好"]}, '"prompt": expected a string'),
        ({**RECORD, "history": [["a"]]}, '"history": item 1'),
        ({"input_ids": [1, 2], "labels": [1]}, "input_ids has 2 numbers, labels 1"),
        ({"input_ids": [1, 512], "labels": [1, 2]}, "input_ids holds 512"),
        ({"input_ids": [1.5], "labels": [1]}, "expected lists of whole numbers"),
    ],
)
@pytest.mark.parametrize("compatible", [False, True])
def test_bad_records_are_named(make, record, message, compatible):
    with pytest.raises(DataError, match=message):
        make(compatible=compatible).check(record)


def test_columns_may_have_any_name(make):
    named = make(prompt_column="标题", response_column="正文", history_column="前文")
    record = {"标题": "好", "正文": "你好", "前文": DIALOGUE["history"]}
    assert np.array_equal(named.sample(record).inputs["tokens"], make().sample(DIALOGUE).inputs["tokens"])


def test_pre_tokenised_rows_are_taken_as_they_are(make):
    processor = make(compatible=True, prompt_length=64, answer_length=16)
    tokens, labels = processor.original_row(RECORD)
    assert len(tokens) == len(labels) == 81
    again = processor.sample({"input_ids": np.array(tokens), "labels": np.array(labels)})
    assert np.array_equal(again.inputs["tokens"], processor.sample(RECORD).inputs["tokens"])
    assert np.array_equal(again.labels, processor.sample(RECORD).labels)


def test_evaluation_has_lengths_of_its_own(make):
    """The original's evaluate_finetune.sh asks with 256 + 256 tokens what was trained with 64 + 64."""
    trained = {"compatible": True, "prompt_length": 6, "answer_length": 4}
    short, own = make(**trained), make(**trained, eval_prompt_length=12, eval_answer_length=9)
    record = {"prompt": "好" * 40, "response": "你好" * 20}
    assert short.original_row(record) == own.original_row(record)
    assert [one.prompt(record).length + 1 for one in (short, own)] == [6, 12]
    golds = [one.gold(record)[0] for one in (short, own)]
    assert golds[1].startswith(golds[0])
    assert len(golds[0]) < len(golds[1]) < len(record["response"])
    # Without compatible the oldest rounds go, and no reference is cut.
    plain = make(prompt_length=60, eval_prompt_length=30)
    assert plain.prompt(DIALOGUE).length < 30
    with pytest.raises(ConfigError, match="eval_answer_length"):
        make(eval_answer_length=9)
    with pytest.raises(ConfigError, match="eval_prompt_length is 2"):
        make(eval_prompt_length=2)


def test_unpacked_rows_need_no_mask(make):
    processor = make()
    batch = processor.collate([[processor.sample(RECORD)], [processor.sample(DIALOGUE)]], 64)
    assert set(batch.inputs) == {"tokens", "positions"}
    length = processor.sample(RECORD).length
    assert batch.inputs["positions"][0].tolist() == [*range(length), *[0] * (64 - length)]


def test_packed_samples_are_told_apart(make):
    processor = make()
    lengths = [(9, 8), (9, 9, 9)]
    rows = [
        [processor.sample({"input_ids": [7] * n, "labels": [-100, *[7] * (n - 1)]}) for n in row] for row in lengths
    ]
    batch = processor.collate(rows, 30)
    assert batch.inputs["spans"].tolist() == [[0] * 9 + [1] * 8 + [-1] * 13, [0] * 9 + [1] * 9 + [2] * 9 + [-1] * 3]
    assert batch.inputs["positions"][0].tolist() == [*range(9), *range(8), *[0] * 13]
    # The last token of a sample does not predict the first one of the next.
    assert batch.labels[0].tolist() == [*[7] * 8, IGNORED, *[7] * 7, *[IGNORED] * 14]
    assert batch.loss_tokens == sum(n - 1 for row in lengths for n in row)


def test_prompts_are_padded_on_the_left_and_continued(make, tokenizer):
    processor = make()
    prompts = [processor.prompt({"prompt": "好"}), processor.prompt(DIALOGUE)]
    batch = processor.collate_prompts(prompts)
    pads = prompts[1].length - prompts[0].length
    assert batch.inputs["spans"][0].tolist() == [-1] * pads + [0] * prompts[0].length
    assert batch.inputs["positions"][0].tolist() == [0] * pads + list(range(prompts[0].length))
    cursor = batch.cursors[0]
    assert cursor.inputs() == {"tokens": tokenizer.encode("答：")[-1], "positions": prompts[0].length, "spans": 0}
    following = cursor.advance(7)
    assert following.inputs() == {"tokens": 7, "positions": prompts[0].length + 1, "spans": 0}
    assert not following.is_done
    assert following.advance(EOS).is_done


def test_an_answer_is_written_into_a_copy(make, tokenizer):
    processor = make()
    record = {"prompt": "好", "id": 3}
    ids = [*tokenizer.encode(" 你好[[训练时间]] "), EOS]
    assert processor.answer(processor.prompt(record), ids) == {"prompt": "好", "id": 3, "response": "你好2023年"}
    assert record == {"prompt": "好", "id": 3}
    assert processor.gold(RECORD) == ["黑色九分裤"]


def test_roles_read_and_write_the_metadata_line(make, tokenizer):
    processor = make(template="roles")
    roles = processor.tokenizer
    ids = processor.sample({"prompt": "好", "response": "你好"}).inputs["tokens"].tolist()
    answer = [*roles.encode("\n"), *roles.encode("你好")]
    assert ids[-len(answer) - 2 :] == [roles.role("assistant"), *answer, EOS]
    prompt = processor.prompt({"prompt": "好"})
    assert processor.answer_texts(prompt, [*answer, roles.role("user")]) == ["你好"]
    assert prompt.cursor.advance(roles.role("user")).is_done


def test_the_report_shows_what_is_learned(make):
    processor = make()
    shown = processor.show(processor.sample(RECORD))
    assert shown == [("[gMASK]sop[Round 1]\n\n问：类型#裤\n\n答：", False), ("黑色九分裤</s>", True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_padding": True}, "learn_padding"),
        ({"prompt_length": 2}, "prompt_length is 2"),
        ({"prompt_column": ""}, "prompt_column is empty"),
        ({"compatible": True, "template": "roles"}, "compatible"),
        ({"template": "rounds2"}, "none of rounds, roles, plain"),
    ],
)
def test_options_without_sense_are_refused(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_a_vocabulary_larger_than_the_model_is_refused(make):
    with pytest.raises(ConfigError, match="the model only 64"):
        make(ChatGlm2Config(vocab_size=64))


def test_the_fingerprint_follows_options_and_template(make):
    prints = {make().fingerprint, make(answer_length=5).fingerprint, make(template="roles").fingerprint}
    assert len(prints) == 3


@pytest.mark.parametrize("options", [{}, {"template": "roles"}, {"compatible": True}, {"prompt_length": 24}])
def test_many_records_get_the_samples_of_each(make, options):
    processor = make(**options)
    row = {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}
    records = [RECORD, {"prompt": "x"}, row, DIALOGUE, {**RECORD, "prompt": "黑色" * 40}]
    for record, found in zip(records, processor.process_many(records), strict=True):
        if isinstance(found, DataError):
            with pytest.raises(DataError) as error:
                processor.sample(record)
            assert str(found) == str(error.value)
            continue
        expected = processor.sample(record)
        assert found.inputs["tokens"].tolist() == expected.inputs["tokens"].tolist()
        assert found.labels.tolist() == expected.labels.tolist()


def test_a_rows_system_and_tools_are_a_system_message(make):
    roles, tools = make(template="roles"), [{"name": "a"}]
    history = [{"role": "system", "content": "简单", "tools": tools}]
    expected = roles.sample({**RECORD, "history": history}).inputs["tokens"].tolist()
    for stated in (tools, json.dumps(tools)):
        assert roles.sample({**RECORD, "system": "简单", "tools": stated}).inputs["tokens"].tolist() == expected
    with pytest.raises(DataError, match="beside a system message of the history"):
        roles.sample({**RECORD, "system": "简单", "history": history})
    with pytest.raises(DataError, match="no place in this template"):
        make().sample({**RECORD, "system": "简单"})
    assert make(template="{system}：{question}").sample({**RECORD, "system": "简单"}).length


def test_columns_that_nothing_reads_are_told(make):
    extra = {**RECORD, "id": 3, "system": "", "source": "x"}
    assert make().notes(extra) == ['column "id" is not read', 'column "source" is not read']
    assert make(template="{source}{question}").notes(extra) == ['column "id" is not read']
    assert make(compatible=True).notes({**RECORD, "tools": []}) == ['column "tools" is not read']


@pytest.mark.parametrize("compatible", [False, True])
def test_a_stored_row_makes_the_sample_of_its_record(tokenizer: ChatGlm2Tokenizer, compatible: bool) -> None:
    options = ChatGlm2Options(compatible=compatible, prompt_length=24, answer_length=8)
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), options)
    for record in (
        {"prompt": "你好", "response": "世界"},
        {"prompt": "颜色", "response": "黑色九分裤，简单百搭。" * 3},
    ):
        row, sample = processor.stored_row(record), processor.sample(record)
        assert len(row["input_ids"]) == len(row["labels"])
        again = processor.sample({name: np.array(values) for name, values in row.items()})
        np.testing.assert_array_equal(again.inputs["tokens"], sample.inputs["tokens"])
        np.testing.assert_array_equal(again.labels, sample.labels)
        np.testing.assert_array_equal(again.weights, sample.weights)
