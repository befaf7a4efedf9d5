"""The two file forms of records."""

from __future__ import annotations

import json
from pathlib import Path

from hanlin.data.convert import convert_file
from hanlin.data.sources import open_records

LINE = '{"input": "清晨还是西北风。", "question": "这段话形容了哪句诗的意境？", "<ans>": "<option_1>"}\n'


def test_json_lines_go_to_the_binary_form_and_back(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(LINE * 3, "utf-8")
    assert convert_file(source, tmp_path / "set" / "part") == 3
    assert convert_file(tmp_path / "set", tmp_path / "back.jsonl") == 3
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
    assert open_records(tmp_path / "set" / "meta.bin")[0] == json.loads(LINE)
