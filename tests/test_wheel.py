"""What `pip install hanlin` brings: the package with its recipes, in an environment that has its dependencies alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("a wheel is built from a git checkout, and this is none")
    for name in filter(None, files.stdout.split("\0")):
        if name.startswith(("src/", "recipes/", "examples/")) or "/" not in name:
            if not (ROOT / name).is_file():
                continue
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True, capture_output=True)
    [made] = folder.glob("hanlin-*.whl")
    return made


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it depends on, without any extra; its Python."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    linked = folder / "linked"
    linked.mkdir()
    for name in sorted(_needed(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])):
        for file in distribution(name).files or []:
            top = Path(file).parts[0]
            source = Path(str(distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and not (linked / top).exists():
                (linked / top).symlink_to(source)
    (packages / "linked.pth").write_text(f"{linked}\n")
    return folder / "bin/python"


def _needed(requirements: list[str], found: set[str] | None = None) -> set[str]:
    """The distributions that requirements without extras need, themselves and what these need."""
    found = set() if found is None else found
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
        if "extra ==" in requirement or name.lower() in found:
            continue
        try:
            further = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another system or Python
        found.add(name.lower())
        _needed(list(further), found)
    return found


def run(python: Path, folder: Path, *words: str, code: int = 0) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    done = subprocess.run(
        [str(python), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=kept | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_recipes_and_examples_are_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for kind in ("recipes", "examples"):
        expected = {f"hanlin/shipped/{kind}/{file.name}" for file in (ROOT / kind).iterdir() if file.is_file()}
        assert expected <= set(names)
    source = ROOT / "src"
    files = {path for path in (source / "hanlin").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(source)) for path in files} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_package_alone_is_enough_to_begin(clean: Path, tmp_path: Path) -> None:
    listed = run(clean, tmp_path, "-m", "hanlin", "recipes")
    assert "cpm2_ccpm_full" in listed
    assert "data/chat/train.jsonl" in listed
    run(clean, tmp_path, "-m", "hanlin", "recipes", "copy", "chatglm2_chat_lora")
    [line, *rest] = (tmp_path / "chatglm2_chat_lora.yaml").read_text("utf-8").splitlines(keepends=True)
    assert line == "# yaml-language-server: $schema=recipe.schema.json\n"
    assert "".join(rest) == (ROOT / "recipes/chatglm2_chat_lora.yaml").read_text("utf-8")
    told = run(clean, tmp_path, "-m", "hanlin", "check", "recipes/cpm2_ccpm_full.yaml", code=2)
    assert "hanlin recipes copy cpm2_ccpm_full recipes" in told
    run(clean, tmp_path, "-m", "hanlin", "recipes", "copy", "cpm2_ccpm_full", "recipes")
    assert (tmp_path / "recipes/cpm2_ccpm_full.yaml").is_file()
    assert "exists already" in run(
        clean, tmp_path, "-m", "hanlin", "recipes", "copy", "cpm2_ccpm_full", "recipes", code=2
    )
    checked = run(clean, tmp_path, "-m", "hanlin", "check", "chatglm2_chat_lora.yaml", code=2)
    assert "model.base" in checked
    assert "Traceback" not in checked
    run(clean, tmp_path, "-m", "hanlin", "recipes", "copy", "poems.jsonl")
    assert "prompt/completion" in run(clean, tmp_path, "-m", "hanlin", "data", "show", "poems.jsonl", "-n", "1")
    told = run(clean, tmp_path, "-m", "hanlin", "demo", code=2)
    assert "pip install 'hanlin[demo]'" in told
    assert "0.1" in run(clean, tmp_path, "-c", "import hanlin; print(hanlin.__version__, hanlin.check)")


def test_what_an_extra_brings_is_named(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    assert "hanlin[arrow]" in run(clean, tmp_path, "-m", "hanlin", "data", "show", "rows.parquet", code=2)
    base = tmp_path / "base"
    base.mkdir()
    assert "hanlin[serve]" in run(clean, tmp_path, "-m", "hanlin", "serve", "--base", "base", code=2)
