"""Rewrite weights from one layout to another.

hanlin convert pytorch_model.bin base/ --vocab vocab.txt     an original checkpoint -> a base folder
hanlin convert base/ out/ --to original                      and back (or --to huggingface)
hanlin convert base/ merged/ --merge run/best                an adapter worked into its base
hanlin convert run/best delta.pt --to delta                  an adapter as the original's delta (or --to peft, adapter)
hanlin convert run/best out/ --base glm/ --to peft           as PEFT's folder, for the model in glm/ (--layout original)
hanlin convert 80000/ out/ --to original --ranks 4           files of model-parallel ranks, divided anew
hanlin convert run/best out.gguf --to gguf --dtype q8_0       one file for llama.cpp (or --to ollama: a Modelfile too)
hanlin convert run/best out/ --base base/ --to original      soft prompts among the tensors of their base
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from hanlin.cli._numbers import whole
from hanlin.cli._recipe import add_tuning, run_tuning_file
from hanlin.cli._say import say, tell
from hanlin.cli._targets import add_overwrite
from hanlin.core.errors import ConfigError

_OPTIONS = "data.options."

HELP = "rewrite weights from one layout to another; merge an adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.add_argument(
        "--ranks", type=whole(1, 10_000), default=1, help="model-parallel ranks to divide over; default: 1"
    )
    parser.add_argument(
        "--iteration", type=whole(0, 10**12), help="of the training program, for file names; default: the source's"
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value of the model that wins over the source's: num_heads=16, where files do not tell it; "
        "vocab_size=30000 leaves out the rows that fill the embedding up",
    )
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16", "fp16", "q8_0"],
        help="of the numbers that are written (q8_0: of a GGUF file); default: the source's",
    )
    add_overwrite(parser)
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="data.options.NAME=VALUE",
        help="how other programs write questions, where that is not as the run did: data.options.template=plain",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    """What is read, and what is written of it."""
    parser.add_argument("source", type=Path, help="weights in any known layout, an adapter, or a run folder (its best)")
    parser.add_argument("target", type=Path, help="the folder (delta, gguf: the file) to write")
    parser.add_argument(
        "--to",
        default=None,
        metavar="LAYOUT",
        help="base (default), a layout of the family; of an adapter: adapter, delta, peft",
    )
    parser.add_argument(
        "--layout",
        metavar="LAYOUT",
        help="with --to peft: whose names of modules, huggingface (default) or original",
    )
    parser.add_argument("--from", dest="from_", default=None, metavar="LAYOUT", help="default: told from the files")
    parser.add_argument("--family", help="default: told from the files")
    add_tuning(parser)
    parser.add_argument("--vocab", type=Path, help="vocabulary to put into the target")
    parser.add_argument("--merge", type=Path, metavar="ADAPTER", help="work this adapter into the weights")
    parser.add_argument(
        "--base", type=Path, help="the base that an adapter belongs to; default: what its run began with"
    )


def run(args: argparse.Namespace) -> int:
    from hanlin.api.conversion import ConvertSettings, convert_weights

    run_tuning_file(args)
    args.config = _values("--config ", args.config)
    args.options = _options(args.changes)
    given = {field.name: getattr(args, field.name) for field in fields(ConvertSettings)}
    written = convert_weights(args.source, args.target, ConvertSettings(**given))
    facts = "" if written.dtype is None else f", {written.dtype}, {written.num_bytes:,} bytes"
    tell(f"{args.target}: written{facts}")
    if bits := written.unpacked_bits:
        tell(f"  the source's weights of {bits} bits were unpacked; what rounding had taken from them is not back")
    if written.remark:
        say(f"hanlin: {args.source}: {written.remark}; they were written as they are")
    return 0


def _options(words: list[str]) -> dict[str, Any]:
    """Raises: ConfigError for settings that converting has no use for."""
    if odd := [word for word in words if not word.startswith(_OPTIONS)]:
        raise ConfigError(f"{odd[0]}: converting takes {_OPTIONS}NAME=VALUE alone, and --config NAME=VALUE")
    return _values("", [word.removeprefix(_OPTIONS) for word in words])


def _values(where: str, words: list[str]) -> dict[str, Any]:
    from hanlin.recipe.yaml12 import parse_yaml

    if odd := [word for word in words if "=" not in word]:
        raise ConfigError(f"{where}{odd[0]}: NAME=VALUE is expected")
    return {name: parse_yaml(value)[0] for name, _, value in (word.partition("=") for word in words)}
