"""Files of a model whose feed-forwards are mixtures of experts, one expert for each data-parallel rank (CPM-2's 198B).

`DIR/{iteration}/mp_rank_{expert:02d}_{rank:02d}_model_states.pt`: every file has the same names, but what lies under
the expert's name is another expert in each. Here the expert's number is put into the name. An expert's file is opened
when one of its tensors is asked for, so that a process that wants some of them never touches the others.

A starting point for training has files without an expert's number: there all experts are alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.files import Weights
from hanlin.formats.lazy import TensorSubset
from hanlin.formats.ranks import RANK, TRACKER, Partitions, RankWeights, divide_tensor, find_ranks, tracked_folder
from hanlin.formats.torch_file import write_torch_files

if TYPE_CHECKING:
    import torch

_FILE = "mp_rank_{expert:02d}_{rank:02d}_model_states.pt"
_PATTERN = re.compile(r"mp_rank_(\d+)_(\d+)_model_states\.pt")


class ExpertRankWeights(Weights):
    """The tensors of all ranks and experts, merged one by one when they are asked for.

    files: those of each expert, or of all experts at once; mark: what stands before an expert's number in our names
    and before nothing in the files.
    """

    layout = "experts"

    def __init__(self, files: Sequence[Sequence[Path]], partitions: Partitions, mark: str) -> None:
        self._files, self._partitions, self._mark = files, partitions, mark
        self._opened: dict[int, RankWeights] = {}
        first = self._group(0)
        self.files = tuple(file for group in files for file in group)
        self.iteration = first.iteration
        centroids = next((name for name in first if name.endswith("expert_centroids")), None)
        if centroids is None:
            raise CheckpointError(f"{files[0][0]}: has files of several experts, but no expert_centroids")
        count = len(first.meta(centroids))
        if len(files) not in (1, count):
            raise CheckpointError(
                f"{files[0][0].parent}: {count} experts, but files of {len(files)}; copy the others too"
            )
        self.lying = f"{count} experts in {len(files)} x {len(files[0])} files (experts x model-parallel ranks)"
        self._places = {ours: place for name in first for ours, place in self._named(name, count)}

    def __getitem__(self, name: str) -> torch.Tensor:
        expert, theirs = self._places[name]
        return self._group(expert)[theirs]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def meta(self, name: str) -> torch.Tensor:
        # All experts have one shape, so that no file of another expert need be opened for it.
        return self._group(0).meta(self._places[name][1])

    def forget(self, name: str) -> None:
        expert, theirs = self._places[name]
        self._group(expert).forget(theirs)

    def _named(self, name: str, count: int) -> Iterator[tuple[str, tuple[int, str]]]:
        if self._mark not in name:
            yield name, (0, name)
            return
        for expert in range(count):
            yield name.replace(self._mark, f"{self._mark}{expert}."), (expert if len(self._files) > 1 else 0, name)

    def _group(self, expert: int) -> RankWeights:
        if expert not in self._opened:
            opened = RankWeights(self._files[expert], self._partitions)
            if self._opened and opened.iteration != self.iteration:
                raise CheckpointError(
                    f"{self._files[expert][0]}: is of iteration {opened.iteration}, but {self._files[0][0].name} of "
                    f"{self.iteration}; copy the files of one checkpoint"
                )
            self._opened[expert] = opened
        return self._opened[expert]


def open_experts(path: Path, partitions: Partitions, mark: str) -> ExpertRankWeights | None:
    """The weights at a path if they are those of a mixture of experts, else None.

    Raises: CheckpointError when files are missing.
    """
    folder = tracked_folder(Path(path), _PATTERN)
    if folder is None:
        files = find_ranks(path) if tracked_folder(Path(path), RANK) else []
        is_start = bool(files) and any(mark in name for name in RankWeights(files[:1], {}, whole=False))
        return ExpertRankWeights([files], partitions, mark) if is_start else None
    found = {
        tuple(map(int, match.groups())): file for file in folder.iterdir() if (match := _PATTERN.fullmatch(file.name))
    }
    experts, ranks = (max(place[axis] for place in found) + 1 for axis in (0, 1))
    names = {(e, r): _FILE.format(expert=e, rank=r) for e in range(experts) for r in range(ranks)}
    if lost := [name for place, name in names.items() if place not in found]:
        raise CheckpointError(f"{folder}: {', '.join(shorten(lost, 5))} missing beside the other files; copy them too")
    return ExpertRankWeights([[found[e, r] for r in range(ranks)] for e in range(experts)], partitions, mark)


def write_experts(
    folder: Path, tensors: Mapping[str, torch.Tensor], partitions: Partitions, mark: str, ranks: int, iteration: int
) -> None:
    """Write a tracker file and one file for each expert and rank; one tensor is in memory at a time.

    Raises: CheckpointError when a tensor cannot be divided evenly.
    """
    inner = folder / str(iteration)
    inner.mkdir(parents=True)
    numbered = re.compile(rf"{re.escape(mark)}(\d+)\.")
    owners = {name: int(match[1]) if (match := numbered.search(name)) else None for name in tensors}
    for expert in sorted({owner for owner in owners.values() if owner is not None}):
        names = {name: numbered.sub(mark, name) for name, owner in owners.items() if owner in (None, expert)}
        write_torch_files(
            [inner / _FILE.format(expert=expert, rank=rank) for rank in range(ranks)],
            TensorSubset(tensors, names),
            lambda name, whole: divide_tensor(name, whole, partitions, ranks),
            lambda _, flat, names=names: {
                "model": {names[name]: tensor for name, tensor in flat.items()},
                "iteration": iteration,
            },
        )
    (folder / TRACKER).write_text(f"{iteration}\n", encoding="utf-8")
