"""YAML with the plain values of version 1.2, the line of every key, and the keys that stand twice.

PyYAML follows version 1.1, in which `1e-4` is a string, `no` is false and a repeated key silently wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.reader import ReaderError

from hanlin.core.errors import ConfigError

__all__ = ["YamlError", "full_width_hint", "parse_yaml", "read_yaml"]

_NUMBER = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


_HALF_WIDTH = dict(zip("，：；（）【】｛｝“”‘’　", ",:;()[]{}\"\"'' ", strict=True))
_NO_SYNTAX = re.compile(r"""#.*|"[^"]*"|'[^']*'""")
MAX_VALUES = 100_000
"""A recipe has some hundred."""


class YamlError(Exception):
    """Text that is not YAML; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, rule) for tag, rule in rules if tag.rsplit(":")[-1] in ("null", "merge")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _tag, (_rule, _first) in _NUMBER.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_rule})$"), list(_first))


def parse_yaml(text: str) -> tuple[Any, dict[str, int], list[tuple[str, int]]]:
    """Return the values, dotted key -> line (from 1), and the (key, line) of keys that stand there before.

    Raises: YamlError.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_size(node)
        values = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _mistake(error, text) from error
    except (ValueError, AttributeError, LookupError, TypeError) as error:  # !!int x, !!timestamp x
        raise YamlError(f"a value is not what its tag (!!...) says: {error}", 1) from None
    except RecursionError:
        raise YamlError("it is nested too deeply", 1) from None
    lines: dict[str, int] = {}
    twice = []
    for key, line in _keys(node, ""):
        if key in lines:
            twice.append((key, line))
        else:
            lines[key] = line
    return values, lines, twice


def read_yaml(path: Path) -> tuple[Any, dict[str, int], list[tuple[str, int]]]:
    """`parse_yaml` of a file.

    Raises: ConfigError that names the file and the line.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    except YamlError as error:
        raise ConfigError(f"{path}:{error.line}: not YAML: {error}") from error


def _check_size(root: yaml.Node | None) -> None:
    """See that aliases do not multiply a few lines to more values than there is memory for.

    Raises: YamlError.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, around: tuple[int, ...]) -> int:
        if id(node) in around:
            raise YamlError("an alias that stands inside of what it names", node.start_mark.line + 1)
        if id(node) not in sizes:
            inner = (*around, id(node))
            children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
            children += node.value if isinstance(node, yaml.SequenceNode) else []
            sizes[id(node)] = 1 + sum(size(child, inner) for child in children)
            if sizes[id(node)] > MAX_VALUES:
                raise YamlError(f"its aliases stand for more than {MAX_VALUES:,} values", node.start_mark.line + 1)
        return sizes[id(node)]

    if root is not None:
        try:
            size(root, ())
        except RecursionError:
            raise YamlError("it is nested too deeply", 1) from None


def _keys(node: yaml.Node | None, prefix: str, around: tuple[yaml.Node, ...] = ()) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode) or node in around:
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        yield from _keys(value, f"{name}.", (*around, node))


def _mistake(error: yaml.YAMLError, text: str) -> YamlError:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return YamlError(f"a character that no text has (U+{int(error.character):04X}); remove it", line)
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "\\t" in problem:
        problem = "a tab in the indentation; use spaces"
    line = mark.line if mark else 0
    return YamlError(problem + full_width_hint("\n".join(text.splitlines()[: line + 1][-2:])), line + 1)


def full_width_hint(text: str) -> str:
    """What to add to a message about lines with Chinese punctuation that YAML takes for letters; else nothing."""
    found = next((sign for sign in _NO_SYNTAX.sub("", text) if sign in _HALF_WIDTH), None)
    if found is None:
        return ""
    return f"; U+{ord(found):04X} ({found}) is full-width, and YAML knows {_HALF_WIDTH[found]!r} alone: write it so"
