"""torch takes most of a second to import: help and mistakes must not wait for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hanlin.recipe.tuning import TUNING_METHODS

RECIPE = """\
model: {family: cpm_bee, size: tiny, vocab: vocab.txt}
data: {train: train.jsonl, eval: eval.jsonl}
train: {stepz: 10}
run: {folder: run}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    specials = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
    (tmp_path / "vocab.txt").write_text("\n".join([*specials, *"床前明月光"]) + "\n", encoding="utf-8")
    (tmp_path / "train.jsonl").write_text('{"input": "床前", "<ans>": "明月光"}\n', encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    original = Path(__file__).parent / "golden" / "cases" / "bee_generate"
    text = RECIPE.replace("size: tiny, vocab: vocab.txt", f"base: {original}, vocab: {original}/vocab.txt")
    (tmp_path / "original.yaml").write_text(text, encoding="utf-8")
    return tmp_path


ANSWERED = {
    "--help": 0,
    "train --help": 0,
    "--version": 0,
    "help train.lr": 0,
    "check recipe.yaml": 2,
    "train recipe.yaml": 2,
    "train original.yaml": 2,
    "check recipe.yaml data.train=none.jsonl": 2,
    "check nowhere.yaml": 2,
    "inspect nowhere": 2,
    "report nowhere": 2,
}
"""Commands, and the exit codes that they end with."""


def test_help_and_mistakes_answer_without_torch(project: Path) -> None:
    """One after the other in one process: the first that needs it is named."""
    program = """\
import json, sys
from hanlin.cli.main import main
for words, expected in json.loads(sys.argv[1]).items():
    try:
        code = main(words.split())
    except SystemExit as end:
        code = end.code
    assert (code, "torch" in sys.modules) == (expected, False), (words, code)
"""
    command = [sys.executable, "-c", program, json.dumps(ANSWERED)]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_help_imports_no_library_of_a_command() -> None:
    """All commands are read for it."""
    program = (
        "import sys, hanlin.cli.main as cli; [cli._command(name) for name in cli.command_names()]; print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"yaml", "rich", "numpy", "torch", "pyarrow"} & set(ran.stdout.split())


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    program = "import sys, hanlin; print([name for name in sys.modules if name.startswith(('hanlin.', 'torch'))])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


WITHOUT_TENSORS = (
    "hanlin.api.loading",
    "hanlin.api.runs",
    "hanlin.checking",
    "hanlin.run.assemble",
    "hanlin.models.cpm_bee",
    "hanlin.data.prepare",
    "hanlin.core.ranks",
    "hanlin.adapters.opening",
    *(f"hanlin.tuning.{name}" for name in TUNING_METHODS.names),
    "hanlin.training.optimizers.adamw",
    "hanlin.generate.methods.beam",
    "hanlin.generate.methods.greedy",
    "hanlin.generate.methods.sample",
)


def test_what_needs_no_tensors_imports_no_torch() -> None:
    """One after the other in one process: the first that imports it is named."""
    program = """\
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    ran = subprocess.run([sys.executable, "-c", program, *WITHOUT_TENSORS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
