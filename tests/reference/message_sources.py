"""The messages of the source: every text of two English words and more, as a template (`{}: no such file {}`).

Not those that no user reads: docstrings, what is asserted, keys and types. A text of several lines is one
message a line. Placeholders side by side are one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from hanlin.cli._parser import REMARK, divided, is_example

SOURCE = Path(__file__).parents[2] / "src/hanlin"
_FIELD = re.compile(r"\{\w*(?:![rs])?(?::[^{}]*)?\}")
"""Of a text that is filled by `str.format`."""
_WORD = re.compile(r"(?<![\w.`'/<$%:=-])[A-Za-z][a-z']+(?![\w=/(`'-]|\.\w)")
_DIRECTIVE = re.compile(r"%[.\d]*[sdgfr]")
"""What a log line puts in; `%%` is a sign."""


def messages_of(room: str, left_out: Collection[str] = ()) -> dict[str, str]:
    """Template -> where it stands first; left_out: files of the room that hold none."""
    folder = SOURCE / room
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        if str(path.relative_to(folder)) not in left_out:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for template, line in (*_messages(tree), *(_help(tree) if _is_command(path) else ())):
                found.setdefault(template, f"{path.relative_to(SOURCE)}:{line}")
    return found


def is_sentence(template: str) -> bool:
    """Whether it says something in English, and is more than a name."""
    return len(_WORD.findall(template.replace("{}", " "))) > 1


def _is_command(path: Path) -> bool:
    return path.parent.name == "cli" and not path.name.startswith("_") and path.name != "main.py"


def _help(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What the docstring of a command says: its paragraphs, and the remarks behind its examples."""
    about, examples = divided(ast.get_docstring(tree) or "")
    yield from ((_escaped(" ".join(paragraph.split())), 1) for paragraph in about)
    for line in examples.splitlines():
        if remark := REMARK.fullmatch(line):
            yield _escaped(remark[3]), 1
        elif not is_example(line.strip()):
            yield _escaped(line.strip()), 1


def _messages(tree: ast.Module) -> Iterator[tuple[str, int]]:
    unread = set(_unread(tree))
    for node in ast.walk(tree):
        if node not in unread and isinstance(node, ast.Constant | ast.JoinedStr):
            for line in _template(node).split("\n"):
                if template := re.sub(r"(\{\})+", "{}", line).strip():
                    yield template, node.lineno


def _template(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.JoinedStr):
        parts = [value.value if isinstance(value, ast.Constant) else None for value in node.values]
        return "".join("{}" if part is None else _escaped(str(part)) for part in parts)
    text = node.value if isinstance(node.value, str) else ""
    fields = _DIRECTIVE if _DIRECTIVE.search(text) else _FIELD
    return "{}".join(map(_escaped, fields.split(text)))


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _unread(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant() as docstring):
                yield docstring
            case ast.Assert() | ast.Call(func=ast.Attribute(value=ast.Name(id=("logging" | "warnings" | "re")))):
                yield from ast.walk(node)
            case ast.JoinedStr(values=values):
                yield from (value for value in values if isinstance(value, ast.Constant))
            case ast.FormattedValue(format_spec=ast.JoinedStr() as spec):
                yield from ast.walk(spec)
            case ast.arg(annotation=ast.expr() as kind) | ast.AnnAssign(annotation=kind):
                yield from ast.walk(kind)
