"""A release as docs/releasing.md makes it: versions that agree, a CHANGELOG that is cut, a list of what is in it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from datetime import date
from pathlib import Path

import pytest

import hanlin

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools/release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checkout_is_ready_but_for_the_cut(release, tmp_path: Path) -> None:
    assert release.read_version(ROOT) == hanlin.__version__
    assert release.find_problems(ROOT, "9.9.9") == ["CHANGELOG.md: no 9.9.9", "CITATION.cff: no 9.9.9"]
    (tmp_path / "CITATION.cff").write_text((ROOT / "CITATION.cff").read_text("utf-8"), "utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if f"## {hanlin.__version__} " not in changes:
        changes = release.cut_changelog(changes, hanlin.__version__, date(2026, 12, 1))
    (tmp_path / "CHANGELOG.md").write_text(changes, "utf-8")
    assert release.find_problems(tmp_path, hanlin.__version__) == []


def test_a_cut_changelog_has_an_empty_section_for_what_comes(release) -> None:
    cut = release.cut_changelog("# Changes\n\n## Unreleased\n\n### Added\n- this\n", "1.2.3", date(2026, 12, 1))
    assert cut == "# Changes\n\n## Unreleased\n\n## 1.2.3 - 2026-12-01\n\n### Added\n- this\n"


def test_a_cut_leaves_nothing_to_make_reference(tmp_path: Path) -> None:
    root = _copy(tmp_path / "checkout")
    shutil.copytree(ROOT / "tools", root / "tools")
    text = (root / "src/hanlin/__init__.py").read_text("utf-8")
    (root / "src/hanlin/__init__.py").write_text(text.replace(hanlin.__version__, "9.9.8"), "utf-8")
    for version in ("9.9.8", "9.9.9"):  # what the first one brought, the second one has
        text = (root / "src/hanlin/__init__.py").read_text("utf-8")
        (root / "src/hanlin/__init__.py").write_text(text.replace("9.9.8", version), "utf-8")
        _run(root, "tools/release.py", "cut", "2026-12-01")
        pages = {path: path.read_text("utf-8") for path in (root / "docs").glob("settings*.md")}
        assert all("9.9.8" in page for page in pages.values())
        _run(root, "-m", "hanlin.reference", str(root))
        assert {path: path.read_text("utf-8") for path in pages} == pages


def test_what_is_not_committed_and_tagged_is_not_released(release, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["release.py", "build"])
    monkeypatch.setattr(release, "read_version", lambda root: "9.9.9")
    assert release.main() == 2
    assert "this commit is not tagged v9.9.9" in capsys.readouterr().err


def test_the_bill_of_materials_names_every_pin_with_its_licence(release) -> None:
    pins = dict(release.read_pins((ROOT / "constraints.txt").read_text("utf-8")))
    bill = release.bill_of_materials("0.1.0", pins)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {one["name"]: one["version"] for one in bill["components"]} == pins
    assert len({one["bom-ref"] for one in bill["components"]}) == len(pins)
    assert set(bill["dependencies"][0]["dependsOn"]) == {one["bom-ref"] for one in bill["components"]}
    [torch] = [one for one in bill["components"] if one["name"] == "torch"]
    assert torch["licenses"]


def test_the_sdist_takes_along_what_the_manifest_names(release, tmp_path: Path) -> None:
    wheel, source, bill, sums = release.build(_copy(tmp_path / "checkout"), tmp_path / "dist", hanlin.__version__)
    assert [line.split("  ")[1] for line in sums.read_text().splitlines()] == [wheel.name, source.name, bill.name]
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"recipes/cpm1_gpt2_small_pretrain.yaml", "docs/releasing.zh-CN.md", "SECURITY.md"} <= names
    assert not [name for name in names if name.endswith(".pyc")]


def _run(root: Path, *words: str) -> None:
    """Python with the checkout's own hanlin."""
    subprocess.run([sys.executable, *words], cwd=root, env={**os.environ, "PYTHONPATH": str(root / "src")}, check=True)


def _copy(target: Path) -> Path:
    """The parts of the checkout that a release is built from."""
    target.mkdir()
    for name in ("src", "recipes", "examples", "docs"):
        leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.png")
        shutil.copytree(ROOT / name, target / name, ignore=leave_out)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, target)
    return target
