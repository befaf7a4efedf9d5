"""Peak memory and time of ChatGLM2 at its real size: original folder -> base folder -> model -> a few tokens.

python benchmarks/real_size_chatglm2.py --folder DIR [--layers 28] [--out result.json]

Writes a folder in the original's layout (6.2B random fp16 weights, seven `.bin` shards with index, 12.5 GB) into a
temporary folder in DIR, shard by shard; rewrites it with `hanlin convert` as our base and in 4 bits; loads either and
runs a short forward pass in bf16. Every stage is a process of its own, whose peak is its largest resident memory,
mapped file pages included. DIR needs 31 GB, given back at the end; fewer --layers make a smaller model of the same
kind, a smaller --width one of the same proportions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from script import memory_bytes, read_arguments, report

from hanlin.cli.main import main as hanlin
from hanlin.core.errors import ConfigError
from hanlin.core.files import write_json
from hanlin.formats.files import write_pickle
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import SIZES, family
from hanlin.models.chatglm2.config import ChatGlm2Config, to_original

SHARD_KEYS = (28, 31, 33, 34, 31, 33, 10)
"""Tensors in each shard of the published folder; layers straddle shards."""
LIMIT_BYTES = 24 * 2**30
TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where there is room for the weights, twice")
    parser.add_argument("--layers", type=int, default=SIZES["6b"].num_layers)
    parser.add_argument("--width", type=int, default=SIZES["6b"].hidden_size, help="hidden size, a multiple of 256")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = read_arguments(parser, f"--folder {tempfile.gettempdir()} --layers 1 --width 256")
    if args.stage:
        print(json.dumps(measure(args.stage, args.folder, config_of(args.layers, args.width))))
        return
    check_room(args.folder, config_of(args.layers, args.width))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = {
            "layers": args.layers,
            **{stage: in_fresh_process(stage, Path(folder), args.layers, args.width) for stage in STAGES},
        }
        result["weight_bytes"] = sum(file.stat().st_size for file in (Path(folder) / "original").glob("*.bin"))
    result["peak_stays_below_24_gib"] = all(result[stage]["peak_bytes"] < LIMIT_BYTES for stage in STAGES)
    report(result, args.out)


def check_room(folder: Path, config: ChatGlm2Config) -> None:
    """Raises: ConfigError."""
    needed = 2.4 * sum(2 * shape.numel() for _, shape in tensor_shapes(config))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(f"--folder {folder}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed")


def in_fresh_process(stage: str, folder: Path, layers: int, width: int) -> dict[str, float]:
    shape = ["--layers", str(layers), "--width", str(width)]
    command = [sys.executable, __file__, "--folder", str(folder), *shape, "--stage", stage]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(stage: str, folder: Path, config: ChatGlm2Config) -> dict[str, float]:
    start = time.perf_counter()
    facts = STAGES[stage](folder, config)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_bytes": memory_bytes("VmHWM"), **facts}


def config_of(layers: int, width: int) -> ChatGlm2Config:
    """The 6B's shape, or one of its proportions."""
    whole = SIZES["6b"]
    vocab_size, ffn_size = (size * width // whole.hidden_size for size in (whole.vocab_size, whole.ffn_size))
    heads = width // whole.head_dim
    return replace(
        whole, num_layers=layers, hidden_size=width, num_heads=heads, vocab_size=vocab_size, ffn_size=ffn_size
    )


def write_original(folder: Path, config: ChatGlm2Config) -> dict[str, float]:
    """One shard in memory at a time."""
    generator = torch.Generator().manual_seed(0)
    shapes = tensor_shapes(config)
    (folder / "original").mkdir()
    place: dict[str, str] = {}
    size = 0
    for number, count in enumerate(SHARD_KEYS, start=1):
        names = dict(islice(shapes, count))
        if not names:
            break
        tensors = {name: random_weight(name, shape, generator) for name, shape in names.items()}
        file = f"pytorch_model-{number:05d}-of-{len(SHARD_KEYS):05d}.bin"
        write_pickle(folder / "original" / file, tensors)
        place |= dict.fromkeys(names, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    write_json(folder / "original" / "pytorch_model.bin.index.json", index)
    write_json(folder / "original" / "config.json", {**to_original(config), "torch_dtype": "float16"})
    return {"tensors": len(place), "total_size": size}


def tensor_shapes(config: ChatGlm2Config) -> Iterator[tuple[str, torch.Size]]:
    """The original's tensors in the order of its files."""
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    fused = inner + 2 * config.num_kv_heads * config.head_dim
    yield "transformer.embedding.word_embeddings.weight", torch.Size((config.vocab_size, hidden))
    yield "transformer.rotary_pos_emb.inv_freq", torch.Size((config.head_dim // 4,))
    for layer in range(config.num_layers):
        for name, shape in {
            "input_layernorm.weight": (hidden,),
            "self_attention.query_key_value.weight": (fused, hidden),
            "self_attention.query_key_value.bias": (fused,),
            "self_attention.dense.weight": (hidden, inner),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.dense_h_to_4h.weight": (2 * config.ffn_size, hidden),
            "mlp.dense_4h_to_h.weight": (hidden, config.ffn_size),
        }.items():
            yield f"transformer.encoder.layers.{layer}.{name}", torch.Size(shape)
    yield "transformer.encoder.final_layernorm.weight", torch.Size((hidden,))
    yield "transformer.output_layer.weight", torch.Size((config.vocab_size, hidden))


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape, dtype=torch.float16)
    return (torch.randn(shape, generator=generator) * 0.02).half()


def convert(folder: Path, _: ChatGlm2Config) -> dict[str, float]:
    assert hanlin(["convert", str(folder / "original"), str(folder / "base")]) == 0
    return {}


def convert_int4(folder: Path, _: ChatGlm2Config) -> dict[str, float]:
    assert hanlin(["convert", str(folder / "original"), str(folder / "int4"), "--to", "int4"]) == 0
    return {}


def load_and_run(folder: Path, _: ChatGlm2Config) -> dict[str, float]:
    return load_and_run_at(folder / "base")


def load_and_run_int4(folder: Path, _: ChatGlm2Config) -> dict[str, float]:
    return load_and_run_at(folder / "int4")


def load_and_run_at(path: Path) -> dict[str, float]:
    start = time.perf_counter()
    model = load(path)
    loaded = time.perf_counter()
    tokens = torch.arange(300, 300 + TOKENS)[None]
    with torch.inference_mode():
        logits = model(tokens=tokens, logits_to_keep=1)
    assert logits.isfinite().all(), logits
    return {
        "model_bytes": sum(weight.nbytes for weight in model.parameters()),
        "load_seconds": round(loaded - start, 1),
        f"forward_{TOKENS}_tokens_seconds": round(time.perf_counter() - loaded, 1),
    }


def load(path: Path) -> Any:
    with torch.device("meta"):
        model = family.model()(read_config(path, family))
    load_into(model, path, family, dtype=torch.bfloat16)
    return model.eval()


STAGES = {
    "write": write_original,
    "convert": convert,
    "load_and_run": load_and_run,
    "convert_int4": convert_int4,
    "load_and_run_int4": load_and_run_int4,
}


if __name__ == "__main__":
    main()
