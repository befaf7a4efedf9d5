"""Tiny models that decide: one of each family, and those with a head for labels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from family_cases import case_of
from scratch import scratch

from hanlin.evaluation.decisions.asking import poll_of_question
from hanlin.evaluation.decisions.questions import Question, read_questions
from hanlin.generate.engine import Engine

FAMILIES = ("chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee")
LABELS = ("好", "坏", "月")
TEXT = "床前明月光"
# "是" and "否" are the same unknown token to some of the tiny vocabularies, so true and false are asked apart.
QUESTIONS: list[dict[str, Any]] = [
    {
        "type": "choice",
        "name": "what",
        "instructions": "明月",
        "choices": [{"value": "霜", "description": "地上"}, {"value": "明月光"}, {"value": "明"}],
    },
    {"type": "score", "name": "how", "instructions": "望", "levels": [{"label": "明"}, {"label": "举头明月"}]},
]
PREDICATE = {"type": "predicate", "name": "whether", "instructions": "霜"}


@cache
def engine_of_family(family: str) -> Engine:
    case = case_of(family, scratch())
    limit = getattr(case.config, "max_length", None)
    return Engine(case.model().requires_grad_(False), case.processor, max_length=limit, family=case.family)


@cache
def label_engine(kind: str = "one") -> Engine:
    case = case_of("chatglm2", scratch())
    labelled = replace(case, config=replace(case.config, labels=LABELS, label_kind=kind))
    return Engine(labelled.model().requires_grad_(False), labelled.processor, max_length=case.config.max_length)


def asked(values: list[dict[str, Any]]) -> tuple[Question, ...]:
    return read_questions(values)


def poll(engine: Engine, question: Question, text: str = TEXT) -> Any:
    return poll_of_question(engine.processor, question, text, engine.max_length)
