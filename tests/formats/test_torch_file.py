"""Files of torch.save, written tensor by tensor: what torch.save would have written, and whole as zip files."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.files import open_weights
from hanlin.formats.lazy import Lazy, TensorSubset
from hanlin.formats.torch_file import load_torch_file, write_torch_files

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.arange(4).half(),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
}


class Twins(TensorSubset):
    def twin(self, name: str) -> str:
        return "a" if name == "copy" else name


def test_the_file_is_that_of_torch_save_and_a_whole_zip_file(tmp_path: Path) -> None:
    write_torch_files([tmp_path / "x.pt"], TENSORS, lambda _, tensor: [tensor], lambda _, flat: OrderedDict(flat))
    for is_mapped in (False, True):
        loaded = torch.load(tmp_path / "x.pt", weights_only=True, mmap=is_mapped)
        assert isinstance(loaded, OrderedDict)
        assert list(loaded) == list(TENSORS)
        assert all(
            loaded[name].equal(tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
        )
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None


def test_every_file_gets_its_share_wherever_it_stands_in_the_state(tmp_path: Path) -> None:
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    rows = {"b": torch.arange(8.0).reshape(4, 2), "a": torch.arange(2)}
    write_torch_files(
        files,
        rows,
        lambda name, tensor: list(tensor.chunk(2)),
        lambda rank, flat: {"rank": rank, "inner": {"late": flat["a"], "early": {"b": flat["b"]}}, "none": None},
    )
    for rank, file in enumerate(files):
        loaded = torch.load(file, weights_only=True)
        assert loaded["rank"] == rank
        assert loaded["inner"]["late"].tolist() == [rank]
        assert loaded["inner"]["early"]["b"].equal(rows["b"][2 * rank : 2 * rank + 2])


def test_names_of_one_tensor_share_its_place(tmp_path: Path) -> None:
    tensors = Twins({"a": torch.randn(100, 100), "copy": torch.empty(0)}, ["a", "copy"])
    write_torch_files([tmp_path / "x.pt"], tensors, lambda _, tensor: [tensor], lambda _, flat: flat)
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert loaded["a"].data_ptr() == loaded["copy"].data_ptr()
    assert (tmp_path / "x.pt").stat().st_size < 50_000


def test_a_tensor_is_computed_once_and_then_forgotten(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counted(Lazy):
        def __getitem__(self, name: str) -> torch.Tensor:
            calls.append(name)
            return torch.full((2,), float(len(name)))

        def __iter__(self):
            return iter(("x", "yy"))

        def __len__(self) -> int:
            return 2

        def meta(self, name: str) -> torch.Tensor:
            return torch.empty(2, device="meta")

        def forget(self, name: str) -> None:
            calls.append(f"forget {name}")

    write_torch_files([tmp_path / "x.pt"], Counted(), lambda _, tensor: [tensor], lambda _, flat: flat)
    assert calls == ["x", "forget x", "yy", "forget yy"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("has_states", [False, True])
def test_what_would_run_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_states: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"module": TENSORS, "np_rng_state": Hostile()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: holds (posix|nt)\.mkdir beside tensors and is refused"):
        load_torch_file(tmp_path / "x.pt", has_states=has_states)
    assert not (tmp_path / "ran").exists()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def place_of(path: Path, number: int) -> int:
    """Where the bytes of a tensor of ones lie."""
    return path.read_bytes().find(torch.full((50,), float(number)).numpy().tobytes())


def test_data_are_compared_with_their_checksum_when_they_are_read(tmp_path: Path) -> None:
    tensors = {"first": torch.full((50,), 3.0), "second": torch.full((50,), 5.0), "view": torch.zeros(4, 4)[:, 1]}
    torch.save({**tensors, "twin": tensors["second"]}, tmp_path / "x.pt")
    flip(tmp_path / "x.pt", place_of(tmp_path / "x.pt", 5) + 7)
    weights = open_weights(tmp_path / "x.pt")
    assert weights["first"].equal(tensors["first"])
    assert weights["view"].equal(tensors["view"])
    assert weights.meta("twin").shape == (50,)  # which reads nothing
    with pytest.raises(CheckpointError, match=r"x\.pt: damaged: the data of twin \(x/data/1\) have the checksum"):
        weights["twin"]


def test_files_without_checksums_and_old_ones_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("without.pt", "old.pt"):
        weights = open_weights(tmp_path / name)
        assert all(weights[name].equal(tensor) for name, tensor in TENSORS.items())


def test_a_list_that_claims_more_data_than_there_are_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(16), "b": torch.zeros(16)}, tmp_path / "x.pt")
    changed = tmp_path / "changed.pt"
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry, content[:32] if entry.filename.endswith("data/0") else content)
    with pytest.raises(CheckpointError, match="damaged or not a torch file"):
        load_torch_file(changed)


ONES = torch.ones(4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.zeros(1).expand(10**12), r"stands for 4,000,000,000,000 bytes, of which 4 are in the file"),
        (ONES.to_sparse, "is sparse"),
        (lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8), "is quantised in a form of torch's own"),
        (lambda: torch.empty(4, device="meta"), "has a shape and no data"),
        (lambda: torch._neg_view(ONES), "is written with the other sign"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_array_of_numbers_is_refused_by_name(
    make: Callable[[], torch.Tensor], says: str, tmp_path: Path
) -> None:
    torch.save({"a": ONES, "odd": make()}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=f"x.bin: odd {says}"):
        open_weights(tmp_path / "x.bin")


def test_a_tensor_that_repeats_a_row_is_read(tmp_path: Path) -> None:
    torch.save({"a": ONES.expand(3, 4)}, tmp_path / "x.bin")
    assert open_weights(tmp_path / "x.bin")["a"].equal(torch.ones(3, 4))
