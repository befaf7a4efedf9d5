"""What suites are made of: subjects with questions, each with the options to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Subject", "SuiteQuestion"]


@dataclass(frozen=True)
class SuiteQuestion:
    """A question. text: what is gone on with; options: what is told for each, by its name; gold: the right name, None
    where the authors keep it to themselves.

    asked, answers: the same for models that answer rather than go on with texts, where that is something else.
    """

    id: str
    text: str
    options: Mapping[str, str]
    gold: str | None = None
    asked: str | None = None
    answers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Subject:
    """The questions of a file. title: what people call it; groups: the categories that it counts for; head: stands
    before the questions; examples: questions with their answers, the first of which are shown.
    """

    name: str
    title: str
    questions: Sequence[SuiteQuestion]
    examples: Sequence[SuiteQuestion] = ()
    groups: tuple[str, ...] = ()
    head: str = ""
