"""Pre-tokenised data sets of the Ascend version: every row, and the samples that they make."""

from __future__ import annotations

import json
from pathlib import Path

from hanlin.data.sources.arrow import ArrowSource, is_arrow_folder
from hanlin.models.chatglm2.original import is_row, make_sample, read_row


def check(case: Path, vocab: Path) -> None:
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    (folder,) = (path for path in case.iterdir() if path.is_dir() and is_arrow_folder(path))
    source = ArrowSource(folder)
    assert len(source) == expected["rows"]
    for row in range(len(source)):
        record = source[row]
        assert set(record) == set(expected["columns"])
        for name, values in record.items():
            assert values.tolist() == expected["data"][name][row]
        assert is_row(record)
        sample = make_sample(read_row(record, vocab_size=65024))
        assert sample.loss_tokens == sum(label != -100 for label in expected["data"]["labels"][row])
