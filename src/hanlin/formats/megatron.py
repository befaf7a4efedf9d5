"""Checkpoints of the Megatron program that CPM-1 was pretrained with, in all ways its files can lie.

| form | files under DIR, which has a tracker file |
|---|---|
| megatron | `iter_0000010/mp_rank_00/model_optim_rng.pt` (or `release/...`): nested dicts, and arguments |
| deepspeed | `global_step10/mp_rank_00_model_states.pt`: the same nested dicts |
| pipeline | `global_step10/layer_02-model_00-model_states.pt`: one file per layer and tensor rank, of DeepSpeed |

Rows of fused linears stand head by head, `[heads, parts, head_dim]`, since checkpoint version 2; those of older ones
are put into that order here. Surprising: the original forgets the version in DeepSpeed's files and then reads its own
rows in the order of version 0; such files are read as version 2, which is how they were written.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.files import TORCH_ENDINGS, Weights, find_named_weights, find_weights
from hanlin.formats.lazy import Lazy, TensorSubset, meta_of
from hanlin.formats.ranks import (
    PLAIN,
    RANK,
    TRACKER,
    UNSTATED,
    Partitions,
    deepspeed_state,
    divide_tensor,
    iteration_name,
    merge_pieces,
    plain_files,
    plain_name,
    read_tag,
    state_name,
    tracked_folder,
)
from hanlin.formats.torch_file import MappedTensors, write_torch_files
from hanlin.formats.training_file import TrainingFile, check_set, check_single, mapped, open_training_file

if TYPE_CHECKING:
    import torch

_ARGUMENTS = """
DDP_impl adam_beta1 adam_beta2 adam_eps adlr_autoresume adlr_autoresume_interval apply_query_key_layer_scaling
attention_softmax_in_fp32 batch_size bert_load bias_dropout_fusion block_data_path checkpoint_activations
checkpoint_in_cpu checkpoint_num_layers clip_grad contigious_checkpointing cpu_optimizer cpu_torch_adam data_impl
data_path dec_seq_length deepspeed deepspeed_activation_checkpointing deepspeed_config
distribute_checkpointed_activations distributed_backend dynamic_loss_scale enc_seq_length eod_mask_loss eval_interval
eval_iters exit_interval faiss_use_gpu finetune fp16 fp16_lm_cross_entropy fp32_allreduce gas greedy hysteresis
ict_head_size ict_load indexer_batch_size indexer_log_interval lazy_mpu_init load local_rank log_interval loss_scale
loss_scale_window lr lr_decay_iters lr_decay_style mask_prob merge_file min_lr min_scale mmap_warmup
model_parallel_size no_load_optim no_load_rng no_save_optim no_save_rng num_workers onnx_safe out_seq_length
override_lr_scheduler padded_vocab_size param_sharing_style params_dtype partition_activations pipe_parallel_size
profile_backward query_in_block_prob rank recompute report_topk_accuracies reset_attention_mask reset_position_ids
save save_interval scaled_masked_softmax_fusion scaled_upper_triang_masked_softmax_fusion seed seq_length
short_seq_prob split synchronize_each_layer temperature tensorboard_dir titles_data_path tokenizer_type top_k top_p
train_iters use_checkpoint_lr_scheduler use_cpu_initialization use_one_sent_docs vocab_file warmup weight_decay
world_size zero_allgather_bucket_size zero_contigious_gradients zero_reduce_bucket_size zero_reduce_scatter zero_stage
"""
ARGUMENTS_WITHOUT_EFFECT = frozenset(_ARGUMENTS.split())
"""The program's arguments that change no number of a trained model; how it was trained is a recipe's matter here."""
VERSION = 2.0
_STEPS = "latest"
_ANY_RANK = re.compile(r"mp_rank_\d+(_\d+)?_model_states\.pt")
_ENUMS = [
    f"megatron.{room}.{name}"
    for room in ("model.enums", "core.enums", "core.transformer.enums", "core.model_parallel_config")
    for name in ("AttnBackend", "AttnMaskType", "AttnType", "LayerType", "ModelType", "PositionEmbeddingType")
]
"""Kinds of values among the arguments that newer programs of the family store."""
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_FIRST_LAYER = 2
"""Number of the first block in the pipeline's list, after the embedding and a transposition."""

_SHOWN = 5

MegatronForm = Literal["megatron", "deepspeed", "pipeline"]
FORMS: dict[MegatronForm, str] = {
    "megatron": f"iter_XXXXXXX/mp_rank_XX/{PLAIN}",
    "deepspeed": "DeepSpeed's global_stepN/mp_rank_XX_model_states.pt",
    "pipeline": "layer files of DeepSpeed's pipeline, global_stepN/layer_XX-model_XX-model_states.pt",
}


@dataclass(frozen=True)
class Rank:
    """One tensor rank's share; version: of the order of fused rows; arguments: those of the program, where stored."""

    tensors: MappedTensors
    version: float = VERSION
    arguments: dict[str, Any] = field(default_factory=dict)
    iteration: int | None = None


class MegatronWeights(Weights):
    """The tensors of all tensor ranks, merged when they are asked for; fused rows are in the order of version 2.

    fused: ending of a fused tensor's name -> how many linears it holds.
    """

    def __init__(
        self,
        files: Sequence[Path],
        form: MegatronForm,
        ranks: Sequence[Rank],
        partitions: Partitions,
        fused: Mapping[str, int],
        remark: str = "",
    ) -> None:
        self.files = tuple(files)
        self.layout = form
        self.lying = (
            f"{FORMS[form]}: {len(ranks)} tensor rank{'s' if len(ranks) > 1 else ''}, {len(files)} files{remark}"
        )
        self.iteration = ranks[0].iteration
        self.arguments = ranks[0].arguments
        self._ranks, self._partitions, self._fused = ranks, partitions, fused
        if len(ranks) == 1 and form == "pipeline":
            self.hint = UNSTATED

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._merged(name, [rank.tensors[name] for rank in self._ranks])

    def meta(self, name: str) -> torch.Tensor:
        return self._merged(name, [rank.tensors.meta(name) for rank in self._ranks])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks[0].tensors)

    def __len__(self) -> int:
        return len(self._ranks[0].tensors)

    def forget(self, name: str) -> None:
        for rank in self._ranks:
            rank.tensors.forget(name)

    def _merged(self, name: str, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = next((parts for ending, parts in self._fused.items() if name.endswith(ending)), None)
        if parts is not None:
            versions = [rank.version for rank in self._ranks]
            pieces = [self._in_order(piece, parts, version) for piece, version in zip(pieces, versions, strict=True)]
        return merge_pieces(name, pieces, self._partitions, self.files[0].parent)

    def _in_order(self, fused: torch.Tensor, parts: int, version: float) -> torch.Tensor:
        if version >= VERSION:
            return fused
        if "num_attention_heads" not in self.arguments:
            raise CheckpointError(f"{self.files[0]}: of version {version}, but the number of heads is not stored")
        heads = self.arguments["num_attention_heads"] // len(self._ranks)
        size = len(fused) // (heads * parts)
        if version >= 1:  # [heads, head_dim, parts]
            return fused.unflatten(0, (heads, size, parts)).transpose(1, 2).flatten(0, 2)
        return fused.unflatten(0, (parts, heads, size)).transpose(0, 1).flatten(0, 2)


def open_megatron(path: Path, partitions: Partitions, fused: Mapping[str, int]) -> MegatronWeights | None:
    """The weights at a path: the folder with the tracker, that of an iteration, a file in it, or one file of any name
    that holds all of them; None for other ones.

    Raises: CheckpointError.
    """
    path = Path(path)
    folder = _iteration(path)
    if folder is None:
        return _open_single(path, partitions, fused)
    by_rank = _plain_files(folder) or _layer_files(folder) or _state_files(folder)
    if not by_rank:
        return None
    lost = [rank for rank in range(max(by_rank) + 1) if rank not in by_rank]
    if lost:
        raise CheckpointError(f"{folder}: nothing of tensor rank {', '.join(map(str, lost))}; copy its files too")
    files = [file for rank in sorted(by_rank) for file in by_rank[rank]]
    if _LAYER.fullmatch(files[0].name):
        ranks, remark = _layer_ranks(folder, by_rank)
        return MegatronWeights(files, "pipeline", ranks, partitions, fused, remark)
    opened = [open_training_file(file, _ENUMS) for file in files]
    if not all(map(_is_ours, opened)):
        return None
    form: MegatronForm = "megatron" if files[0].name == PLAIN else "deepspeed"
    check_set(opened, plain_name if form == "megatron" else state_name)
    ranks = [_rank(one, form) for one in opened]
    return MegatronWeights(files, form, ranks, partitions, fused)


def _open_single(path: Path, partitions: Partitions, fused: Mapping[str, int]) -> MegatronWeights | None:
    """A file of any name that holds the nested dicts, or the one file of weights in a folder."""
    file = find_weights(path) if path.is_dir() else path
    if file is None or file.suffix not in TORCH_ENDINGS or not file.is_file():
        return None
    opened = open_training_file(file, _ENUMS)
    if opened.key is None or not _is_ours(opened):
        return None
    check_single(opened)
    form: MegatronForm = "megatron" if opened.key == "model" else "deepspeed"
    return MegatronWeights([file], form, [_rank(opened, form)], partitions, fused)


def head_rows(weights: Mapping[str, torch.Tensor]) -> int:
    """How many rows the heads of a layer have together, in the query's part of the fused projection."""
    fused = next((name for name in weights if name.endswith("attention.query_key_value.weight")), None)
    if fused is None:
        raise CheckpointError("no tensor attention.query_key_value.weight is there; copy all files")
    return len(meta_of(weights, fused)) // 3


def lies_in_ranks(path: Path) -> bool:
    """Whether a path holds files of model-parallel ranks, of layers or of experts, of whichever program."""
    return _iteration(Path(path)) is not None or tracked_folder(Path(path), _ANY_RANK) is not None


def write_megatron(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    partitions: Partitions,
    arguments: Mapping[str, Any],
    *,
    form: MegatronForm = "megatron",
    ranks: int = 1,
    iteration: int = 1,
) -> None:
    """Write one of the forms, which the original loads with `--no-load-optim --no-load-rng`.

    arguments: what the original compares with its own, and `make_vocab_size_divisible_by`: to a multiple of that and
    the number of ranks the rows of the word embedding are filled up with zeros.
    Raises: CheckpointError when a tensor cannot be divided evenly.
    """
    padded = _Padded(tensors, arguments["make_vocab_size_divisible_by"] * ranks)
    inner = folder / (f"iter_{iteration:07d}" if form == "megatron" else f"global_step{iteration}")
    inner.mkdir(parents=True)

    def share(name: str, whole: torch.Tensor) -> list[torch.Tensor]:
        return divide_tensor(name, whole, partitions, ranks)

    rows = next(len(padded.meta(name)) for name in padded if name.endswith(_Padded.ending))
    stored = argparse.Namespace(**arguments, padded_vocab_size=rows, model_parallel_size=ranks)
    if form == "megatron":
        head = {"args": stored, "checkpoint_version": VERSION, "iteration": iteration}
        files = [inner / plain_name(rank) for rank in range(ranks)]
        for file in files:
            file.parent.mkdir()
        write_torch_files(files, padded, share, lambda _, flat: {**head, "model": _nested(flat)})
    elif form == "deepspeed":
        files = [inner / state_name(rank) for rank in range(ranks)]
        write_torch_files(files, padded, share, lambda _, flat: deepspeed_state(_nested(flat), ranks, iteration))
    else:
        _write_layers(inner, padded, share, ranks)
        state = {**deepspeed_state(None, ranks, iteration), "args": stored}
        files = [inner / state_name(rank) for rank in range(ranks)]
        write_torch_files(files, TensorSubset(padded, []), share, lambda *_: state)
    if form != "megatron":
        (folder / _STEPS).write_text(inner.name, encoding="utf-8")
    (folder / TRACKER).write_text(str(iteration), encoding="utf-8")


def _layer_name(number: int, rank: int) -> str:
    return f"layer_{number:02d}-model_{rank:02d}-model_states.pt"


def _write_layers(
    folder: Path, tensors: Lazy, share: Callable[[str, torch.Tensor], list[torch.Tensor]], ranks: int
) -> None:
    """One file for each rank of the embedding, of every block, and of the last norm."""
    layers: dict[int, dict[str, str]] = {}
    count = sum(name.endswith(".input_layernorm.weight") for name in tensors)
    for name in tensors:
        number, inside = _place_in_pipeline(name, count)
        layers.setdefault(number, {})[name] = inside
    for number, names in sorted(layers.items()):
        files = [folder / _layer_name(number, rank) for rank in range(ranks)]
        write_torch_files(
            files,
            TensorSubset(tensors, names),
            share,
            lambda _, flat, names=names: {names[name]: tensor for name, tensor in flat.items()},
        )


def _place_in_pipeline(name: str, num_layers: int) -> tuple[int, str]:
    """The number of the layer that holds a tensor, and its name there."""
    _, part, rest = name.split(".", 2)
    if part == "embedding":
        return 0, rest
    if rest.startswith("final_layernorm."):
        return _FIRST_LAYER + num_layers + 1, rest.removeprefix("final_layernorm.")
    _, number, inside = rest.split(".", 2)
    return _FIRST_LAYER + int(number), inside


class _Padded(TensorSubset):
    """Tensors of which the word embedding has a number of rows that is a multiple."""

    ending = "word_embeddings.weight"

    def __init__(self, tensors: Mapping[str, torch.Tensor], multiple: int) -> None:
        super().__init__(tensors, tensors)
        self._multiple = multiple

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._filled_up(name, super().__getitem__(name).detach())

    def meta(self, name: str) -> torch.Tensor:
        return self._filled_up(name, super().meta(name))

    def _filled_up(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        missing = -len(tensor) % self._multiple if name.endswith(self.ending) else 0
        return torch.cat((tensor, tensor.new_zeros(missing, tensor.shape[1]))) if missing else tensor


# --- where the files lie ---


def _iteration(path: Path) -> Path | None:
    """The folder of an iteration."""
    if path.is_file():
        lies_here = _LAYER.fullmatch(path.name) or RANK.fullmatch(path.name)
        return path.parent.parent if path.name == PLAIN else path.parent if lies_here else None
    if not path.is_dir() or find_named_weights(path) is not None:
        return None
    if _plain_files(path) or _layer_files(path) or _state_files(path):
        return path
    folders = [path / tag for tag in _tags(path)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _tags(folder: Path) -> Iterator[str]:
    """The names of iteration folders that the tracker files of a checkpoint may mean."""
    if (folder / TRACKER).is_file():
        yield iteration_name(folder / TRACKER)
    if (folder / _STEPS).is_file():
        tag = read_tag(folder / _STEPS)
        if tag and Path(tag).name == tag:
            yield tag


def _plain_files(folder: Path) -> dict[int, list[Path]]:
    return {rank: [file] for rank, file in plain_files(folder).items()}


def _state_files(folder: Path) -> dict[int, list[Path]]:
    return {rank: [file] for rank, file in _state_paths_of(folder).items()}


def _state_paths_of(folder: Path) -> dict[int, Path]:
    matches = {entry: RANK.fullmatch(entry.name) for entry in folder.iterdir()}
    return {int(match[1]): file for file, match in matches.items() if match}


def _layer_files(folder: Path) -> dict[int, list[Path]]:
    files: dict[int, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if match := _LAYER.fullmatch(entry.name):
            files.setdefault(int(match[2]), []).append(entry)
    return files


def _layer_number(file: Path) -> int:
    match = _LAYER.fullmatch(file.name)
    assert match is not None, file
    return int(match[1])


# --- what the files hold ---


def _is_ours(opened: TrainingFile) -> bool:
    """Whether a file holds this program's nested dicts."""
    return any(name.startswith("language_model.") for name in opened.tensors)


def _rank(opened: TrainingFile, form: MegatronForm) -> Rank:
    version = opened.others.get("checkpoint_version", 0 if form == "megatron" else VERSION)
    return Rank(mapped(opened), float(version), opened.arguments, opened.iteration)


def _layer_ranks(folder: Path, by_rank: Mapping[int, Sequence[Path]]) -> tuple[list[Rank], str]:
    """The shares that lie in layer files, and what is to be said of their number.

    Raises: CheckpointError naming the files that are missing.
    """
    states = [open_training_file(file) for _, file in sorted(_state_paths_of(folder).items())]
    arguments = states[0].arguments if states else {}
    stated = states[0].num_ranks if states else None
    told = next((one.arguments.get("model_parallel_size") for one in states), None)
    if (told and told != len(by_rank)) or (stated and (stated < len(by_rank) or stated % len(by_rank))):
        raise CheckpointError(
            f"{folder}: layer files of {len(by_rank)} tensor ranks, but {states[0].file.path.name} says "
            f"{told or stated}; copy the files of all ranks, of one checkpoint"
        )
    remark = f"; of {stated} ranks, so with {stated // len(by_rank)} stages" if stated and not told else ""
    opened = {rank: {_layer_number(file): open_training_file(file) for file in by_rank[rank]} for rank in by_rank}
    last = {number for files in opened.values() for number, one in files.items() if _is_last(one)}
    # Between the last block and the final norm a transposition has its number.
    end = max(last, default=_FIRST_LAYER + 1)
    wanted = {0, *range(_FIRST_LAYER, end - 1), *last}
    lost = [_layer_name(number, rank) for rank in opened for number in sorted(wanted - opened[rank].keys())]
    lost += [] if last else ["that of the last layer (the final norm)"]
    if lost:
        raise CheckpointError(f"{folder}: {', '.join(shorten(lost, _SHOWN))} missing beside the others; copy them too")
    shares = [_share(opened[rank]) for rank in sorted(opened)]
    for rank, share in enumerate(shares):
        _check_share(folder, rank, share, shares[0])
    step = re.search(r"\d+$", folder.name)
    iteration = int(step[0]) if step else None
    return [Rank(share, arguments=arguments, iteration=iteration) for share in shares], remark


def _share(files: Mapping[int, TrainingFile]) -> MappedTensors:
    """One rank's tensors by the names of the whole model."""
    return MappedTensors(
        (one.file, {f"language_model.{_prefix(number, one)}.{name}": tensor for name, tensor in one.tensors.items()})
        for number, one in sorted(files.items())
    )


def _check_share(folder: Path, rank: int, share: MappedTensors, first: MappedTensors) -> None:
    odd = sorted(share.keys() ^ first.keys())
    odd += [name for name in first if name in share and share.meta(name).shape != first.meta(name).shape]
    if odd:
        raise CheckpointError(
            f"{folder}: tensor rank {rank} has other tensors than rank 0, or of another shape: "
            f"{', '.join(shorten(odd, _SHOWN))}; copy the files of one checkpoint"
        )


def _prefix(number: int, one: TrainingFile) -> str:
    if "word_embeddings.weight" in one.tensors:
        return "embedding"
    return "transformer." + ("final_layernorm" if _is_last(one) else f"layers.{number - _FIRST_LAYER}")


def _is_last(one: TrainingFile) -> bool:
    """Whether a layer's file is that of the final norm."""
    return bool(one.tensors) and set(one.tensors) <= {"weight", "bias"}


def _nested(flat: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    embedding: dict[str, Any] = {}
    transformer: dict[str, torch.Tensor] = {}
    for name, tensor in flat.items():
        _, part, rest = name.split(".", 2)
        if part == "embedding":
            table, leaf = rest.rsplit(".", 1)
            embedding[table] = {leaf: tensor}
        else:
            transformer[rest] = tensor
    return {"language_model": {"embedding": embedding, "transformer": transformer}}
