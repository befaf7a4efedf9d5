"""Names of models: which folder of a cache they stand for, and what is said where there is none or not all of it."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from hanlin.core.errors import ConfigError
from hanlin.core.hub import hint, locate, name_of_folder

NAME = Path("THUDM/chatglm2-6b")
SHARDS = {f"pytorch_model-0000{number}-of-00002.bin": b"x" for number in (1, 2)}
WHOLE = {"config.json": b"{}", "tokenizer.model": b"t", **SHARDS}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches in an empty home; the current folder is empty too."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def snapshot(cache: Path, files: dict[str, bytes], name: Path = NAME, revision: str = "a1", ref: bool = True) -> Path:
    """A revision as huggingface_hub keeps it: links to files called by their hash."""
    model = cache / f"models--{name.parent}--{name.name}"
    for file, content in files.items():
        blob = model / "blobs" / f"{file}-hash"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = model / "snapshots" / revision / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../blobs/{file}-hash")
    if ref:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs/main").write_text(revision)
    return model / "snapshots" / revision


@pytest.mark.parametrize(
    ("variable", "value", "cache"),
    [
        (None, "", "home/.cache/huggingface/hub"),
        ("HF_HOME", "hf", "hf/hub"),
        ("HF_HUB_CACHE", "hub", "hub"),
        ("HUGGINGFACE_HUB_CACHE", "hub", "hub"),
        ("XDG_CACHE_HOME", "xdg", "xdg/huggingface/hub"),
    ],
)
def test_a_name_is_found_where_huggingface_keeps_it(
    variable: str | None, value: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / value))
    snapshot(tmp_path / cache, {"config.json": b"{}"}, revision="older", ref=False)
    folder = snapshot(tmp_path / cache, WHOLE)
    assert locate(NAME) == folder
    assert name_of_folder(folder) == str(NAME)
    there = huggingface_hub.snapshot_download(str(NAME), cache_dir=tmp_path / cache, local_files_only=True)
    assert Path(there) == folder


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        (None, "home/.cache/modelscope/hub/models/ZhipuAI/chatglm2-6b"),
        (None, "home/.cache/modelscope/hub/ZhipuAI/chatglm2-6b"),
        ("MODELSCOPE_CACHE", "ms/models/ZhipuAI/chatglm2-6b"),
        ("MODELSCOPE_CACHE", "ms/hub/models/ZhipuAI/chatglm2-6b"),
        ("MODELSCOPE_CACHE", "ms/ZhipuAI/chatglm2-6b"),
    ],
)
def test_a_name_is_found_where_modelscope_keeps_it(
    variable: str | None, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "ms"))
    fill(tmp_path / folder, WHOLE)
    assert locate(Path("ZhipuAI/chatglm2-6b")) == tmp_path / folder
    assert name_of_folder(tmp_path / folder) == "ZhipuAI/chatglm2-6b"
    # Its other owner's name means the same model.
    assert locate(NAME) == tmp_path / folder


def test_a_dot_in_a_name_is_three_underscores_in_modelscopes_folders(home: Path) -> None:
    folder = fill(home / ".cache/modelscope/hub/models/some/model-v1___1", WHOLE)
    assert locate(Path("some/model-v1.1")) == folder
    assert name_of_folder(folder) == "some/model-v1.1"


def test_a_folder_of_that_name_wins(home: Path) -> None:
    snapshot(home / ".cache/huggingface/hub", WHOLE)
    NAME.mkdir(parents=True)
    assert locate(NAME) == NAME
    assert locate(Path("THUDM/chatglm2-6b-int4")) == Path("THUDM/chatglm2-6b-int4")


@pytest.mark.parametrize(
    "path", ["/a/b", "a/b/c", "a", "../a/b", "./b", "~/b", "data/vocab.txt", "b/model.bin", "models/x"]
)
def test_other_paths_stay_as_they_are(path: str, home: Path) -> None:
    assert locate(Path(path)) == Path(path)
    assert hint(Path(path)) == ""


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({"config.json": b"{}", "tokenizer.model": b"t"}, "the weights"),
        (
            {"config.json": b"{}", "model-00002-of-00003.safetensors": b"x"},
            "model-00001-of-00003.safetensors, model",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors"}}', "two.safetensors": b"x"},
            "one.safetensors",
        ),
    ],
)
def test_a_model_of_which_files_are_missing_is_refused(files: dict[str, bytes], lacks: str, home: Path) -> None:
    folder = snapshot(home / ".cache/huggingface/hub", files)
    with pytest.raises(ConfigError, match=f"{folder} lacks {lacks}.*`hf download {NAME}`.*brings what is missing"):
        locate(NAME)
    assert locate(NAME, whole=False) == folder
    # A whole one in another cache is taken.
    whole = fill(home / ".cache/modelscope/hub/models/ZhipuAI/chatglm2-6b", WHOLE)
    assert locate(NAME) == whole


def test_a_lost_file_behind_a_link_is_missing(home: Path) -> None:
    folder = snapshot(home / ".cache/huggingface/hub", WHOLE)
    (folder / "tokenizer.model").resolve().unlink()
    for whole in (True, False):
        with pytest.raises(ConfigError, match=r"lacks tokenizer\.model"):
            locate(NAME, whole=whole)


def test_a_revision_that_is_gone_is_said(home: Path) -> None:
    folder = snapshot(home / ".cache/huggingface/hub", WHOLE)
    (folder.parent.parent / "refs/main").write_text("b2")
    with pytest.raises(ConfigError, match=r"snapshots/b2 lacks the folder"):
        locate(NAME)
    assert "`hf download THUDM/chatglm2-6b --revision b2` brings it back" in hint(folder.with_name("b2"))


def test_several_revisions_without_a_reference_are_not_guessed(home: Path) -> None:
    cache = home / ".cache/huggingface/hub"
    folder = snapshot(cache, WHOLE, ref=False)
    assert locate(NAME) == folder
    snapshot(cache, WHOLE, revision="b2", ref=False)
    with pytest.raises(ConfigError, match=r"holds several revisions \(a1, b2\) and no refs/main"):
        locate(NAME)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (
            "THUDM/chatglm2-6b",
            "`hf download THUDM/chatglm2-6b` (from ModelScope: `modelscope download --model ZhipuAI/",
        ),
        ("ZhipuAI/chatglm2-6b", "`modelscope download --model ZhipuAI/chatglm2-6b`"),
        ("some/model", "`hf download some/model` (from ModelScope: `modelscope download --model some/model`)"),
    ],
)
def test_the_command_that_downloads_a_model_is_said(name: str, command: str, home: Path) -> None:
    assert locate(Path(name)) == Path(name)
    assert command in hint(Path(name))
    assert str(home / ".cache/huggingface/hub") in hint(Path(name))
    Path(name).parent.mkdir()
    assert hint(Path(name)) == ""  # rather a slip in the path of a folder


@pytest.mark.parametrize("ref", ["../../../..", "x" * 5000, "a\nb", "\0", "..", "."])
def test_a_ref_that_names_no_revision_is_said(home: Path, ref: str) -> None:
    folder = snapshot(home / ".cache/huggingface/hub", WHOLE)
    assert locate(NAME) == folder
    (folder.parents[1] / "refs/main").write_text(ref)
    with pytest.raises(ConfigError, match="refs/main: names no revision"):
        locate(NAME)


@pytest.mark.parametrize("path", ["mydata/train.jsonl", "mine/rows.csv", "glm/tokenizer.model", "a/recipe.YAML"])
def test_what_ends_like_a_file_is_no_name_of_a_model(path: str) -> None:
    assert hint(Path(path)) == ""
