"""The real ChatGLM2 and ChatGLM3 tokenizer: texts, ids, both chat templates, prompts padded on the left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glm_case import needed_tokenizer
from golden_case import Case

from hanlin.core.batch import NO_SPAN
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.templates import Dialogue, Message, RoleTemplate, TextTemplate, make_template, read_history
from hanlin.models.chatglm2.tokenizer import BOS, EOS, PAD, ChatGlm2Tokenizer


def check(case: Case, vocab: Path) -> None:
    del vocab
    stated, expected = case.facts, case.json("expected.json")
    tokenizer = ChatGlm2Tokenizer.load(needed_tokenizer(case))
    with_roles = tokenizer.with_roles()
    for version, made in (("v2", tokenizer), ("v3", with_roles)):
        assert made.vocab_size == stated.get(f"vocab_size_{version}", made.vocab_size)
        assert made.specials == stated.get(f"special_tokens_{version}", made.specials)
    assert stated.get("bos_eos_pad", [BOS, EOS, PAD]) == [BOS, EOS, PAD]
    for row in expected.get("encode", ()):
        _check_text(tokenizer, row)
    for row in expected.get("decode", ()):
        _check_ids(tokenizer, row, row["ids"], "decode")
    for row in expected.get("chat_v2", ()):
        _check_rounds(tokenizer, row)
    for row in expected.get("chat_v3", ()):
        _check_roles(with_roles, row)
    if "left_padded_batch" in expected:
        _check_left_padding(tokenizer, expected["left_padded_batch"])


def _check_text(tokenizer: ChatGlm2Tokenizer, row: dict[str, Any]) -> None:
    ids, with_prefix = tokenizer.encode(row["text"]), tokenizer.encode_prompt(row["text"])
    assert ids == row.get("ids", ids), row["text"]
    assert with_prefix == row.get("ids_with_prefix", with_prefix), row["text"]
    pieces = [tokenizer.pieces.piece(id) for id in ids]
    assert pieces == row.get("pieces", pieces)
    _check_ids(tokenizer, row, ids, "decode")
    _check_ids(tokenizer, row, with_prefix, "decode_with_prefix")


def _check_ids(tokenizer: ChatGlm2Tokenizer, row: dict[str, Any], ids: list[int], name: str) -> None:
    """The original's tokenizer shows none of its special tokens either way."""
    text = tokenizer.decode(ids)
    assert text == row.get(name, text), ids
    if name == "decode":
        assert text == row.get("decode_skip_special", text), ids


def _check_rounds(tokenizer: ChatGlm2Tokenizer, row: dict[str, Any]) -> None:
    template = make_template("auto", "chatglm2")
    assert isinstance(template, TextTemplate)
    dialogue = Dialogue((*read_history(row["history"]), Message("user", row["query"])))
    assert template.text(dialogue) == row.get("prompt", template.text(dialogue))
    assert tokenizer.encode_parts([template.prompt(tokenizer, dialogue)]) == [row["ids"]]


def _check_roles(tokenizer: ChatGlm2Tokenizer, row: dict[str, Any]) -> None:
    dialogue = Dialogue((*read_history(row["history"]), Message(row["role"], row["query"])))
    assert tokenizer.encode_parts([RoleTemplate().prompt(tokenizer, dialogue)]) == [row["ids"]]
    text = tokenizer.decode(row["ids"], show_specials=True)
    assert text == row.get("decode", text)


def _check_left_padding(tokenizer: ChatGlm2Tokenizer, expected: dict[str, Any]) -> None:
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), ChatGlm2Options(template="plain"))
    prompts = [processor.prompt({"prompt": text}) for text in expected["texts"]]
    check_prompts(processor, prompts, expected)


def check_prompts(processor: ChatGlm2Processor, prompts: list[Any], expected: dict[str, Any]) -> None:
    """Prompts as one batch, padded on the left; our last column stands apart, in the cursor."""
    batch = processor.collate_prompts(prompts)
    for number, cursor in enumerate(batch.cursors):
        column = cursor.inputs()
        tokens, positions, spans = (batch.inputs[name][number].tolist() for name in ("tokens", "positions", "spans"))
        found = {
            "input_ids": [*tokens, column["tokens"]],
            "position_ids": [*positions, column["positions"]],
            "attention_mask": [int(span != NO_SPAN) for span in [*spans, column["spans"]]],
        }
        for name, ours in found.items():
            assert name not in expected or ours == expected[name][number], (name, number)
