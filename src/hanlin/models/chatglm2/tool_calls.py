"""Calls of tools in the answers of ChatGLM3 and GLM-4: the name in a line of its own, then what it is called with.

That is JSON (GLM-4), or a call in Python (ChatGLM3): tool_call(city='北京'), which is read and never run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.json_text import parse_json
from hanlin.data.forms.content import ToolCall

__all__ = ["may_become_call", "read_call", "tool_names"]

_FENCED = re.compile(r"\s*```[a-z]*\n(.*?)\n?```\s*", re.DOTALL)


def tool_names(tools: Iterable[Any]) -> list[str]:
    """The names in descriptions of tools: {"type": "function", "function": {"name": ...}} or {"name": ...}.

    Raises: DataError.
    """
    names = []
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name.strip():
            raise DataError(f'tool {number}: expected {{"type": "function", "function": {{"name": ...}}}}')
        names.append(name.strip())
    return names


def read_call(text: str, names: Sequence[str]) -> ToolCall | None:
    """The call that an answer is; None where it is a text."""
    name, newline, rest = text.strip().partition("\n")
    if not newline or name.strip() not in names:
        return None
    fenced = _FENCED.fullmatch(rest)
    arguments = _arguments(fenced[1] if fenced else rest)
    return None if arguments is None else ToolCall(name.strip(), arguments)


def may_become_call(text: str, names: Sequence[str]) -> bool:
    """Whether an answer that goes on may still be a call of one of these tools."""
    name, newline, _ = text.lstrip().partition("\n")
    return any(one == name.strip() if newline else one.startswith(name.strip()) for one in names)


def _arguments(text: str) -> dict[str, Any] | None:
    """What a tool is called with; None where it cannot be told."""
    try:
        value = parse_json(text)
    except ValueError:
        return _python_arguments(text)
    return value if isinstance(value, dict) else None


def _python_arguments(text: str) -> dict[str, Any] | None:
    """Those of `tool_call(name=value, ...)`, whose values are literals."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            return None
        return {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
