"""README.md of a folder that was converted: the model card of Hugging Face's and ModelScope's hubs.

It says what is known and nothing else: base, method, a fingerprint of the data, metrics, and that the licence is the
base's. It is no part of the folder's manifest, since its owner is to rewrite it; paths of this machine are not in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, replaced_file
from hanlin.recipe.yaml12 import YamlError, parse_yaml

__all__ = ["CardFacts", "card_facts", "write_card"]

FILE = "README.md"
_LIBRARIES = {"huggingface": "transformers", "peft": "peft", "ollama": "gguf"}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SETTINGS = ("rank", "alpha", "length")

_LICENCE = """\
## Licence 许可
The weights stay under the licence of their base model; its terms, and those of the training data, are to be checked
before they are published.

权重沿用基座模型的许可协议；公开发布之前，请核对基座模型与训练数据的许可条款。
"""


@dataclass(frozen=True)
class CardFacts:
    """What is known of weights. base: its name on a hub, else that of its folder; method: as a recipe calls it; data:
    sha256 over all that was trained on; metrics: by name, those of the run that trained them.
    """

    family: str
    title: str
    base: str | None = None
    method: str | None = None
    data: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_labels: bool = False


def card_facts(family: str, title: str, source: Path, trained: Path | None = None) -> CardFacts:
    """What the files around weights tell; of a run that is all, of other folders the base at most.

    source: the weights, or the base of an adapter; trained: that adapter.
    """
    weights = trained or source
    run = next((folder for folder in (weights, weights.parent) if (folder / "config.yaml").is_file()), None)
    recipe = {} if run is None else _recipe(run / "config.yaml")
    if run is None or not recipe:
        return CardFacts(family, title, _base_name(None, source))
    model, tuning = _section(recipe, "model"), _section(recipe, "tuning")
    stated = model.get("base")
    base = _base_name(stated, Path(stated) if trained is None and isinstance(stated, str) else source)
    settings = ", ".join(f"{name} {tuning[name]}" for name in _SETTINGS if tuning.get(name) is not None)
    method = " ".join(filter(None, [tuning.get("method"), f"({settings})" if settings else ""])) or None
    labels = bool(_section(model, "config").get("labels"))
    name = weights.name if weights != run else "best"
    return CardFacts(family, title, base, method, _data(run), dict(_metrics(run, name)), labels)


def write_card(folder: Path, layout: str, facts: CardFacts) -> None:
    """Write the card of a folder in this layout."""
    library = _LIBRARIES.get(layout, "hanlin")
    method = (facts.method or "").partition(" ")[0]
    is_named = facts.base is not None and _HUB_NAME.fullmatch(facts.base) is not None
    head = {
        "language": ["zh", "en"],
        "library_name": library,
        "pipeline_tag": "text-classification" if facts.has_labels else "text-generation",
        **({"base_model": facts.base} if is_named else {}),
        "license": "other",
        "license_name": "that-of-the-base-model",
        "tags": [name for name in ("hanlin", facts.family, method) if name],
    }
    rows = {
        "Family 模型系列": facts.title,
        "Base 基座": facts.base,
        "Method 训练方法": facts.method,
        "Data fingerprint 数据指纹": facts.data,
        **{name: f"{value:.4g}" for name, value in facts.metrics.items()},
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items() if value is not None)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {facts.title}\n\nWritten by hanlin, layout `{layout}`. 由 hanlin 导出，布局 `{layout}`。\n",
        f"| | |\n|---|---|\n{table}",
        f"## Use 使用\n{_use(folder, library, facts)}\n",
        _LICENCE,
    ]
    with replaced_file(folder / FILE) as stream:
        stream.write("\n".join(parts).encode())


def _use(folder: Path, library: str, facts: CardFacts) -> str:
    if library == "gguf":
        return "```\nollama create mine -f Modelfile && ollama run mine\n```"
    if library == "peft":
        base = f'AutoModelForCausalLM.from_pretrained("{facts.base or "BASE"}")'
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f'model = PeftModel.from_pretrained({base}, ".")',
        ]
    elif library == "transformers":
        lines = list(_transformers_lines(folder))
    else:
        return "`model.base` (an adapter: `model.adapter`) of a recipe of hanlin. 在 hanlin 的配置中用作 `model.base`。"
    return "\n".join(["```python", *lines, "```"])


def _transformers_lines(folder: Path) -> Iterator[str]:
    kind = read_json_object(folder / "config.json").get("architectures", ["AutoModel"])[0]
    settings = folder / "tokenizer_config.json"
    yield (
        f"from transformers import AutoTokenizer, {kind}" if settings.is_file() else f"from transformers import {kind}"
    )
    yield f'model = {kind}.from_pretrained(".")'
    if settings.is_file():
        trust = ", trust_remote_code=True" if "auto_map" in read_json_object(settings) else ""
        yield f'tokenizer = AutoTokenizer.from_pretrained("."{trust})'


def _base_name(stated: Any, folder: Path) -> str | None:
    """A name on a hub, where one is stated or the folder's config.json tells it; else the folder's own."""
    if isinstance(stated, str) and _HUB_NAME.fullmatch(stated) and not Path(stated).exists():
        return stated
    told = _values(folder / "config.json").get("_name_or_path")
    if isinstance(told, str) and _HUB_NAME.fullmatch(told):
        return told
    return folder.name if stated is not None else None


def _recipe(path: Path) -> dict[str, Any]:
    """The values of a run's recipe; none where the file is another program's."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))[0]
    except (YamlError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) and isinstance(values.get("model"), dict) else {}


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _data(run: Path) -> str | None:
    """The fingerprint of what a run trained on, which each of its checkpoints has."""
    for state in sorted(run.glob("checkpoints/*/state.json"), reverse=True)[:1]:
        found = _section(_section(_values(state), "values"), "loader").get("data")
        return f"sha256 {found}" if isinstance(found, str) else None
    return None


def _metrics(run: Path, weights: str) -> Iterator[tuple[str, float]]:
    """Of the run's own evaluations, the best or the last loss; and of `hanlin evaluate`, if it scored these weights."""
    file, losses = run / "metrics.jsonl", []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        if b'"eval_loss"' in line:
            losses.append(_number(line))
    known = [loss for loss in losses if loss is not None]
    if known and weights in ("best", "last"):
        yield "eval_loss", min(known) if weights == "best" else known[-1]
    scores = (run / "evaluation" / "metrics.json").resolve()
    if scores.parent.name.startswith(f"{weights}-"):
        for task, values in _values(scores).items():
            numbers = values.items() if isinstance(values, Mapping) else ()
            yield from ((f"{task}: {name}", value) for name, value in numbers if isinstance(value, int | float))


def _number(line: bytes) -> float | None:
    try:
        found = json.loads(line)["eval_loss"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, float) else None


def _values(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where there is none."""
    try:
        return read_json_object(path) if path.is_file() else {}
    except CheckpointError:
        return {}
