"""Dialogues in one row: every answer is learned, with the loss of one row per answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chatglm2_pieces import small_byte_ranks, small_pieces

from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import ChatMessage, Conversation, ToolCall, make_conversation
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import GLM4_PATTERN, ChatGlm2Tokenizer
from hanlin.tokens.byte_ranks import ByteRanks

ROUNDS = [("你好", "你好，世界！"), ("黑色？", "黑色九分裤，简单百搭。"), ("类型", "Hello world"), ("世界", "你好")]
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)


def said(*turns: str) -> Conversation:
    """A dialogue of questions and answers in turn."""
    roles = ("user", "assistant")
    return make_conversation([ChatMessage(roles[number % 2], text) for number, text in enumerate(turns)])  # pyright: ignore[reportArgumentType]


def make_processor(generation: str = "chatglm2", **options: Any) -> ChatGlm2Processor:
    pieces = ByteRanks(small_byte_ranks(), GLM4_PATTERN) if generation == "glm4" else small_pieces()
    tokenizer = ChatGlm2Tokenizer(pieces)
    config = ChatGlm2Config(
        generation=generation, vocab_size=tokenizer.with_roles().vocab_size, hidden_size=24, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, ffn_size=32, max_length=512,
    )  # fmt: skip
    return ChatGlm2Processor(tokenizer, config, ChatGlm2Options(**options))


def make_model(config: ChatGlm2Config) -> ChatGlm2:
    model, generator = ChatGlm2(config).double(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return model


def losses(processor: ChatGlm2Processor, rows: list[list[Any]], length: int = 512) -> tuple[float, dict[str, Any]]:
    """The summed loss of rows of records, and its gradients."""
    model = make_model(processor.config)
    batch = processor.collate([[processor.sample(record) for record in row] for row in rows], length)
    loss = model(**batch.inputs, labels=batch.labels, weights=batch.weights.double())
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("generation", ["chatglm2", "chatglm3", "glm4", "codegeex2"])
def test_a_dialogue_has_the_loss_and_the_gradients_of_a_row_for_each_answer(generation: str) -> None:
    processor = make_processor(generation)
    whole = processor.record_of(said(*(text for round_ in ROUNDS for text in round_)))
    each = [
        {"prompt": question, "response": answer, "history": [list(round_) for round_ in ROUNDS[:number]]}
        for number, (question, answer) in enumerate(ROUNDS)
    ]
    loss, gradients = losses(processor, [[whole]])
    alone, wanted = losses(processor, [[record] for record in each])
    assert loss == pytest.approx(alone, abs=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-10)
    sample, rows = processor.sample(whole), [processor.sample(record) for record in each]
    assert sample.loss_tokens == sum(row.loss_tokens for row in rows)
    answers = sum(row.loss_tokens for row in rows)
    assert sample.length <= rows[-1].length + answers < sum(row.length for row in rows)


def test_roles_read_nothing_twice_and_rounds_each_answer_twice() -> None:
    dialogue = said(*(text for round_ in ROUNDS for text in round_))
    for generation in ("chatglm3", "glm4"):
        sample = make_processor(generation).sample(make_processor(generation).record_of(dialogue))
        assert set(sample.inputs) == {"tokens"}
    processor = make_processor()
    assert set(processor.sample(processor.record_of(dialogue)).inputs) == {"tokens", "positions", "branches"}


@pytest.mark.parametrize("length", [512, 700])
def test_dialogues_packed_with_other_rows_keep_their_losses(length: int) -> None:
    processor = make_processor()
    dialogues = [processor.record_of(said(*ROUNDS[0], *ROUNDS[1])), processor.record_of(said(*ROUNDS[2], *ROUNDS[3]))]
    records = [dialogues[0], {"prompt": "你好", "response": "世界"}, dialogues[1]]
    together, _ = losses(processor, [records, [dialogues[1]]], length)
    alone = [losses(processor, [[record]])[0] for record in [*records, dialogues[1]]]
    assert together == pytest.approx(sum(alone), abs=1e-9)


def test_which_answers_are_learned() -> None:
    dialogue, own = said(*ROUNDS[0], *ROUNDS[1]), {"prompt": "类型", "response": "你好", "history": [list(ROUNDS[0])]}
    by_default, all_, last = make_processor(), make_processor(loss_turns="all"), make_processor(loss_turns="last")
    record = by_default.record_of(dialogue)
    assert all_.sample(record).loss_tokens == by_default.sample(record).loss_tokens > last.sample(record).loss_tokens
    assert by_default.sample(own).loss_tokens == last.sample(own).loss_tokens < all_.sample(own).loss_tokens
    weighted = make_conversation(
        [ChatMessage("user", "你好"), ChatMessage("assistant", "世界", is_learned=False), *said(*ROUNDS[1]).messages]
    )
    assert by_default.sample(by_default.record_of(weighted)).loss_tokens == last.sample(record).loss_tokens
    unlearned = make_conversation([ChatMessage("user", "你好"), ChatMessage("assistant", "世界", is_learned=False)])
    with pytest.raises(DataError, match="weight 0"):
        by_default.sample(by_default.record_of(unlearned))
    with pytest.raises(ConfigError, match="loss_turns all: with compatible"):
        make_processor(loss_turns="all", compatible=True)


def test_a_dialogue_is_shown_as_it_is_read_with_the_ends_that_are_learned() -> None:
    processor = make_processor("chatglm3")
    shown = processor.show(processor.sample(processor.record_of(said("你好", "世界", "黑色", "简单"))))
    assert shown == [
        ("[gMASK]sop<|user|>\n 你好<|assistant|>", False),
        ("\n 世界</s>", True),
        ("<|user|>\n 黑色<|assistant|>", False),
        ("\n 简单</s>", True),
    ]
    processor = make_processor()
    shown = processor.show(processor.sample(processor.record_of(said("你好", "世界", "黑色", "简单"))))
    assert [learned for _, learned in shown] == [False, True, False, True]
    assert shown[0][0].endswith("答：")
    assert shown[1][0].strip() == "世界</s>"
    assert shown[2][0].startswith("世界\n\n[Round 2]")


def calling() -> Conversation:
    return make_conversation(
        [
            ChatMessage("user", "北京天气"),
            ChatMessage("assistant", calls=(ToolCall("weather", {"city": "北京", "days": 2}),)),
            ChatMessage("tool", '{"t": 20}'),
            ChatMessage("assistant", "20 度"),
        ],
        TOOLS,
    )


def test_calls_of_tools_are_written_as_each_model_writes_them() -> None:
    processor = make_processor("chatglm3")
    text = "".join(piece for piece, _ in processor.show(processor.sample(processor.record_of(calling()))))
    assert "weather\n ```python\ntool_call(city='北京', days=2)\n```<|observation|>\n {" in text
    processor = make_processor("glm4")
    shown = processor.show(processor.sample(processor.record_of(calling())))
    assert "# 可用工具\n\n## weather" in shown[0][0]
    assert shown[1] == ('weather\n{"city": "北京", "days": 2}<|observation|>', True)
    assert shown[3] == ("\n20 度<|endoftext|>", True)
    with pytest.raises(DataError, match="has no place in this template"):
        make_processor().sample(make_processor().record_of(calling()))


def test_the_answer_of_a_dialogue_is_asked_for_compared_and_written() -> None:
    processor = make_processor("chatglm3")
    record = processor.record_of(said("你好", "世界", "黑色", "简单"))
    asked = processor.record_of(said("你好", "世界", "黑色"))
    prompt, same = processor.prompt(record), processor.prompt(asked)
    assert prompt.inputs["tokens"].tolist() == same.inputs["tokens"].tolist()
    assert processor.gold(record) == ["简单"]
    assert processor.gold(asked) == [None]
    answer = processor.answer(same, processor.tokenizer.encode("\n简单"))
    assert processor.gold(answer) == ["简单"]
    assert answer["messages"][:-1] == asked["messages"]
    assert processor.gold(processor.record_of(make_conversation(calling().messages[:2], TOOLS))) == [
        "weather\n```python\ntool_call(city='北京', days=2)\n```"
    ]


def test_a_long_dialogue_loses_its_oldest_rounds_and_keeps_what_the_system_says() -> None:
    processor = make_processor("chatglm3")
    turns = [ChatMessage("system", "黑色"), *said(*(text for round_ in ROUNDS for text in round_)).messages]
    record = processor.record_of(make_conversation(turns))
    most = processor.sample(record).length - 1
    [shorter] = processor.fit(record, most, "truncate")
    assert [one["content"] for one in shorter["messages"]] == [
        "黑色", *(text for round_ in ROUNDS[1:] for text in round_)
    ]  # fmt: skip
    with pytest.raises(DataError, match="newest question"):
        processor.fit(record, 4, "truncate")
    limited = make_processor("chatglm3", prompt_length=len(processor.encode_prompt(shorter)))
    assert limited.sample(record).length == processor.sample(shorter).length


def test_labels_point_at_the_end_while_the_next_round_follows() -> None:
    processor = make_processor("chatglm3")
    sample = processor.sample(processor.record_of(said("你好", "世界", "黑色", "简单")))
    tokens, labels = sample.inputs["tokens"].tolist(), sample.labels.tolist()
    at = labels.index(processor.tokenizer.end)
    assert tokens[at + 1] == processor.tokenizer.role("user")
    assert labels[at + 1] == IGNORED


def test_a_dialogue_of_many_rounds_is_shortened_in_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = make_processor()
    record = processor.record_of(said(*(f"你好{number}" for number in range(120))))
    lengths = {}
    for kept in range(1, 9):
        lengths[kept] = processor.sample({"messages": record["messages"][-2 * kept :]}).length
    tries: list[int] = []
    encode = processor.tokenizer.encode_parts
    monkeypatch.setattr(
        type(processor.tokenizer), "encode_parts", lambda _, parts, **more: tries.append(1) or encode(parts, **more)
    )
    for kept, length in lengths.items():
        for most in (length, lengths.get(kept + 1, length + 1) - 1):
            tries.clear()
            [shorter] = processor.fit(record, most, "truncate")
            assert len(shorter["messages"]) == 2 * kept
            assert len(tries) <= 8
    assert processor.fit(record, 10_000, "truncate") == [record]
    limited = make_processor(prompt_length=40)
    tries.clear()
    assert len(limited.prompt(record).inputs["tokens"]) < 40
    assert len(tries) <= 8


def test_a_dialogue_whose_newest_round_is_not_learned_keeps_what_is() -> None:
    processor = make_processor()
    messages = processor.record_of(said(*(f"你好{number}" for number in range(20))))["messages"]
    messages[-1]["weight"] = 0
    two = processor.sample({"messages": messages[-4:]}).length
    [shorter] = processor.fit({"messages": messages}, two, "truncate")
    assert shorter["messages"] == messages[-4:]
    with pytest.raises(DataError, match="weight 0"):
        processor.fit({"messages": messages}, two - 1, "truncate")
