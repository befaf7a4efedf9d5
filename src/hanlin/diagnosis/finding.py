"""What `hanlin doctor` finds, and how a part of it that fails becomes a finding of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Finding", "first_line", "guarded"]


@dataclass(frozen=True)
class Finding:
    """name: of what; text: for people; facts: the same for programs, as JSON has them."""

    name: str
    text: str
    is_well: bool = True
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def guarded(name: str, probe: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a probe finds; if it fails, that it did. The others go on."""
    try:
        yield from probe()
    except Exception as error:  # whatever a driver raises is what this command is asked for
        yield Finding(name, first_line(error), is_well=False)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'nothing said'}"[:300]
