"""What a command has to say to what was planted, and the proof that it works where nothing was.

A command that fails anyway proves nothing about the file that it should have refused, and one that is refused for
another reason than the planted one proves nothing either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kill_drill import results
from trials import Trial, copy_of, run

WRITERS = ("train", "convert")
"""What has done its work only if files are others; the rest has to say something."""
Command = str | Sequence[str]
"""Words, or a text of words without blanks inside."""


@dataclass(frozen=True)
class Try:
    """A command that meets what was planted.

    code: how it has to end; told: a pattern of what it has to say; undamaged: what has to work where nothing was
    planted.
    """

    argv: tuple[str, ...]
    code: int
    told: str
    undamaged: tuple[str, ...]


def refused(told: str, *commands: Command, undamaged: Command = ()) -> list[Try]:
    """These have to be refused, in words of the pattern; undamaged: what proves them all, if not they themselves."""
    return [Try(words(one), 2, told, words(undamaged or one)) for one in commands]


def works(*commands: Command, told: str = "") -> list[Try]:
    """These have to do without what was planted, or to use it."""
    return [Try(words(one), 0, told, words(one)) for one in commands]


def words(command: Command) -> tuple[str, ...]:
    return tuple(command.split() if isinstance(command, str) else command)


@dataclass
class Baselines:
    """What became of commands in a world where nothing was planted; each is tried once.

    arrange: what is done to that world first; prepare: as in `trials.run`.
    """

    template: Path
    place: Path
    arrange: Callable[[Path], None] | None = None
    prepare: Callable[[], None] | None = None
    _known: dict[tuple[str, ...], str | None] = field(default_factory=dict)

    def problem(self, argv: Sequence[str]) -> str | None:
        """Why trials of the command prove nothing, None if they do; the world's place must be free."""
        key = tuple(argv)
        if key not in self._known:
            self._known[key] = self._try(key)
        return self._known[key]

    def _try(self, argv: tuple[str, ...]) -> str | None:
        with copy_of(self.template, self.place) as world:
            if self.arrange is not None:
                self.arrange(world)
            before = results(world) if argv[0] in WRITERS else {}
            found = run(argv, world, prepare=self.prepare)
            has_done = results(world) != before if argv[0] in WRITERS else bool(found.output.strip())
        if found.code == 0 and has_done:
            return None
        return f"without what is planted: {' '.join(argv)}: {found.code}: {found.output[-1000:]}"


def judge(found: Trial, attempt: Try) -> str | None:
    """The fault of a trial, None for none."""
    if found.is_crash or found.is_late or found.code not in (0, 1, 2):
        return "traceback"
    if found.code != attempt.code or not re.search(attempt.told, found.output):
        return "silent"
    return None
