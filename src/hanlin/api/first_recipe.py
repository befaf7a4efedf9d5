"""A first recipe for a model and files of rows: what is told from them, and what fits into this machine's memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError
from hanlin.core.language import Language

if TYPE_CHECKING:
    from hanlin.core.cards import Device
    from hanlin.data.preview import Preview
    from hanlin.recipe.reading import Overrides
    from hanlin.recipe.settings import Recipe
    from hanlin.run.components import Components

__all__ = ["Memory", "first_recipe", "memory_here", "memory_of"]

_GIB = 1 << 30
_ROWS = 2000
"""Rows of each file that are looked at."""
_BATCH = 8
_LONGEST = 2048
"""Tokens of a row, where the samples of the user are longer."""
_USUAL_LENGTHS = (128, 256, 512, 1024, 2048)
_FEW_STEPS = 100
_NOTED = 3
"""Remarks on the rows that a recipe holds."""
_RATES = {"fresh": 5e-4, "full": 2e-5, "other": 1e-4}
_COMPARED_RATES = {"full": 5e-7, "other": 5e-6}
"""Of objectives that compare answers, as published for models of some billion parameters."""
_HOST_SHARE = 0.8
"""Of the CPU's memory, what is taken for free."""


@dataclass(frozen=True)
class Memory:
    """name: of what has it; device: as the planner knows it; None: the CPU, or one that it does not know."""

    name: str
    bytes: int
    device: Device | None = None


@dataclass(frozen=True)
class _Way:
    """How to train: settings that differ from their defaults, and the most that it takes of the memory, if it fits."""

    settings: Mapping[str, Any]
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class _Lengths:
    """Tokens: row: that a row gets; needed: that one has to have to hold every sample whole; p99, longest: of the
    user's samples.
    """

    row: int
    needed: int
    p99: int
    longest: int


def memory_of(name: str) -> Memory:
    """That of a device by its name.

    Raises: ConfigError.
    """
    from hanlin.planner.devices import find_device

    device = find_device(name)
    return Memory(device.name, device.memory_bytes, device)


def memory_here() -> Memory:
    """That of this machine's first accelerator, else of its CPU."""

    from hanlin.core.device import device_memory, pick_device
    from hanlin.core.machine import ram_bytes
    from hanlin.planner.devices import find_device

    if (found := device_memory(pick_device("auto"))) is not None:
        name, size = found
        try:
            known = find_device(name)
        except ConfigError:
            known = None
        return Memory(name, size, known)
    return Memory("cpu", int(_HOST_SHARE * (ram_bytes() or 0)))


def first_recipe(
    model: Mapping[str, str],
    files: Sequence[Path],
    folder: Path,
    memory: Memory,
    language: Language,
    overrides: Overrides = (),
) -> str:
    """The text of a recipe that `check` passes.

    model: of its section `model`: family, and base or size; folder: of the run; overrides: settings that are decided.
    Raises: ConfigError, DataError: what `check` would say of it; nothing is written.
    """
    from hanlin.api.first_choices import settings_of_choices
    from hanlin.checking import check
    from hanlin.recipe.reading import listing, read_changes, with_changes
    from hanlin.run.components import build_components

    decided = read_changes(overrides)
    values: dict[str, Any] = {"model": dict(model), "data": {"train": list(map(str, files))}}
    values |= {"train": {"epochs": 3, "batch_size": _BATCH}, "run": {"folder": str(folder)}}
    values = _without_epochs(with_changes(values, decided))
    components = build_components(recipe := _recipe(values))
    values = with_changes(values, settings_of_choices(files, recipe.data, components.processor, _ROWS))
    values = with_changes(values, decided)
    seen = list(_previews(files, values, components))
    is_bad = any(one.bad for one in seen)  # of what is too long for the model too; what else is wrong check says
    if is_bad:
        seen = list(_previews(files, {**values, "data": {"overlong": "truncate", **values["data"]}}, components))
    if all(one.form == "preference" for one in seen):
        values["train"].setdefault("objective", {"name": "dpo"})
    lengths = _lengths(seen, components.config, _num_answers(values))
    values["data"].setdefault("max_length", lengths.row)
    if (is_bad or lengths.needed > values["data"]["max_length"]) and "overlong" not in values["data"]:
        values["data"]["overlong"] = _overlong(files, values, components)
    values = with_changes(_with_batch(values, seen), decided)
    way = _way(values, memory)
    values = with_changes(with_changes(values, way.settings), decided)
    values["train"].setdefault("lr", _rate(values))
    if problems := check(_recipe(values), purpose="train"):
        raise ConfigError(listing(problems, "init"))
    return _written(values, seen, lengths, way, memory, language)


def _without_epochs(values: dict[str, Any]) -> dict[str, Any]:
    """Of a user who has said how many steps."""
    if values["train"].get("steps") is not None:
        del values["train"]["epochs"]
    return values


def _with_batch(values: dict[str, Any], seen: Sequence[Preview]) -> dict[str, Any]:
    """With fewer rows in a step, where there would be too few steps to learn from."""
    epochs, micro = values["train"].get("epochs"), values["train"].get("micro_batch_size") or 1
    sizes = [size for size in (_BATCH, 4, 2, 1) if size % micro == 0] or [micro]
    enough = [size for size in sizes if epochs is None or _steps(values, seen, size) >= _FEW_STEPS]
    values["train"]["batch_size"] = max(enough, default=min(sizes))
    return values


def _steps(values: Mapping[str, Any], seen: Sequence[Preview], batch_size: int) -> int:
    """Of all epochs, about: samples are packed into rows nearly without gaps."""
    data, rows = values["data"], 0.0
    for one in seen:
        samples = one.num_rows / max(one.looked_at, 1)
        rows += samples * (one.total / data["max_length"] if data.get("pack", True) else one.looked_at)
    return math.ceil(values["train"]["epochs"] * max(rows, 1) / batch_size)


def _num_answers(values: Mapping[str, Any]) -> int:
    """Of a row that the objective compares; 0: it compares none."""
    from hanlin.training.objective import find_objective

    return len(find_objective(_recipe(values).train.objective).answers)


def _rate(values: Mapping[str, Any]) -> float:
    """The learning rate that usually does."""
    method = values.get("tuning", {}).get("method", "full")
    if "base" not in values["model"]:
        return _RATES["fresh"]
    rates = _COMPARED_RATES if _num_answers(values) else _RATES
    return rates.get(method, rates["other"])


def _recipe(values: Mapping[str, Any], changes: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    from hanlin.recipe.reading import make_recipe

    return make_recipe(deepcopy(dict(values)), changes)


def _overlong(files: Sequence[Path], values: Mapping[str, Any], components: Components) -> str:
    """What is done with samples longer than a row: they are shortened, or left out where an answer alone is longer."""
    for policy in ("truncate", "drop"):
        tried = {**values, "data": {**values["data"], "overlong": policy}}
        if not any(one.bad for one in _previews(files, tried, components, values["data"]["max_length"])):
            return policy
    return "truncate"


def _previews(
    files: Sequence[Path], values: Mapping[str, Any], components: Components, max_length: int | None = None
) -> Iterator[Preview]:
    """max_length: of a row; None: the most that the model reads."""
    from hanlin.data.preview import preview

    longest = max_length or getattr(components.config, "max_length", None) or _LONGEST
    data = _recipe(values, {"data.max_length": longest}).data
    for file in files:
        yield preview(file, data, components.processor, components.tokenizer, shown=0, most=_ROWS)


def _lengths(seen: Sequence[Preview], config: Any, num_answers: int) -> _Lengths:
    """A row holds nearly all samples whole, as far as the model reads; answers that are compared have equal parts."""
    longest = max((one.sizes.get("max", 0) for one in seen), default=0)
    p99 = max((one.sizes.get("p99", 0) for one in seen), default=0)
    most = min(getattr(config, "max_length", None) or _LONGEST, _LONGEST)
    needed = max(longest, num_answers * max((one.longest_answer for one in seen), default=0))
    return _Lengths(min(next((n for n in _USUAL_LENGTHS if n >= needed), most), most), needed, p99, longest)


def _way(values: Mapping[str, Any], memory: Memory) -> _Way:
    """The first that fits, from what changes most and costs most to what takes least."""
    ways = [{}]
    if "base" in values["model"] and "method" not in values.get("tuning", {}):
        lora = {"tuning.method": "lora"}
        recomputed = {**lora, "parallel.checkpoint_activations": "full"}
        ways += [lora, recomputed, {**recomputed, "model.quantise": "nf4"}]
    tried = None
    for settings in ways:
        for tried in _by_rows(values, settings, memory):
            if tried.fits:
                return tried
    assert tried is not None
    return tried


def _by_rows(values: Mapping[str, Any], settings: Mapping[str, Any], memory: Memory) -> Iterator[_Way]:
    """The same with fewer and fewer rows in a forward pass."""
    from hanlin.planner.estimate import FRAGMENTATION, RESERVE_BYTES, estimate
    from hanlin.planner.job import PlannedModel, SequenceLengths
    from hanlin.planner.layout import layout_of

    recipe = _recipe(values, settings)
    given, whole = values["train"].get("micro_batch_size"), recipe.train.batch_size
    sizes = [size for size in range(min(_BATCH, whole), 0, -1) if whole % size == 0]
    job = PlannedModel(recipe, SequenceLengths(recipe.data.max_length), device=memory.device)
    for rows in [given] if given else sizes:
        layout = layout_of(_with_rows(recipe, rows), 1)
        peak = int(estimate(job, layout).peak * FRAGMENTATION) + RESERVE_BYTES
        yield _Way({**settings, "train.micro_batch_size": rows}, peak, peak <= memory.bytes)


def _with_rows(recipe: Recipe, rows: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch_size": rows})})


# --- as text ---

_NOTES = {
    "en": {
        "head": "A first recipe, written by `hanlin init`. `hanlin check FILE` looks at it, `hanlin train FILE`\n"
        "# trains; `hanlin help train.lr` explains a setting, and docs/settings.md all of them.",
        "train": "{rows:,} rows; read as: {form}",
        "eval": "name files of other rows here, to see how the model does on what it has not learned",
        "transform": "of each row the model's own record, in which it chooses the label among all",
        "tasks": "accuracy: of how many rows the model finds the right option likeliest, by `hanlin evaluate`",
        "max_length": "tokens of a row; 99 % of the samples have at most {p99:,}, the longest has {longest:,}",
        "overlong": "longer samples are shortened",
        "overlong drop": "longer samples are left out, as some answers alone are longer",
        "method": "the base stays as it is, and small matrices beside it are trained",
        "full": "all weights are trained",
        "quantise": "the base lies in memory in 4 bits",
        "checkpoint_activations": "saves memory, takes a third more time",
        "epochs": "passes over the rows: about {steps:,} steps",
        "few steps": "passes over the rows: about {steps:,} steps, which are few; take more passes or a smaller "
        "data.max_length",
        "objective": "preference rows: the chosen answer is to become likelier than the rejected one",
        "batch_size": "rows of a step",
        "micro_batch_size": "rows at a time; needs {peak:.1f} of the {there:.1f} GiB of {name}, by `hanlin plan`",
        "micro_batch_size too large": "rows at a time; needs {peak:.1f} GiB, and {name} has {there:.1f}: "
        "`hanlin plan FILE` says what would fit",
        "lr": "the highest rate; if the loss jumps, a lower one",
        "folder": "everything that the run writes",
    },
    "zh": {
        "head": "由 `hanlin init` 写出的第一份配置。`hanlin check FILE` 检查它，`hanlin train FILE` 开始训练；\n"
        "# `hanlin help train.lr` 解释一个设置，docs/settings.zh-CN.md 解释全部。",
        "train": "{rows:,} 行；识别为：{form}",
        "eval": "在这里写另一些行的文件，用来看模型在没有学过的内容上表现如何",
        "transform": "每行变成模型自己的记录：在全部标签中选一个",
        "tasks": "accuracy：模型认为正确选项最可能的行所占的比例，由 `hanlin evaluate` 计算",
        "max_length": "一行的词元数；99 % 的样本不超过 {p99:,}，最长的有 {longest:,}",
        "overlong": "更长的样本会被截短",
        "overlong drop": "更长的样本会被略去，因为有的答案本身就更长",
        "method": "底座保持不变，只训练旁边的小矩阵",
        "full": "训练所有权重",
        "quantise": "底座在内存中每个权重占 4 位",
        "checkpoint_activations": "节省内存，时间多三分之一",
        "epochs": "训练数据过多少遍：约 {steps:,} 步",
        "few steps": "训练数据过多少遍：约 {steps:,} 步，太少；增加遍数，或减小 data.max_length",
        "objective": "偏好数据：使选中的回答比被拒绝的回答更可能",
        "batch_size": "一步的行数",
        "micro_batch_size": "一次处理的行数；按 `hanlin plan` 的估计，需要 {name} 的 {there:.1f} GiB 中的 {peak:.1f}",
        "micro_batch_size too large": "一次处理的行数；需要 {peak:.1f} GiB，而 {name} 有 {there:.1f}："
        "`hanlin plan FILE` 说明怎样才放得下",
        "lr": "学习率的峰值；损失突然升高时改小",
        "folder": "运行写出的一切",
    },
}  # fmt: skip


def _written(
    values: Mapping[str, Any],
    seen: Sequence[Preview],
    lengths: _Lengths,
    way: _Way,
    memory: Memory,
    language: Language,
) -> str:
    from hanlin.recipe.settings import Recipe
    from hanlin.reference.messages import say_in_chinese

    notes = _NOTES[language]
    say = say_in_chinese if language == "zh" else str
    form = say(", ".join(dict.fromkeys(one.read_as for one in seen)))
    facts = {"rows": sum(one.num_rows for one in seen), "form": form, "p99": lengths.p99, "longest": lengths.longest}
    facts["steps"] = _steps(values, seen, values["train"]["batch_size"]) if "epochs" in values["train"] else 0
    facts |= {"peak": way.peak_bytes / _GIB, "there": memory.bytes / _GIB, "name": memory.name}
    lines = [f"# {notes['head']}"]
    for section in (*(name for name in Recipe.model_fields if name != "run"), "run"):
        own = values.get(section) or ({"method": "full"} if section == "tuning" else {})
        lines += [f"{section}:"] if own else []
        for name, value in own.items():
            lines.append(_line(name, value, notes.get(_note_of(name, value, way, facts["steps"]), "").format(**facts)))
            if name == "train":
                lines += [f"  # {_in_a_line(say(remark))}" for remark in _remarks(seen)]
                lines += [f"  # eval: [held_out.jsonl]   # {notes['eval']}"]
    return "\n".join(lines) + "\n"


def _remarks(seen: Sequence[Preview]) -> list[str]:
    """What is said of most rows of the files, in English; of large ones the first rows were looked at."""
    looked_at, rows = (sum(getattr(one, name) for one in seen) for name in ("looked_at", "num_rows"))
    whole = "" if looked_at == rows else f" of {looked_at:,}"
    notes = sum((Counter(one.notes) for one in seen), Counter[str]()).most_common(_NOTED)
    return [f"{count:,}{whole} rows: {note}" for note, count in notes]


def _in_a_line(text: str) -> str:
    """With nothing in it that would end a comment, or is not to be in a YAML file."""
    return "".join(one if one.isprintable() else " " for one in text)


def _note_of(name: str, value: Any, way: _Way, steps: int) -> str:
    if name == "epochs" and steps < _FEW_STEPS:
        return "few steps"
    if name == "micro_batch_size" and not way.fits:
        return "micro_batch_size too large"
    if name == "overlong" and value == "drop":
        return "overlong drop"
    return "full" if name == "method" and value == "full" else name


def _line(name: str, value: Any, note: str) -> str:
    import yaml

    if isinstance(value, dict) and list(value) == ["name"]:
        value = value["name"]
    how = {"allow_unicode": True, "default_flow_style": True, "sort_keys": False, "width": 10**6}
    text = yaml.safe_dump({name: value}, **how).strip()[1:-1]
    return f"  {text}   # {note}" if note else f"  {text}"
