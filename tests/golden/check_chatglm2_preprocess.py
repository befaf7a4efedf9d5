"""The original's training and evaluation rows, id by id, of both its versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from check_chatglm2_tokenizer import check_prompts
from glm_case import needed_tokenizer
from golden_case import Case

from hanlin.core.errors import DataError
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.original import make_sample, reference_ids
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer


def check(case: Case, vocab: Path) -> None:
    del vocab
    tokenizer = ChatGlm2Tokenizer.load(needed_tokenizer(case))
    for form in case.json("expected.json"):
        _check_form(tokenizer, form)


def _check_form(tokenizer: ChatGlm2Tokenizer, form: dict[str, Any]) -> None:
    args, tag = form["args"], form.get("tag")
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), _options(args, args["max_target_length"]))
    rows = [row for row in map(dict, form["rows"]) if _is_usable(processor, row)]
    length = args["max_source_length"] + args["max_target_length"] if "no +1" in form.get("variant", "") else None
    made = [processor.original_row(row, length) for row in rows]
    for place, name in enumerate(("input_ids", "labels")):
        assert name not in form.get("train", {}) or [row[place] for row in made] == form["train"][name], tag
    for row, (tokens, labels) in zip(rows, made, strict=True):
        _check_sample(processor, row, tokens, labels)
    if "eval" in form:
        _check_eval(tokenizer, args, form["eval"], rows)


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


def _check_eval(tokenizer: ChatGlm2Tokenizer, args: dict[str, Any], expected: dict[str, Any], rows: list) -> None:
    length = args.get("val_max_target_length") or args["max_target_length"]
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), _options(args, length))
    check_prompts(processor, [processor.prompt(row) for row in rows], expected)
    for number, row in enumerate(rows):
        labels = reference_ids(tokenizer.prefix, tokenizer.encode(row[args["response_column"]]), length)
        assert labels == expected.get("labels", {number: labels})[number]
        assert processor.gold(row) == [tokenizer.decode(labels)]


def _options(args: dict[str, Any], target_length: int) -> ChatGlm2Options:
    return ChatGlm2Options(
        prompt_column=args["prompt_column"],
        response_column=args["response_column"],
        history_column=args.get("history_column") or "no history",
        source_prefix=args.get("source_prefix") or "",
        prompt_length=args["max_source_length"],
        answer_length=target_length,
        compatible=True,
        learn_padding=not args.get("ignore_pad_token_for_loss", True),
    )


def _is_usable(processor: ChatGlm2Processor, row: dict) -> bool:
    """The original skips rows with an empty text; ours refuses them, so that data.bad_rows decides."""
    try:
        processor.check(row)
    except DataError:
        return False
    return True
