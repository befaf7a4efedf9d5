"""What stands above the fields of a class: the comment that tells a user what a setting does.

Comments are read from the source when somebody asks, so that a recipe is read no slower for them.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache

__all__ = ["field_comments"]


@cache
def field_comments(owner: type) -> dict[str, str]:
    """The comments above the fields of a class and of those that it inherits from, as one line each; values are named
    as in YAML (`null`, `true`, `false`). Empty where there is no source.
    """
    found: dict[str, str] = {}
    for one in reversed(owner.__mro__):
        if one.__module__.partition(".")[0] not in ("builtins", "pydantic"):
            found |= _comments_of(one)
    return found


def _comments_of(owner: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):
        return {}
    lines, node = source.splitlines(), ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef), owner
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    comments = {ast.unparse(part.target): _comment_above(lines, part.lineno - 1) for part in fields}
    return {name: text for name, text in comments.items() if text}


def _comment_above(lines: list[str], index: int) -> str:
    begin = index
    while lines[begin - 1].lstrip().startswith("#"):
        begin -= 1
    text = " ".join(line.strip().removeprefix("#").strip() for line in lines[begin:index])
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text
