"""The original's training and evaluation rows, id by id, of both its versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.original import make_sample, reference_ids
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.common.decoder_batch import NO_SPAN

TOKENIZER = "chatglm2_tokenizer"


def check(case: Path, vocab: Path) -> None:
    folder = case if (case / "tokenizer.model").is_file() else case.parent / TOKENIZER
    if not folder.is_dir():
        pytest.skip(f"the tokenizer of the case {TOKENIZER} is not here")
    tokenizer = ChatGlm2Tokenizer.load(folder)
    for form in json.loads((case / "expected.json").read_text("utf-8")):
        _check_form(tokenizer, form)


def _check_form(tokenizer: ChatGlm2Tokenizer, form: dict) -> None:
    args = form["args"]
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), _options(args, args["max_target_length"]))
    rows = [row for row in form["rows"] if _is_usable(processor, row)]
    length = args["max_source_length"] + args["max_target_length"] if "no +1" in form["variant"] else None
    made = [processor.original_row(row, length) for row in rows]
    assert [tokens for tokens, _ in made] == form["train"]["input_ids"], form["tag"]
    assert [labels for _, labels in made] == form["train"]["labels"], form["tag"]
    for row, (tokens, labels) in zip(rows, made, strict=True):
        _check_sample(processor, row, tokens, labels)
    _check_eval(tokenizer, form, rows)


def _check_sample(processor: ChatGlm2Processor, row: dict, tokens: list[int], labels: list[int]) -> None:
    """Our sample is the row without the padding at its end that carries no loss, labels one place earlier."""
    sample = processor.sample(row)
    length = min(sample.length, len(tokens))
    assert sample.inputs["tokens"][:length].tolist() == tokens[:length]
    assert sample.labels[: length - 1].tolist() == labels[1:length]
    assert not any(tokens[length:])
    assert all(label == -100 for label in labels[length:])
    again = make_sample((tokens, labels))
    assert again.labels.tolist() == processor.sample({"input_ids": tokens, "labels": labels}).labels.tolist()


def _check_eval(tokenizer: ChatGlm2Tokenizer, form: dict, rows: list[dict]) -> None:
    args, expected = form["args"], form["eval"]
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), _options(args, args["val_max_target_length"]))
    batch = processor.collate_prompts([processor.prompt(row) for row in rows])
    for number, (row, cursor) in enumerate(zip(rows, batch.cursors, strict=True)):
        column = cursor.inputs()
        tokens, positions, spans = (batch.inputs[name][number].tolist() for name in ("tokens", "positions", "spans"))
        assert [*tokens, column["tokens"]] == expected["input_ids"][number], form["tag"]
        assert [*positions, column["positions"]] == expected["position_ids"][number]
        assert [int(span != NO_SPAN) for span in [*spans, column["spans"]]] == expected["attention_mask"][number]
        answer = tokenizer.encode(row[args["response_column"]])
        labels = reference_ids(tokenizer.prefix, answer, args["val_max_target_length"])
        assert labels == expected["labels"][number]
        assert processor.gold(row) == [tokenizer.decode(labels).strip()]


def _options(args: dict, target_length: int) -> ChatGlm2Options:
    return ChatGlm2Options(
        prompt_column=args["prompt_column"],
        response_column=args["response_column"],
        history_column=args["history_column"] or "no history",
        source_prefix=args["source_prefix"],
        prompt_length=args["max_source_length"],
        answer_length=target_length,
        compatible=True,
        learn_padding=not args["ignore_pad_token_for_loss"],
    )


def _is_usable(processor: ChatGlm2Processor, row: dict) -> bool:
    """The original skips rows with an empty text; ours refuses them, so that data.bad_rows decides."""
    try:
        processor.check(row)
    except DataError:
        return False
    return True
