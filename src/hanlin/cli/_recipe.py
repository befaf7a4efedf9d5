"""What the commands that take a recipe have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hanlin.check import Purpose
    from hanlin.core.settings import Recipe


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe (YAML), or a run folder, which stands for its recipe")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings to change: train.lr=1e-4")


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("best", "last", "base"),
        help="of the recipe's run: best (default; where there is none, last) or last; "
        "base: what the run started from (fresh weights where there is none)",
    )


def with_run_weights(recipe: Path, changes: Iterable[str], weights: str | None, purpose: Purpose) -> Recipe:
    """The checked recipe whose model is what its run has trained; without a run, what the run would start from.

    Raises: ConfigError.
    """
    from hanlin.check import check_file
    from hanlin.core.config import read_recipe
    from hanlin.core.errors import ConfigError

    changes = list(changes)
    draft = read_recipe(recipe, changes).recipe
    if draft is not None and weights != "base":
        best, last = draft.run.folder / "best", draft.run.folder / "last"
        folder = draft.run.folder / weights if weights else best if best.is_dir() else last
        if folder.is_dir():
            changes += _pointing_at(draft, folder)
        elif weights is not None:
            raise ConfigError(f"there is no {folder}; train first: hanlin train {recipe}")
        elif draft.model.base is None:
            raise ConfigError(f"model.base is empty and there is no {folder}; train first: hanlin train {recipe}")
    return check_file(recipe, changes, purpose)


def _pointing_at(recipe: Recipe, folder: Path) -> list[str]:
    key = "model.adapter" if recipe.tuning.method != "full" else "model.base"
    return [f"{key}={json.dumps(str(folder), ensure_ascii=False)}"]
