"""Where train, valid and test begin for a split string and a number of documents."""

from __future__ import annotations

import json
from pathlib import Path

from hanlin.data.pretraining.sample_index import split_bounds


def check(case: Path, vocab: Path) -> None:
    del vocab
    for split, num_documents, bounds in json.loads((case / "case.json").read_text())["rows"]:
        assert split_bounds(split, num_documents) == bounds, (split, num_documents)
