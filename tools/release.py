"""Prepares a release (docs/releasing.md): cuts the CHANGELOG, or builds what is published from a clean, tagged commit.

python tools/release.py cut 2026-12-01      "Unreleased" of CHANGELOG.md becomes the section of hanlin.__version__, and
                                            new settings are noted as of that version, also in docs/settings.md
python tools/release.py build               dist/: wheel, sdist, SBOM (CycloneDX), SHA256SUMS

Needs git, pip and what `make` installs; nothing is fetched and nothing is published.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNRELEASED = "## Unreleased\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("cut").add_argument("date", type=date.fromisoformat)
    commands.add_parser("build").add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    version = read_version(ROOT)
    if args.command == "cut":
        path = ROOT / "CHANGELOG.md"
        path.write_text(cut_changelog(path.read_text("utf-8"), version, args.date), "utf-8")
        from hanlin.reference.since import SINCE, add_version

        add_version(ROOT / "src/hanlin/reference" / SINCE, version)
        # By another process: this one has read what is released already.
        subprocess.run([sys.executable, "-m", "hanlin.reference", str(ROOT)], check=True)
        return 0
    if problems := [*find_problems(ROOT, version), *_problems_of_the_commit(version)]:
        print("not released:", *problems, sep="\n- ", file=sys.stderr)
        return 2
    for path in build(ROOT, args.out, version):
        print(path)
    return 0


def read_version(root: Path) -> str:
    """`hanlin.__version__`, without importing anything."""
    text = (root / "src/hanlin/__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "no __version__"
    return found[1]


def cut_changelog(text: str, version: str, day: date) -> str:
    """What was unreleased is that of the version; an empty section takes its place."""
    assert UNRELEASED in text, "CHANGELOG.md has no section 'Unreleased'"
    assert f"## {version} " not in text, f"CHANGELOG.md has a section {version} already"
    return text.replace(UNRELEASED, f"{UNRELEASED}\n## {version} - {day.isoformat()}\n", 1)


def find_problems(root: Path, version: str) -> list[str]:
    """What of the checkout does not fit the version."""
    places = {
        "CHANGELOG.md": rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$",
        "CITATION.cff": rf"^version: {re.escape(version)}$",
    }
    texts = {name: (root / name).read_text("utf-8") for name in places}
    return [f"{name}: no {version}" for name, form in places.items() if not re.search(form, texts[name], re.MULTILINE)]


def _problems_of_the_commit(version: str) -> list[str]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    problems = []
    if git("status", "--porcelain"):
        problems.append("there are changes that are not committed")
    if f"v{version}" not in git("tag", "--points-at", "HEAD").split():
        problems.append(f"this commit is not tagged v{version}")
    return problems


def build(root: Path, out: Path, version: str) -> list[Path]:
    """Wheel and sdist by setuptools, the bill of materials, and the checksums of all."""
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("sdist", "wheel"):
        backend = f"import sys; from setuptools.build_meta import build_{kind} as made; made(sys.argv[1])"
        command = [sys.executable, "-c", backend, str(out.resolve())]
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    wheel, source = out / f"hanlin-{version}-py3-none-any.whl", out / f"hanlin-{version}.tar.gz"
    look_inside(wheel, source)
    bill = out / f"hanlin-{version}.cdx.json"
    pins = dict(read_pins((root / "constraints.txt").read_text("utf-8")))
    bill.write_text(json.dumps(bill_of_materials(version, pins), indent=1) + "\n", "utf-8")
    sums = out / "SHA256SUMS"
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (wheel, source, bill)]
    sums.write_text("".join(lines), "utf-8")
    return [wheel, source, bill, sums]


def look_inside(wheel: Path, source: Path) -> None:
    """See that what is easily forgotten is there."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"hanlin/py.typed", "hanlin/serve/page.html"} <= packed, wheel
    assert any(name.startswith("hanlin/shipped/recipes/") for name in packed), wheel
    assert {"setup.py", "LICENSE", "examples/my_model.py", "examples/cluster/slurm.sh"} <= sources, source


def read_pins(text: str) -> Iterable[tuple[str, str]]:
    """Names and versions of constraints.txt."""
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            yield name, version


def bill_of_materials(version: str, pins: dict[str, str]) -> dict[str, Any]:
    """CycloneDX 1.6: hanlin, and all packages it was tested with, with their licences where they are installed."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name.lower()}@{pin}",
            "name": name,
            "version": pin,
            "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{pin}",
            **_licences(name),
        }
        for name, pin in pins.items()
    ]
    itself = {
        "type": "library",
        "bom-ref": f"pkg:pypi/hanlin@{version}",
        "name": "hanlin",
        "version": version,
        "purl": f"pkg:pypi/hanlin@{version}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": itself},
        "components": components,
        "dependencies": [{"ref": itself["bom-ref"], "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _licences(name: str) -> dict[str, Any]:
    try:
        told = distribution(name).metadata
    except PackageNotFoundError:
        return {}
    if expression := told.get("License-Expression"):
        return {"licenses": [{"expression": expression}]}
    named = [line.rpartition(" :: ")[2] for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    return {"licenses": [{"license": {"name": one}} for one in named]} if named else {}


if __name__ == "__main__":
    sys.exit(main())
