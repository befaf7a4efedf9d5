"""Classification without tuning: OCNLI, TNEWS and IFLYTEK. The text is likeliest after the prompt of its own class.

Raw: JSON lines; for TNEWS and IFLYTEK with `labels.json` beside them, a line for each class. There the original
compares the right class with three others that it draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.convert import MadeRow
from hanlin.data.sources import LeftOutError
from hanlin.models.common.raw_rows import field, make_rows, read_objects, text

SEED = 1234
"""Of the classes drawn: the originals' default."""
NUM_OTHERS = 3
_TNEWS, _IFLYTEK = "这是关于{}的文章：", "这是关于{}的应用程序："
_OCNLI = {"entailment": "对", "contradiction": "错", "neutral": "也许"}


def read_ocnli(path: Path) -> Iterator[MadeRow]:
    """Rows whose label is "-", on which the annotators did not agree, are left out."""
    return make_rows(path, _ocnli_records)


def read_tnews(path: Path, num_others: int | None = NUM_OTHERS) -> Iterator[MadeRow]:
    """num_others: classes drawn beside the right one, which comes last; None: all classes.

    Raises: DataError for labels.json.
    """
    file = path.with_name("labels.json")
    names = {
        str(_label_field(file, line, "label", object)): _label_field(file, line, "label_desc", str)
        for line in read_objects(file)
    }
    return _compared(path, lambda row: names.get(str(row.get("label"))), list(names.values()), _TNEWS, num_others)


def read_iflytek(path: Path, num_others: int | None = NUM_OTHERS) -> Iterator[MadeRow]:
    """num_others: as in `read_tnews`.

    Raises: as `read_tnews`.
    """
    file = path.with_name("labels.json")
    names = [_label_field(file, line, "label_des", str) for line in read_objects(file)]
    return _compared(path, lambda row: row.get("label_des"), names, _IFLYTEK, num_others)


def _ocnli_records(row: dict[str, Any]) -> list[dict[str, Any]]:
    if (label := field(row, "label", str)) == "-":
        raise LeftOutError('its label is "-"')
    if label not in _OCNLI:
        raise DataError(f'"label": expected {", ".join(_OCNLI)} or -, found {label!r:.40}')
    first, second = (text(row, name) for name in ("sentence1", "sentence2"))
    return [_record({name: f"{first}？{word}，" for name, word in _OCNLI.items()}, second, label)]


def _label_field(file: Path, line: dict[str, Any], name: str, kind: type) -> Any:
    if name not in line or not isinstance(line[name], kind):
        raise DataError(f'{file}: expected a line with "{name}" for each class, found {line!r:.60}')
    return line[name]


def _compared(
    path: Path, label_of: Callable[[dict[str, Any]], Any], names: Sequence[str], template: str, num_others: int | None
) -> Iterator[MadeRow]:
    draws = random.Random(SEED)

    def records(row: dict[str, Any]) -> list[dict[str, Any]]:
        label, sentence = label_of(row), text(row, "sentence")
        if label not in names:
            raise DataError(f"its label is none of the {len(names)} in labels.json")
        shown = list(names) if num_others is None else [*_others(names, label, num_others, draws), label]
        return [_record({name: template.format(name) for name in shown}, sentence, label)]

    return make_rows(path, records)


def _others(names: Sequence[str], label: str, count: int, draws: random.Random) -> list[str]:
    """Drawn as the original draws: all anew when the right class is among them."""
    if len(names) <= count:
        raise DataError(f"labels.json has {len(names)} classes, too few for {count} beside the right one")
    while label in (drawn := draws.sample(names, count)):
        pass
    return drawn


def _record(prompts: dict[str, str], answer: str, label: str) -> dict[str, Any]:
    options = {name: {"prompt": prompt, "answer": answer, "ends": False} for name, prompt in prompts.items()}
    return {"options": options, "label": label}
