"""What to do where a path was expected to hold weights and holds none: where they lie, or what lies there instead."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_DEPTH = 3
_MOST = 5_000  # entries that are looked at, in folders that hold something else altogether
_SHOWN = 4
_OPTIMIZER = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_?optim_states\.pt")
_SHARED_OUT = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_STATES = re.compile(r"(optimizer|scheduler|training_args|rng_state.*|random_states.*|scaler)\.(pt|pth|bin)")
"""Which transformers' and accelerate's trainers keep to go on."""
_KINDS = {
    re.compile(r"mp_rank_\d+(_\d+)?_model_states\.pt"): "files of model-parallel ranks",
    re.compile(r"layer_\d+-model_\d+-model_states\.pt"): "files of a pipeline's layers",
    re.compile(r"model_optim_rng\.pt"): "files of model-parallel ranks",
    re.compile(r".+\.index\.json"): "shards with an index",
    re.compile(r".+\.(safetensors|bin|pt|pth|ckpt)"): "files of weights",
}


def is_state(name: str) -> bool:
    """Whether a file of this name holds what a training program needs to go on, and no weights of a model."""
    return any(pattern.fullmatch(name) for pattern in (_OPTIMIZER, _SHARED_OUT, _STATES))


def explain_missing(folder: Path) -> str:
    """A sentence on what lies in or below a folder without readable weights, and the command that reads it; ''."""
    if any((place / "state.json").is_file() and (place / "tensors").is_dir() for place in (folder, *folder.glob("*"))):
        return _of_checkpoints(folder)
    if (folder / "metrics.jsonl").is_file() and not (folder / "config.yaml").is_file():
        return "a run folder whose config.yaml is missing; restore it from a copy, or name its best/ or last/"
    found = _found(folder)
    if not found:
        return ""
    own = {kind: names for (place, kind), names in found.items() if place == folder}
    if "optimizer" in own:
        return _of_optimizer(folder, own["optimizer"])
    if names := own.get("files of weights"):
        return f"several could be meant: {', '.join(sorted(names)[:_SHOWN])}; name one of them"
    places = Counter({place: len(names) for (place, kind), names in found.items() if kind != "optimizer"})
    told = [
        f"{place.relative_to(folder)}/ ({kind}: {len(names)})"
        for (place, kind), names in found.items()
        if kind != "optimizer"
    ]
    if not places:
        place = next(iter(found))[0]
        return f"{place.relative_to(folder)}/: {_of_optimizer(place, found[place, 'optimizer'])}"
    best = max(places, key=lambda place: (places[place], str(place)))
    return f"weights lie in {', '.join(told[:_SHOWN])}; name that folder: hanlin inspect {best}"


def _found(folder: Path) -> dict[tuple[Path, str], list[str]]:
    """Folder and kind of what lies there -> names."""
    found: dict[tuple[Path, str], list[str]] = {}
    for place, name in _files(folder):
        kind = next((kind for pattern, kind in _KINDS.items() if pattern.fullmatch(name)), None)
        if is_state(name):
            kind = None if _STATES.fullmatch(name) else "optimizer"
        if kind is not None:
            holder = place.parent if name == "model_optim_rng.pt" else place
            found.setdefault((holder, kind), []).append(name)
    return found


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    seen = 0
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < _DEPTH else []
        for name in sorted(names):
            seen += 1
            if seen > _MOST:
                return
            yield Path(place), name


def _of_checkpoints(folder: Path) -> str:
    run = next((place for place in (folder.parent, folder.parent.parent) if (place / "config.yaml").is_file()), None)
    written = [] if run is None else [str(run / name) for name in ("best", "last") if (run / name).is_dir()]
    told = (
        f"weights for use lie in {' and '.join(written)}" if written else "which writes last/ at its end or at Ctrl-C"
    )
    return f"a run's checkpoint is for hanlin train to go on from{';' if written else ','} {told}"


def _of_optimizer(folder: Path, names: list[str]) -> str:
    if any(_SHARED_OUT.fullmatch(name) for name in names):
        return (
            f"holds weights in shares of ZeRO's third stage ({names[0]}, ...); join them with the script beside them: "
            f"python zero_to_fp32.py {folder} pytorch_model.bin, and name that file"
        )
    return (
        f"holds only ZeRO's states of the optimizer ({names[0]}, ...); the weights lie in mp_rank_XX_model_states.pt, "
        "of which none is here; copy these from where the training ran"
    )
