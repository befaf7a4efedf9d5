"""Run lm-evaluation-harness on a model of any family: its own command line, which then knows `--model hanlin`.

hanlin lm_eval --model hanlin --model_args path=models/chatglm2 --tasks ceval-valid --num_fewshot 5
hanlin lm_eval --model hanlin --model_args path=runs/mine,precision=bf16 --tasks cmmlu --batch_size 16
hanlin lm_eval ls tasks

What stands behind lm_eval is the harness's (`hanlin lm_eval run --help`). model_args: path, weights, adapter, vocab,
family, precision, as of hanlin.load; what a request means to each family is in docs/suites.md.
"""

from __future__ import annotations

import argparse
import sys

from hanlin.core.errors import ConfigError

HELP = "run lm-evaluation-harness, which then knows --model hanlin"

_OWN = (["-h"], ["--help"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Else argparse would look for options of ours among those of the harness.
    parser.prefix_chars = "\0"
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as of the harness's own command")


def run(args: argparse.Namespace) -> int:
    if args.arguments in (*_OWN, []):
        args.parser.print_help()
        args.parser.exit()
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness is missing ({error}); install it: pip install 'hanlin[lm-eval]'"
        ) from None
    import hanlin.api.harness  # noqa: F401  registers the model

    given = sys.argv
    sys.argv = ["lm_eval", *args.arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = given
    return 0
