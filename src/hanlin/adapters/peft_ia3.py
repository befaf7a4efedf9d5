"""PEFT's adapter folder of IA3: a vector for each module, `[out, 1]` of outputs or, of a feedforward module, `[1, in]`.

A vector of a fused linear is cut as its rows are. Out, parts of a fused linear that are not rescaled get ones, and its
inputs are one vector, so that its parts must have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import ANY_BASE, Adapter, AdapterFormat, ForBase, read_settings
from hanlin.adapters.lora_names import PEFT_PREFIX, rules_of
from hanlin.adapters.lora_parts import cut_rows, shortest_endings, their_modules
from hanlin.adapters.peft import about_base, form_in_peft, write_folder
from hanlin.adapters.peft_config import COMMON_KEYS, IA3, SETTINGS, peft_type, stated_base
from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import read_json_object
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.files import open_weights
from hanlin.formats.format import FamilyFacts
from hanlin.formats.rules import Move, Transposed, find_moves
from hanlin.formats.translate import shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn

OUTPUTS, INPUTS = "ia3_outputs", "ia3_inputs"
"""Our names of the vectors (layers/rescaled.py, which imports torch)."""
_TITLE = "PEFT's adapter folder of IA3"
_VECTOR = ".ia3_l"
_KEYS = ConfigKeys(
    # Which modules have vectors, and whether of outputs or of inputs, the tensors tell by their names and shapes.
    harmless=(
        *COMMON_KEYS,
        *("target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"),
    ),
    neutral={"modules_to_save": (None, [])},
)


def _holds(path: Path) -> bool:
    return peft_type(path) == IA3


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    stated, weights = read_json_object(path / SETTINGS), open_weights(path)
    _KEYS.check(stated, str(path / SETTINGS))
    tensors: dict[str, torch.Tensor] = {}
    for name in weights:
        tensors |= _ours(path, name, weights[name], family, config)
    if not tensors:
        raise CheckpointError(f"{path}: no {_VECTOR[1:]} among its tensors; copy the whole adapter")
    targets = {kind: _targets(tensors, kind, family, config) for kind in (OUTPUTS, INPUTS)}
    settings = read_settings(path, {"method": "ia3", "outputs": targets[OUTPUTS], "inputs": targets[INPUTS]})
    return Adapter(path, _TITLE, settings, tensors, base=stated_base(stated))


def _ours(path: Path, name: str, vector: torch.Tensor, family: FamilyFacts, config: Any) -> dict[str, torch.Tensor]:
    """The vectors of our linears that one of theirs stands for."""
    module, mark, _ = name.removeprefix(PEFT_PREFIX).partition(_VECTOR)
    if not mark or vector.dim() != 2 or 1 not in vector.shape:
        raise CheckpointError(f"{path}: {name} is no vector of IA3; other tensors that were trained are not read")
    layouts = rules_of(family, config)
    if vector.shape[1] == 1:
        parts = cut_rows(module, vector, layouts) or {module: vector}
        return {f"{ours}.{OUTPUTS}": part.flatten() for ours, part in parts.items()}
    moves = [move for rules in layouts for move in find_moves(rules, [f"{module}.weight"], "to_ours") if move.targets]
    names = moves[0].targets if moves else (module,)
    return {f"{ours.removesuffix('.weight')}.{INPUTS}": vector.flatten() for ours in names}


def _targets(tensors: Mapping[str, Any], kind: str, family: FamilyFacts, config: Any) -> list[str]:
    """The ends of names that our settings have for the linears with such a vector."""
    wanted = {name.removesuffix(f".{kind}") for name in tensors if name.endswith(f".{kind}")}
    if config is None:
        return sorted(wanted)
    linears = [name.removesuffix(".weight") for name, shape in shapes_of(family, config).items() if len(shape) > 1]
    return shortest_endings(wanted, linears)


def _save(
    model: Any,
    settings: Any,
    path: Path,
    family: FamilyFacts,
    *,
    overwrite: bool = False,
    base: ForBase = ANY_BASE,
) -> None:
    layout, form = form_in_peft(model, family, base.layout)
    moves = find_moves(form.rules(model.config), [f"{name}.weight" for name in _linears(model)], "to_theirs")
    outputs, inputs = _outputs(model, moves), _inputs(model, moves)
    if both := sorted(outputs.keys() & inputs.keys()):
        raise CheckpointError(f"PEFT rescales either the outputs or the inputs of a module, here both of {both[0]}")
    vectors = outputs | inputs
    known = their_modules(form.rules(model.config), [name for name, _ in model.named_parameters()])
    turned = [move.targets[0] for move in moves if isinstance(move.rule, Transposed)]
    config = {
        "peft_type": IA3,
        "target_modules": shortest_endings(vectors.keys(), known),
        "feedforward_modules": shortest_endings(inputs.keys(), known),
        "fan_in_fan_out": all(f"{name}.weight" in turned for name in vectors),
        "init_ia3_weights": True,
        "modules_to_save": None,
    }
    tensors = {f"{PEFT_PREFIX}{name}{_VECTOR}": vector.contiguous() for name, vector in vectors.items()}
    write_folder(path, tensors, config | about_base(base, layout, form), overwrite=overwrite)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    from torch import nn

    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _outputs(model: nn.Module, moves: Sequence[Move]) -> dict[str, torch.Tensor]:
    """The vectors of outputs `[out, 1]` by their names; parts of a linear that are not rescaled get ones."""
    import torch

    def column(name: str) -> torch.Tensor:
        vector = getattr(linears[name], OUTPUTS, None)
        size = linears[name].out_features
        return (torch.ones(size) if vector is None else vector.detach().float().cpu())[:, None]

    linears, found = _linears(model), {}
    for theirs, move, ours in _used(linears, moves, OUTPUTS):
        (rows,) = move.run(tuple(map(column, ours)))
        found[theirs] = rows.t() if isinstance(move.rule, Transposed) else rows
    return found


def _inputs(model: nn.Module, moves: Sequence[Move]) -> dict[str, torch.Tensor]:
    """The vectors of inputs `[1, in]` by their names.

    Raises: CheckpointError where parts of one linear of theirs have others.
    """
    linears, found = _linears(model), {}
    for theirs, _, ours in _used(linears, moves, INPUTS):
        vectors: list[Any] = [getattr(linears[name], INPUTS, None) for name in ours]
        if any(vector is None or not vector.equal(vectors[0]) for vector in vectors):
            raise CheckpointError(
                f"{', '.join(ours)} are one linear there, whose inputs are rescaled by one vector; here they have "
                "several. Use our adapter folder, or work it into the base"
            )
        found[theirs] = vectors[0].detach().float().cpu()[None]
    return found


def _used(
    linears: Mapping[str, nn.Linear], moves: Sequence[Move], kind: str
) -> Iterator[tuple[str, Move, tuple[str, ...]]]:
    """Of each linear of theirs that has a part with such a vector: its name, the move that makes it, and its parts.

    Raises: CheckpointError for a linear that is none there.
    """
    waiting = {name for name, linear in linears.items() if getattr(linear, kind, None) is not None}
    for move in moves:
        ours = tuple(source.removesuffix(".weight") for source in move.sources)
        if len(move.targets) == 1 and waiting & {*ours}:
            waiting -= {*ours}
            yield move.targets[0].removesuffix(".weight"), move, ours
    if waiting:
        raise CheckpointError(
            f"this layout has no linear that holds {', '.join(shorten(sorted(waiting)))}, so its vector cannot be "
            "written there; work it into the base: `hanlin convert BASE NEW_FOLDER --merge ADAPTER`"
        )


PEFT_IA3 = AdapterFormat(_TITLE, _holds, _open, _save, names_base=True)
