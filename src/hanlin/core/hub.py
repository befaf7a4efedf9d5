"""Models by their names on the Hugging Face hub and on ModelScope, as these programs keep them on this machine.

Nothing is fetched: a name stands for the folder in a local cache, or the message says the command that downloads it.
A file or folder of that name wins. A name is looked up once, when it is read; what goes on is the folder that it stood
for, of one revision, so a run keeps its base when the cache gets a newer one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from hanlin.core.errors import ConfigError, shorten
from hanlin.core.files import expanded, read_json_object

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w-][\w.-]{0,199}")
_SHARD = re.compile(r"(?P<start>.+-)(?P<number>\d{5})(?P<of>-of-(?P<count>\d{5})\.\w+)")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_OTHER_ENDINGS = (".txt", ".model", ".json", ".yaml", ".yml", ".py")
_MAX_SHARDS = 10_000
_OF_DATA = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")
_FOLDERS = ("models", "model", "runs", "run", "data", "checkpoints", "output", "outputs", "weights")
"""What people call folders of their own, and nobody on a hub."""
_SNAPSHOTS = "snapshots"
_DOT = "___"
"""What ModelScope writes for a dot in the name of a folder."""
_OWNERS = (("THUDM", "zai-org", "ZhipuAI"), ("openbmb", "OpenBMB"))
"""Owners of the same models: before and after a new name on Hugging Face's hub, and on ModelScope (last)."""


def locate(path: Path, *, whole: bool = True) -> Path:
    """The folder in a local cache that the name of a model stands for; any other path as it is.

    whole: see that the weights are all there (else a tokenizer is enough).
    Raises: ConfigError for a folder in which files are missing, where there is no whole one.
    """
    if os.path.lexists(path) or not is_name(path):
        return path
    problems = []
    for folder in _folders(str(path)):
        lacking = _lacking(folder, whole)
        if not lacking:
            return folder
        problems.append(f"{folder} lacks {', '.join(shorten(lacking))}")
    if problems:
        raise ConfigError(f"{path} is not whole: {'; '.join(problems)}. {download(path)} brings what is missing")
    return path


def is_name(path: Path) -> bool:
    """Whether a path may be the name of a model: `owner/model`."""
    return _NAME.fullmatch(str(path)) is not None and path.suffix not in (*_ENDINGS, *_OTHER_ENDINGS)


def name_of_folder(folder: Path) -> str | None:
    """The name of the model in a folder of a cache; None for any other folder."""
    folder = folder.absolute()
    if folder.parent.name == _SNAPSHOTS and folder.parts[-3].startswith("models--"):
        return folder.parts[-3].removeprefix("models--").replace("--", "/", 1)
    for root in _modelscope_roots():
        if folder.parent.parent == root:
            return f"{folder.parent.name}/{folder.name.replace(_DOT, '.')}"
    return None


def hint(path: Path) -> str:
    """What to add to "there is no such file" where it may be the name of a model, or was a folder in a cache."""
    if name := name_of_folder(path):
        revised = path.parent.name == _SNAPSHOTS
        command = f"`hf download {name} --revision {path.name}`" if revised else download(Path(name))
        return f", which was {name} in a cache of models; {command} brings it back"
    is_file = path.suffix.lower() in (*_ENDINGS, *_OTHER_ENDINGS, *_OF_DATA)
    if not is_name(path) or is_file or os.path.lexists(path.parent) or path.parts[0] in _FOLDERS:
        return ""
    places = ", ".join(map(str, [_hub_cache(), *_modelscope_roots()[:1]]))
    return f", nor a model of that name in the caches of this machine ({places}); {download(path)} downloads it"


def download(path: Path) -> str:
    """The command that downloads a model, in its hub's words."""
    owner, _, name = str(path).partition("/")
    same = next((owners for owners in _OWNERS if owner in owners), None)
    there = f"`modelscope download --model {same[-1] if same else owner}/{name}`"
    return there if same and owner == same[-1] else f"`hf download {path}` (from ModelScope: {there})"


def _folders(name: str) -> Iterator[Path]:
    """Where a model of this name lies in the caches, best first.

    Raises: ConfigError where it lies in several revisions and the cache does not say which one is meant, or says what
    is none.
    """
    owner, _, model = name.partition("/")
    owners = next((same for same in _OWNERS if owner in same), (owner,))
    for one in sorted(owners, key=lambda other: other != owner):
        yield from _snapshots(_hub_cache() / f"models--{one}--{model}")
        for root in _modelscope_roots():
            spelled = (root / one / word for word in dict.fromkeys((model, model.replace(".", _DOT))))
            yield from (folder for folder in spelled if folder.is_dir())


def _snapshots(folder: Path) -> Iterator[Path]:
    """The folder of the revision that refs/main names; without one, the only one.

    Raises: ConfigError.
    """
    ref, snapshots = folder / "refs" / "main", folder / _SNAPSHOTS
    if ref.is_file() and (revision := ref.read_text(encoding="utf-8", errors="replace").strip()):
        if not _REVISION.fullmatch(revision):
            raise ConfigError(
                f"{ref}: names no revision ({revision!r:.40}); remove the file, or download the model again"
            )
        yield snapshots / revision
        return
    there = sorted(path for path in snapshots.glob("*") if path.is_dir())
    if len(there) > 1:
        listed = ", ".join(path.name for path in there[:4])
        raise ConfigError(f"{snapshots}: holds several revisions ({listed}) and no refs/main; name one of the folders")
    yield from there


def _hub_cache() -> Path:
    """Where Hugging Face's programs keep models (HF_HUB_CACHE, HF_HOME)."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return expanded(Path(value))
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return expanded(Path(home)) / "hub"


def _modelscope_roots() -> list[Path]:
    """The folders with owners in which ModelScope's versions keep models (MODELSCOPE_CACHE)."""
    home = expanded(Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"))
    return [home / "hub/models", home / "models", home / "hub", home]


def _lacking(folder: Path, whole: bool) -> list[str]:
    """What is missing in a folder: the folder itself, files of which a link or a part is there, all weights."""
    if not folder.is_dir():
        return ["the folder"]
    names = {path.name for path in folder.iterdir()}
    lost = {name for name in names if not (folder / name).exists()}
    if whole:
        lost |= {name for name in _shards(folder, names) if not (folder / name).is_file()}
        if not lost and not any(name.endswith(_ENDINGS) for name in names):
            lost.add("the weights")
    return sorted(lost)


def _shards(folder: Path, names: set[str]) -> set[str]:
    """The files that a folder's indices of shards list, and those that go with a shard that is there."""
    found: set[str] = set()
    for name in names:
        if name.endswith(".index.json") and (folder / name).is_file():
            listed = read_json_object(folder / name).get("weight_map")
            found |= set(map(str, listed.values())) if isinstance(listed, dict) else set()
        elif (match := _SHARD.fullmatch(name)) and int(match["count"]) <= _MAX_SHARDS:
            numbers = range(1, int(match["count"]) + 1)
            found |= {f"{match['start']}{number:05d}{match['of']}" for number in numbers}
    return found
