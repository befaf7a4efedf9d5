"""Recipes and rows that hypothesis makes up, of fixed seeds: a refusal or a result, never a traceback.

What `check` lets pass, the first step of training takes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from trials import Tally, copy_of, limit_memory
from worlds import recipe_of, remove

SECONDS = 30  # an example, so long that only a hang takes it

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
ROWS = st.lists(st.one_of(st.dictionaries(_ROW_KEYS, _VALUES, max_size=5), _VALUES), min_size=1, max_size=6)


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


def recipes(world: Path) -> st.SearchStrategy[dict[str, Any]]:
    """A right recipe of which a few settings are something else, or missing, or a section is no section."""
    right = recipe_of(world)
    right["run"]["folder"] = str(world / "fuzzed")
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
        recipe.setdefault("train", {})
        if isinstance(recipe["train"], dict) and recipe["train"].get("steps") == 4:
            recipe["train"]["steps"] = 1
        return recipe

    return st.builds(changed, st.lists(change, min_size=1, max_size=3), st.lists(places, max_size=1))


def drill_recipes(template: Path, place: Path, count: int, number: int) -> Tally:
    """`count` recipes: `check`, and where it has no objection, `train` for a step, and `evaluate`."""

    def one(world: Path, recipe: dict[str, Any]) -> str | None:
        path = world / "fuzzed.yaml"
        path.write_text(yaml.safe_dump(recipe, allow_unicode=False), "utf-8")
        remove(world / "fuzzed")
        code, shown = _call(["check", str(path)])
        if code == 0 and _is_small(recipe):
            trained, told = _call(["train", str(path), "train.steps=1", "train.epochs=null"])
            if trained not in (0, 75):
                return (
                    None if trained == 2 and _may_differ(told) else f"check said yes, train: {trained}: {told[-1500:]}"
                )
        return f"check: {code}: {shown[-1500:]}" if code not in (0, 2) else None

    return _drill("fuzzed recipes", template, place, recipes(place), one, count, number)


def drill_rows(template: Path, place: Path, count: int, number: int) -> Tally:
    """`count` files of rows, with bad rows refused and dropped: `check`, `train` and `generate`."""

    def one(world: Path, rows: list[Any]) -> str | None:
        lines = [json.dumps(row) for row in rows]
        (world / "rows.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        for name in ("full", "windowless"):
            remove(world / name)
        for policy in ("error", "drop"):
            more = [f"data.bad_rows={policy}", "train.steps=1", "train.eval_every=null", "data.eval=[]"]
            code, shown = _call(["check", str(world / "full.yaml"), *more])
            trained, told = _call(["train", str(world / "full.yaml"), *more])
            if code not in (0, 2) or trained not in (0, 2):
                return f"{policy}: check {code}: {shown[-800:]} train {trained}: {told[-1500:]}"
            if (code, trained) == (0, 2):
                return f"{policy}: check said yes, train: {told[-1500:]}"
        asked = ["--input", str(world / "rows.jsonl"), "--output", str(world / "o.jsonl")]
        remove(world / "o.jsonl")
        code, shown = _call(["generate", str(world / "lora.yaml"), *asked])
        return f"generate: {code}: {shown[-1500:]}" if code not in (0, 2) else None

    return _drill("fuzzed rows", template, place, ROWS, one, count, number)


def _drill(
    name: str,
    template: Path,
    place: Path,
    strategy: st.SearchStrategy[Any],
    one: Callable[[Path, Any], str | None],
    count: int,
    number: int,
) -> Tally:
    """In one process of its own, with a limit of memory; every example is tried, faults do not end it."""
    start, found = time.monotonic(), []
    with copy_of(template, place) as world:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_fuzzer(world, strategy, one, count, number, writing)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            found = [json.loads(line) for line in lines]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tally = Tally(name)
    for fault in found:
        tally = tally.add("traceback" if fault else None, fault or "")
    if code != 0:
        tally = tally.add("traceback", f"{name}: the process ended with {code} after {len(found)} examples")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def _be_fuzzer(
    world: Path,
    strategy: st.SearchStrategy[Any],
    one: Callable[[Path, Any], str | None],
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
    @given(strategy)
    def fuzz(example: Any) -> None:
        try:
            signal.alarm(SECONDS)
            fault = one(world, example)
        except BaseException:
            fault = traceback.format_exc()
        finally:
            signal.alarm(0)
        told = None if fault is None else f"{example!r:.600}: {fault[-1800:]}"
        os.write(writing, (json.dumps(told) + "\n").encode())

    try:
        fuzz()
    except BaseException:
        os.write(writing, (json.dumps(traceback.format_exc()) + "\n").encode())
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


def _may_differ(told: str) -> bool:
    """What only a run can find out: numbers that are none, and what its machine does not have."""
    return any(word in told for word in ("NaN", "not finite", "skipped", "loss", "device", "memory"))
