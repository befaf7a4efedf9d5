"""What a family says of a layout in which its weights are found: `Format`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.files import Weights
from hanlin.formats.ranks import Partitions
from hanlin.formats.rules import Rule

if TYPE_CHECKING:
    import torch

BASE = "base"
"""The name of our own layout: `config.json` with the family, `model.safetensors`, the tokenizer's files."""
DTYPE_KEY = "dtype"
"""In its `config.json`: the dtype of the weights, for people and other programs; we tell it from the weights."""


@dataclass(frozen=True)
class Format:
    """One layout in which a family's weights are found.

    rules: config -> the two-way table of names (its names must not depend on the config, how it cuts tensors may);
    read_config: (their JSON values or {}, weights) -> values of our config, missing ones left out;
    write_config: our config -> their JSON values;
    config_keys: what is known of the keys of their JSON and of the arguments in their files: any other one that is not
    switched off is refused;
    config_files: where their JSON may lie beside the weights, best first (`*` allowed); the first is the one we write;
    weights_file: the name we write, its ending says the kind; shard_bytes: above it shards with an index are written
    instead (None: never); tokenizer_files: copied along where they are;
    refuse: raises CheckpointError for the JSON of a model that is often taken for one of the family;
    partitions: how the tensors are divided where each model-parallel rank has its own file (None: they never are);
    open: the weights at a path if they lie there in a way of files that only this layout has, else None;
    write: writes our config and their tensors into a folder, for so many ranks and as of an iteration, where that is
    not done as above;
    companions: (a folder with weights, JSON and tokenizer, our config, the options of the family's samples or None) ->
    writes what their programs read besides;
    pack: (the file to write, a folder with the tokenizer's own files, our config, their tensors, packing, options) ->
    writes all into one file of another program, in place of weights, JSON and tokenizer; packings: the words for
    packing its matrices that it knows (None: as they are);
    is_file: the target is that file, else a folder that holds it;
    library: the package that does it, which the extra of the same name installs;
    remark: (their JSON values or {}, weights) -> what was told of the model from clues in its folder, and why;
    needed: values of our config that no default may stand for, since these files may lack them;
    dtype_key: under which their JSON says the dtype of the weights, by torch's word (None: it does not);
    head_rows: how many rows all heads of a layer have together, told from the shapes (needed: num_heads or head_dim);
    soft_prompt: their name of the tensor with soft prompts, which lies among those of the model where it was tuned so;
    prefix: what the names of the tensors of a trained prefix begin with, which may lie there too;
    peft: PEFT's word for the task of a model whose tensors are called so, and that PEFT can work on (None: none is);
    prefix_keys: (our config, keys of a prefix `[..., head_dim]`, a distance) -> these keys for a program in which the
    prefix moves the positions of the text by that distance (None: it has no such keys, or takes no prefix).
    """

    title: str
    rules: Callable[[Any], Sequence[Rule]]
    read_config: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], dict[str, Any]]
    write_config: Callable[[Any], dict[str, Any]]
    config_keys: ConfigKeys = field(default_factory=ConfigKeys)
    config_files: tuple[str, ...] = ("config.json",)
    weights_file: str = "pytorch_model.bin"
    shard_bytes: int | None = None
    tokenizer_files: tuple[str, ...] = ()
    refuse: Callable[[Mapping[str, Any]], None] | None = None
    partitions: Partitions | None = None
    open: Callable[[Path], Weights | None] | None = None
    write: Callable[[Path, Any, Mapping[str, torch.Tensor], int, int], None] | None = None
    companions: Callable[[Path, Any, Any], None] | None = None
    pack: Callable[[Path, Path, Any, Mapping[str, torch.Tensor], str | None, Any], None] | None = None
    packings: tuple[str, ...] = ()
    is_file: bool = False
    library: str | None = None
    remark: Callable[[Mapping[str, Any], Weights], str] | None = None
    needed: tuple[str, ...] = ()
    dtype_key: str | None = None
    head_rows: Callable[[Mapping[str, torch.Tensor]], int] | None = None
    soft_prompt: str | None = None
    prefix: str | None = None
    peft: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"] | None = None
    prefix_keys: Callable[[Any, torch.Tensor, int], torch.Tensor] | None = None


class FamilyFacts(Protocol):
    """What this folder uses of a `models.family.Family`."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> type: ...
    @property
    def model(self) -> Callable[[], type]: ...
    @property
    def formats(self) -> Mapping[str, Any]: ...
    @property
    def unwritable(self) -> Mapping[str, str]: ...
