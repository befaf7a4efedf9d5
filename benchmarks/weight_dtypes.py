"""What bf16 weights (`train.weight_dtype`) cost in quality: held-out losses beside fp32 weights.

python benchmarks/weight_dtypes.py [--work FOLDER] [--out result.json]        (needs pypinyin, as `hanlin demo` does)

scratch: the demo's CPM-Bee (4 layers x 128, phrases -> pinyin), trained for --steps by AdamW in the arithmetic of bf16,
its loss on 400 held-out phrases. tuned: that of fp32, tuned as a whole for their tones for --tune-steps, by every
optimizer. `nearest`: bf16 weights that are rounded to the nearest instead of by chance.
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

OPTIMIZERS = {"adamw": 5e-4, "adamw_8bit": 5e-4, "adafactor": 5e-3}
"""With the rates of tuning."""
SCRATCH_RATE = 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="of the small models; what is there is not made again")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tune-steps", type=int, default=60)
    parser.add_argument("--characters", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--steps 2 --tune-steps 1 --characters 25 --held-out 2")
    require("pypinyin")
    torch.set_num_threads(1)
    with TemporaryDirectory() if args.work is None else nullcontext(args.work) as work:
        report({"losses": losses(Path(work).resolve(), args)}, args.out)


def losses(home: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    if not (home / "data").is_dir():
        write_phrases(home / "data", characters=args.characters, eval_rows=args.held_out, seed=1)
        vocabulary(home)
    found: dict[str, dict[str, float]] = {"scratch": {}}
    fresh = {"vocab": str(home / "vocab.txt"), "config": SHAPE}
    for dtype in ("fp32", "bf16"):
        found["scratch"][dtype] = trained(home, fresh, args.steps, "adamw", dtype)
    base = {"base": str(home / "scratch_adamw_fp32" / "best")}
    for optimizer in OPTIMIZERS:
        ways = {dtype: trained(home, base, args.tune_steps, optimizer, dtype) for dtype in ("fp32", "bf16")}
        found[f"tuned {optimizer}"] = ways
    with rounding_to_the_nearest():
        found["tuned adamw"]["nearest"] = trained(home, base, args.tune_steps, "adamw", "bf16", "_nearest")
        found["scratch"]["nearest"] = trained(home, fresh, args.steps, "adamw", "bf16", "_nearest")
    return found


def trained(home: Path, model: dict[str, Any], steps: int, optimizer: str, dtype: str, word: str = "") -> float:
    task, name, rate = (
        ("tone", "tuned", OPTIMIZERS[optimizer]) if "base" in model else ("pinyin", "scratch", SCRATCH_RATE)
    )
    folder = f"{name}_{optimizer}_{dtype}{word}"
    one = recipe(home, task, steps, model, folder=folder, precision="bf16", lr=rate)
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
