"""Classification without tuning: OCNLI, TNEWS and IFLYTEK. The text is likeliest after the prompt of its own class.

Raw: JSON lines; for TNEWS and IFLYTEK with `labels.json` beside them, a line for each class. There the original
compares the right class with three others that it draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.models.common.raw_rows import field, read_rows

SEED = 1234
"""Of the classes drawn: the originals' default."""
NUM_OTHERS = 3
_OCNLI = {"entailment": "对", "contradiction": "错", "neutral": "也许"}


def read_ocnli(path: Path) -> Iterator[dict[str, Any]]:
    """Rows whose label is "-" are left out.

    Raises: DataError.
    """
    for where, row in read_rows(path):
        if (label := field(row, "label", str, where)) != "-":
            first, second = (field(row, name, str, where) for name in ("sentence1", "sentence2"))
            prompts = {name: f"{first}？{word}，" for name, word in _OCNLI.items()}
            yield _record(prompts, second, label if label in _OCNLI else "neutral")


def read_tnews(path: Path, num_others: int | None = NUM_OTHERS) -> Iterator[dict[str, Any]]:
    """num_others: classes drawn beside the right one, which comes last; None: all classes.

    Raises: DataError.
    """
    lines = [row for _, row in read_rows(path.with_name("labels.json"))]
    names = {str(line["label"]): field(line, "label_desc", str) for line in lines}
    rows = ((where, row, names.get(str(row.get("label")))) for where, row in read_rows(path))
    yield from _compared(rows, list(names.values()), "这是关于{}的文章：", num_others)


def read_iflytek(path: Path, num_others: int | None = NUM_OTHERS) -> Iterator[dict[str, Any]]:
    """num_others: as in `read_tnews`.

    Raises: DataError.
    """
    names = [field(row, "label_des", str, where) for where, row in read_rows(path.with_name("labels.json"))]
    rows = ((where, row, row.get("label_des")) for where, row in read_rows(path))
    yield from _compared(rows, names, "这是关于{}的应用程序：", num_others)


def _compared(
    rows: Iterator[tuple[str, dict[str, Any], Any]], names: Sequence[str], template: str, num_others: int | None
) -> Iterator[dict[str, Any]]:
    draws = random.Random(SEED)
    for where, row, label in rows:
        if label not in names:
            raise DataError(f"{where}: its label is none of the {len(names)} in labels.json")
        shown = list(names) if num_others is None else [*_others(names, label, num_others, draws), label]
        yield _record({name: template.format(name) for name in shown}, field(row, "sentence", str, where), label)


def _others(names: Sequence[str], label: str, count: int, draws: random.Random) -> list[str]:
    """Drawn as the original draws: all anew when the right class is among them."""
    if len(names) <= count:
        raise DataError(f"labels.json has {len(names)} classes, too few for {count} beside the right one")
    while label in (drawn := draws.sample(names, count)):
        pass
    return drawn


def _record(prompts: dict[str, str], text: str, label: str) -> dict[str, Any]:
    options = {name: {"prompt": prompt, "answer": text, "ends": False} for name, prompt in prompts.items()}
    return {"options": options, "label": label}
