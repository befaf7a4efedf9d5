"""Seconds until `hanlin --help`, a config error and the first training step, each in a fresh process.

python benchmarks/startup.py [--out result.json]

Beside them a bare Python and `import torch` in the same rounds: what cannot be avoided.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from script import read_arguments, report

CASE = Path(__file__).parents[1] / "tests" / "golden" / "cases" / "bee_generate"

RECIPE = """\
model: {{family: cpm_bee, base: {case}, vocab: {case}/vocab.txt}}
data: {{train: {home}/rows.jsonl, max_length: 64, cache: {home}/cache}}
train: {{steps: 1, batch_size: 1}}
run: {{folder: {home}/run}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "rows.jsonl").write_text('{"input": "今天", "<ans>": "好"}\n', encoding="utf-8")
        (home / "recipe.yaml").write_text(RECIPE.format(case=CASE, home=home), encoding="utf-8")
        commands = {
            "python": ["-c", "pass"],
            "import torch": ["-c", "import torch"],
            "hanlin --help": ["-m", "hanlin", "--help"],
            "config error": ["-m", "hanlin", "train", f"{home}/recipe.yaml", "train.learnig_rate=3"],
            "first step, saved": ["-m", "hanlin", "train", "--restart", f"{home}/recipe.yaml"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, words in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *words], capture_output=True, check=name != "config error")
                seconds[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    report({"rounds": args.rounds, "median_seconds": medians}, args.out)


if __name__ == "__main__":
    main()
