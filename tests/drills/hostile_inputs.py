"""Recipes, changes, rows and places of an attacker."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hostile_attack import Attack, ask, change_recipe
from judging import refused, words, works
from worlds import remove

CONVERT = "convert base out"
RESUME = ("check full.yaml train.steps=6", "train full.yaml train.steps=6")
FRESH = ("check fresh.yaml", "train fresh.yaml")
TO_CORPUS = "prepare --to indexed poems.txt made --vocab vocab.txt"
ANSWERS = "generate lora.yaml --input rows.jsonl --output out.jsonl"


def attacks() -> Iterator[Attack]:
    yield from _recipe_texts()
    yield from _settings()
    yield from _changes()
    yield from _whole_files()
    yield from _rows()
    yield from _rows_of_families()
    yield from _places()
    yield from _long_names()


# --- recipes ---


def _recipe_texts() -> Iterator[Attack]:
    aliases = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    aliases += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    texts: list[tuple[bytes, str]] = [
        (b"", "a recipe has sections"),
        (b"\0", r":1: .*U\+0000"),
        (b"model: \0", r":1: .*U\+0000"),
        (b"\xff\xfe", "not a text file in UTF-8"),
        (b"a: b: c", ":1: not YAML"),
        (b"- 1", "a recipe has sections"),
        (b"5", "a recipe has sections"),
        (b"{", ":1: not YAML"),
        (b"!!python/object/apply:os.mkdir [code-ran]", ":1: not YAML: .*os.mkdir"),
        (b"model: !!python/name:os.system", ":1: not YAML: .*os.system"),
        (b"model: &a {family: *a}", ":1: not YAML: an alias that stands inside"),
        (b"&a [*a]", ":1: not YAML: an alias that stands inside"),
        (b"model: {family: cpm_bee, family: cpm1}", ":1: .*family.*(twice|again|duplicate)"),
        (b"? [a]\n: b", ":1: not YAML: found unhashable key"),
        (b"1: 2", ":1: 1: .*strings"),
        (b"%YAML 9.9\n---\na: 1", ":1: not YAML: .*version"),
        (b"---\na: 1\n---\nb: 2", ":3: not YAML: .*another document"),
        (b"model:\n\tfamily: x", ":2: not YAML: a tab"),
        (b"model: " + b"[" * 5000, ":1: not YAML: it is nested too deeply"),
        ("\n".join(aliases).encode(), r":\d+: not YAML: its aliases stand for more than 100,000 values"),
    ]
    for text, told in texts:

        def plant(world: Path, text: bytes = text) -> None:
            for name in ("fresh.yaml", "full/config.yaml"):
                (world / name).write_bytes(text)

        said = told if told.startswith(":") else f": .*{told}"
        commands = (*FRESH, "inspect fresh.yaml", "evaluate fresh.yaml --weights base", "plan fresh.yaml")
        tries = [*refused(rf"fresh\.yaml{said}", *commands), *refused(rf"full/config\.yaml{said}", ask("full"))]
        yield Attack(f"a recipe: {text[:60]!r}", plant, tries)


VALUES: list[tuple[str, Any]] = [
    ("model", 5),
    ("model", [1]),
    ("model", None),
    ("data", None),
    ("model.family", "x" * 100_000),
    ("model.family", "翰林"),
    ("model.family", None),
    ("model.base", "y" * 300),
    ("model.base", "/dev/zero"),
    ("model.base", "/proc/self/mem"),
    ("model.vocab", "/dev/zero"),
    ("train.lr", float("nan")),
    ("train.lr", float("-inf")),
    ("train.steps", float("inf")),
    ("train.steps", 0),
    ("run.seed", 2**63),
    ("run.folder", "/proc/x"),
    ("run.folder", 7),
    ("data.train", ["/dev/stdin"]),
    ("data.train", [""]),
    ("data.train", [[1]]),
    ("data.max_length", 0),
    ("data.cache", "/dev/null/x"),
    ("generate.max_new_tokens", -1),
    ("tuning.method", "nosuch"),
    ("no_section", {"a": 1}),
    ("train.no_setting", 1),
]


def _settings() -> Iterator[Attack]:
    """A right recipe of which one setting is not."""
    for key, value in VALUES:
        yield Attack(
            f"a setting: {key}={value!r}"[:70],
            lambda world, key=key, value=value: change_recipe(world / "fresh.yaml", key, value),
            refused(key, *FRESH),
        )


def _changes() -> Iterator[Attack]:
    changes: list[tuple[str, str]] = [
        ("x", "'x' is not a change"),
        ("=", "'=' is not a change"),
        ("a=", "a: there is no such setting"),
        ("=b", "'=b' is not a change"),
        ("train.lr=", r"train\.lr"),
        ("train.lr=abc", r"train\.lr.*abc"),
        ("train=5", "train: .*5"),
        ("train.lr.x=1", r"train\.lr\.x"),
        ("train.lr=[", r"train\.lr"),
        ("model.base=\0", r"model\.base: .*U\+0000"),
        (f"model.base={'b' * 5000}", r"model\.base: .*255 bytes"),
        ("data.train=[[1]]", r"data\.train"),
        ("train.steps=-1", r"train\.steps: .*-1"),
        ("run.threads=100000", r"run\.threads: .*1024"),
        ("train.batch_size=1e30", r"train\.batch_size"),
        ("tuning.method=/etc/passwd", r"tuning\.method: .*/etc/passwd"),
        ("train.optimizer=/etc/passwd", r"train\.optimizer.*: .*/etc/passwd"),
        ("generate.method=../../x.py", r"generate\.method: .*x\.py"),
        ("model.vocab=/dev/zero", r"model\.vocab: /dev/zero"),
        ("data.max_length=99999999999", r"data\.max_length: .*99999999999"),
        ("train.steps=1e10", r"train\.steps"),
        ("train.batch_size=100000000", r"train\.batch_size: .*100000000"),
    ]
    for change, told in changes:
        tries = [try_ for one in FRESH for try_ in refused(told, (*words(one), change), undamaged=one)]
        evaluate = words("evaluate fresh.yaml --weights base")
        unknown = "unrecognized arguments: x" if change == "x" else told  # argparse's own words
        tries += refused(unknown, (*evaluate, change), undamaged=evaluate)
        yield Attack(f"a change: {change[:40]!r}", lambda world: None, tries)


# --- rows ---


def _whole_files() -> Iterator[Attack]:
    """Files that hold no rows."""
    contents: list[tuple[bytes, str]] = [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b"[]", "the list is empty"),
        ('{"input": "今", "<ans>": "好"}'.encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00broken", "damaged or cut off"),
        (gzip.compress(b'{"input": "' + b"a" * (1 << 29), 9), "unpacks to more than 50 times its size"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"ARROW1\0\0" + b"\0" * 40, "Not an Arrow file"),
        (b"\0\0\0", "NUL byte"),
        (b"[1, 2]", r"\(entry 1\)"),
        (b"[{}]", r"\(entry 1\): no \"<ans>\""),
    ]
    for content, told in contents:
        tries = refused(rf"rows\.jsonl(:1)?:? .*{told}", *FRESH, "inspect rows.jsonl", ANSWERS)
        seen_only = {b"[{}]", b"[1, 2]"}  # `inspect` shows what there is
        if content in seen_only:
            tries[2:3] = works("inspect rows.jsonl")
        yield Attack(f"rows: {content[:50]!r}", lambda world, c=content: (world / "rows.jsonl").write_bytes(c), tries)


def _keys(count: int) -> bytes:
    return json.dumps({**{f"k{n}": "v" for n in range(count)}, "<ans>": "x"}).encode()


BAD_ROWS: list[tuple[bytes, str]] = [
    (b"{}", 'no "<ans>"'),
    (b"null", "found null"),
    (b"5", "found a number"),
    (b'"x"', "found a string"),
    (b"[1]", "found a list"),
    (b'{"<ans>": 1}', "<ans>: expected a text or a dict, found 1"),
    (b'{"input": null, "<ans>": "a"}', "input: .*null"),
    (b'{"input": "\\ud800", "<ans>": "a"}', "half a character"),
    (b'{"input": 1e999, "<ans>": "a"}', "1e999"),
    (b'{"a": NaN, "<ans>": "x"}', "NaN"),
    (b'{"a": "b", "a": "c", "<ans>": "x"}', "duplicate key 'a'"),
    (b"\xff\xff\xff", "not UTF-8"),
    ('{"input": "今"'.encode(), "not JSON"),
    ('{"input": "今", "<ans>": "好"}'.encode("gb18030"), "not UTF-8: .*GB18030"),
    (b'{"a": ' * 20_000, "nested too deeply"),
    (b'{"input": {"b": {"c": [1, {"d": "e"}]}}, "<ans>": "x"}', "input.b.c: .*found a list"),
    (b'{"input": "</s>", "<ans>": "x"}', "input: holds the control mark </s>"),
    (_keys(4000), "more than 4,096 keys and texts"),
    (_keys(5000), "more than 4,096 keys and texts"),
    (_keys(2000), "too long|max_length"),
    (b'{"input": "' + b"a" * 40_000_000 + b'", "<ans>": "x"}', "a line of 40,000,027 bytes"),
    (b'{"<ans>": {"<mask_0>": "x"}}', "<mask_0>"),
    (b'{"options": {"<option_0>": "x"}, "<ans>": "<option_7>"}', "<option_7>"),
    (b'{"options": [1], "<ans>": "x"}', "options: .*found a list"),
    (b'{"input": true, "<ans>": "x"}', "input: .*found True"),
]
ANSWERED = {b'{"<ans>": 1}', b'{"options": {"<option_0>": "x"}, "<ans>": "<option_7>"}', _keys(2000)}
"""What is no row to train on, but a question."""
GOOD_ROWS = [b'{"input": "a\\u0000b", "<ans>": "x"}', b'{"": "x", "<ans>": "y"}', _keys(8)]


def _append(world: Path, name: str, content: bytes) -> None:
    with open(world / name, "ab") as file:
        file.write(content + b"\n")


def _rows() -> Iterator[Attack]:
    """Right rows and a bad one: refused by its line, or left out when the recipe says so."""
    check, train = (f"{command} data.bad_rows=drop data.overlong=drop" for command in FRESH)
    for content, reason in BAD_ROWS:
        told = rf"rows\.jsonl:13: .*({reason})"
        asked = works(ANSWERS) if content in ANSWERED else refused(told, ANSWERS)
        if content == _keys(2000):
            asked = []  # a question may be so long; to answer it takes its time
        tries = [*refused(told, *FRESH), *asked, *works(check), *works(train, told=r"rows dropped +1 \(7\.7%\)")]
        yield Attack(f"a row: {content[:50]!r}", partial(_append, name="rows.jsonl", content=content), tries)
    for content in GOOD_ROWS:
        plant = partial(_append, name="rows.jsonl", content=content)
        yield Attack(f"an odd row: {content[:50]!r}", plant, works(*FRESH, ANSWERS))


ROW_KEYS = {
    "chatglm2": ("prompt", "response", 16),
    "cpm2": ("source", "target", 10),
    "cpm1": ("prompt", "answer", 16),
    "cpm1_t5": ("source", "target", 16),
}
"""What is asked, what is answered, and the number of the line behind the right ones."""
MAY_BE_ODD = {"cpm2": {"source": ('""',)}, "cpm1": {"prompt": ('""', "[]")}}
"""What a question may also be: nothing, from which an answer begins freely."""
ROW_VALUES: list[tuple[str, str]] = [
    ("null", "None|null"),
    ("5", "number|5"),
    ("true", "True|true"),
    ("[]", r"list|empty|found \[\]"),
    ('{"a": 1}', r"object|dict|found \{"),
    ('"\\ud800"', "half a character"),
    ("NaN", "NaN"),
    ('""', "empty"),
]


def _rows_of_families() -> Iterator[Attack]:
    for family, (first, last, number) in ROW_KEYS.items():
        commands = (f"check {family}.yaml", f"train {family}.yaml")
        right = {first: '"月"', last: '"光"'}
        spoilt = [({**right, key: value}, reason) for key in right for value, reason in ROW_VALUES]
        spoilt += [({key: right[key]}, "") for key in right]
        for row, reason in spoilt:
            line = "{" + ", ".join(f'"{name}": {value}' for name, value in row.items()) + "}"
            told = rf"{family}\.jsonl:{number}: .*({reason})"
            plant = partial(_append, name=f"{family}.jsonl", content=line.encode())
            may_be = any(row.get(key) in odd for key, odd in MAY_BE_ODD.get(family, {}).items())
            tries = works(*commands) if may_be else refused(told, *commands)
            yield Attack(f"a row of {family}: {line}", plant, tries)


# --- places ---


def _places() -> Iterator[Attack]:
    def made(kind: Callable[[Path], object], name: str) -> Callable[[Path], None]:
        def plant(world: Path) -> None:
            remove(world / name)
            kind(world / name)

        return plant

    readers: dict[str, Sequence[str | Sequence[str]]] = {
        "rows.jsonl": ("inspect rows.jsonl", *FRESH),
        "corpus.bin": ("check windows.yaml", "train windows.yaml train.steps=6"),
        "corpus.idx": ("inspect corpus", "check windows.yaml", "train windows.yaml train.steps=6"),
        "poems.txt": (TO_CORPUS,),
        "vocab.txt": ("check windows.yaml", TO_CORPUS),
        "base/config.json": ("inspect base", CONVERT, *FRESH),
        "base/model.safetensors": ("inspect base", CONVERT, *FRESH),
        "base/vocab.txt": FRESH,
        "asked.jsonl": ("generate full.yaml --input asked.jsonl --output o.jsonl",),
        "fresh.yaml": FRESH,
        "full/log.txt": RESUME,
        "full/metrics.jsonl": RESUME,
        "full/config.yaml": RESUME,
        "full/checkpoints/latest": RESUME,
        "lora/best/adapter.json": (ask("--base", "base", "--adapter", "lora/best"), "train warm.yaml"),
        "lora/best/adapter.safetensors": (ask("--base", "base", "--adapter", "lora/best"), "train warm.yaml"),
    }
    kinds: dict[str, Callable[[Path], object]] = {
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a link to itself": lambda path: path.symlink_to(path),
    }
    for name, commands in readers.items():
        for kind, make in kinds.items():
            path = Path(name)
            told = rf"{path.parent if path.parent.name else ''}.*{re.escape(path.name)}"
            yield Attack(f"{kind} for {name}", made(make, name), refused(told, *commands))
    resume = ["train full.yaml train.steps=6", "evaluate lora.yaml", "check lora.yaml", "train lora.yaml train.steps=6"]

    def gone(world: Path) -> None:
        shutil.rmtree(world / "full" / "checkpoints")
        shutil.rmtree(world / "base")

    told = r"(model\.base: there is no .*base|full/checkpoints holds none)"
    yield Attack("bases and checkpoints that are gone", gone, refused(told, *resume, ask("lora.yaml")))


def _long_names() -> Iterator[Attack]:
    """Names that no file has."""
    name, told = "n" * 300, "nnnn"
    commands: list[tuple[Sequence[str], str | Sequence[str]]] = [
        (["inspect", name], "inspect rows.jsonl"),
        (["check", name], "check fresh.yaml"),
        (["train", "fresh.yaml", f"run.folder={name}"], "train fresh.yaml run.folder=other"),
        (["convert", "base", name], CONVERT),
        (["convert", name, "out"], CONVERT),
        (["generate", "full.yaml", "--input", name], "generate full.yaml --input asked.jsonl"),
        (
            ["generate", "full.yaml", "--input", "asked.jsonl", "--output", name],
            "generate full.yaml --input asked.jsonl --output o.jsonl",
        ),
        (["evaluate", "full.yaml", "--json", name], "evaluate full.yaml --json x.json"),
        ([*words(TO_CORPUS)[:4], name, "--vocab", "vocab.txt"], TO_CORPUS),
        (["report", name], "report full"),
    ]
    tries = [one for argv, proof in commands for one in refused(told, argv, undamaged=proof)]
    tries += refused(r"a\\?n?\s*b", ["inspect", "a\nb"], undamaged="inspect rows.jsonl")
    for argv, proof in (
        (["inspect", ""], "inspect rows.jsonl"),
        (["check", ""], "check fresh.yaml"),
        (["convert", "", "out"], CONVERT),
        (["convert", "base", ""], CONVERT),
        (["prepare", "--to", "indexed", "", "made", "--vocab", "vocab.txt"], TO_CORPUS),
    ):
        tries += refused("empty", argv, undamaged=proof)
    yield Attack("names that no file has", lambda world: None, tries)
