"""The code of docs/api.md and of the notebook runs as it stands; the page in Chinese has the same code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from api_cases import make_talker

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


def without_comments(code: str) -> str:
    return re.sub(r"\s*#.*", "", code)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page takes for granted."""
    make_talker(tmp_path, max_length=2048).save(tmp_path / "chatglm2-6b")
    rows = [{"prompt": "你好", "response": "再见"}, {"prompt": "世界", "response": "你好"}]
    for name in ("train", "eval"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_the_page_runs(home: Path) -> None:
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks("api.md"), start=1):
        exec(compile(code, f"api.md, block {number}", "exec"), names)
    assert names["result"].steps == 4
    assert (
        names["tuned"].score({"prompt": "你好", "response": "再见"}).per_token
        > names["before"].score({"prompt": "你好", "response": "再见"}).per_token
    )
    assert (home / "peft" / "adapter_config.json").is_file()


def test_both_languages_have_the_same_code() -> None:
    assert list(map(without_comments, blocks("api.zh-CN.md"))) == list(map(without_comments, blocks("api.md")))


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter runs it, cell by cell in one namespace."""
    notebook = json.loads((ROOT / "examples" / "couplets.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"], start=1):
        assert not cell.get("outputs"), f"cell {number} has outputs; clear them"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"couplets.ipynb, cell {number}", "exec"), names)
    assert names["right"] == len(names["couplets"])
