"""An adapter that a recipe goes on from, or a command is given: whose settings hold, what is said of a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from tiny_folder import write_original

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.opening import open_adapter
from hanlin.cli.main import main
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.files import open_weights
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import family
from hanlin.recipe.reading import load_recipe
from hanlin.tuning.apply import apply_tuning

RECIPE = """\
model: {{family: chatglm2, base: {home}/model}}
data: {{train: {home}/rows.jsonl, cache: {home}/cache, max_length: 64}}
train: {{steps: 1, batch_size: 1, lr: 0.01}}
run: {{folder: {home}/run, threads: 1}}
"""
LORA, PREFIX = (
    "tuning={method: lora, rank: 2, alpha: 6, targets: [query]}",
    "tuning={method: prefix, length: 3, projection: true}",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two runs that have trained an adapter on it."""
    home = tmp_path_factory.mktemp("home")
    write_original(home / "model")
    (home / "rows.jsonl").write_text('{"prompt": "你好", "response": "世界"}\n', "utf-8")
    (home / "recipe.yaml").write_text(RECIPE.format(home=home), "utf-8")
    for name, tuning in (("lora", LORA), ("prefix", PREFIX)):
        assert main(["train", str(home / "recipe.yaml"), tuning, f"run.folder={home}/{name}"]) == 0
    return home


def train(home: Path, folder: Path, adapter: Path, *changes: str) -> int:
    return main(["train", str(home / "recipe.yaml"), f"model.adapter={adapter}", f"run.folder={folder}", *changes])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("lora", {"rank": 2, "alpha": 6.0, "targets": ("query",)}), ("prefix", {"length": 3, "projection": True})],
)
def test_a_warm_start_takes_from_the_adapter_what_it_fixes(
    name: str, wanted: dict[str, Any], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = f"tuning.method={name}"
    assert train(home, tmp_path / "run", home / name / "last", method, "tuning.dropout=0.2") == 0
    tuning = load_recipe(tmp_path / "run").tuning
    assert {key: getattr(tuning, key) for key in wanted} == wanted
    # The same command goes on with the run, and so does its folder.
    assert train(home, tmp_path / "run", home / name / "last", method, "tuning.dropout=0.2", "train.steps=2") == 0
    assert main(["train", str(tmp_path / "run"), "train.steps=3"]) == 0
    assert main(["generate", str(tmp_path / "run"), "--record", '{"prompt": "你"}', "generate.max_new_tokens=2"]) == 0
    capsys.readouterr()
    first = next(iter(wanted))
    assert train(home, tmp_path / "other", home / name / "last", method, f"tuning.{first}=7") == 2
    assert f"tuning.{first}: 7, but model.adapter was trained with {wanted[first]}" in capsys.readouterr().err


def test_another_method_than_the_adapters_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(home, tmp_path / "run", home / "lora/last", "tuning.method=prefix") == 2
    assert "tuning.method: prefix, but model.adapter is a lora" in capsys.readouterr().err


def test_a_run_folder_stands_for_what_it_trained_and_a_checkpoint_for_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--base", str(home / "model"), "--record", '{"prompt": "你"}', "generate.max_new_tokens=2"]
    for name in ("lora", "prefix"):
        assert main([*words, "--adapter", str(home / name)]) == 0
        by_folder = capsys.readouterr().out
        assert main([*words, "--adapter", str(home / name / "last")]) == 0
        assert capsys.readouterr().out == by_folder
    assert (
        main(["convert", str(home / "lora"), str(tmp_path / "peft"), "--base", str(home / "model"), "--to", "peft"])
        == 0
    )
    checkpoint = next((home / "lora/checkpoints").glob("0*"))
    capsys.readouterr()
    assert main([*words, "--adapter", str(checkpoint)]) == 2
    message = capsys.readouterr().err
    assert "model.adapter" in message
    assert f"{home}/lora/last" in message
    assert train(home, tmp_path / "run", checkpoint, "tuning.method=lora") == 2
    assert "model.adapter" in capsys.readouterr().err
    shutil.copytree(home / "lora", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/last")
    assert main([*words, "--adapter", str(tmp_path / "bare")]) == 2
    assert "without best/ and last/" in capsys.readouterr().err


@pytest.mark.parametrize("purpose", ["check", "generate"])
def test_what_is_wrong_with_an_adapter_is_said_under_its_own_key(
    purpose: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "lora/last", tmp_path / "broken")
    values = read_json_object(tmp_path / "broken/adapter.json")
    write_json(tmp_path / "broken/adapter.json", {**values, "rank": "two"})
    words = {
        "check": [str(home / "recipe.yaml"), f"model.adapter={tmp_path}/broken", "tuning.method=lora"],
        "generate": [
            "--base",
            str(home / "model"),
            "--adapter",
            str(tmp_path / "broken"),
            "--record",
            '{"prompt": "x"}',
        ],
    }[purpose]
    assert main([purpose, *words]) == 2
    message = capsys.readouterr().err
    assert "model.adapter" in message
    assert "model.base:" not in message


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_a_run_becomes_a_folder_that_peft_loads_with_its_base(home: Path, tmp_path: Path) -> None:
    model, glm, out = str(home / "model"), str(tmp_path / "glm"), str(tmp_path / "peft")
    run = tmp_path / "run"
    tuning = "tuning={method: lora, rank: 2, targets: [query, gate, up]}"
    assert main(["train", str(home / "recipe.yaml"), tuning, f"run.folder={run}", "train.steps=3"]) == 0
    assert main(["convert", model, glm, "--to", "huggingface"]) == 0
    assert main(["convert", str(run), out, "--base", glm, "--to", "peft"]) == 0
    there = AutoPeftModelForCausalLM.from_pretrained(out).eval()
    config = read_config(model, family)
    adapter, here = open_adapter(run, family, config), family.model()(config)
    load_into(here, home / "model", family)
    load_adapter(apply_tuning(here, adapter.settings, family), adapter)
    tokens = torch.arange(3, 10)[None]
    with torch.no_grad():
        torch.testing.assert_close(there(input_ids=tokens).logits, here.eval()(tokens=tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "adapter", "--layout", "original"], "it goes with --to peft"),
        (["--to", "peft", "--layout", "quantized"], "--layout quantized: PEFT knows no model of chatglm2"),
    ],
)
def test_a_layout_without_meaning_is_refused(
    words: list[str], says: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--base", str(home / "model")]
    assert main(["convert", str(home / "lora"), str(tmp_path / "out"), *base, *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_lora_on_a_packed_base_is_merged_into_its_unpacked_weights(bits: int, home: Path, tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    assert main(["convert", str(home / "model"), str(packed), "--to", f"int{bits}"]) == 0
    assert main(["convert", str(packed), str(plain), "--to", "original"]) == 0
    run = tmp_path / "run"
    assert (
        main(["train", str(home / "recipe.yaml"), LORA, f"model.base={packed}", f"run.folder={run}", "train.steps=3"])
        == 0
    )
    for base, target in ((packed, "a"), (plain, "b")):
        assert (
            main(["convert", str(base), str(tmp_path / target), "--merge", str(run / "last"), "--to", "original"]) == 0
        )
    first, second = open_weights(tmp_path / "a"), open_weights(tmp_path / "b")
    unmerged = open_weights(plain)
    assert all(first[name].float().equal(second[name].float()) for name in second)
    fused = next(name for name in second if name.endswith("query_key_value.weight"))
    assert not first[fused].float().equal(unmerged[fused].float())
    assert main(["convert", str(packed), str(tmp_path / "c"), "--merge", str(run / "last"), "--to", f"int{bits}"]) == 0
    again = open_weights(tmp_path / "c")
    assert again[fused].dtype == torch.int8
    assert yaml.safe_load((tmp_path / "c/config.json").read_text())["quantization_bit"] == bits


def test_an_adapter_alone_is_no_whole_model_and_what_to_do_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name, expected in (
        ("lora", f"convert {home / 'model'} {out} --merge {home / 'lora/last'} --to huggingface"),
        ("prefix", "a prefix cannot be worked into weights, and --to huggingface writes whole models"),
    ):
        assert main(["convert", str(home / name / "last"), str(out), "--to", "huggingface"]) == 2
        assert expected in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("layout", "is_kept"), [("adapter", True), ("peft", False)])
def test_how_the_base_was_packed_is_written_again_or_said_to_be_lost(
    layout: str, is_kept: bool, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(home / "lora" / "last", tmp_path / "packed")
    (tmp_path / "packed/manifest.json").unlink()
    settings = read_json_object(tmp_path / "packed/adapter.json")
    write_json(tmp_path / "packed/adapter.json", {**settings, "quantise": "nf4"})
    words = [str(tmp_path / "packed"), str(tmp_path / "out"), "--to", layout, "--base", str(home / "model")]
    assert main(["convert", *words]) == 0
    kept = open_adapter(tmp_path / "out", family, read_config(home / "model", family)).quantise
    assert kept == ("nf4" if is_kept else None)
    assert ("a base held as nf4, which PEFT" in caplog.text) is not is_kept
