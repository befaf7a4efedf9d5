"""What the device check asks of a process of its own: an allocator with other settings, a device that fails. Nobody
else runs it.

python device_child.py pieces DEVICE [--tiny]       steps of changing shapes; one line of JSON
python device_child.py failure DEVICE FOLDER        a training whose device fails in its third step
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from device_parts import GIB, Bench, draw_rows, make_large

from hanlin.cli.main import main as hanlin
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import OPTIMIZERS, ParallelSettings, TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

FAILING_STEP = 3


def count_pieces(device: torch.device, is_tiny: bool) -> dict[str, Any]:
    """LoRA with rows of another length in each step: what of the memory that the allocator took lies idle."""
    bench, draw = Bench(device, is_tiny, print), torch.Generator().manual_seed(0)
    model, config = make_large(bench, "lora", layers=14)
    settings = TrainSettings(steps=99, precision="bf16", micro_batch_size=1, optimizer=OPTIMIZERS.make("adamw"))
    parallel_model = parallelize(model, device, "bf16", ParallelSettings())
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 99)
    shortest, longest = (16, 64) if is_tiny else (200, 2048)
    lengths = torch.randint(shortest, longest, (4 if is_tiny else 30,), generator=draw).tolist()
    for seed, length in enumerate(lengths):
        step.run(draw_rows(bench, config.vocab_size, 2, length, seed))
    if not bench.is_cuda:
        return {"steps": len(lengths)}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {
        "steps": len(lengths),
        "peak_gib": round(allocated / GIB, 2),
        "reserved_gib": round(reserved / GIB, 2),
        "idle_share": round(1 - allocated / reserved, 3),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
    }


def train_until_failure(device: torch.device, folder: Path) -> int:
    """The exit code of `hanlin train`, of which a kernel gets an index that is out of range."""
    run, done = Step.run, 0

    def fail(self: Step, *args: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done == FAILING_STEP and device.type == "cpu":  # whose kernels tell at once what they do not take
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        if done == FAILING_STEP:
            torch.zeros(4, device=device)[torch.full((2,), 9, device=device)]
        return run(self, *args, **options)

    Step.run = fail
    return hanlin(["train", str(write_recipe(folder, device))])


def write_recipe(folder: Path, device: torch.device) -> Path:
    """Of a very small model that reads poems of its own making."""
    characters = "床前明月光疑是地上霜举头望低思故乡"
    lines = (characters[start:] + characters[:start] for start in range(60))
    (folder / "poems.txt").write_text("\n".join(lines), encoding="utf-8")
    tokens = ["<unk>", "<pad>", "<eod>", *"▂▃，。", *characters]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    recipe = {
        "model": {
            "family": "cpm1",
            "vocab": str(folder / "vocab.txt"),
            "config": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 16},
        },
        "data": {"train": [str(folder / "poems.txt")], "split": "8,1,1", "max_length": 16, "cache": str(folder)},
        "train": {"steps": 6, "batch_size": 4, "eval_every": 2, "save_every": 1},
        "run": {"folder": str(folder / "run"), "device": device.type},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def main(what: str, device: str, *rest: str) -> int:
    if what == "failure":
        return train_until_failure(torch.device(device), Path(rest[0]))
    print(json.dumps(count_pieces(torch.device(device), "--tiny" in rest)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
