import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from hanlin.cli.main import main
from hanlin.core.errors import DataError
from hanlin.data.prepare import prepare
from hanlin.data.sources.arrow import ArrowSource, is_arrow_folder
from hanlin.models.family import load_family
from hanlin.recipe.settings import DataSettings


@pytest.fixture
def folder(shared, tmp_path) -> Path:
    found = next((shared / "golden" / "chatglm2_arrow").glob("*/"))
    copied = tmp_path / "train_datasets"
    shutil.copytree(found, copied, copy_function=shutil.copyfile)
    copied.chmod(0o755)
    return copied


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def test_rows_are_named_by_file_and_number(folder):
    source = ArrowSource(folder)
    assert source.where(len(source) - 1) == f"{files(folder)[-1]}: row 1"
    assert is_arrow_folder(folder)


def test_the_json_files_are_not_needed(folder):
    expected = ArrowSource(folder)
    for file in folder.glob("*.json"):
        file.unlink()
    source = ArrowSource(folder)
    assert [source[n]["labels"].tolist() for n in range(len(source))] == [
        expected[n]["labels"].tolist() for n in range(len(expected))
    ]
    assert source.fingerprint == expected.fingerprint


def test_a_missing_part_is_named(folder):
    files(folder)[0].unlink()
    with pytest.raises(DataError, match=f"lists {files(folder)[0].name[:4]}.*missing"):
        ArrowSource(folder)


@pytest.mark.parametrize("size", [0, 3, 40, 500, 1000, 2000, 2500])
def test_a_file_cut_off_anywhere_is_refused(folder, size):
    file = files(folder)[0]
    assert file.stat().st_size > size
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=file.name):
        ArrowSource(folder)


def test_damage_never_ends_in_another_error(folder):
    file = files(folder)[0]
    original = file.read_bytes()
    for place in range(0, 1000, 7):
        file.write_bytes(original[:place] + bytes([original[place] ^ 0xFF]) + original[place + 1 :])
        with suppress(DataError):
            source = ArrowSource(folder)
            for row in range(min(len(source), 3)):
                source[row]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.arrow files"):
        ArrowSource(tmp_path)
    (tmp_path / "a.arrow").write_bytes(b"something else entirely")
    with pytest.raises(DataError, match="no Arrow stream"):
        ArrowSource(tmp_path)


def test_a_folder_is_data_for_training_and_can_be_looked_at(folder, shared, tmp_path, capsys):
    family = load_family("chatglm2")
    tokenizer = family.tokenizer(shared / "golden" / "chatglm2_tokenizer")
    processor = family.processor(tokenizer, family.config())
    prepared = prepare([folder], processor, DataSettings(cache=tmp_path / "cache"), tokenizer=tokenizer)
    assert len(prepared) == len(ArrowSource(folder))
    assert prepared.get(0).loss_tokens > 0
    assert main(["inspect", str(folder)]) == 0
    assert "save_to_disk" in capsys.readouterr().out
