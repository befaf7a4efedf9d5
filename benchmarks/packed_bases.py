"""What packed bases (`model.quantise`) cost and give: bytes, loss against plain weights, time and bytes of a product.

python benchmarks/packed_bases.py [--work FOLDER] [--out result.json]        (needs pypinyin, as `hanlin demo` does)

bytes: of the weights of whole published models, counted on the meta device; plain weights in bf16.
losses: of the demo's CPM-Bee (4 layers x 128, phrases -> pinyin), trained here for --steps in fp32 unless FOLDER holds
it, on 400 held-out phrases; and of a LoRA for their tones, trained for --lora-steps on each form of it.
golden: mean losses of the random models of the golden cases, where ../shared has them.
products: a matrix of --size x --size by 1 and by --rows rows, in CPU time on one thread; and the bytes per weight that
torch's operations read and write for it on a device other than a CPU, where nothing but torch is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from script import SHARED, read_arguments, report, require
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turns import take_turns

import hanlin
from hanlin.cli._demo_data import write_phrases
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.layers.quantised import PACKINGS, packed, packed_linears, quantise_linears
from hanlin.models.family import load_family

FORMS = ("int8", "nf4")
MODELS = (("chatglm2", "6b"), ("cpm_bee", "10b"), ("cpm2", "11b"), ("cpm1", "large"))
SHAPE = {
    "hidden_size": 128, "num_layers": 4, "num_heads": 4, "head_dim": 32, "ffn_size": 320, "num_distance_buckets": 32,
    "num_relation_buckets": 96, "max_distance": 64, "half_frequencies": False,
}  # fmt: skip
TARGETS = ["query", "key", "value", "output", "gate", "up", "down"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="of the small models; what is there is not made again")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lora-steps", type=int, default=60)
    parser.add_argument("--characters", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=[f"{family}/{size}" for family, size in MODELS])
    parser.add_argument("--out", type=Path)
    smallest = (
        "--steps 2 --lora-steps 1 --characters 25 --held-out 2 --size 64 --rows 8 --rounds 1 --models chatglm2/tiny"
    )
    args = read_arguments(parser, smallest)
    require("pypinyin")
    torch.set_num_threads(1)
    with TemporaryDirectory() if args.work is None else nullcontext(args.work) as work:
        losses = small_model(Path(work).resolve(), args)
    figures = {
        "bytes": {name: weight_bytes(*name.split("/")) for name in args.models},
        "losses": losses,
        "golden": golden_losses(),
        "products": {str(dtype)[6:]: products(dtype, args) for dtype in (torch.float32, torch.bfloat16)},
    }
    report(figures, args.out)


# --- bytes ---


def weight_bytes(family: str, size: str) -> dict[str, float]:
    """Gigabytes of all weights."""
    found = {}
    for form in (None, *FORMS):
        model = empty_model(family, size)
        if form is not None:
            quantise_linears(model, form)
        plain = 2 * sum(weight.numel() for weight in model.parameters() if weight.is_floating_point())
        whole = sum(weight.nbytes for weight in model.parameters() if not weight.is_floating_point())
        found[form or "bf16"] = round((plain + whole) / 1e9, 2)
    return found


def empty_model(family: str, size: str) -> Any:
    known = load_family(family)
    with torch.device("meta"):
        return known.model()(known.sizes[size])


# --- losses of small models ---


def small_model(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Losses per token; `bf16`: plain weights, in the arithmetic of bf16; `bf16 nf4`: packed ones in the same."""
    if not (home / "data").is_dir():
        write_phrases(home / "data", characters=args.characters, eval_rows=args.held_out, seed=1)
        vocabulary(home)
    pinyin = recipe(home, "pinyin", args.steps, {"vocab": str(home / "vocab.txt"), "config": SHAPE}, lr=1e-2)
    base = str(hanlin.train(pinyin, quiet=True).weights)
    base_losses, tuned = {}, {}
    for precision in ("fp32", "bf16"):
        for form in (None, *FORMS):
            name = " ".join(filter(None, (precision, form)))
            settings = {"base": base, "quantise": form}
            one = recipe(home, "pinyin", 1, settings, folder="score", precision=precision)
            base_losses[name] = round(hanlin.evaluate(one, quiet=True)["loss"]["loss"], 5)
    for form in (None, *FORMS):
        name = form or "fp32"
        lora = recipe(home, "tone", args.lora_steps, {"base": base, "quantise": form}, folder=f"tone_{name}", lr=5e-3)
        lora["tuning"] = {"method": "lora", "rank": 8, "targets": TARGETS}
        tuned[name] = round(hanlin.train(lora, quiet=True).best_loss or 0, 5)
    return {"base": base_losses, "lora": tuned}


def vocabulary(home: Path) -> None:
    from hanlin.cli.main import main as command

    words = [str(home / "data" / f"{name}_train.jsonl") for name in ("pinyin", "tone")]
    assert command(["tokenizer", "build", *words, "--out", str(home / "vocab.txt"), "--overwrite"]) == 0


def recipe(
    home: Path,
    task: str,
    steps: int,
    model: dict[str, Any],
    *,
    folder: str = "",
    precision: str = "fp32",
    lr: float = 1,
) -> dict[str, Any]:
    rows = [str(home / "data" / f"{task}_{part}.jsonl") for part in ("train", "eval")]
    return {
        "model": {"family": "cpm_bee", **model},
        "data": {"train": rows[:1], "eval": rows[1:], "max_length": 512, "cache": str(home / "cache")},
        "train": {
            "steps": steps,
            "batch_size": 4,
            "lr": lr,
            "warmup_steps": min(30, steps // 2),
            "precision": precision,
        },
        "evaluate": {"tasks": ["loss"]},
        "run": {"folder": str(home / (folder or task)), "seed": 1, "threads": 1, "device": "cpu"},
    }


# --- golden models ---


def golden_losses() -> dict[str, dict[str, float]]:
    """The mean loss in fp32 of plain and of packed weights; {} without the golden cases."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
    return {name: dict(loss_by_form(*model)) for name, model in golden_models()}


def golden_models() -> Iterator[tuple[str, tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]]]:
    if not (golden := SHARED / "golden").is_dir():
        return
    import check_bee_model as bee
    import cpm2_case as cpm2
    import glm_case as glm

    arrays = {name: arrays_of(golden / name) for name in ("bee_model_a", "chatglm2_model_g2", "cpm2_full")}
    inputs, labels = bee.load_inputs(arrays["bee_model_a"])  # pyright: ignore[reportArgumentType]
    count = (labels != -100).sum()
    yield (
        "bee_model_a",
        (bee.load_model(golden / "bee_model_a"), lambda model: model(**inputs, labels=labels) / count),
    )
    right = {name[6:]: array for name, array in arrays["chatglm2_model_g2"].items() if name.startswith("right.")}
    yield (
        "chatglm2_model_g2",
        (glm.load_model(golden / "chatglm2_model_g2"), lambda model: glm.mean_loss(model, right)),  # pyright: ignore
    )
    folder, batch = golden / "cpm2_full" / "cpm2", cpm2.batch_of(arrays["cpm2_full"])
    with torch.device("meta"):
        model = cpm2.Cpm2(read_config(folder, cpm2.FAMILY))
    load_into(model, folder, cpm2.FAMILY, dtype=torch.float32)
    yield "cpm2_full", (model.eval(), lambda model: cpm2.losses_of(model, batch))  # pyright: ignore


def arrays_of(case: Path) -> dict[str, torch.Tensor]:
    with np.load(case / "inputs.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@torch.no_grad()
def loss_by_form(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> Iterator[tuple[str, float]]:
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    yield "fp32", round(loss(model).item(), 5)
    for form in FORMS:
        copy = empty_like(model, form)
        values = dict(plain)
        for name, how in packed_linears(copy).items():
            values |= {f"{name}.{part}": one for part, one in packed(how, plain[f"{name}.weight"]).items()}
        copy.load_state_dict(values, assign=True)
        yield form, round(loss(copy.eval()).item(), 5)


def empty_like(model: Any, form: Any) -> nn.Module:
    with torch.device("meta"):
        copy = type(model)(model.config)
    quantise_linears(copy, form)
    return copy


# --- products ---


def products(dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of CPU time for one row and for several; bytes per weight for several rows."""
    weight = torch.randn(args.size, args.size, generator=torch.Generator().manual_seed(0)) * 0.02
    ways = {"plain": Way(multiply_plain, (weight.to(dtype),))}
    for name, how in PACKINGS.items():
        tensors = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in how.pack(weight))
        ways[name] = Way(how.multiply, tensors)
    found: dict[str, Any] = {name: {} for name in ways}
    for rows in (1, args.rows):
        input = torch.randn(rows, args.size, dtype=dtype)
        taken = take_turns({name: partial(way, input) for name, way in ways.items()}, args.rounds)
        for name in ways:
            found[name][f"ms_{rows}_rows"] = round(1000 / taken.per_second(name, 1), 2)
            if rows > 1:
                moved = bytes_moved(ways[name].meta, input.to("meta"))
                found[name]["bytes_per_weight"] = round(moved / weight.numel(), 2)
    return found


@dataclass(frozen=True)
class Way:
    multiply: Callable[[torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]
    tensors: tuple[torch.Tensor, ...]

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return self.multiply(input, self.tensors)

    @property
    def meta(self) -> Way:
        return Way(self.multiply, tuple(tensor.to("meta") for tensor in self.tensors))


def multiply_plain(input: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return nn.functional.linear(input, *tensors)


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        if not is_view(func) and "empty" not in str(func):
            # What is written to is given as `out` or changed in place: it is counted once as written.
            read = [one for one in given if not any(one is other for other in made) or "_." in str(func)]
            self.bytes += sum(one.nbytes for one in (*read, *made))
        return out


def is_view(func: Any) -> bool:
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.arguments)


def bytes_moved(way: Way, input: torch.Tensor) -> int:
    """Of one product, less its input and its result."""
    with Moved() as moved:
        out = way(input)
    return moved.bytes - input.nbytes - out.nbytes


if __name__ == "__main__":
    main()
