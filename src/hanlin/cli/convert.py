"""Rewrite weights from one layout to another.

hanlin convert pytorch_model.bin base/ --vocab vocab.txt     an original checkpoint -> a base folder
hanlin convert base/ out/ --to original                      and back (or --to huggingface)
hanlin convert base/ merged/ --merge run/best                an adapter worked into its base
hanlin convert run/best delta.pt --base base/ --to delta     an adapter as the original's delta (or --to peft, adapter)
hanlin convert 80000/ out/ --to original --ranks 4           files of model-parallel ranks, divided anew
hanlin convert run/best out/ --base base/ --to original      soft prompts among the tensors of their base
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._numbers import whole
from hanlin.cli._recipe import add_tuning, run_tuning_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from hanlin.formats.source import Source
    from hanlin.models.family import Family

HELP = "rewrite weights from one layout to another; merge an adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="weights in any known layout, or an adapter")
    parser.add_argument("target", type=Path, help="the folder (delta: the file) to write")
    parser.add_argument(
        "--to",
        default=None,
        metavar="LAYOUT",
        help="base (default), a layout of the family; of an adapter: adapter, delta, peft",
    )
    parser.add_argument("--from", dest="from_", default=None, metavar="LAYOUT", help="default: told from the files")
    parser.add_argument("--family", help="default: told from the files")
    add_tuning(parser)
    parser.add_argument("--vocab", type=Path, help="vocabulary to put into the target")
    parser.add_argument("--merge", type=Path, metavar="ADAPTER", help="work this adapter into the weights")
    parser.add_argument("--base", type=Path, help="the base that an adapter belongs to")
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
        "--dtype", choices=["fp32", "bf16", "fp16"], help="of the numbers that are written; default: the source's"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the target")


def run(args: argparse.Namespace) -> int:
    from hanlin.adapters.opening import OURS, is_adapter
    from hanlin.core.errors import ConfigError
    from hanlin.core.files import written_alone

    run_tuning_file(args)
    if not args.source.exists():
        raise ConfigError(f"there is no {args.source}")
    with written_alone(args.target):
        if is_adapter(args.source) or args.to == OURS:
            _convert_adapter(args)
        elif args.merge:
            _merge(args)
        else:
            _convert(args, args.source, _family(args, args.source))
    return 0


def _convert(
    args: argparse.Namespace, source: Path | Source, family: Family, more: Mapping[str, torch.Tensor] | None = None
) -> None:
    """more: tensors to write along under the names given."""
    from hanlin.formats.convert import convert
    from hanlin.formats.format import BASE

    found = convert(
        source,
        family,
        args.from_,
        args.to or BASE,
        args.target,
        changes=_changes(args.config),
        tokenizer=family.tokenizer(args.vocab) if args.vocab else None,
        overwrite=args.overwrite,
        ranks=args.ranks,
        iteration=args.iteration,
        more=more,
        dtype=_dtype(args),
    )
    size = sum(file.stat().st_size for file in args.target.rglob("*") if file.is_file())
    print(f"{args.target}: written, {found.dtype}, {size:,} bytes")
    if found.bits and (args.to or "") != f"int{found.bits}":
        print(
            f"  the source's weights of {found.bits} bits were unpacked; what rounding had taken from them is not back"
        )
    if told := str(found.values):
        print(f"hanlin: {args.source}: {told}; they were written as they are", file=sys.stderr)


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    from hanlin.layers.precision import DTYPES

    return DTYPES[args.dtype] if args.dtype else None


def _changes(words: list[str]) -> dict[str, Any]:
    from hanlin.core.errors import ConfigError
    from hanlin.recipe.yaml12 import parse_yaml

    if odd := [word for word in words if "=" not in word]:
        raise ConfigError(f"--config {odd[0]}: NAME=VALUE is expected")
    return {name: parse_yaml(value)[0] for name, _, value in (word.partition("=") for word in words)}


def _merge(args: argparse.Namespace) -> None:
    from hanlin.adapters.opening import open_adapter
    from hanlin.cli._weights import merge_adapter
    from hanlin.formats.convert import held_source
    from hanlin.formats.load import base_parameters
    from hanlin.formats.source import plain_values, read_config

    family = _family(args, args.source)
    adapter = open_adapter(args.merge, family, read_config(args.source, family))
    model = merge_adapter(adapter, args.source, family)
    config = read_config(args.source, family, {**plain_values(family), **adapter.config})
    merged = {name: parameter.detach() for name, parameter in base_parameters(model).items()}
    _convert(args, held_source(args.source, family, config, merged), family)


def _convert_adapter(args: argparse.Namespace) -> None:
    from hanlin.adapters.opening import OURS, format_to_write, is_adapter, open_adapter
    from hanlin.cli._weights import model_of_adapter
    from hanlin.core.errors import ConfigError
    from hanlin.formats.source import read_config

    # It may lie among the tensors of a whole model.
    base = args.base or (None if is_adapter(args.source) else args.source)
    if base is None:
        raise ConfigError(f"{args.source} is an adapter; name the base that it belongs to with --base")
    family = _family(args, base)
    adapter = open_adapter(args.source, family, read_config(base, family))
    layout = format_to_write(adapter.settings, args.to or OURS)
    model = model_of_adapter(adapter, base, family)
    if layout.tensors is not None:
        _convert(args, base, family, layout.tensors(model, family))
    else:
        if args.dtype:
            raise ConfigError("--dtype: an adapter is written in the dtype that it has; remove it")
        layout.save(model, adapter.settings, args.target, family, overwrite=args.overwrite)
        print(f"{args.target}: written")


def _family(args: argparse.Namespace, source: Path) -> Family:
    from hanlin.cli._weights import find_family
    from hanlin.models.family import load_family

    return load_family(args.family) if args.family else find_family(source)
