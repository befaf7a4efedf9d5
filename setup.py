"""Recipes and examples lie where a reader of the repository looks for them; the wheel carries them in the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # they are found in the checkout
        for kind in ("recipes", "examples"):
            target = Path(self.build_lib) / "hanlin" / "shipped" / kind
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((ROOT / kind).iterdir()):
                if file.is_file():
                    shutil.copy(file, target)


setup(cmdclass={"build_py": BuildWithRecipes})
