"""Files made to run code, to exhaust the machine, to lead elsewhere or to confuse, and the commands that meet them."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from trials import Tally, copy_of, every_nth, limit_memory, run
from worlds import remove

MEMORY_GIB, SECONDS = 6.0, 40.0
MARK = "code-ran"


class _Runs:
    """A pickle of it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


Attack = tuple[str, Callable[[Path], list[list[str]]]]
"""What it is, and what prepares it in a world and names the commands that have to refuse it or do without it."""


def attacks() -> Iterator[Attack]:
    yield from _code()
    yield from _bombs()
    yield from _configs()
    yield from _recipes()
    yield from _rows()
    yield from _places()


def drill(template: Path, place: Path, share: float = 1.0) -> Tally:
    """Meet `share` of all attacks with their commands."""
    start, tally = time.monotonic(), Tally("hostile files")
    every = list(attacks())
    for name, prepare in every[:: every_nth(share)]:
        with copy_of(template, place) as world:
            commands = prepare(world)
            for argv in commands:
                found = run(argv, world, prepare=lambda: limit_memory(MEMORY_GIB), timeout=SECONDS)
                fault = None
                if (world / MARK).exists():
                    fault = "silent"
                elif found.is_crash or found.is_late or found.code not in (0, 1, 2):
                    fault = "traceback"
                elif found.code == 2 and not found.output.strip():
                    fault = "silent"
                tally = tally.add(fault, f"{name}: {' '.join(argv)}: {found.code}: {found.output[-1200:]}")
    return Tally(**{**vars(tally), "seconds": time.monotonic() - start})


def _asked(world: Path, *model: str) -> list[str]:
    return ["generate", *model, "--record", json.dumps({"input": "今天", "<ans>": ""})]


# --- code ---


def _code() -> Iterator[Attack]:
    for name in ("pytorch_model.bin", "model.pt", "delta.pt"):
        for form in ("zip", "old", "bare"):

            def weights(world: Path, name: str = name, form: str = form) -> list[list[str]]:
                base = world / "original"
                (base / "pytorch_model.bin").unlink()
                _save({"x": torch.zeros(2), "y": _Runs(world / MARK)}, base / name, form)
                adapter = ["--base", "base", "--adapter", f"original/{name}"]
                return [
                    ["inspect", f"original/{name}"],
                    ["convert", "original", "out"],
                    _asked(world, "--base", "original", "--vocab", "original/vocab.txt"),
                    _asked(world, *adapter),
                ]

            yield f"a pickle that runs code, {name}, {form}", weights

    def metadata(world: Path) -> list[list[str]]:
        for path in (world / "full" / "checkpoints").glob("0*/tensors/.metadata"):
            path.write_bytes(pickle.dumps(_Runs(world / MARK)))
            _forget_manifest(path.parents[1])
        return [["train", "full.yaml", "train.steps=6"]]

    yield "a checkpoint's metadata that run code", metadata

    for command in (["check"], ["plan"], ["prepare"], ["generate"], ["evaluate"], ["inspect"], ["train"]):

        def family(world: Path, command: list[str] = command) -> list[list[str]]:
            _script(world)
            path = world / "full" / "config.yaml"
            recipe = yaml.safe_load(path.read_text())
            recipe["model"]["family"] = str(world / "evil.py")
            path.write_text(yaml.safe_dump(recipe))
            more = ["--record", "{}"] if command == ["generate"] else []
            return [[*command, "full", *more], [*command, "full/config.yaml", *more]]

        yield f"a run's own family, {command[0]}", family

        def transform(world: Path, command: list[str] = command) -> list[list[str]]:
            _script(world)
            path = world / "full" / "config.yaml"
            recipe = yaml.safe_load(path.read_text())
            recipe["data"]["transform"] = str(world / "evil.py")
            path.write_text(yaml.safe_dump(recipe))
            more = ["--record", "{}"] if command == ["generate"] else []
            return [[*command, "full", *more]]

        yield f"a run's own transform, {command[0]}", transform

    for key, value in (
        ("family", "evil.py"),
        ("family", "../w/evil.py"),
        ("model_type", "evil.py"),
        ("auto_map", {"AutoModel": "evil.Evil"}),
        ("architectures", ["evil.Evil"]),
    ):

        def config(world: Path, key: str = key, value: Any = value) -> list[list[str]]:
            _script(world)
            shutil.copy(world / "evil.py", world / "base" / "evil.py")
            _change_json(world / "base" / "config.json", {key: value})
            return [["inspect", "base"], ["convert", "base", "out"], _asked(world, "--base", "base")]

        yield f"config.json names code: {key}", config

    def adapter(world: Path) -> list[list[str]]:
        _script(world)
        _change_json(world / "lora" / "best" / "adapter.json", {"method": str(world / "evil.py")})
        return [["inspect", "lora/best"], _asked(world, "--base", "base", "--adapter", "lora/best")]

    yield "adapter.json names code", adapter

    def records(world: Path) -> list[list[str]]:
        (world / "set").mkdir()
        payload = pickle.dumps(_Runs(world / MARK))
        content = b"\x1f" + struct.pack("<I", len(payload)) + payload
        (world / "set" / "part").write_bytes(content.ljust(512, b"\0"))
        about = {
            "file_name": "part",
            "block_begin": 0,
            "block_end": 1,
            "nbytes": len(content),
            "nlines": 1,
            "mask": False,
            "block_size": 512,
        }
        (world / "set" / "meta.bin").write_text(json.dumps(about))
        return [
            ["inspect", "set"],
            ["check", "full.yaml", "data.train=[set]"],
            ["train", "full.yaml", "data.train=[set]"],
        ]

    yield "binary records that run code", records


def _script(world: Path) -> None:
    (world / "evil.py").write_text(f"import os\nos.mkdir({str(world / MARK)!r})\n")


def _save(content: Any, path: Path, form: str) -> None:
    if form == "bare":
        path.write_bytes(pickle.dumps(content["y"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


# --- bombs ---


def _bombs() -> Iterator[Attack]:
    def deflated(world: Path) -> list[list[str]]:
        path = world / "original" / "pytorch_model.bin"
        torch.save({"x": torch.zeros(4)}, path)
        buffer = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                big = bytes(1 << 28) if "/data/0" in entry.filename else old.read(entry)
                new.writestr(entry.filename, big)
        path.write_bytes(buffer.getvalue())
        return [["inspect", "original/pytorch_model.bin"], ["convert", "original", "out"]]

    yield "a deflate bomb", deflated

    def packed(world: Path) -> list[list[str]]:
        (world / "rows.jsonl").write_bytes(gzip.compress(b'{"input": "' + b"a" * (1 << 29), 9))
        return [["inspect", "rows.jsonl"], ["check", "full.yaml"], ["train", "full.yaml"]]

    yield "a gzip bomb of rows", packed

    def aliases(world: Path) -> list[list[str]]:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        (world / "bomb.yaml").write_text("\n".join(lines))
        (world / "full" / "config.yaml").write_text("\n".join(lines))
        return [
            ["check", "bomb.yaml"],
            ["train", "bomb.yaml"],
            ["generate", "full", "--record", "{}"],
            ["inspect", "full"],
        ]

    yield "YAML aliases that multiply", aliases

    def deep(world: Path) -> list[list[str]]:
        (world / "deep.yaml").write_text("model: " + "[" * 5000)
        (world / "rows.jsonl").write_text('{"a": ' * 20_000 + "\n")
        (world / "base" / "config.json").write_text('{"a": ' * 50_000)
        return [
            ["check", "deep.yaml"],
            ["check", "full.yaml"],
            ["inspect", "rows.jsonl"],
            ["inspect", "base"],
            ["convert", "base", "out"],
        ]

    yield "deep nesting", deep

    def headers(world: Path) -> list[list[str]]:
        path = world / "base" / "model.safetensors"
        path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
        return [["inspect", "base"], ["convert", "base", "out"], ["train", "full.yaml"]]

    yield "a giant header of safetensors", headers

    def tensors(world: Path) -> list[list[str]]:
        torch.save({f"t{n}": torch.zeros(0) for n in range(250_000)}, world / "original" / "pytorch_model.bin")
        return [["inspect", "original"], ["convert", "original", "out"]]

    yield "hundreds of thousands of tensors", tensors

    def items(world: Path) -> list[list[str]]:
        content = bytearray((world / "corpus.idx").read_bytes())
        content[18:26] = struct.pack("<Q", 1 << 62)
        (world / "corpus.idx").write_bytes(content)
        return [["inspect", "corpus"], ["check", "windows.yaml"], ["train", "windows.yaml"]]

    yield "an index of 2^62 items", items


def _configs() -> Iterator[Attack]:
    sizes: list[tuple[str, Any]] = [
        ("num_layers", 10**6),
        ("num_layers", 1e400),
        ("num_layers", -1),
        ("num_layers", 0),
        ("num_layers", "2"),
        ("num_layers", None),
        ("num_layers", True),
        ("num_layers", 2.5),
        ("hidden_size", 10**12),
        ("hidden_size", 0),
        ("num_heads", 7),
        ("num_heads", 0),
        ("ffn_size", -5),
        ("vocab_size", 10**15),
        ("vocab_size", 3),
        ("dropout", 2.0),
        ("dropout", float("nan")),
        ("eps", float("inf")),
        ("dtype", "float8"),
        ("unknown_key", 1),
        ("family", 5),
        ("family", None),
        ("family", "nosuch"),
        ("family", "x" * 5000),
        ("format", []),
        ("head_size", 10**9),
        ("max_length", -1),
        ("num_position_buckets", 10**12),
        ("rope_theta", 0),
        ("quantization_bit", 3),
        ("", 1),
    ]
    for key, value in sizes:

        def config(world: Path, key: str = key, value: Any = value) -> list[list[str]]:
            _change_json(world / "base" / "config.json", {key: value})
            return [["inspect", "base"], ["check", "full.yaml"], ["train", "full.yaml"], ["convert", "base", "out"]]

        yield f"config.json: {key}={value}", config
    for key, value in [*sizes[:12], ("dim_model", 10**9), ("half", "yes"), ("int4", True)]:

        def original(world: Path, key: str = key, value: Any = value) -> list[list[str]]:
            _change_json(world / "original" / "config.json", {key: value})
            return [["inspect", "original"], ["convert", "original", "out"]]

        yield f"the original's config.json: {key}={value}", original
    for key, value in (
        ("rank", 10**12),
        ("rank", 0),
        ("rank", 1e400),
        ("rank", "8"),
        ("alpha", float("nan")),
        ("targets", "x"),
        ("targets", ["y"]),
        ("method", "nosuch"),
        ("method", None),
        ("family", "cpm1"),
        ("base", 5),
    ):

        def adapter(world: Path, key: str = key, value: Any = value) -> list[list[str]]:
            path = world / "lora" / "best" / "adapter.json"
            values = json.loads(path.read_text())
            inner = values.get("tuning", values)
            (inner if isinstance(inner, dict) and key in inner else values)[key] = value
            path.write_text(json.dumps(values))
            _forget_manifest(path.parent)
            return [["inspect", "lora/best"], _asked(world, "--base", "base", "--adapter", "lora/best")]

        yield f"adapter.json: {key}={value}", adapter
    for text in (
        "",
        "[]",
        "5",
        "null",
        '{"a"',
        "\ufeff{}",
        "{}",
        '{"family": NaN}',
        '{"a": 1, "a": 2}',
        "\x00",
        '"\\ud800"',
    ):

        def whole(world: Path, text: str = text) -> list[list[str]]:
            for name in ("base/config.json", "lora/best/adapter.json", "original/config.json"):
                (world / name).write_text(text, "utf-8")
                _forget_manifest((world / name).parent)
            for path in (world / "full" / "checkpoints").glob("0*/state.json"):
                path.write_text(text, "utf-8")
                _forget_manifest(path.parent)
            return [
                ["inspect", "base", "original", "lora/best"],
                ["convert", "original", "out"],
                ["convert", "base", "out2"],
                _asked(world, "--base", "full/best", "--adapter", "lora/best"),
                ["train", "full.yaml", "train.steps=6"],
            ]

        yield f"JSON files that hold {text!r}", whole


# --- recipes, rows and places ---


def _recipes() -> Iterator[Attack]:
    texts: list[bytes] = [
        b"",
        b"\0",
        b"model: \0",
        b"\xff\xfe",
        b"a: b: c",
        b"- 1",
        b"5",
        b"model: 5",
        b"model: [1]",
        b"data: null",
        b"{",
        b"!!python/object/apply:os.mkdir [code-ran]",
        b"model: !!python/name:os.system",
        b"model: &a {family: *a}",
        b"&a [*a]",
        b"model: {family: cpm_bee, family: cpm1}",
        b"? [a]\n: b",
        b"1: 2",
        b"model: {family: " + b"x" * 100_000 + b"}",
        b"model: {base: " + b"y" * 300 + b"}",
        "model: {family: 翰林}".encode(),
        b"%YAML 9.9\n---\na: 1",
        b"model: {base: /dev/zero}",
        b"model: {base: /proc/self/mem}",
        b"---\na: 1\n---\nb: 2",
        b"model:\n\tfamily: x",
        b"train: {lr: .nan}",
        b"train: {lr: -.inf}",
        b"train: {steps: 1e400}",
        b"run: {seed: 9223372036854775808}",
        b"run: {folder: /}",
        b"run: {folder: /proc/x}",
        b"data: {train: [/dev/stdin]}",
        b'data: {train: [""]}',
        b"data: {train: [.]}",
        b"data: {cache: /dev/null/x}",
    ]
    for text in texts:

        def recipe(world: Path, text: bytes = text) -> list[list[str]]:
            (world / "bad.yaml").write_bytes(text)
            return [
                ["check", "bad.yaml"],
                ["train", "bad.yaml"],
                ["inspect", "bad.yaml"],
                ["evaluate", "bad.yaml"],
                ["plan", "bad.yaml"],
            ]

        yield f"a recipe: {text[:60]!r}", recipe
    for change in (
        "x",
        "=",
        "a=",
        "=b",
        "train.lr=",
        "train.lr=abc",
        "train=5",
        "train.lr.x=1",
        "train.lr=[",
        "model.base=\0",
        f"model.base={'b' * 5000}",
        "data.train=[[1]]",
        "train.steps=-1",
        "run.threads=100000",
        "train.batch_size=1e30",
        "tuning.method=/etc/passwd",
        "train.optimizer=/etc/passwd",
        "generate.method=../../x.py",
        "model.vocab=/dev/zero",
        "data.max_length=99999999999",
        "train.steps=1e10",
        "train.batch_size=100000000",
    ):

        def changed(world: Path, change: str = change) -> list[list[str]]:
            return [["check", "full.yaml", change], ["train", "full.yaml", change], ["evaluate", "full.yaml", change]]

        yield f"a change: {change[:40]!r}", changed


def _rows() -> Iterator[Attack]:
    rows: list[bytes] = [
        b"",
        b"\n\n",
        b"\0\0\0",
        b"{}",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"[1, 2]",
        b"[{}]",
        b'{"<ans>": 1}',
        b'{"<ans>": ""}',
        b'{"input": null, "<ans>": "a"}',
        b'{"input": "\\ud800", "<ans>": "a"}',
        b'{"input": 1e999, "<ans>": "a"}',
        b'{"a": NaN, "<ans>": "x"}',
        b'{"a": "b", "a": "c", "<ans>": "x"}',
        b"\xff\xff\xff",
        '{"input": "今"'.encode(),
        '{"input": "今", "<ans>": "好"}'.encode("gb18030"),
        '{"input": "今", "<ans>": "好"}'.encode("utf-16"),
        b'{"input": "a\\u0000b", "<ans>": "x"}',
        b'{"input": {"b": {"c": [1, {"d": "e"}]}}, "<ans>": "x"}',
        b'{"input": "</s>", "<ans>": "<root>"}',
        json.dumps({**{f"k{n}": "v" for n in range(4000)}, "<ans>": "x"}).encode(),
        b'{"input": "' + b"a" * 40_000_000 + b'", "<ans>": "x"}',
        b'{"<ans>": {"<mask_0>": "x"}}',
        b'{"input": "<mask_0><mask_0>", "<ans>": {"<mask_0>": "x"}}',
        b'{"options": {"<option_0>": "x"}, "<ans>": "<option_7>"}',
        b'{"options": [1], "<ans>": "x"}',
        b'{"input": "a", "<ans>": "x"}\n' * 3 + b'{"input"',
        b"\x1f\x8b\x08\x00broken",
        b"PK\x03\x04",
        b"ARROW1\0\0" + b"\0" * 40,
        b'{"input": true, "<ans>": "x"}',
        b'{"": "x", "<ans>": "y"}',
    ]
    for content in rows:
        for policy in ("error", "drop"):

            def bad(world: Path, content: bytes = content, policy: str = policy) -> list[list[str]]:
                (world / "rows.jsonl").write_bytes(content)
                remove(world / "full")
                drop = f"data.bad_rows={policy}"
                read = [
                    ["check", "full.yaml", drop],
                    ["train", "full.yaml", drop, "train.steps=1"],
                    ["inspect", "rows.jsonl"],
                ]
                if content.count(b'"k') > 1000:  # a question may be so long; to answer it takes its time
                    return read
                return [*read, ["generate", "lora.yaml", "--input", "rows.jsonl", "--output", "out.jsonl"]]

            yield f"rows, {policy}: {content[:50]!r}", bad


def _places() -> Iterator[Attack]:
    def pipes(world: Path) -> list[list[str]]:
        for name in (
            "rows.jsonl",
            "corpus.bin",
            "poems.txt",
            "vocab.txt",
            "base/config.json",
            "base/model.safetensors",
            "asked.jsonl",
        ):
            (world / name).unlink()
            os.mkfifo(world / name)
        return [
            ["inspect", "rows.jsonl"],
            ["check", "full.yaml"],
            ["check", "windows.yaml"],
            ["inspect", "corpus"],
            ["inspect", "base"],
            ["convert", "base", "out"],
            ["prepare", "--to", "indexed", "poems.txt", "made", "--vocab", "original/vocab.txt"],
            ["generate", "full.yaml", "--input", "asked.jsonl", "--output", "o.jsonl"],
        ]

    yield "named pipes", pipes

    def folders(world: Path) -> list[list[str]]:
        for name in (
            "rows.jsonl",
            "vocab.txt",
            "corpus.bin",
            "base/config.json",
            "full.yaml",
            "asked.jsonl",
            "full/checkpoints/latest",
            "full/metrics.jsonl",
        ):
            remove(world / name)
            (world / name).mkdir()
        shutil.copy(world / "lora.yaml", world / "again.yaml")
        return [
            ["inspect", "rows.jsonl"],
            ["check", "lora.yaml"],
            ["train", "lora.yaml", "train.steps=6"],
            ["check", "windows.yaml"],
            ["inspect", "base"],
            ["check", "full.yaml"],
            ["report", "full"],
            ["train", "background.yaml"],
        ]

    yield "folders in the place of files", folders

    def links(world: Path) -> list[list[str]]:
        for name in ("rows.jsonl", "corpus.idx", "base/config.json", "full.yaml"):
            (world / name).unlink()
            (world / name).symlink_to(world / name)
        return [
            ["inspect", "rows.jsonl"],
            ["check", "lora.yaml"],
            ["check", "windows.yaml"],
            ["inspect", "base"],
            ["check", "full.yaml"],
            ["convert", "base", "out"],
        ]

    yield "links that lead to themselves", links

    def index(world: Path) -> list[list[str]]:
        (world / "base" / "model.safetensors").rename(world / "base" / "model-1.safetensors")
        for name in ("../original/pytorch_model.bin", "/etc/passwd", "", ".", 5, None, ["x"], "x" * 300, "a\0b"):
            (world / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        return [["inspect", "base"], ["convert", "base", "out"], ["train", "full.yaml"], ["check", "full.yaml"]]

    yield "an index that names files elsewhere", index

    def long(world: Path) -> list[list[str]]:
        name = "n" * 300
        return [
            ["inspect", name],
            ["check", name],
            ["train", "full.yaml", f"run.folder={name}"],
            ["convert", "base", name],
            ["convert", name, "out"],
            ["generate", "full.yaml", "--input", name],
            ["generate", "full.yaml", "--input", "asked.jsonl", "--output", name],
            ["evaluate", "full.yaml", "--json", name],
            ["prepare", "--to", "indexed", "poems.txt", name, "--vocab", "vocab.txt"],
            ["report", name],
            ["inspect", "a\nb"],
            ["inspect", ""],
            ["check", ""],
            ["convert", "", ""],
            ["prepare", "--to", "indexed", "", "", "--vocab", ""],
        ]

    yield "names that no file has", long

    def missing(world: Path) -> list[list[str]]:
        shutil.rmtree(world / "full" / "checkpoints")
        shutil.rmtree(world / "base")
        return [
            ["train", "full.yaml", "train.steps=6"],
            ["evaluate", "lora.yaml"],
            ["generate", "lora.yaml", "--record", "{}"],
            ["check", "lora.yaml"],
            ["report", "lora"],
            ["inspect", "lora"],
        ]

    yield "bases and checkpoints that are gone", missing


def _change_json(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, **changes}), "utf-8")
    _forget_manifest(path.parent)


def _forget_manifest(folder: Path) -> None:
    """An attacker writes a manifest that fits, or none."""
    for path in folder.glob("manifest*.json"):
        path.unlink()
