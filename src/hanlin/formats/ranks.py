"""Weights divided over model-parallel ranks, as Megatron and DeepSpeed write them: one file per rank, one tracker file.

`DIR/latest_checkpointed_iteration.txt` (or DeepSpeed's `DIR/latest`) names a folder that holds
`mp_rank_00_model_states.pt`, `mp_rank_01_model_states.pt`, ... A file has the tensors under "module" (or "model") and,
beside them, states of random numbers and schedules; these are read with an allow-list and thrown away. Without
DeepSpeed the programs write `iter_0000010/mp_rank_00/model_optim_rng.pt`, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.files import Weights, find_named_weights
from hanlin.formats.lazy import is_copy
from hanlin.formats.torch_file import write_torch_files
from hanlin.formats.training_file import check_set, mapped, open_training_file
from hanlin.formats.whereabouts import explain_missing

if TYPE_CHECKING:
    import torch

TRACKER = "latest_checkpointed_iteration.txt"
_TRACKERS = (TRACKER, "latest")
PLAIN = "model_optim_rng.pt"
_PLAIN_RANK = re.compile(r"mp_rank_(\d+)")
UNSTATED = "The files do not say how many belong together: if there were more of them, copy the others too."
_MAX_TAG = 200
_SHOWN = 5
RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")


@dataclass(frozen=True)
class Partition:
    """How one tensor lies on the ranks: along `dim`; parts: equal parts of it that are divided each for itself."""

    dim: int = 0
    parts: int = 1

    def merge(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        parts = [piece.chunk(self.parts, self.dim) for piece in pieces]
        return torch.cat([rank[part] for part in range(self.parts) for rank in parts], self.dim)

    def divide(self, whole: torch.Tensor, ranks: int) -> list[torch.Tensor]:
        """The share of each rank.

        Raises: CheckpointError when it does not come out even.
        """
        import torch

        if whole.shape[self.dim] % (self.parts * ranks):
            held = f"{self.parts} x " if self.parts > 1 else ""
            raise CheckpointError(f"{whole.shape[self.dim]} along dim {self.dim} is no multiple of {held}{ranks} ranks")
        shares = [part.chunk(ranks, self.dim) for part in whole.chunk(self.parts, self.dim)]
        return [torch.cat([part[rank] for part in shares], self.dim) for rank in range(ranks)]


Partitions = Mapping[str, Partition]
"""Ending of a tensor's name -> how it is divided; a tensor that no ending knows is the same on all ranks."""


def partition_of(name: str, partitions: Partitions) -> Partition | None:
    """How a tensor is divided; None: every rank has all of it."""
    return next((partition for ending, partition in partitions.items() if name.endswith(ending)), None)


def find_ranks(path: Path) -> list[Path]:
    """The files of all ranks, in their order; empty where `path` is no such checkpoint.

    path: the folder with the tracker file, that with the ranks' files, or one of these.

    Raises: CheckpointError when the tracker names a folder that is not there, or when a rank's file is missing.
    """
    path = Path(path)
    if (plain := plain_folder(path)) is not None:
        return _without_gaps(plain, plain_files(plain), plain_name)
    folder = tracked_folder(path, RANK)
    if folder is None:
        if path.is_dir() and find_named_weights(path) is None and (tracker := _tracker(path)) is not None:
            _refuse_tracker(path, tracker)
        return []
    found = {int(match[1]): file for file in folder.iterdir() if (match := RANK.fullmatch(file.name))}
    return _without_gaps(folder, found, state_name)


def state_name(rank: int) -> str:
    """The name of a rank's file as DeepSpeed writes it, below the folder of an iteration."""
    return f"mp_rank_{rank:02d}_model_states.pt"


def plain_name(rank: int) -> str:
    """The same without DeepSpeed."""
    return f"mp_rank_{rank:02d}/{PLAIN}"


def plain_folder(path: Path) -> Path | None:
    """The folder of an iteration with files that were written without DeepSpeed; None where a path means none.

    path: that folder, the one with the tracker file, or one of the files.
    """
    if path.is_file():
        return path.parent.parent if path.name == PLAIN and _PLAIN_RANK.fullmatch(path.parent.name) else None
    if not path.is_dir() or find_named_weights(path) is not None:
        return None
    folders = [path, path / iteration_name(path / TRACKER)]
    return next((folder for folder in folders if folder.is_dir() and plain_files(folder)), None)


def plain_files(folder: Path) -> dict[int, Path]:
    """The files of an iteration's folder that were written without DeepSpeed, by their rank."""
    matches = {entry / PLAIN: _PLAIN_RANK.fullmatch(entry.name) for entry in folder.iterdir()}
    return {int(match[1]): file for file, match in matches.items() if match and file.is_file()}


def _without_gaps(folder: Path, found: Mapping[int, Path], name: Callable[[int], str]) -> list[Path]:
    gaps = (name(rank) for rank in range(max(found, default=-1) + 1) if rank not in found)
    if lost := list(islice(gaps, _SHOWN + 1)):  # a name may say any number
        shown = ", ".join(lost[:_SHOWN]) + (", ..." if len(lost) > _SHOWN else "")
        raise CheckpointError(f"{folder}: {shown} missing beside the files of other ranks; copy them too")
    return [found[rank] for rank in sorted(found)]


class RankWeights(Weights):
    """The tensors of all ranks, merged one by one when they are asked for."""

    def __init__(self, files: Sequence[Path], partitions: Partitions, *, whole: bool = True) -> None:
        """whole: the files are all of a checkpoint, which is checked; False: some, to be looked at.

        Raises: CheckpointError.
        """
        self.files = tuple(files)
        self._partitions = partitions
        is_plain = files[0].name == PLAIN
        folder = files[0].parent.parent if is_plain else files[0].parent
        opened = [open_training_file(file) for file in files]
        if whole:
            check_set(opened, plain_name if is_plain else state_name)
        self._ranks = [mapped(one) for one in opened]
        self.iteration = opened[0].iteration if opened[0].iteration is not None else _number_of(folder)
        if opened[0].num_ranks is None:
            self.hint = UNSTATED
        self.lying = f"{len(files)} model-parallel rank{'s' if len(files) > 1 else ''} in {folder.name}/"

    def __getitem__(self, name: str) -> torch.Tensor:
        return merge_pieces(name, [rank[name] for rank in self._ranks], self._partitions, self.files[0].parent)

    def meta(self, name: str) -> torch.Tensor:
        pieces = [rank.meta(name) for rank in self._ranks]
        return merge_pieces(name, pieces, self._partitions, self.files[0].parent)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks[0])

    def __len__(self) -> int:
        return len(self._ranks[0])

    def forget(self, name: str) -> None:
        for rank in self._ranks:
            rank.forget(name)


def merge_pieces(name: str, pieces: Sequence[torch.Tensor], partitions: Partitions, where: Path) -> torch.Tensor:
    """The whole of what the ranks hold of a tensor.

    Raises: CheckpointError when a tensor that all have differs.
    """
    partition = partition_of(name, partitions)
    if len(pieces) > 1 and partition is not None:
        return partition.merge(pieces)
    if any(not piece.is_meta and not is_copy(piece, pieces[0]) for piece in pieces[1:]):
        raise CheckpointError(f"{where}: {name} must be the same on all ranks, but differs")
    return pieces[0]


def divide_tensor(name: str, whole: torch.Tensor, partitions: Partitions, ranks: int) -> list[torch.Tensor]:
    """What each rank holds of a tensor.

    Raises: CheckpointError naming the tensor that cannot be divided evenly.
    """
    partition = partition_of(name, partitions)
    if partition is None:
        return [whole] * ranks
    try:
        return partition.divide(whole, ranks)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None


def write_ranks(
    folder: Path, tensors: Mapping[str, torch.Tensor], partitions: Partitions, ranks: int = 1, iteration: int = 1
) -> None:
    """Write a tracker file and one file per rank, which the originals load with `--no-load-optim`.

    One tensor is in memory at a time.

    Raises: CheckpointError when a tensor cannot be divided evenly.
    """
    inner = folder / str(iteration)
    inner.mkdir(parents=True)
    write_torch_files(
        [inner / state_name(rank) for rank in range(ranks)],
        tensors,
        lambda name, whole: divide_tensor(name, whole, partitions, ranks),
        lambda _, module: deepspeed_state(module, ranks, iteration),
    )
    (folder / TRACKER).write_text(f"{iteration}\n", encoding="utf-8")


def deepspeed_state(module: Any, ranks: int, iteration: int) -> dict[str, Any]:
    """What DeepSpeed keeps in a rank's file; module: the rank's tensors."""
    return {
        "module": module,
        "optimizer": None,
        "lr_scheduler": None,
        "csr_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": iteration,
        "global_samples": 0,
        "iteration": iteration,
        "dp_world_size": 1,
        "mp_world_size": ranks,
    }


def tracked_folder(path: Path, pattern: re.Pattern[str]) -> Path | None:
    """The folder with files of this pattern that a path means; None where there is none.

    path: the folder with the tracker file, that with the files, or one of these.
    """
    if not path.is_dir():
        return path.parent if path.is_file() and pattern.fullmatch(path.name) else None
    if find_named_weights(path) is not None:
        return None  # as transformers' trainer leaves them, beside what DeepSpeed needs to go on
    found = path if _holds(path, pattern) else _named(path)
    return found if found is not None and found.is_dir() and _holds(found, pattern) else None


def _named(folder: Path) -> Path | None:
    """The folder that a tracker file names; None without such a file."""
    tracker = _tracker(folder)
    tag = "" if tracker is None else read_tag(tracker)
    return folder / Path(tag).name if Path(tag).name else None


def _tracker(folder: Path) -> Path | None:
    return next((folder / name for name in _TRACKERS if (folder / name).is_file()), None)


def iteration_name(tracker: Path) -> str:
    """What the programs call the folder of the iteration that a tracker file without DeepSpeed's form means."""
    tag = read_tag(tracker) if tracker.is_file() else ""
    return f"iter_{int(tag):07d}" if tag.isdecimal() else "release"


def read_tag(tracker: Path) -> str:
    """What a tracker file says."""
    return tracker.read_text(encoding="utf-8", errors="replace").strip()[:_MAX_TAG]


def _refuse_tracker(folder: Path, tracker: Path) -> None:
    """Say why the folder that a tracker file names has no files of ranks.

    Raises: CheckpointError.
    """
    named, tag = _named(folder), read_tag(tracker)
    if named is not None and named.is_dir():
        problem = f"the folder {tag!r} has no such files as it names"
    else:
        problem = f"it names the folder {tag!r}, which is not there" if tag else "it is empty"
    advice = explain_missing(folder) or "write the name of the iteration's folder into it, or copy that folder"
    raise CheckpointError(f"{tracker}: {problem}; {advice}")


def _holds(folder: Path, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(file.name) for file in folder.iterdir())


def _number_of(folder: Path) -> int | None:
    """The iteration after which a folder is named."""
    number = re.search(r"\d+$", folder.name)
    return int(number[0]) if number else None
