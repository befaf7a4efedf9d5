"""Write a first recipe for a model and a file of rows: family, form and length told from them, and what fits here.

hanlin init rows.jsonl --base chatglm2-6b                  recipe.yaml
hanlin init rows.jsonl --base cpm-bee-1b --output bee.yaml --run runs/bee
hanlin init rows.jsonl --base cpm-bee-10b --device A10-24  for another machine's device
hanlin init rows.jsonl --base glm tuning.method=lora       with a setting that is decided
hanlin init rows.jsonl --family cpm1 --size small --vocab vocab.model    fresh weights

On a terminal it asks for what is not given. The recipe is checked before it is written, and can be trained by at once.
Beside it lies recipe.schema.json, with which editors complete, explain and check it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from hanlin.cli._say import tell
from hanlin.cli._schema import new_recipe, write_recipe
from hanlin.cli._targets import add_overwrite
from hanlin.core.errors import ConfigError
from hanlin.core.language import language

_SETTING = re.compile(r"[a-z_]+(\.\w+)+=")

HELP = "write a first recipe for a model and a file of rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="DATA KEY=VALUE", help="files of rows to train on, and settings that are decided"
    )
    parser.add_argument("--base", metavar="MODEL", help="the weights to start from: a folder, a file or a model's name")
    parser.add_argument("--family", help="the model's family (default: told from the base)")
    parser.add_argument("--size", help="without --base: a named size of the family, with fresh weights")
    parser.add_argument("--vocab", type=Path, help="its vocabulary (default: the base folder's own)")
    parser.add_argument(
        "--run", type=Path, dest="folder", help="the folder of the run (default: runs/NAME of the data)"
    )
    parser.add_argument("--device", help="what it is to run on, by name (default: this machine's)")
    parser.add_argument("--output", type=Path, default=Path("recipe.yaml"), help="the recipe (default: recipe.yaml)")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    target = new_recipe(args.output, overwrite=args.overwrite)
    overrides = [word for word in args.words if _SETTING.match(word) and not Path(word).exists()]
    files = [Path(word) for word in args.words if word not in overrides] or [
        Path(_asked("file of rows", "name a file of rows: hanlin init rows.jsonl --base MODEL"))
    ]
    model = _model(args)
    from hanlin.api.first_recipe import first_recipe, memory_here, memory_of

    memory = memory_of(args.device) if args.device else memory_here()
    folder = args.folder or Path("runs") / files[0].stem
    text = first_recipe(model, files, folder, memory, language(), overrides)
    write_recipe(args.output, text)
    tell(f"{target}: look at it, then `hanlin train {target}`")
    return 0


def _model(args: argparse.Namespace) -> dict[str, str]:
    """The section `model` of the recipe.

    Raises: ConfigError.
    """
    from hanlin.api.weights import find_family, located

    if args.base and args.size:
        raise ConfigError("--size: is of fresh weights, and a base has its own; leave one of them out")
    if not args.base and not args.size:
        args.base = _asked("base (a folder or a file of weights)", "name a model: --base MODEL, or --family F --size S")
    vocab = {"vocab": str(args.vocab)} if args.vocab else {}
    if args.base:
        _refuse_run(Path(args.base))
        family = args.family or find_family(located(Path(args.base))).name
        return {"family": family, "base": args.base, **vocab}
    if not args.family:
        raise ConfigError("--size: say of which family, with --family")
    return {"family": args.family, "size": args.size, **vocab}


def _refuse_run(folder: Path) -> None:
    """Raises: ConfigError that names what a run has trained."""
    from hanlin.adapters.opening import is_adapter
    from hanlin.recipe.reading import is_recipe, load_recipe

    if not folder.is_dir() or not is_recipe(folder):
        return
    best = folder / ("best" if (folder / "best").is_dir() else "last")
    if best.is_dir() and is_adapter(best):
        base = load_recipe(folder).model.base
        raise ConfigError(
            f"--base: {folder} is a run folder, which holds an adapter that goes on its base; to train it further: "
            f"--base {base} model.adapter={best}"
        )
    raise ConfigError(f"--base: {folder} is a run folder; name the weights that it has trained: --base {best}")


def _asked(what: str, otherwise: str) -> str:
    """An answer of the person at the terminal.

    Raises: ConfigError where there is none.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(otherwise)
    answer = input(f"{what}: ").strip()
    if not answer:
        raise ConfigError(otherwise)
    return answer
