"""What the checks of CPM-1's networks share: the case's models, gradients and training by the original's names."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from golden_case import Case, Reading, close, same

from hanlin.formats.convert import convert
from hanlin.formats.load import load_into
from hanlin.formats.rules import find_moves
from hanlin.formats.source import open_source, read_config
from hanlin.models.cpm1_t5.model import Cpm1T5
from hanlin.models.family import Family, load_family
from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.optimizers.adamw import AdamWSettings
from hanlin.training.schedules import learning_rate

Arrays = dict[str, torch.Tensor]

FAMILY, T5_FAMILY = load_family("cpm1"), load_family("cpm1_t5")
ATOL = {"logits": 1e-4, "loss": 1e-5, "grads": 1e-5, "train_losses": 1e-4}


def tolerances(case: Case) -> dict[str, float]:
    return ATOL | case.facts.get("measured", {}).get("suggested_atol", {})


def shape_flags(case: Case) -> dict[str, Any]:
    """What the command line says of the shape, by our names."""
    size, heads = case.flag("hidden-size", int), case.flag("num-attention-heads", int)
    stated = {
        "hidden_size": size,
        "num_layers": case.flag("num-layers", int),
        "num_heads": heads,
        "head_dim": case.flag("kv-hidden-size", int, size // heads),
        "ffn_size": case.flag("ff-hidden-size", int),
        "norm_eps": case.flag("layernorm-epsilon", float),
        "gelu": "tanh" if case.flag("openai-gelu", bool) else "erf",
        "residual_after_norm": case.flag("apply-residual-connection-post-layernorm", bool, False),
    }
    return {name: value for name, value in stated.items() if value is not None}


def models(case: Case, family: Family = FAMILY) -> Iterator[tuple[Path, Any]]:
    """The model of each form of the checkpoint that is there; DeepSpeed's files lack the program's arguments."""
    stated = shape_flags(case)
    for folder in case.folders():
        model = load_model(folder, stated if any(folder.rglob("layer_*")) else {}, family)
        assert vars(model.config) == {**vars(model.config), **stated}
        yield folder, model


def load_model(folder: Path, changes: dict[str, Any], family: Family = FAMILY) -> Any:
    with torch.device("meta"):
        model = family.model()(read_config(folder, family, changes))
    load_into(model, folder, family, dtype=torch.float32)
    return model.eval()


def documents(is_end: torch.Tensor) -> torch.Tensor:
    """The number of each column's document in its row; an end is the last column of its own."""
    return is_end.long().cumsum(1) - is_end.long()


def positions(is_end: torch.Tensor) -> torch.Tensor:
    """Columns counted from 0 in each document."""
    columns = torch.arange(is_end.shape[1]).expand_as(is_end)
    begins = torch.where(is_end, columns + 1, 0).roll(1, 1)
    begins[:, 0] = 0
    return columns - begins.cummax(1).values


def check_gradients(model: Any, loss: torch.Tensor, layout: str, expected: Reading, atol: float) -> None:
    """Every gradient that the case holds, whole or as its norm."""
    wanted = expected.names("grad/") + expected.names("grad_norm/")
    if not wanted and "grad_norm_total" not in expected:
        return
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    theirs = under_their_names(model, gradients, layout)
    for name in wanted:
        kind, _, tensor = name.partition("/")
        close(name, theirs[tensor] if kind == "grad" else theirs[tensor].norm(), expected, atol)
    total = torch.stack([gradient.double().norm() for gradient in theirs.values()]).norm()
    close("grad_norm_total", total, expected, atol)


def check_training(model: Any, batches: Sequence[Arrays], case: Case, expected: Reading) -> None:
    """The steps of the case's training run: rates, losses, norms before clipping, and the weights after them.

    batches: what each step's model is called with, `labels` and `weights` among it.
    """
    stated, atol = case.facts["train"], tolerances(case)["train_losses"]
    settings = TrainSettings(
        lr=stated["lr"],
        min_lr=stated["min_lr"],
        schedule=stated["style"],
        schedule_form="floored",
        warmup_share=stated["warmup"],
        optimizer=AdamWSettings(weight_decay=stated["weight_decay"]),
        clip=stated["clip_grad"] or None,
    )
    optimizer, norms, losses = build_optimizer(dict(model.named_parameters()), settings.optimizer), [], []
    rates = [learning_rate(settings, number + 1, stated["train_iters"]) for number in range(len(batches) + 1)]
    for batch, rate in zip(batches, rates, strict=False):
        losses.append(model(**batch) / batch["weights"].sum())
        model.zero_grad()
        losses[-1].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf))
        optimizer.step(rate)
    assert len(batches) == stated["steps"]
    given = expected.under("train/")
    if "train_lr" in given:
        close("train_lr", torch.tensor(rates[: len(given["train_lr"])], dtype=torch.float64), given, 1e-9)
    close("train_losses", torch.stack(losses), given, atol)
    close("train_grad_norms", torch.stack(norms), given, atol)
    after = under_their_names(model, dict(model.named_parameters()), "megatron")
    decayed = sum(weight.ndim >= 2 for weight in after.values())
    same("decay_group_sizes", [decayed, len(after) - decayed], given)
    for name in given.names("after"):
        kind, _, tensor = name.partition("/")
        ours, where = after[tensor], None
        if kind == "after" and tensor.endswith("query_key_value.bias"):
            # The key's part changes no score: its gradient is rounding, which Adam makes steps of.
            where = torch.tensor([True, False, True]).expand(model.config.num_heads, 3)
            where = where[..., None].expand(-1, -1, model.config.head_dim).flatten()
        close(name, ours.norm() if kind == "after_norm" else ours, given, atol, where=where)


def check_layouts(case: Case, family: Family, layouts: Sequence[str], changes: dict[str, Any]) -> None:
    """All forms hold the same bits; each layout that is written from one shard comes back with them."""
    folders = {folder: len(shards_of(folder)) for folder in case.folders() if shards_of(folder)}
    if not folders:
        return
    first = min(folders, key=lambda folder: (folders[folder], folder.name))
    whole = open_source(first, family).weights
    for folder in folders:
        weights = open_source(folder, family).weights
        assert all(weights[name].equal(whole[name]) for name in whole), folder.name
    divisors = _divisors(read_config(first, family), changes["vocab_multiple"])
    forms = [(layout, ranks) for layout in layouts for ranks in divisors]
    with tempfile.TemporaryDirectory() as temporary:
        for layout, ranks in forms:
            there, back = (Path(temporary) / f"{layout}{ranks}{end}" for end in ("", "_back"))
            divided = ranks if layout in ("megatron", "original") else 1
            convert(first, family, None, layout, there, ranks=divided)
            convert(there, family, None, "megatron", back, changes=changes)
            found = open_source(back, family).weights
            assert sorted(found) == sorted(whole), (layout, ranks)
            assert all(found[tensor].equal(whole[tensor]) for tensor in whole), (layout, ranks)
        for folder, ranks in folders.items():
            written = Path(temporary) / f"megatron{ranks}"
            if written.is_dir():
                check_shards(folder, written)


def _divisors(config: Any, multiple: int) -> list[int]:
    """Numbers of ranks that every matrix can be divided by, the embedding without more rows of padding."""
    rest = math.gcd(config.num_heads, config.ffn_size)
    return [ranks for ranks in (1, 2, 4) if rest % ranks == 0 and config.vocab_size % (multiple * ranks) == 0]


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("model_optim_rng.pt"))


def check_shards(theirs: Path, ours: Path) -> None:
    compared = (
        "num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "make_vocab_size_divisible_by",
        "padded_vocab_size", "tokenizer_type", "model_parallel_size",
    )  # fmt: skip
    for file in shards_of(theirs):
        [written] = [path for path in shards_of(ours) if path.parent.name == file.parent.name]
        states = [torch.load(path, weights_only=False) for path in (file, written)]
        assert states[1]["checkpoint_version"] == states[0]["checkpoint_version"]
        arguments = [vars(state["args"]) for state in states]
        known = [name for name in compared if name in arguments[0] and name in arguments[1]]
        assert [arguments[1][name] for name in known] == [arguments[0][name] for name in known]
        shards = [_flat(state["model"]) for state in states]
        assert list(shards[0]) == list(shards[1])
        assert all(shards[0][name].equal(shards[1][name]) for name in shards[0])


def _flat(nested: dict[str, Any], prefix: str = "") -> Arrays:
    flat: Arrays = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return dict(sorted(flat.items()))


def under_their_names(model: Any, ours: Arrays, layout: str) -> Arrays:
    """Tensors of ours (weights or gradients) by the original's names."""
    family = T5_FAMILY if isinstance(model, Cpm1T5) else FAMILY
    theirs: Arrays = {}
    for move in find_moves(family.formats[layout].rules(model.config), ours, "to_theirs"):
        theirs |= zip(move.targets, move.run(tuple(ours[name] for name in move.sources)), strict=True)
    return theirs
