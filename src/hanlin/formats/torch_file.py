"""Files of `torch.save`: read without running code of theirs, written tensor by tensor.

`torch.save` wants everything in memory at once. Here it writes the file without the data, which leaves holes; the file
is mapped, and the tensors are put into their places one after the other. So a file of any size is written with the
memory of its largest tensor.
"""

from __future__ import annotations

import argparse
import mmap
import os
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy._core.multiarray import _reconstruct

from hanlin.core.errors import CheckpointError
from hanlin.core.files import check_readable
from hanlin.core.os_errors import naming
from hanlin.formats.lazy import Lazy, bytes_of, forget, forget_pages, meta_of, twin_of

if TYPE_CHECKING:
    import torch

MAX_TENSORS = 200_000
"""More of them in one file is no model, but a file made to exhaust who reads it."""

_MAX_PICKLE_BYTES = 1 << 28  # of names and shapes, without the tensors' data
_MAX_REPEATED_BYTES = 1 << 24  # of a tensor whose numbers are written once and stand for many

Flat = dict[str, "torch.Tensor"]

# Where a zip file keeps the checksum of an entry: in the directory at its end, and in the note behind the data.
_DIRECTORY_ENTRY = struct.Struct("<4s12xI8x3H12x")
_LOCAL_LENGTHS = struct.Struct("<26x2H")
_NOTE = b"PK\x07\x08"
_LOCAL_BYTES = 30
_DATA = re.compile(r"(^|/)data/\d+$")


class TorchFile:
    """What a file of `torch.save` holds (`content`), its tensors mapped where the form allows it (files of torch before
    1.6 cannot be).
    """

    def __init__(self, path: Path, content: Any, entries: Mapping[int, zipfile.ZipInfo] | None) -> None:
        """entries: address of the data of a storage -> where they lie in the file; None: they are not mapped."""
        self.path = path
        self.content = content
        self._is_mapped = entries is not None
        self._unchecked = dict(entries or {})

    def check(self, tensor: torch.Tensor, name: str) -> None:
        """See that the data under a tensor of this file are those that were written; they are read once for it.

        Raises: CheckpointError.
        """
        import torch

        storage = tensor.untyped_storage()
        entry = self._unchecked.pop(storage.data_ptr(), None)
        if entry is None:
            return
        found = zlib.crc32(bytes_of(torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)))
        if found != entry.CRC:
            raise CheckpointError(
                f"{self.path}: damaged: the data of {name} ({entry.filename}) have the checksum {found:08x}, but the "
                f"file says {entry.CRC:08x}; copy it again"
            )

    def forget(self, tensor: torch.Tensor) -> None:
        """Give back the memory that reading a tensor took; it is read again when touched."""
        if self._is_mapped:
            forget_pages(tensor)


class Ignored:
    """In the place of a value of a class that we neither have nor need."""

    def __init__(self, *values: object) -> None:
        del values


class MappedTensors(Lazy):
    """Tensors of one or several files by name; each is compared with its file's checksum when it is first read."""

    def __init__(self, files: Iterable[tuple[TorchFile, Flat]]) -> None:
        """Raises: CheckpointError for a tensor that is not an array of numbers as they lie in its file."""
        self._places = {name: (file, tensor) for file, tensors in files for name, tensor in tensors.items()}
        for name, (file, tensor) in self._places.items():
            if odd := _oddity(tensor):
                raise CheckpointError(f"{file.path}: {name} {odd}; save it as a plain tensor, or get it so")

    def __getitem__(self, name: str) -> torch.Tensor:
        file, tensor = self._places[name]
        file.check(tensor, name)
        return tensor

    def meta(self, name: str) -> torch.Tensor:
        return self._places[name][1].to("meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def forget(self, name: str) -> None:
        file, tensor = self._places[name]
        file.forget(tensor)


def _oddity(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being read as an array of numbers; "" where nothing does."""
    import torch

    if tensor.is_nested or tensor.layout is not torch.strided:
        return f"is {'nested' if tensor.is_nested else 'sparse'}"
    if tensor.is_quantized or tensor.is_meta:
        return "is quantised in a form of torch's own" if tensor.is_quantized else "has a shape and no data"
    if tensor.is_neg() or tensor.is_conj():
        return "is written with the other sign"
    size, written = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if size > max(written, _MAX_REPEATED_BYTES):
        return f"stands for {size:,} bytes, of which {written:,} are in the file"
    return ""


def load_torch_file(path: Path, *, has_states: bool = False, ignored: Sequence[str] = ()) -> TorchFile:
    """Open a file without running code of its.

    has_states: read also what training programs keep beside tensors: states of random numbers, sets, arguments;
    ignored: full names of classes whose values are read over: an `Ignored` stands in their place.

    Raises: CheckpointError naming what would run code, or the damage.
    """
    import torch

    check_readable(path)
    archive = _open_zip(path)
    storages: dict[int, int] = {}

    def keep(storage: Any, location: str) -> Any:
        """On the CPU, wherever it lay when it was saved."""
        del location
        if storage.nbytes():
            storages[storage.data_ptr()] = storage.nbytes()
        return storage

    try:
        with torch.serialization.safe_globals(
            [*(_harmless() if has_states else []), *((Ignored, name) for name in ignored)]
        ):
            content = torch.load(path, map_location=keep, weights_only=True, mmap=archive is not None)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, error)) from None  # torch's own text advises to read it all the same
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(_damaged(path, _first_line(error))) from error
    return TorchFile(path, content, None if archive is None else _entries(archive, path, storages))


def _open_zip(path: Path) -> zipfile.ZipFile | None:
    """The directory of a file of today's form, a zip file; its declared sizes are looked at before anything is read.

    Raises: CheckpointError for sizes that no file of torch has.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(_damaged(path, _first_line(error))) from error
    if squeezed := [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
        packed = max(squeezed, key=lambda entry: entry.file_size)
        raise CheckpointError(
            f"{path}: {packed.filename} is compressed ({packed.compress_size:,} bytes for {packed.file_size:,}), which "
            "torch never does; save it with torch.save, or get it from its author again"
        )
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path}: holds {len(entries):,} entries, more than any model has tensors; not read")
    if any(entry.filename.endswith("data.pkl") and entry.file_size > _MAX_PICKLE_BYTES for entry in entries):
        raise CheckpointError(f"{path}: its list of tensors alone is above {_MAX_PICKLE_BYTES >> 20} MiB; not read")
    return archive


def _entries(archive: zipfile.ZipFile, path: Path, storages: Mapping[int, int]) -> dict[int, zipfile.ZipInfo]:
    """The entry of each storage that has a checksum to compare with; storages: address and size of each.

    The file is mapped as a whole, so that addresses differ from places in the file by one number.
    Raises: CheckpointError when a storage is not as large as its entry.
    """
    entries = archive.infolist()
    filled = [entry for entry in entries if _DATA.search(entry.filename) and entry.file_size]
    order = next((entry for entry in entries if entry.filename.endswith("/byteorder")), None)
    if order is not None and order.CRC not in (0, zlib.crc32(sys.byteorder.encode())):
        return {}  # of a machine with the other order of bytes: they were turned round in memory
    with path.open("rb") as stream:
        places = {_data_place(stream, entry): entry for entry in filled}
    first = min(storages, default=0)
    for place in sorted(places):
        base = first - place
        if base % mmap.PAGESIZE == 0 and all(address - base in places for address in storages):
            found = {address: places[address - base] for address in storages}
            break
    else:
        return {}
    if wrong := [entry for address, entry in found.items() if entry.file_size != storages[address]]:
        raise CheckpointError(_damaged(path, f"{wrong[0].filename} is not as large as its list of tensors says"))
    # Without its checksums, which torch leaves out on demand, there are zeros.
    return {address: entry for address, entry in found.items() if entry.CRC}


def _data_place(stream: Any, entry: zipfile.ZipInfo) -> int:
    stream.seek(entry.header_offset)
    return entry.header_offset + _LOCAL_BYTES + sum(_LOCAL_LENGTHS.unpack(stream.read(_LOCAL_BYTES)))


def write_torch_files(
    files: Sequence[Path],
    tensors: Mapping[str, torch.Tensor],
    share: Callable[[str, torch.Tensor], Sequence[torch.Tensor]],
    state: Callable[[int, Flat], Any],
) -> None:
    """Write every tensor's shares into the files; one whole tensor is in memory at a time.

    share: name and tensor -> what each file gets of it; state: number of a file and its tensors -> what is saved, in
    dicts. Names that mean one tensor (`Lazy.twin`) get one place.
    Raises: what `share` does, before anything is written.
    """
    import torch

    shapes = {name: share(name, meta_of(tensors, name)) for name in tensors if twin_of(tensors, name) == name}
    places = []
    for number, file in enumerate(files):
        holes = {name: torch.empty(shares[number].shape, dtype=shares[number].dtype) for name, shares in shapes.items()}
        flat = {name: holes[twin_of(tensors, name)] for name in tensors}
        places.append(_lay_out(file, holes, state(number, flat)))
    sums: list[dict[str, int]] = [{} for _ in files]
    for name in shapes:
        with torch.no_grad():
            for own, place, piece in zip(sums, places, share(name, tensors[name]), strict=True):
                place[name].copy_(piece)
                own[name] = zlib.crc32(bytes_of(place[name]))
                forget_pages(place[name])
        forget(tensors, name)
    for file, place, own in zip(files, places, sums, strict=True):
        in_order = sorted((name for name in own if place[name].numel()), key=lambda name: place[name].data_ptr())
        _seal(file, [own[name] for name in in_order])


def _lay_out(file: Path, holes: Flat, state: Any) -> Flat:
    """Write a file without the data of its tensors; return these as mapped: what is put into them is in the file."""
    import torch

    try:
        with torch.serialization.skip_data():
            torch.save(state, file)
    except RuntimeError:
        _ask_for_the_reason(file)
        raise
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = load_torch_file(file, has_states=True).content
    names = {id(hole): name for name, hole in holes.items()}
    return {names[id(hole)]: place for hole, place in _pairs(state, mapped)}


def _ask_for_the_reason(file: Path) -> None:
    """torch does not say why it could not write; the system does, when it is asked once more.

    Raises: OSError.
    """
    with naming(file), file.open("ab") as stream:
        stream.write(bytes(1 << 20))


def _pairs(saved: Any, loaded: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    if isinstance(saved, torch.Tensor):
        yield saved, loaded
    elif isinstance(saved, Mapping):
        for key in saved:
            yield from _pairs(saved[key], loaded[key])


def _seal(file: Path, sums: Sequence[int]) -> None:
    """Put the checksums of the tensors, in their order, where the holes' were; see that all is on the disk."""
    with zipfile.ZipFile(file) as archive:
        entries, place = archive.infolist(), archive.start_dir
    filled = [entry for entry in entries if _DATA.search(entry.filename) and entry.file_size]
    filled.sort(key=lambda entry: entry.header_offset)
    assert len(filled) == len(sums), (file, len(filled), len(sums))
    by_name = {entry.filename: value for entry, value in zip(filled, sums, strict=True)}
    with file.open("r+b") as stream:
        for entry in entries:
            stream.seek(place)
            _, _, *lengths = _DIRECTORY_ENTRY.unpack(stream.read(_DIRECTORY_ENTRY.size))
            if entry.filename in by_name:
                _put_sum(stream, entry, place, by_name[entry.filename])
            place += _DIRECTORY_ENTRY.size + sum(lengths)
        stream.flush()
        os.fsync(stream.fileno())


def _put_sum(stream: Any, entry: zipfile.ZipInfo, place: int, value: int) -> None:
    packed = struct.pack("<I", value)
    stream.seek(place + 16)
    stream.write(packed)
    note = _data_place(stream, entry) + entry.file_size
    stream.seek(note)
    if stream.read(4) == _NOTE:
        stream.seek(note + 4)
        stream.write(packed)


def _harmless() -> list[Any]:
    """What the states of training programs are pickled with: numbers, sets, arguments; nothing that runs."""
    # A file of numpy 1 names it numpy.core, one of numpy 2 numpy._core.
    named = [(_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    numbers = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), type(np.dtype(np.uint8))]
    return [*named, *numbers, set, argparse.Namespace]


def _refused(path: Path, error: pickle.UnpicklingError) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return _damaged(path, "its beginning is not that of a pickle of tensors")
    return (
        f"{path}: holds {named[1]} beside tensors and is refused, since reading it could run code from the file; "
        "ask its author for safetensors"
    )


def _damaged(path: Path, reason: str) -> str:
    return f"{path}: damaged or not a torch file, {path.stat().st_size:,} bytes ({reason}); copy it again"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
