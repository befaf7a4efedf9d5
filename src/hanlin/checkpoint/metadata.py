"""torch's DCP as files: its `.metadata` is read without running anything, and what fails to be written is told.

The metadata are a pickle, and a pickle can call any function. Only the classes that DCP itself puts there are let in.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from hanlin.core.errors import CheckpointError
from hanlin.core.os_errors import system_error

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

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: OSError."""
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            raise system_error(error) or error from None
