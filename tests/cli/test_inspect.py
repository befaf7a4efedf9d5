"""`inspect`: data for pretraining, how much and whether the files belong together; weights and what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2_pieces import small_byte_ranks, small_pieces

from hanlin.adapters.folder import save_adapter
from hanlin.cli.main import main
from hanlin.data.pretraining.indexed_data import IndexForm, written_index
from hanlin.data.sources.bee import write_bee
from hanlin.formats.convert import convert
from hanlin.formats.files import write_safetensors
from hanlin.formats.load import save_base
from hanlin.models.cpm1 import family as cpm1
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm2 import family as cpm2
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.family import Family
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.lora import LoraTuning

ITEMS = [[1, 2, 3], [], [4], [5, 6]]


def write(prefix: Path, form: IndexForm = "mmap") -> Path:
    return write_items(prefix, ITEMS, form)


def write_t5(prefix: Path) -> None:
    """Two documents with one and two spans taken out; 100 is the first number of a span."""
    write_items(Path(f"{prefix}_context"), [[5, 100], [6, 7, 100, 8, 101]])
    write_items(Path(f"{prefix}_target"), [[100, 1, 2], [100, 3, 101, 4]])
    write_items(Path(f"{prefix}_target_offset"), [[0, 3], [0, 2, 2, 2]])


def write_items(prefix: Path, items: list[list[int]], form: IndexForm = "mmap") -> Path:
    with written_index(prefix, form, 100) as writer:
        for item in items:
            writer.add(item)
            writer.end_document()
    return prefix


def facts(path: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    return {line[2:14].strip(): line[15:] for line in lines[1:]}


@pytest.mark.parametrize("ending", ["", ".idx", ".bin"])
@pytest.mark.parametrize(
    ("form", "named", "dtype", "size"),
    [("mmap", "mmap (MMIDIDX)", "uint16", 12), ("cached", "cached, also called lazy (TNTIDX)", "int32", 24)],
)
def test_a_corpus_is_told_by_any_of_its_names(
    tmp_path: Path, form: IndexForm, named: str, dtype: str, size: int, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "some.data", form)
    assert facts(tmp_path / f"some.data{ending}", capsys) == {
        "kind": "documents as token ids for pretraining (Megatron's indexed data)",
        "form": named,
        "documents": "4",
        "tokens": "6, 1.5 a document",
        "dtype": dtype,
        "bytes": f"some.data.bin: {size} bytes, as the index says",
    }


def test_files_that_do_not_belong_together_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data")
    tokens = tmp_path / "data.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    assert facts(tokens, capsys)["problem"].startswith(f"{tokens}: 10 bytes, its index speaks of 12: it was cut off")
    tokens.write_bytes(bytes(24))
    assert "the ids are likely int32, the index says uint16" in facts(tokens, capsys)["problem"]
    tokens.unlink()
    assert facts(tmp_path / "data.idx", capsys)["problem"] == f"{tokens}: is not there, but its .idx file is; copy both"


@pytest.mark.parametrize("name", ["t5", "t5_context.idx", "t5_target.bin", "t5_target_offset"])
def test_the_three_files_of_a_t5_are_told(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_t5(tmp_path / "t5")
    found = facts(tmp_path / name, capsys)
    assert found["kind"].startswith("documents for a T5 with spans taken out, in three files")
    assert found["t5_context"] == (
        "form mmap (MMIDIDX); documents 2; tokens 7, 3.5 a document; dtype uint16; "
        "bytes t5_context.bin: 14 bytes, as the index says"
    )
    assert "problem" not in found
    write_items(tmp_path / "t5_target_offset", [[0, 3], [0, 2]])
    problem = facts(tmp_path / name, capsys)["problem"]
    assert problem.startswith(
        f"{tmp_path}/t5_context: document 1: its places of spans are not as many as t5_target_offset has"
    )
    (tmp_path / "t5_target.idx").unlink()
    capsys.readouterr()
    main(["inspect", str(tmp_path / "t5")])
    assert "t5_target    problem its .idx file is missing" in capsys.readouterr().out


def test_the_binary_form_of_cpm_bee_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bee(tmp_path / "set", "a", [{"<ans>": "x"}] * 3, block_bytes=40)
    for path in ("set", "set/meta.bin", "set/a"):
        found = facts(tmp_path / path, capsys)
        assert found["kind"].startswith("data: CPM-Bee's binary form")
        assert found["rows"] == "3"
        assert found["file"] == "a: 3 rows, blocks of 40 bytes; 80 bytes, as meta.bin says"


def lines(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["inspect", *words, str(path)]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def write_model(folder: Path, of: Family, config: Any, **changes: torch.Tensor) -> Path:
    model = of.model()(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(folder, of, config, {**{name: one.detach() for name, one in model.named_parameters()}, **changes})
    return folder


CPM1 = shape(16, 2, 4, vocab_size=24, max_length=8)


def test_a_vocabulary_is_told_by_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pieces.model").write_bytes(small_pieces().model)
    (tmp_path / "ranks.model").write_bytes(small_byte_ranks())
    assert main(["inspect", str(tmp_path / "pieces.model"), str(tmp_path / "ranks.model")]) == 0
    shown = capsys.readouterr().out
    assert "sentencepiece (bpe)" in shown
    assert "340" in shown
    assert "byte strings (tiktoken)" in shown
    (tmp_path / "empty.model").write_bytes(b"")
    assert main(["inspect", str(tmp_path / "empty.model")]) == 2
    assert "without any piece" in capsys.readouterr().err


def test_the_values_are_read_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"norm.bias": torch.tensor([torch.nan, torch.inf] + [1.0] * 14)}
    base = write_model(tmp_path / "base", cpm1, CPM1, **broken)
    assert not any("NaN" in line or line.startswith("values") for line in lines(base, capsys))
    told = lines(base, capsys, "--values")
    assert "no numbers norm.bias: 1 NaN, 1 inf of 16 numbers" in told
    assert "zeros blocks.0.attention.query.bias" in told  # fresh biases are
    convert(base, cpm1, None, "original", tmp_path / "out", ranks=2)
    told = lines(tmp_path / "out", capsys, "--values")
    assert any(line.startswith("values 1 of 28 tensors hold no numbers: transformer.final_layernorm") for line in told)
    assert "tensor word_embeddings.weight [24, 16]" in told  # of all ranks together


def test_copies_of_a_tensor_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Cpm2Config(vocab_size=40, hidden_size=16, num_layers=1, num_heads=2, head_dim=8, ffn_size=24)
    base = write_model(tmp_path / "base", cpm2, config)
    convert(base, cpm2, None, "original", tmp_path / "out")
    counts = [
        next(line for line in lines(path, capsys) if line.startswith("parameters "))
        for path in (base, tmp_path / "out")
    ]
    assert len({line.partition(" (")[0] for line in counts}) == 1


def test_the_family_of_an_adapter_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = apply_tuning(cpm1.model()(CPM1), LoraTuning(rank=2), cpm1, torch.Generator().manual_seed(1))
    save_adapter(model, LoraTuning(rank=2), tmp_path / "ours")
    told = lines(tmp_path / "ours", capsys)
    assert any(line.startswith("family ") and "cpm1" in line for line in told)
    assert any(line.startswith("settings method: lora, rank: 2") for line in told)
    told = lines(tmp_path / "ours", capsys, "--values")
    assert "zeros blocks.0.attention.query.lora_B" in told


def test_a_folder_of_data_is_told_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "山"}\n{"text": "水"}\n', "utf-8")
    (folder / "more/b.csv").write_text("text\n月\n", "utf-8")
    (folder / "bad.parquet").write_bytes(b"PAR1")
    write(folder / "corpus")
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "a folder of data: 3 files of rows, 1 token corpora" in told
    assert "a.jsonl: JSON lines, 2 rows" in told
    assert "more/b.csv: " in told
    assert "bad.parquet: " in told
    assert "corpus.idx: form mmap (MMIDIDX); documents 4; tokens 6" in told
    assert "together     " in told
    (folder / "bad.parquet").unlink()
    assert facts(folder, capsys)["rows"] == "3"
    assert facts(folder, capsys)["first"] == '{"text": "山"}'
    (folder / "test.jsonl").write_text('{"text": "霜"}\n', "utf-8")
    (folder / "train.jsonl").write_text('{"text": "霜"}\n', "utf-8")
    assert "files of several splits lie in it" in facts(folder, capsys)["together"]
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("山水\n", "utf-8")
    assert facts(texts, capsys) == {"kind": "a folder of data: 1 texts", "file": "a.txt: text, 7 bytes"}


def test_the_family_of_a_peft_folder_with_fused_linears_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the base knows how they are cut, so its shapes are those of no default."""
    name = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value.lora_"
    write_safetensors(
        tmp_path / "adapter_model.safetensors",
        {f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(64, 2)},
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query_key_value"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    told = facts(tmp_path, capsys)
    assert told["family"] == "chatglm2"
    assert "--base BASE" in told["settings"]
    assert main(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "huggingface"]) == 2
    assert f"--merge {tmp_path} --to huggingface" in capsys.readouterr().err
