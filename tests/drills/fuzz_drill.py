"""Recipes and rows that hypothesis makes up, of fixed seeds: a refusal or a result, never a traceback.

What `check` lets pass, the first step of training takes. What is made up is right, but for a few changes, so that
enough of it is taken and enough is not: a drill in which one of them hardly occurs proves nothing, and says so.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from trials import Tally, copy_of, limit_memory
from worlds import FAMILIES, remove

SECONDS = 30  # an example, so long that only a hang takes it
LEAST_SHARE = 0.05
"""Of what is made up, so much has to be taken, and so much refused."""
_ONLY_A_RUN_TELLS = ("the loss is", "no finite", "not finite", "out of memory")
"""Numbers that are none, and what a machine does not have."""

_TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)
_WORDS = st.sampled_from(
    [
        "<ans>",
        "<mask_0>",
        "<mask_1>",
        "<option_0>",
        "<option_1>",
        "<root>",
        "</s>",
        "<s>",
        "<unk>",
        "<eod>",
        "<n>",
        "\ud800",
        "\0",
        "\n",
        "今天",
        "a",
        "<",
        "<<",
        "options",
        "input",
        "[MASK]",
        "[gMASK]",
    ]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(allow_nan=True),
    _TEXTS,
    _WORDS,
    st.lists(_WORDS, max_size=4).map("".join),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.one_of(_WORDS, _TEXTS), inner, max_size=4),
    max_leaves=8,
)
_ROW_KEYS = st.one_of(
    st.sampled_from(
        ["input", "<ans>", "options", "prompt", "text", "source", "target", "history", "messages", "summary", "content"]
    ),
    _TEXTS,
)


def rows_like(records: Sequence[Any]) -> st.SearchStrategy[list[Any]]:
    """Up to six of these records, of which some have another value, a key more or less, or are something else."""
    right = st.sampled_from(list(records))
    keys = st.one_of(st.sampled_from(sorted({key for record in records for key in record})), _ROW_KEYS)

    def changed(record: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
        return {**record, key: value}

    def shorter(record: dict[str, Any], number: int) -> dict[str, Any]:
        gone = sorted(record)[number % len(record)]
        return {key: value for key, value in record.items() if key != gone}

    row = st.one_of(
        *[right] * 4,
        st.builds(changed, right, keys, st.one_of(_TEXTS, _WORDS)),
        st.builds(changed, right, keys, _VALUES),
        st.builds(shorter, right, st.integers(0, 3)),
        st.dictionaries(_ROW_KEYS, _VALUES, max_size=5),
        _VALUES,
    )
    return st.lists(row, min_size=1, max_size=6)


def _settings_of(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    from hanlin.recipe.settings import Recipe

    known = [(section, name) for section, field in Recipe.model_fields.items() for name in _fields(field.annotation)]
    return known + [(section, name) for section, values in recipe.items() for name in values]


def _fields(kind: Any) -> list[str]:
    return list(getattr(kind, "model_fields", {})) or ["method", "name", "rank", "beams"]


_RECIPE_VALUES = st.one_of(
    _VALUES,
    st.sampled_from(
        [
            0,
            -1,
            1,
            2,
            3,
            10**9,
            2**63,
            1e400,
            -0.0,
            1e-300,
            "auto",
            "fp16",
            "bf16",
            "lora",
            "full",
            "prefix",
            "prompt",
            "beam",
            "sample",
            "greedy",
            "adamw",
            "cosine",
            "linear",
            "noam",
            "once",
            True,
            False,
            None,
            "error",
            "drop",
            "truncate",
            "split",
            "parameters",
            [],
            {},
            [1.0],
            [0.5, 0.5],
            "949,50,1",
        ]
    ),
)


def recipes(world: Path, family: str) -> st.SearchStrategy[dict[str, Any]]:
    """A right recipe of which a few settings are something else, or missing, or a section is no section."""
    right = yaml.safe_load((world / f"{family or 'fresh'}.yaml").read_text("utf-8"))
    right["run"]["folder"] = str(world / "fuzzed")
    right["train"]["steps"] = 1
    places = st.sampled_from(sorted(set(_settings_of(right))))
    change = st.tuples(places, _RECIPE_VALUES)

    def changed(changes: list[tuple[tuple[str, str], Any]], dropped: list[tuple[str, str]]) -> dict[str, Any]:
        recipe = json.loads(json.dumps(right))
        for (section, name), value in changes:
            if section not in recipe or not isinstance(recipe[section], dict):
                recipe[section] = {}
            recipe[section][name] = value
        for section, name in dropped:
            if isinstance(recipe.get(section), dict):
                recipe[section].pop(name, None)
        return recipe

    return st.builds(changed, st.lists(change, max_size=3), st.lists(places, max_size=1))


@dataclass(frozen=True)
class Outcome:
    """fault: what went wrong, with what was shown; is_taken: whether it was worked with; None: it is not counted."""

    fault: str | None
    is_taken: bool | None = None


def drill_recipes(template: Path, place: Path, count: int, number: int) -> Tally:
    """`count` recipes of each family: `check`, and where it has no objection, `train` for a step."""

    def one(world: Path, recipe: dict[str, Any]) -> Outcome:
        path = world / "fuzzed.yaml"
        path.write_text(yaml.safe_dump(recipe, allow_unicode=False), "utf-8")
        remove(world / "fuzzed")
        code, shown = _call(["check", str(path)])
        if code != 0:
            return Outcome(None if code == 2 else f"check: {code}: {shown[-1500:]}", False)
        if not _is_small(recipe):
            return Outcome(None)
        trained, told = _call(["train", str(path), "train.steps=1", "train.epochs=null"])
        if trained == 2 and any(word in told for word in _ONLY_A_RUN_TELLS):
            return Outcome(None)
        has_done = trained == 0 and (world / "fuzzed" / "metrics.jsonl").is_file()
        return Outcome(None if has_done else f"check said yes, train: {trained}: {told[-1500:]}", True)

    return _drill_families("fuzzed recipes", template, place, recipes, one, count, number)


def drill_rows(template: Path, place: Path, count: int, number: int) -> Tally:
    """`count` files of rows for each family, with bad rows refused and dropped: `check`, `train` and `generate`."""

    def one(world: Path, family: str, rows: list[Any]) -> Outcome:
        data, recipe = (world / f"{family or 'rows'}.jsonl", str(world / f"{family or 'fresh'}.yaml"))
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
        taken = []
        for policy in ("error", "drop"):
            remove(world / "fuzzed")
            more = [f"run.folder={world / 'fuzzed'}", f"data.bad_rows={policy}", "train.steps=1"]
            code, shown = _call(["check", recipe, *more])
            trained, told = _call(["train", recipe, *more])
            if code not in (0, 2) or trained != code:
                return Outcome(f"{policy}: check {code}: {shown[-800:]} train {trained}: {told[-1500:]}")
            if code == 0 and not (world / "fuzzed" / "metrics.jsonl").is_file():
                return Outcome(f"{policy}: trained without a step: {told[-1500:]}")
            taken.append(code == 0)
        if taken == [True, False]:
            return Outcome(f"rows that are taken must not be dropped: {shown[-1500:]}")
        output = world / "o.jsonl"
        remove(output)
        asked = ["generate", recipe, "--weights", "base", "tuning.method=full", "--input", str(data)]
        code, shown = _call([*asked, "--output", str(output)])
        if code not in (0, 2) or (code == 0 and len(output.read_text("utf-8").splitlines()) != len(rows)):
            return Outcome(f"generate: {code}: {shown[-1500:]}")
        return Outcome(None, taken[0])

    def strategy(world: Path, family: str) -> st.SearchStrategy[Any]:
        lines = (world / f"{family or 'rows'}.jsonl").read_text("utf-8").splitlines()
        return st.tuples(st.just(family), rows_like([json.loads(line) for line in lines]))

    return _drill_families(
        "fuzzed rows", template, place, strategy, lambda world, example: one(world, *example), count, number
    )


def _drill_families(
    name: str,
    template: Path,
    place: Path,
    strategy: Callable[[Path, str], st.SearchStrategy[Any]],
    one: Callable[[Path, Any], Outcome],
    count: int,
    number: int,
) -> Tally:
    start, tally, taken, refused = time.monotonic(), Tally(name), 0, 0
    for family in ("", *FAMILIES):
        outcomes = _drill(template, place, lambda world, of=family: strategy(world, of), one, count, number)
        for outcome in outcomes:
            tally = tally.add("traceback" if outcome.fault else None, f"{family}: {outcome.fault}")
        counts = [sum(outcome.is_taken is kind for outcome in outcomes) for kind in (True, False)]
        if min(counts) < int(count * LEAST_SHARE):
            told = f"{name}, {family or 'cpm_bee'}: of {len(outcomes)} {counts[0]} were taken, {counts[1]} refused"
            tally = tally.add("unproven", told)
        taken, refused = taken + counts[0], refused + counts[1]
    if not (taken and refused):
        tally = tally.add("unproven", f"{name}: {taken} were taken, {refused} refused")
    name = f"{name} ({taken:,} taken, {refused:,} refused)"
    return Tally(**{**vars(tally), "name": name, "seconds": time.monotonic() - start})


def _drill(
    template: Path,
    place: Path,
    strategy: Callable[[Path], st.SearchStrategy[Any]],
    one: Callable[[Path, Any], Outcome],
    count: int,
    number: int,
) -> list[Outcome]:
    """In one process of its own, with a limit of memory; every example is tried, faults do not end it."""
    with copy_of(template, place) as world:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_fuzzer(world, strategy, one, count, number, writing)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            found = [Outcome(**json.loads(line)) for line in lines]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        found.append(Outcome(f"the process ended with {code} after {len(found)} examples"))
    return found


def _be_fuzzer(
    world: Path,
    strategy: Callable[[Path], st.SearchStrategy[Any]],
    one: Callable[[Path, Any], Outcome],
    count: int,
    number: int,
    writing: int,
) -> None:
    limit_memory(12)
    os.chdir(world)
    signal.signal(signal.SIGALRM, _too_late)

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(world))
    def fuzz(example: Any) -> None:
        try:
            signal.alarm(SECONDS)
            outcome = one(world, example)
        except BaseException:
            outcome = Outcome(traceback.format_exc())
        finally:
            signal.alarm(0)
        if outcome.fault is not None:
            outcome = replace(outcome, fault=f"{example!r:.600}: {outcome.fault[-1800:]}")
        os.write(writing, (json.dumps(vars(outcome)) + "\n").encode())

    try:
        fuzz()
    except BaseException:
        os.write(writing, (json.dumps({"fault": traceback.format_exc()}) + "\n").encode())
        os._exit(1)
    os._exit(0)


def _too_late(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} seconds")


def _call(argv: list[str]) -> tuple[int, str]:
    """The code of a command that is called in this process, and what it shows."""
    import logging

    from hanlin.cli.main import main

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            code = main(argv)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            shown.write(traceback.format_exc())
            code = 70
    ours = logging.getLogger("hanlin")
    for handler in list(ours.handlers):
        ours.removeHandler(handler)
        handler.close()
    return code, shown.getvalue()


def _is_small(recipe: dict[str, Any]) -> bool:
    """Whether a step of it is a matter of a moment on one process of a CPU."""
    train, data, model = (recipe.get(name) or {} for name in ("train", "data", "model"))
    layout = recipe.get("parallel") or {}
    numbers = [train.get("batch_size", 1), data.get("max_length", 1)]
    return not layout and not model.get("config") and all(isinstance(n, int) and n <= 256 for n in numbers)
