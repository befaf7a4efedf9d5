"""Peak memory while a CPM-Bee checkpoint is loaded, over its file's size.

python benchmarks/load_cpm_bee.py [--size 1b] [--folder DIR] [--out result.json]

Writes a fp16 `pytorch_model.bin` in the original's layout with random weights (removed afterwards), then loads it in
fresh processes: our way (memory-mapped, parameter by parameter), and the usual one (build, load, copy).
Peak is the process's largest resident memory, mapped file pages included, less what it was after the imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from script import memory_bytes, read_arguments, report

from hanlin.core.files import write_json
from hanlin.formats.files import write_pickle
from hanlin.formats.load import load_into
from hanlin.formats.rules import rename
from hanlin.formats.source import read_config
from hanlin.models.cpm_bee import FORMATS, SIZES, family
from hanlin.models.cpm_bee.model import CpmBee

WAYS = ("hanlin", "hanlin_to_fp32", "usual")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="1b", choices=sorted(SIZES))
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written for the time of the measurement")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--load", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = read_arguments(parser, "--size tiny")
    if args.load:
        print(json.dumps(measure(args.load[0], Path(args.load[1]))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = write_checkpoint(Path(folder), args.size)
        result = {
            "model": args.size,
            "file_bytes": file.stat().st_size,
            **{way: in_fresh_process(way, file) for way in WAYS},
        }
    report(result, args.out)


def write_checkpoint(folder: Path, size: str) -> Path:
    with torch.device("meta"):
        names = {name: parameter.shape for name, parameter in CpmBee(SIZES[size]).named_parameters()}
    form = FORMATS["original"]
    theirs = {str(rename(form.rules(SIZES[size]), name, "to_theirs")): shape for name, shape in names.items()}
    write_json(folder / "config.json", form.write_config(SIZES[size]))
    write_pickle(folder / form.weights_file, {name: torch.randn(shape).half() for name, shape in theirs.items()})
    return folder / form.weights_file


def in_fresh_process(way: str, file: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--load", way, str(file)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(way: str, file: Path) -> dict[str, float]:
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    model = load_usually(file) if way == "usual" else load_ours(file, torch.float32 if "fp32" in way else None)
    seconds = time.perf_counter() - start
    peak = memory_bytes("VmHWM") - before
    weights = sum(parameter.nbytes for parameter in model.parameters())
    size = file.stat().st_size
    return {
        "peak_over_file": round(peak / size, 3),
        "peak_over_loaded_weights": round(peak / weights, 3),
        "seconds": round(seconds, 1),
    }


def load_ours(file: Path, dtype: torch.dtype | None) -> CpmBee:
    with torch.device("meta"):
        model = CpmBee(read_config(file, family))
    load_into(model, file, family, dtype=dtype)
    return model


def load_usually(file: Path) -> CpmBee:
    model = CpmBee(read_config(file, family)).half()
    tensors = torch.load(file, weights_only=True)
    rules = FORMATS["original"].rules(model.config)
    model.load_state_dict({str(rename(rules, name, "to_ours")): tensor for name, tensor in tensors.items()})
    return model


if __name__ == "__main__":
    main()
