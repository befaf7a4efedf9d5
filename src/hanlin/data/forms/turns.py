"""Lists of turns -> messages, in each of the namings that rows have: role and content, from and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.json_text import parse_json
from hanlin.data.forms.content import ChatMessage, Role, ToolCall
from hanlin.data.forms.form import kind_of, read_tools

__all__ = ["answered", "is_turns", "read_history", "read_turns", "tools_of_turns", "unread_of_turns"]

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}
"""Who is meant by the names that rows give to the sides of a dialogue."""
_CALL = "function_call"  # ShareGPT's name of a turn that calls a tool, and OpenAI's former key of such a call
_SIDES, _TEXTS = ("role", "from"), ("content", "value")
_READ = {*_SIDES, *_TEXTS, "tool_calls", _CALL, "weight", "metadata", "tools"}
# What says only which call is answered, by whom; the order of the turns says it too.
_KNOWN = {*_READ, "tool_call_id", "name"}


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, or looks as if it were meant to be one."""
    return isinstance(value, list) and any(isinstance(turn, Mapping) for turn in value)


def read_turns(turns: Any, key: str) -> list[ChatMessage]:
    """The messages of a list of turns, in their order; key: where it stands.

    Raises: DataError naming the turn, counted from 1.
    """
    if not isinstance(turns, list | tuple):
        raise DataError(f'"{key}": expected a list of turns, found {kind_of(turns)}')
    messages = []
    for number, turn in enumerate(turns, start=1):
        try:
            messages.append(_read_turn(turn))
        except DataError as error:
            raise DataError(f'{error} (turn {number} of "{key}")') from None
    return messages


def read_history(value: Any) -> list[ChatMessage]:
    """The messages of [[question, answer], ...], or of a list of turns; none where there is nothing.

    Raises: DataError.
    """
    if value in (None, "", []):
        return []
    if is_turns(value):
        return read_turns(value, "history")
    if not isinstance(value, list):
        raise DataError(f'"history": expected a list of [question, answer] pairs, found {kind_of(value)}')
    messages = []
    for number, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise DataError(f'"history" {number}: expected a [question, answer] pair of texts, found {kind_of(pair)}')
        messages += [ChatMessage("user", pair[0]), ChatMessage("assistant", pair[1])]
    return messages


def tools_of_turns(turns: Any) -> tuple[Any, ...]:
    """The tools that a first turn of the system describes, as ChatGLM3's dialogues have them.

    Raises: DataError.
    """
    first = turns[0] if isinstance(turns, list) and turns else None
    return read_tools(first, ("tools",)) if isinstance(first, Mapping) else ()


def unread_of_turns(turns: Any) -> list[str]:
    """What is to be said of the keys of turns that nothing reads."""
    mappings = [turn for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    keys = {
        key: None
        for turn in mappings
        for key, value in turn.items()
        if key not in _KNOWN and value not in (None, "", [], {})
    }
    return [f'key "{key}" of a turn is not read' for key in keys]


def answered(turns: Sequence[Any], text: str) -> list[Any]:
    """Turns with an answer behind the last question, in the naming that they have; one that is there is replaced."""
    last = max((n for n, turn in enumerate(turns) if _role_of(turn)[0] != "assistant"), default=-1)
    kept = list(turns[: last + 1])
    has_from = bool(kept) and "from" in kept[-1]
    return [*kept, {"from": "gpt", "value": text} if has_from else {"role": "assistant", "content": text}]


def _read_turn(turn: Any) -> ChatMessage:
    if not isinstance(turn, Mapping):
        raise DataError(f'expected an object {{"role": ..., "content": ...}}, found {kind_of(turn)}')
    role, name = _role_of(turn)
    text = _text_of(turn)
    calls = _calls_of(turn)
    if name == _CALL:
        calls, text = (*calls, *_calls_in(text)), ""
    elif metadata := turn.get("metadata"):
        calls, text = (*calls, _metadata_call(metadata, text)), ""
    if calls and role != "assistant":
        raise DataError(f"tools are called by the assistant, not by {name!r}")
    if (weight := turn.get("weight")) not in (None, 0, 1):
        raise DataError(f'"weight": expected 0 (read, not learned) or 1, found {kind_of(weight)}')
    return ChatMessage(role, text, calls, is_learned=weight != 0)


def _role_of(turn: Mapping[str, Any]) -> tuple[Role, str]:
    """Who speaks, and how the row calls them."""
    key = next((key for key in _SIDES if turn.get(key) is not None), None)
    if key is None:
        raise DataError(f'says not who speaks: no "role" and no "from" (it has: {", ".join(map(str, turn))})')
    name = turn[key]
    if not isinstance(name, str) or name not in ROLES:
        raise DataError(f"unknown role {name!r:.40}; known: {', '.join(ROLES)}")
    return ROLES[name], name


def _text_of(turn: Mapping[str, Any]) -> str:
    key = next((key for key in _TEXTS if turn.get(key) is not None), None)
    if key is None:
        return ""
    value = turn[key]
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text_of_part, value))
    raise DataError(f'"{key}": expected a text, found {kind_of(value)}')


def _text_of_part(part: Any) -> str:
    """The text of one part of a content in several parts."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return part["text"]
    if kind is not None and kind != "text":
        raise DataError(
            f"a part of the type {kind!r:.40}: only texts are read, these models see no images, sounds or files; leave "
            "such rows out (data.bad_rows=drop), or remove the part"
        )
    raise DataError(f'a part of a content: expected {{"type": "text", "text": ...}}, found {kind_of(part)}')


def _calls_of(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DataError(f'"tool_calls": expected a list, found {kind_of(calls)}')
    former = turn.get(_CALL)
    return tuple(map(_call, [*calls, *([former] if former is not None else [])]))


def _call(value: Any) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else value
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise DataError(f'a call of a tool: expected {{"name": ..., "arguments": ...}}, found {kind_of(value)}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise DataError(f"the arguments of the call of {name!r} are no JSON: {error}") from None
    if not isinstance(arguments, Mapping | None):
        raise DataError(f"the arguments of the call of {name!r}: expected an object, found {kind_of(arguments)}")
    return ToolCall(name, dict(arguments or {}))


def _calls_in(text: str) -> tuple[ToolCall, ...]:
    """The calls of a ShareGPT turn, whose text is JSON of one or of a list."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f'a call of a tool: expected JSON {{"name": ..., "arguments": ...}} ({error})') from None
    return tuple(map(_call, value if isinstance(value, list) else [value]))


def _metadata_call(metadata: Any, text: str) -> ToolCall:
    """ChatGLM3's turn that calls a tool: its name is the metadata, what it is called with is the content, as it is."""
    if not isinstance(metadata, str):
        raise DataError(f'"metadata": expected the name of a tool, found {kind_of(metadata)}')
    return ToolCall(metadata.strip(), text)
