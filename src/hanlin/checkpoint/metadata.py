"""torch's DCP as files: its `.metadata` is read without running anything, what fails to be written is told, and what
is written is hashed on its way.

The metadata are a pickle, and a pickle can call any function. Only the classes that DCP itself puts there are let in.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from hanlin.core.errors import CheckpointError
from hanlin.core.manifest import FileFacts
from hanlin.core.os_errors import system_error
from hanlin.core.remembered import sha256_of

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13
}


# What a damaged pickle raises.
_DAMAGE = (
    OSError, EOFError, ValueError, AttributeError, TypeError, LookupError, MemoryError, RecursionError,
    pickle.UnpicklingError,
)  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint of torch does")
        return super().find_class(module, name)


class MetadataReader(FileSystemReader):
    """DCP's reader of files, whose metadata cannot run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises: CheckpointError for a file that is damaged or asks for anything else than metadata."""
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
            if not isinstance(metadata, Metadata):
                raise TypeError(f"it is a {type(metadata).__name__}")
            files = [info.relative_path for info in metadata.storage_data.values()]
            outside = [file for file in files if Path(file).name != file]
            list(metadata.state_dict_metadata)
        except _DAMAGE as error:
            raise CheckpointError(
                f"{path}: not the metadata of a checkpoint: {error}; restore it from a copy"
            ) from None
        if outside:
            raise CheckpointError(f"{path}: names {outside[0]}, which is not in its own folder")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class TensorWriter(FileSystemWriter):
    """DCP's writer of files, which tells the system's own error where torch's is one of its container.

    Here, and not where it arrives: on its way from another rank an error loses what it came from.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fs = _HashingFileSystem()

    @property
    def written(self) -> FileFacts:
        """Of each file that this rank has written, by its name."""
        assert isinstance(self.fs, _HashingFileSystem)
        return self.fs.written

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: OSError."""
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            raise system_error(error) or error from None


class _HashingFileSystem(FileSystem):
    """DCP's files; those that are written are hashed on their way, so that they need not be read for it."""

    def __init__(self) -> None:
        self.written: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            hashed = _HashingStream(stream)
            yield hashed
        digest = hashed.digest.hexdigest() if hashed.is_straight else sha256_of(Path(path))
        self.written[Path(path).name] = (Path(path).stat().st_size, digest)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        if (facts := self.written.pop(Path(path).name, None)) is not None:
            self.written[Path(new_path).name] = facts


class _HashingStream:
    """A stream that hashes what is written to it. is_straight: never at another place than the end."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.digest, self.is_straight = stream, hashlib.sha256(), True

    def write(self, content: Any) -> int:
        count = self._stream.write(content)
        self.digest.update(memoryview(content).cast("B")[:count])
        return count

    def seek(self, *place: int) -> int:
        self.is_straight = False
        return self._stream.seek(*place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
