"""DialogueCache and time of a mixture whose experts are read from disk, against one that holds all of them.

A CPM-2 with random weights and large experts is written to a temporary folder. Each way runs in a process of its own:
it loads the model, computes logits of several batches, and tells its peak resident memory, and that part of it which is
no page of a file that the system may drop. The logits must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from script import memory_bytes, read_arguments, report

from hanlin.formats.load import load_into, open_ours, save_base
from hanlin.formats.source import read_config
from hanlin.layers.expert_memory import ExpertMemory, expert_weights
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2

CONFIG = Cpm2Config(
    vocab_size=2000,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    head_dim=64,
    num_experts=16,
    init_std=0.3,
)
BATCHES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=float, default=150.0, help="for all experts (default: %(default)s)")
    parser.add_argument("--ffn", type=int, default=2048, help="width of an expert")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    args = read_arguments(parser, "--ffn 32 --limit-mb 3")
    if args.way:
        print(json.dumps(run(args.way, args.base, args.limit_mb)))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        config = replace(CONFIG, ffn_size=args.ffn)
        model = Cpm2(config)
        model.init_weights(torch.Generator().manual_seed(0))
        save_base(base, family, config, dict(model.named_parameters()))
        experts = sum(weight.numel() * 4 for weight in expert_weights(model).values())
        del model
        ways = {way: start(way, base, args.limit_mb) for way in ("whole", "streamed")}
    assert ways["whole"]["logits"] == ways["streamed"]["logits"], "the ways disagree"
    whole, streamed = ways["whole"], ways["streamed"]
    figures = {
        "experts_mb": experts / 1e6,
        "limit_mb": args.limit_mb,
        "memory_against_whole": round(streamed["anonymous_mb"] / whole["anonymous_mb"], 2),
        "time_against_whole": round(streamed["cpu_seconds_per_batch"] / whole["cpu_seconds_per_batch"], 2),
        **ways,
    }
    report(figures, args.out)


def start(way: str, base: Path, limit_mb: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--base", str(base), "--limit-mb", str(limit_mb)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@torch.no_grad()
def run(way: str, base: Path, limit_mb: float) -> dict[str, float | str]:
    torch.set_num_threads(1)
    before = memory_bytes("RssAnon")
    with torch.device("meta"):
        model = Cpm2(read_config(base, family))
    left = expert_weights(model) if way == "streamed" else {}
    load_into(model, base, family, wanted=lambda name: name not in left)
    memory = ExpertMemory(open_ours(base, family), limit_mb * 1e6, torch.float32)
    if way == "streamed":
        memory.attach(model, torch.device("cpu"))
    model.eval()
    start, peak, digest = time.process_time(), 0.0, hashlib.sha256()
    for seed in range(BATCHES):
        tokens = torch.randint(2000, (2, 64), generator=torch.Generator().manual_seed(seed))
        digest.update(model(tokens=tokens, encoder_tokens=tokens).numpy().tobytes())
        peak = max(peak, (memory_bytes("RssAnon") - before) / 1e6)
    return {
        "anonymous_mb": round(peak, 1),
        "peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "cpu_seconds_per_batch": round((time.process_time() - start) / BATCHES, 3),
        "experts_read": memory.read,
        "logits": digest.hexdigest()[:16],
    }


if __name__ == "__main__":
    main()
