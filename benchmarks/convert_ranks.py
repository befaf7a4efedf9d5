"""Peak memory and time while a CPM-2 in files of model-parallel ranks is divided anew, over the set's size.

python benchmarks/convert_ranks.py [--layers 1 8] [--folder DIR] [--out result.json]

Writes a random fp16 CPM-2 of the 11B's proportions (half its width, fewer layers) in four files of ranks, removed
afterwards. Then 4 -> 1 -> 2 -> 4 (--ranks), and 4 -> base folder, each in a fresh process. Peak is the process's
largest resident memory, mapped file pages included, less what it was after the imports. The last four files are
compared with the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from script import memory_bytes, read_arguments, report

from hanlin.core.files import write_json
from hanlin.formats.convert import convert
from hanlin.formats.lazy import Lazy
from hanlin.formats.ranks import write_ranks
from hanlin.formats.rules import find_moves
from hanlin.formats.source import open_theirs
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import SIZES, Cpm2Config
from hanlin.models.cpm2.formats import PARTITIONS


class Random(Lazy):
    """The tensors of a model by the original's names, drawn when they are asked for."""

    def __init__(self, config: Cpm2Config) -> None:
        with torch.device("meta"):
            ours = dict(family.model()(config).half().named_parameters())
        moves = find_moves(family.formats["original"].rules(config), ours, "to_theirs")
        self.metas = {
            name: tensor
            for move in moves
            for name, tensor in zip(move.targets, move.run(tuple(ours[n] for n in move.sources)), strict=True)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        kind = name.removeprefix("encoder.").removeprefix("decoder.") if "word_embeds" in name else name
        generator = torch.Generator().manual_seed(zlib.crc32(kind.encode()))
        return torch.empty(self.metas[name].shape, dtype=torch.float16).normal_(generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self.metas)

    def __len__(self) -> int:
        return len(self.metas)

    def meta(self, name: str) -> torch.Tensor:
        return self.metas[name]

    def twin(self, name: str) -> str:
        return "word_embeds.weight" if "word_embeds" in name else name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 8], help="of each set")
    parser.add_argument("--hidden", type=int, default=2048, help="the sets' width, a multiple of 256")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 4], help="what the four are divided into; the last is 4"
    )
    parser.add_argument("--folder", type=Path, help="where the sets are written for the time of the measurement")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--convert", nargs=4, metavar=("SOURCE", "LAYOUT", "TARGET", "RANKS"), help=argparse.SUPPRESS)
    args = read_arguments(parser, "--layers 1 --hidden 256 --ranks 4")
    if args.convert:
        source, layout, target, ranks = args.convert
        print(json.dumps(measure(Path(source), layout, Path(target), int(ranks))))
        return
    result: dict[str, Any] = {}
    for layers in args.layers:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            result[f"{layers} layers"] = run(Path(folder), layers, args.hidden, args.ranks)
    report(result, args.out)


def run(folder: Path, layers: int, hidden: int, ranks: Sequence[int]) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "num_heads": hidden // 64, "ffn_size": hidden * 5 // 2}
    config = replace(SIZES["11b"], **shape, num_layers=layers)
    tensors = Random(config)
    first = folder / "first"
    write_ranks(first, tensors, PARTITIONS, 4, 100000)
    write_json(first / "cpm2_config.json", family.formats["original"].write_config(config))
    set_bytes = sum(file.stat().st_size for file in first.rglob("*.pt"))
    result: dict[str, Any] = {
        "parameters": sum(tensor.numel() for name, tensor in tensors.metas.items() if tensors.twin(name) == name),
        "set_bytes": set_bytes,
        "largest_tensor_bytes": max(tensor.nbytes for tensor in tensors.metas.values()),
    }
    source, name = first, "4"
    for layout, count in [*(("original", count) for count in ranks), ("base", 1)]:
        target = folder / (str(count) if layout == "original" else layout)
        found = in_fresh_process(source, layout, target, count)
        result[f"{name} -> {target.name}"] = {**found, "peak_over_set": round(found["peak_bytes"] / set_bytes, 3)}
        source, name = target, target.name
    assert is_same(first, folder / "4"), "the last four files are not the first ones"
    result["bit_for_bit"] = True
    return result


def is_same(first: Path, second: Path) -> bool:
    files = sorted((first / "100000").iterdir())
    pairs = ((file, second / "100000" / file.name) for file in files)
    return all(
        ours[name].equal(theirs[name])
        for one, other in pairs
        for ours, theirs in [(torch.load(one, mmap=True)["module"], torch.load(other, mmap=True)["module"])]
        for name in ours.keys() | theirs.keys()
    ) and len(open_theirs(first, family)) == len(open_theirs(second, family))


def in_fresh_process(source: Path, layout: str, target: Path, ranks: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--convert", str(source), layout, str(target), str(ranks)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def measure(source: Path, layout: str, target: Path, ranks: int) -> dict[str, Any]:
    family.model()  # its imports are not what is measured
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    convert(source, family, None, layout, target, ranks=ranks)
    return {"peak_bytes": memory_bytes("VmHWM") - before, "seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    main()
