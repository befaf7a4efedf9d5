"""`convert` and `inspect` on small checkpoints in the original form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hanlin.cli.main import main
from hanlin.core.files import write_json
from hanlin.formats.files import open_weights, write_safetensors


@pytest.fixture
def case(shared: Path) -> Path:
    return shared / "golden" / "bee_lora"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    weights = open_weights(path)
    return {name: weights[name].clone() for name in weights}


def assert_equal(found: Path, expected: Path) -> None:
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_original_comes_back_bit_for_bit(case: Path, tmp_path: Path) -> None:
    base, back = tmp_path / "base", tmp_path / "back"
    assert main(["convert", str(case / "pytorch_model.bin"), str(base)]) == 0
    assert main(["convert", str(base), str(back), "--to", "original"]) == 0
    assert_equal(back / "pytorch_model.bin", case / "pytorch_model.bin")


def test_a_delta_comes_back_bit_for_bit(case: Path, tmp_path: Path) -> None:
    delta, base = next(case.glob("*delta*.pt")), case / "pytorch_model.bin"
    ours, back = tmp_path / "adapter", tmp_path / "delta.pt"
    assert main(["convert", str(delta), str(ours), "--base", str(base)]) == 0
    assert main(["convert", str(ours), str(back), "--base", str(base), "--to", "delta"]) == 0
    assert_equal(back, delta)


def test_merging_changes_only_the_targets(case: Path, tmp_path: Path) -> None:
    delta, base = next(case.glob("*delta*.pt")), case / "pytorch_model.bin"
    merged = tmp_path / "merged"
    assert main(["convert", str(base), str(merged), "--merge", str(delta), "--to", "original"]) == 0
    before, after = tensors(base), tensors(merged / "pytorch_model.bin")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"project_q", "project_v"}


def test_inspect_says_what_and_why(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delta = next(case.glob("*delta*.pt"))
    assert main(["inspect", str(case / "pytorch_model.bin"), str(delta)]) == 0
    shown = capsys.readouterr().out
    assert "cpm_bee, layout original" in shown
    assert "adapter" in shown
    assert "lora_A" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{delta}", "out"], "name the base that it belongs to with --base"),
        (
            ["{delta}", "out", "--base", "{base}", "--to", "huggingface"],
            "this works it into its base: hanlin convert {base} out --merge {delta} --to huggingface\n",
        ),
        (["{base}", "out", "--to", "gguf"], "gguf"),
        (["nowhere", "out"], "there is no nowhere"),
    ],
)
def test_wrong_words_are_explained(
    arguments: list[str],
    message: str,
    case: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"delta": str(next(case.glob("*delta*.pt"))), "base": str(case / "pytorch_model.bin")}
    assert main(["convert", *(argument.format(**places) for argument in arguments)]) == 2
    assert message.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--base", "{base}", "--record", "{{}}"],
        ["chat", "--base", "{base}"],
        ["convert", "{base}", "{out}"],
        ["inspect", "{base}"],
    ],
    ids=lambda command: command[0],
)
def test_a_config_cannot_name_code_to_be_run(command: list[str], tmp_path: Path, capsys) -> None:
    proof, base = tmp_path / "it_ran", tmp_path / "base"
    base.mkdir()
    (tmp_path / "model.py").write_text(f"import os\nos.mkdir({str(proof)!r})\n", "utf-8")
    write_json(base / "config.json", {"family": str(tmp_path / "model.py")})
    write_safetensors(base / "model.safetensors", {"a": torch.ones(2)})
    code = main([word.format(base=base, out=tmp_path / "out") for word in command])
    assert not proof.exists()
    if command[0] != "inspect":
        assert code == 2
        assert "names the family" in capsys.readouterr().err
