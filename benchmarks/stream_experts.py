"""Memory and time of a mixture whose experts are read from disk, against one that holds all of them.

A CPM-2 with random weights and large experts is written to a temporary folder. Each way runs in a process of its own:
it loads the model, computes logits of several batches, and tells its peak resident memory, and that part of it which is
no page of a file that the system may drop. The logits must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from hanlin.formats.load import load_into, open_ours, save_base
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
    ffn_size=2048,
    num_experts=16,
    init_std=0.3,
)
BATCHES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=float, default=150.0, help="for all experts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stream_experts.json")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run(args.way, args.base, args.limit_mb)))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        model = Cpm2(CONFIG)
        model.init_weights(torch.Generator().manual_seed(0))
        save_base(base, family, CONFIG, dict(model.named_parameters()))
        experts = sum(weight.numel() * 4 for weight in expert_weights(model).values())
        del model
        ways = {way: start(way, base, args.limit_mb) for way in ("whole", "streamed")}
    assert ways["whole"]["logits"] == ways["streamed"]["logits"], "the ways disagree"
    figures = {"experts_mb": experts / 1e6, "limit_mb": args.limit_mb, **ways}
    args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def start(way: str, base: Path, limit_mb: float) -> dict[str, float | str]:
    command = [sys.executable, __file__, "--way", way, "--base", str(base), "--limit-mb", str(limit_mb)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@torch.no_grad()
def run(way: str, base: Path, limit_mb: float) -> dict[str, float | str]:
    torch.set_num_threads(1)
    before = anonymous_mb()
    with torch.device("meta"):
        model = Cpm2(CONFIG)
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
        peak = max(peak, anonymous_mb() - before)
    return {
        "anonymous_mb": round(peak, 1),
        "peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "cpu_seconds_per_batch": round((time.process_time() - start) / BATCHES, 3),
        "experts_read": memory.read,
        "logits": digest.hexdigest()[:16],
    }


def anonymous_mb() -> float:
    """Resident memory that is no page of a file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "only Linux tells"
    return int(found[1]) / 1e3


if __name__ == "__main__":
    main()
