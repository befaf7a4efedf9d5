"""Weights, checkpoints, adapters and configs of an attacker."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hostile_attack import MARK, Attack, ask, change_json, change_recipe, script, write_json
from judging import Try, refused, words, works
from worlds import FAMILIES

from hanlin.core.manifest import write_manifest

CONVERT_ORIGINAL = "convert original out --vocab original/vocab.txt"


def attacks() -> Iterator[Attack]:
    yield from _code_in_weights()
    yield from _code_by_name()
    yield from _bombs()
    yield from _configs()
    yield from _adapters()
    yield from _json_texts()
    yield from _indexes()


class _Runs:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def _save(world: Path, name: str, form: str) -> None:
    content = {"x": torch.zeros(2), "y": _Runs(world / MARK)}
    path = world / "original" / name
    (path.parent / "pytorch_model.bin").unlink()
    if form == "bare":
        path.write_bytes(pickle.dumps(content["y"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    write_manifest(path.parent)


def _code_in_weights() -> Iterator[Attack]:
    for form, reason in (("zip", "holds posix.mkdir"), ("old", "holds posix.mkdir"), ("bare", "not a torch file")):
        for name in ("pytorch_model.bin", "model.pt", "delta.pt"):
            told = rf"original/{name}: .*{reason}"
            tries = [
                *refused(told, f"inspect original/{name}", undamaged="inspect original/pytorch_model.bin"),
                *refused(told, CONVERT_ORIGINAL, ask("--base", "original", "--vocab", "original/vocab.txt")),
                *refused(
                    told,
                    ask("--base", "base", "--adapter", f"original/{name}"),
                    undamaged=ask("--base", "base", "--adapter", "lora/best"),
                ),
            ]
            yield Attack(f"a pickle that runs code, {name}, {form}", partial(_save, name=name, form=form), tries)

    def metadata(world: Path) -> None:
        for path in (world / "full" / "checkpoints").glob("0*/tensors/.metadata"):
            path.write_bytes(pickle.dumps(_Runs(world / MARK)))
            write_manifest(path.parents[1])

    told = r"\.metadata.*posix\.mkdir"
    yield Attack("a checkpoint's metadata that run code", metadata, refused(told, "train full.yaml train.steps=6"))


def _code_by_name() -> Iterator[Attack]:
    told = r"evil\.py is Python code, which is not run"
    for command in ("check", "plan", "prepare", "evaluate", "train", "generate", "inspect"):
        argv = ask("full") if command == "generate" else (command, "full")
        proof = {"train": words("train fresh.yaml"), "prepare": words("prepare fresh.yaml")}.get(command, argv)
        for key in ("model.family", "data.transform"):
            does_without = command == "inspect" or (command, key) == ("plan", "data.transform")
            tries = works(argv) if does_without else refused(rf"{key}: .*{told}", argv, undamaged=proof)

            def plant(world: Path, key: str = key) -> None:
                change_recipe(world / "full" / "config.yaml", key, script(world))

            yield Attack(f"a run's own {key}, {command}", plant, tries)
    for key, value in (
        ("family", "evil.py"),
        ("family", "../world/evil.py"),
        ("model_type", "evil.py"),
        ("auto_map", {"AutoModel": "evil.Evil"}),
        ("architectures", ["evil.Evil"]),
    ):

        def config(world: Path, key: str = key, value: Any = value) -> None:
            (world / "base" / "evil.py").write_text(Path(script(world)).read_text())
            change_json(world / "base" / "config.json", {key: value})

        tries = [*works("inspect base"), *refused(rf"base.*: .*{key}", "convert base out", ask("--base", "base"))]
        yield Attack(f"config.json names code: {key}", config, tries)
    asked = ask("--base", "base", "--adapter", "lora/best")
    yield Attack(
        "adapter.json names code",
        lambda world: change_json(world / "lora" / "best" / "adapter.json", {"method": script(world)}),
        [*works("inspect lora/best"), *refused(r"adapter\.json: names the Python file .*evil\.py", asked)],
    )

    def records(world: Path) -> None:
        (world / "set").mkdir()
        payload = pickle.dumps(_Runs(world / MARK))
        content = b"\x1f" + struct.pack("<I", len(payload)) + payload
        (world / "set" / "part").write_bytes(content.ljust(512, b"\0"))
        about: dict[str, Any] = {"file_name": "part", "block_begin": 0, "block_end": 1, "nbytes": len(content)}
        about.update(nlines=1, mask=False, block_size=512)
        (world / "set" / "meta.bin").write_text(json.dumps(about))

    told = r"set/part:1 .*posix\.mkdir"
    tries = [
        *refused(told, "inspect set", undamaged="inspect rows.jsonl"),
        *refused(told, "check fresh.yaml data.train=[set]", undamaged="check fresh.yaml"),
        *refused(told, "train fresh.yaml data.train=[set]", undamaged="train fresh.yaml"),
    ]
    yield Attack("binary records that run code", records, tries)


# --- bombs ---


def _bombs() -> Iterator[Attack]:
    original, base = ("inspect original", CONVERT_ORIGINAL), ("inspect base", "convert base out", "train fresh.yaml")

    def deflated(world: Path) -> None:
        path = world / "original" / "pytorch_model.bin"
        buffer = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                big = bytes(1 << 28) if entry.filename.endswith("/data/0") else old.read(entry)
                new.writestr(entry.filename, big)
        path.write_bytes(buffer.getvalue())
        write_manifest(path.parent)

    yield Attack("a deflate bomb", deflated, refused(r"pytorch_model\.bin: .* is compressed", *original))

    def tensors(world: Path) -> None:
        torch.save({f"t{n}": torch.zeros(0) for n in range(250_000)}, world / "original" / "pytorch_model.bin")
        write_manifest(world / "original")

    told = r"pytorch_model\.bin: holds 250,0\d\d entries"
    yield Attack("hundreds of thousands of tensors", tensors, refused(told, *original))

    def header(world: Path) -> None:
        (world / "base" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
        write_manifest(world / "base")

    yield Attack("a giant header of safetensors", header, refused(r"model\.safetensors: .*header too large", *base))
    yield Attack(
        "a config nested deeply",
        lambda world: write_json(world / "base" / "config.json", '{"a": ' * 50_000),
        refused(r"base/config\.json: .*nested too deeply", *base),
    )

    def items(world: Path) -> None:
        content = bytearray((world / "corpus.idx").read_bytes())
        content[18:26] = struct.pack("<Q", 1 << 62)
        (world / "corpus.idx").write_bytes(content)

    told, changed = r"corpus\.idx: .*damaged or cut off", "train windows.yaml train.steps=6"
    yield Attack("an index of 2^62 items", items, refused(told, "inspect corpus", "check windows.yaml", changed))


# --- configs ---

UNREADABLE = r"config\.json: not readable as JSON \(not JSON: (NaN|Infinity)"
VALUES: list[tuple[str, Any, str]] = [
    ("num_layers", 10**6, "num_layers"),
    ("num_layers", 1e400, UNREADABLE),
    ("num_layers", -1, "num_layers"),
    ("num_layers", 0, "num_layers"),
    ("num_layers", "2", "num_layers"),
    ("num_layers", None, "num_layers"),
    ("num_layers", True, "num_layers"),
    ("num_layers", 2.5, "num_layers"),
    ("hidden_size", 10**12, "hidden_size"),
    ("hidden_size", 0, "hidden_size"),
    ("num_heads", 7, r"num_heads|found \[\d+(, \d+)?\], expected \["),
    ("num_heads", 0, "num_heads"),
    ("ffn_size", -5, "ffn_size"),
    ("ffn_size", 5, r"ffn_size|found \[\d+(, \d+)?\], expected \["),
    ("vocab_size", 10**15, "vocab_size"),
    ("vocab_size", 3, r"vocab_size|embedding.*found \[\d+, \d+\], expected \[3, \d+\]"),
    ("dropout", 2.0, "dropout"),
    ("dropout", float("nan"), UNREADABLE),
    ("eps", float("inf"), UNREADABLE),
    ("dtype", "float8", "dtype"),
    ("unknown_key", 1, "unknown_key"),
    ("family", 5, "family.* 5"),
    ("family", None, "family.* None"),
    ("family", "nosuch", "family.*nosuch"),
    ("family", "x" * 5000, "family"),
    ("format", [], "format"),
    ("num_position_buckets", 10**12, "num_position_buckets"),
    ("quantization_bit", 3, "quantization_bit"),
    ("", 1, "''"),
]
OF_ORIGINAL: list[tuple[str, Any, str]] = [
    *VALUES[:8],
    ("hidden_size", 0, "dim_model"),  # its other spelling
    ("dim_model", 10**9, "hidden_size"),
    *VALUES[10:12],
    ("half", "yes", "half"),
    ("int4", True, "int4"),
]


def _configs() -> Iterator[Attack]:
    names = {"cpm_bee": ("base", "fresh"), **{name: (f"{name}.base", name) for name in FAMILIES}}
    for family, (base, recipe) in names.items():
        for key, value, told in VALUES:
            yield Attack(
                f"{family}: config.json: {key}={value}"[:100],
                partial(_change_config, base=base, key=key, value=value),
                [
                    *(refused(told, f"inspect {base}") if told == UNREADABLE else works(f"inspect {base}")),
                    *refused(told, f"check {recipe}.yaml", f"train {recipe}.yaml", f"convert {base} out"),
                ],
            )
    for key, value, told in OF_ORIGINAL:
        seen = (refused if told == UNREADABLE else lambda _, command: works(command))(told, "inspect original")
        yield Attack(
            f"the original's config.json: {key}={value}",
            partial(_change_config, base="original", key=key, value=value),
            [*seen, *refused(told, CONVERT_ORIGINAL)],
        )


def _change_config(world: Path, base: str, key: str, value: Any) -> None:
    change_json(world / base / "config.json", {key: value})


def _adapters() -> Iterator[Attack]:
    asked = ask("--base", "base", "--adapter", "lora/best")
    for key, value, told in (
        ("rank", 10**12, "rank"),
        ("rank", 0, "rank"),
        ("rank", 5, "rank|lora"),
        ("rank", 1e400, "not readable as JSON"),
        ("alpha", float("nan"), "not readable as JSON"),
        ("alpha", "much", "alpha"),
        ("targets", "x", "no linear is called x"),
        ("targets", ["y"], "no linear is called y"),
        ("method", "nosuch", "method"),
        ("method", None, "method"),
        ("family", "cpm1", "family"),
        ("base", 5, "base"),
    ):

        def plant(world: Path, key: str = key, value: Any = value) -> None:
            change_json(world / "lora" / "best" / "adapter.json", {key: value})

        tries = refused(rf"(model\.adapter|tuning\.targets): .*{told}", asked, "train warm.yaml")
        yield Attack(f"adapter.json: {key}={value}", plant, [*works("inspect lora/best"), *tries])


def _json_texts() -> Iterator[Attack]:
    texts = ("", "[]", "5", "null", '{"a"', "\ufeff{}", '{"family": NaN}', '{"a": 1, "a": 2}', "\0", '"\\ud800"')
    resume, adapter = "train full.yaml train.steps=6", ask("--base", "base", "--adapter", "lora/best")
    files: dict[str, list[Try]] = {
        "base/config.json": refused(r"base/config\.json", "inspect base", "convert base out", "train fresh.yaml"),
        "original/config.json": refused(r"original/config\.json", "inspect original", CONVERT_ORIGINAL),
        "lora/best/adapter.json": refused(r"lora/best/adapter\.json", adapter),
        "full/checkpoints/*/state.json": refused(r"state\.json", resume),
    }
    for name, tries in files.items():
        for text in texts:
            yield Attack(f"{name} that holds {text!r}", partial(_write_all, name=name, text=text), tries)
    unlike = {
        "base/config.json": refused("base.*: its tensors are called as in no", "convert base out", "train fresh.yaml"),
        "original/config.json": refused(r"original: .*\n.*found \[\d+, \d+\], expected \[\d+, \d+\]", CONVERT_ORIGINAL),
        "lora/best/adapter.json": refused(r"lora/best: .*\n.*surplus", adapter),
        "full/checkpoints/*/state.json": refused(r"state\.json: lacks", resume),
    }
    for name, tries in unlike.items():
        yield Attack(f"{name} that holds nothing", partial(_write_all, name=name, text="{}"), tries)


def _write_all(world: Path, name: str, text: str) -> None:
    for path in world.glob(name):
        if path.parent.name.isdigit() or not name.startswith("full/"):
            write_json(path, text)


def _indexes() -> Iterator[Attack]:
    told = r"model\.safetensors\.index\.json"
    for name in ("../original/pytorch_model.bin", "/etc/passwd", "", ".", 5, None, ["x"], "x" * 300, "a\0b"):

        def plant(world: Path, name: Any = name) -> None:
            (world / "base" / "model.safetensors").rename(world / "base" / "model-1.safetensors")
            text = json.dumps({"weight_map": {"a": name}})
            write_json(world / "base" / "model.safetensors.index.json", text)

        tries = refused(told, "inspect base", "convert base out", "train fresh.yaml", "check fresh.yaml")
        yield Attack(f"an index that names {name!r:.40}", plant, tries)
