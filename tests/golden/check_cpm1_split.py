"""Where train, valid and test begin for a split string and a number of documents."""

from __future__ import annotations

from pathlib import Path

from golden_case import Case

from hanlin.data.pretraining.sample_index import split_bounds


def check(case: Case, vocab: Path) -> None:
    del vocab
    for split, num_documents, bounds in case.facts["rows"]:
        assert split_bounds(split, num_documents) == bounds, (split, num_documents)
