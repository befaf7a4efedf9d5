"""What a record holds: JSON, a pickle of plain values or raw bytes, recognised by its content."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from typing import Any, Literal

from hanlin.core.json_text import check_json_value
from hanlin.data.sources.jsonl import parse_row

PROTOCOL = 4  # what Python 3.8+ wrote by default, the age of the original

Payload = Literal["json", "pickle", "raw"]


def read_payload(payload: bytes) -> Any:
    """The value of a payload, recognised by its content; bytes when it is neither JSON nor a pickle.

    Raises: ValueError with the reason.
    """
    if payload[:1] == b"\x80":
        return _unpickle(payload)
    if payload[:1] == b"{":
        return parse_row(payload)
    if payload[-1:] == b".":  # the oldest pickles have no mark of their own
        try:
            return _unpickle(payload)
        except _BrokenPickleError:
            return payload
    return payload


def write_payload(value: Any, form: Payload, protocol: int = PROTOCOL) -> bytes:
    if form == "pickle":
        return pickle.dumps(value, protocol=protocol)
    if form == "json":
        return json.dumps(value, ensure_ascii=False).encode()
    return bytes(value)


class _BrokenPickleError(ValueError):
    """Bytes that are no pickle at all."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"refused: the pickle asks for {module}.{name}; only plain values are read, code is never run")

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("refused: the pickle asks for an outside object; only plain values are read")


# What the unpickler raises on damaged bytes.
_BROKEN = (
    pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError,
    UnicodeDecodeError,
)  # fmt: skip


def _unpickle(payload: bytes) -> Any:
    stream = BytesIO(payload)
    try:
        value = _PlainUnpickler(stream).load()
    except _BROKEN as error:
        raise _BrokenPickleError(f"the pickle is damaged ({error})") from None
    except ValueError as error:
        if str(error).startswith("refused"):
            raise
        raise _BrokenPickleError(f"the pickle is damaged ({error})") from None
    if stream.tell() != len(payload):
        raise _BrokenPickleError(f"the pickle is damaged ({len(payload) - stream.tell()} bytes follow its end)")
    _refuse_odd_values(value, len(payload))
    check_json_value(value)
    return value


def _refuse_odd_values(value: Any, limit: int) -> None:
    """Walk a value; `limit`: more values than bytes means that it contains itself."""
    waiting, count = [value], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > limit:
            raise ValueError("refused: the pickled value contains itself")
        if type(value) is dict:
            odd = [key for key in value if type(key) is not str]
            if odd:
                raise ValueError(f"refused: the key {odd[0]!r} is no string")
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"refused: a value of type {type(value).__name__}; only plain values are read")
