"""The data sets of CPM-1's sister programs as records: raw file -> texts, prompts with answers, options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hanlin.data.convert import MadeRow

from .chid import read_choices, read_passages
from .classes import read_iflytek, read_ocnli, read_tnews
from .stc import read_dialogues

TASKS: dict[str, Callable[[Path], Iterator[MadeRow]]] = {
    "chid": read_choices,
    "chid-zero-shot": read_passages,
    "stc": read_dialogues,
    "ocnli": read_ocnli,
    "tnews": read_tnews,
    "tnews-all": partial(read_tnews, num_others=None),
    "iflytek": read_iflytek,
    "iflytek-all": partial(read_iflytek, num_others=None),
}
"""Name -> what reads a raw file; files that belong to it (answers, labels) are looked for beside it.

`-all`: all classes are compared, not the right one with three others.
"""
