"""Pre-tokenised data sets of the Ascend version: every row, the samples that they make, and the rows made anew."""

from __future__ import annotations

from pathlib import Path

from glm_case import tokenizer_folder
from golden_case import Case

from hanlin.data.sources import open_records
from hanlin.data.sources.several import is_saved_set
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.original import is_row, make_sample, read_row
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer


def check(case: Case, vocab: Path) -> None:
    del vocab
    expected = case.json("expected.json")
    [folder] = (path for path in case.folders() if is_saved_set(path))
    source, data = open_records(folder), expected["data"]
    assert len(source) == expected.get("rows", len(source))
    for row in range(len(source)):
        record = source[row]
        assert set(record) == set(expected.get("columns", record))
        for name, values in record.items():
            if name in data:
                assert values == data[name][row]
        assert is_row(record)
        sample = make_sample(read_row(record, vocab_size=ChatGlm2Config().vocab_size))
        if "labels" in data:
            assert sample.loss_tokens == sum(label != -100 for label in data["labels"][row])
    _check_made(case, expected)
    case.set_aside(r"expected\.json: features.*", "the types of the columns; their values are compared")


def _check_made(case: Case, expected: dict) -> None:
    """The same rows from the raw ones, if the tokenizer is here."""
    folder = tokenizer_folder(case)
    if folder is not None and "rows_in" in expected:
        args = dict(expected["args"])
        options = ChatGlm2Options(
            prompt_column=args["prompt_column"],
            response_column=args["response_column"],
            prompt_length=args["max_source_length"],
            answer_length=args["max_target_length"],
            compatible=True,
        )
        processor = ChatGlm2Processor(ChatGlm2Tokenizer.load(folder), ChatGlm2Config(), options)
        length = args["max_source_length"] + args["max_target_length"]
        made = [processor.original_row(dict(row), length) for row in expected["rows_in"]]
        for place, name in enumerate(("input_ids", "labels")):
            if name in expected["data"]:
                assert [row[place] for row in made] == expected["data"][name], family.name
    case.set_aside(r"expected\.json: (rows_in|args).*", "made anew where the tokenizer is here")
