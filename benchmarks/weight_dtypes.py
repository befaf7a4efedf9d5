"""What bf16 weights (`train.weight_dtype`) cost in quality: held-out losses beside fp32 weights, for every optimizer.

python benchmarks/weight_dtypes.py [--work FOLDER] [--out result.json]        (needs pypinyin, as `hanlin demo` does)

The demo's CPM-Bee (4 layers x 128, phrases -> pinyin), trained from scratch for --steps in the arithmetic of bf16, its
loss on 400 held-out phrases; `nearest`: bf16 weights rounded to the nearest instead of by chance.
"""

from __future__ import annotations

import argparse
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from packed_bases import SHAPE, recipe, vocabulary
from script import read_arguments, report, require

import hanlin
from hanlin.cli._demo_data import write_phrases
from hanlin.training import rounding

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIMIZERS = {"adamw": 1e-2, "adamw_8bit": 1e-2, "adafactor": 1e-2}
"""With their rates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="of the small models; what is there is not made again")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--characters", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--steps 2 --characters 25 --held-out 2")
    require("pypinyin")
    torch.set_num_threads(1)
    with TemporaryDirectory() if args.work is None else nullcontext(args.work) as work:
        report({"losses": losses(Path(work).resolve(), args)}, args.out)


def losses(home: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    if not (home / "data").is_dir():
        write_phrases(home / "data", characters=args.characters, eval_rows=args.held_out, seed=1)
        vocabulary(home)
    found: dict[str, dict[str, float]] = {}
    for optimizer, rate in OPTIMIZERS.items():
        found[optimizer] = {dtype: trained(home, args.steps, optimizer, rate, dtype) for dtype in ("fp32", "bf16")}
    with rounding_to_the_nearest():
        found["adamw"]["nearest"] = trained(home, args.steps, "adamw", OPTIMIZERS["adamw"], "bf16", "nearest")
    return found


def trained(home: Path, steps: int, optimizer: str, rate: float, dtype: str, word: str = "") -> float:
    model = {"vocab": str(home / "vocab.txt"), "config": SHAPE}
    folder = "_".join(filter(None, ("pinyin", optimizer, dtype, word)))
    one = recipe(home, "pinyin", steps, model, folder=folder, precision="bf16", lr=rate)
    one["train"] |= {"optimizer": optimizer, "weight_dtype": dtype}
    return round(hanlin.train(one, quiet=True).best_loss or 0, 4)


@contextmanager
def rounding_to_the_nearest() -> Iterator[None]:
    def nearest(numbers: torch.Tensor, target: torch.Tensor, weight: Any, key: int) -> None:
        del weight, key
        target.copy_(numbers)

    by_chance, rounding.round_by_chance = rounding.round_by_chance, nearest
    try:
        yield
    finally:
        rounding.round_by_chance = by_chance


if __name__ == "__main__":
    main()
