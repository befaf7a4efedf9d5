"""The real ChatGLM2 and ChatGLM3 tokenizer: texts, ids, both chat templates, prompts padded on the left."""

from __future__ import annotations

import json
from pathlib import Path

from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.templates import Dialogue, Message, RoleTemplate, TextTemplate, make_template, read_history
from hanlin.models.chatglm2.tokenizer import BOS, EOS, PAD, ChatGlm2Tokenizer
from hanlin.models.common.decoder_batch import NO_SPAN


def check(case: Path, vocab: Path) -> None:
    stated = json.loads((case / "case.json").read_text("utf-8"))
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    tokenizer = ChatGlm2Tokenizer.load(case)
    with_roles = tokenizer.with_roles()
    assert (tokenizer.vocab_size, with_roles.vocab_size) == (stated["vocab_size_v2"], stated["vocab_size_v3"])
    assert tokenizer.specials == stated["special_tokens_v2"]
    assert with_roles.specials == stated["special_tokens_v3"]
    assert stated["bos_eos_pad"] == [BOS, EOS, PAD]
    for row in expected["encode"]:
        _check_text(tokenizer, row)
    for row in expected["decode"]:
        assert tokenizer.decode(row["ids"]) == row["decode"], row["ids"]
    for row in expected["chat_v2"]:
        _check_rounds(tokenizer, row)
    for row in expected["chat_v3"]:
        _check_roles(with_roles, row)
    _check_left_padding(tokenizer, expected["left_padded_batch"])


def _check_text(tokenizer: ChatGlm2Tokenizer, row: dict) -> None:
    assert tokenizer.encode(row["text"]) == row["ids"], row["text"]
    assert tokenizer.encode_prompt(row["text"]) == row["ids_with_prefix"]
    assert [tokenizer.pieces.piece(id) for id in row["ids"]] == row["pieces"]
    assert tokenizer.decode(row["ids"]) == row["decode"]
    assert tokenizer.decode(row["ids_with_prefix"]) == row["decode_with_prefix"]


def _check_rounds(tokenizer: ChatGlm2Tokenizer, row: dict) -> None:
    template = make_template("auto", "chatglm2")
    assert isinstance(template, TextTemplate)
    dialogue = Dialogue((*read_history(row["history"]), Message("user", row["query"])))
    assert template.text(dialogue) == row["prompt"]
    assert tokenizer.encode_parts([template.prompt(tokenizer, dialogue)]) == [row["ids"]]


def _check_roles(tokenizer: ChatGlm2Tokenizer, row: dict) -> None:
    dialogue = Dialogue((*read_history(row["history"]), Message(row["role"], row["query"])))
    assert tokenizer.encode_parts([RoleTemplate().prompt(tokenizer, dialogue)]) == [row["ids"]]
    assert tokenizer.decode(row["ids"], show_specials=True) == row["decode"]


def _check_left_padding(tokenizer: ChatGlm2Tokenizer, expected: dict) -> None:
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), ChatGlm2Options(template="plain"))
    batch = processor.collate_prompts([processor.prompt({"prompt": text}) for text in expected["texts"]])
    for number, cursor in enumerate(batch.cursors):
        column = cursor.inputs()
        tokens, positions, spans = (batch.inputs[name][number].tolist() for name in ("tokens", "positions", "spans"))
        assert [*tokens, column["tokens"]] == expected["input_ids"][number]
        assert [*positions, column["positions"]] == expected["position_ids"][number]
        assert [int(span != NO_SPAN) for span in [*spans, column["spans"]]] == expected["attention_mask"][number]
