"""Seconds until `hanlin --help`, a config error and the first training step, each in a fresh process.

Beside them a bare Python and `import torch` in the same rounds: what cannot be avoided.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROUNDS = 5
RESULT = Path(__file__).parent / "results" / "startup.json"
CASE = Path(__file__).parents[1] / "tests" / "golden" / "cases" / "bee_generate"

RECIPE = """\
model: {{family: cpm_bee, base: {case}, vocab: {case}/vocab.txt}}
data: {{train: {home}/rows.jsonl, max_length: 64, cache: {home}/cache}}
train: {{steps: 1, batch_size: 1}}
run: {{folder: {home}/run}}
"""


def main() -> None:
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
        for _ in range(ROUNDS):
            for name, words in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *words], capture_output=True, check=name != "config error")
                seconds[name].append(time.perf_counter() - start)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        "median_seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
