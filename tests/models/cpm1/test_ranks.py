"""A CPM-1 in every layout and on any number of ranks: divided, merged and renamed without a changed bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.core.manifest import MANIFEST
from hanlin.formats.convert import convert
from hanlin.formats.describe import describe
from hanlin.formats.files import open_weights
from hanlin.formats.load import save_base
from hanlin.formats.source import open_source, open_theirs
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1_t5 import family as t5_family
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm2 import family as cpm2_family

CONFIG = shape(16, 2, 4, vocab_size=24, max_length=8, vocab_multiple=8)
T5_CONFIG = Cpm1T5Config(
    vocab_size=24, hidden_size=16, num_heads=4, head_dim=8, ffn_size=24, max_length=8, vocab_multiple=8
)
FAMILIES = [family, t5_family, cpm2_family]


def write(folder: Path, of=family, config=CONFIG) -> Path:
    model = of.model()(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(folder, of, config, {name: weight.detach().half() for name, weight in model.named_parameters()})
    return folder


def tensors_of(path: Path, of=family) -> dict[str, torch.Tensor]:
    weights = open_theirs(path, of)
    return {name: weights[name].clone() for name in weights}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(tensor) and ours[name].dtype == tensor.dtype for name, tensor in theirs.items())


def test_a_released_form_goes_through_every_number_of_ranks_and_the_hub(tmp_path: Path) -> None:
    source = tmp_path / "2"
    convert(write(tmp_path / "base"), family, None, "original", source, ranks=2, iteration=80000)
    whole = tensors_of(source)
    for ranks in (1, 4, 2):
        convert(source, family, None, "original", tmp_path / f"to_{ranks}", ranks=ranks)
        source = tmp_path / f"to_{ranks}"
        assert_same(tensors_of(source), whole)
        assert (source / "latest_checkpointed_iteration.txt").read_text() == "80000\n"
    for rank in range(2):
        file = f"80000/mp_rank_{rank:02d}_model_states.pt"
        first, last = (torch.load(tmp_path / name / file, weights_only=False)["module"] for name in ("2", "to_2"))
        assert_same(last, first)
    convert(source, family, None, "huggingface", tmp_path / "hub")
    convert(tmp_path / "hub", family, None, "original", tmp_path / "back", ranks=2)
    assert_same(tensors_of(tmp_path / "back"), whole)


@pytest.mark.parametrize(("of", "config"), [(family, CONFIG), (t5_family, T5_CONFIG)])
def test_megatrons_forms_on_any_number_of_ranks_keep_our_tensors(tmp_path: Path, of, config) -> None:
    base = write(tmp_path / "base", of, config)
    ours = open_source(base, of).weights
    source = base
    for form, ranks, rows in (("megatron", 4, 32), ("deepspeed", 1, 24), ("pipeline", 2, 32), ("megatron", 1, 24)):
        target = tmp_path / f"{form}_{ranks}"
        convert(source, of, None, form, target, ranks=ranks, changes={"vocab_size": 24})
        padded = next(len(tensor) for name, tensor in tensors_of(target, of).items() if "word_embeddings" in name)
        assert padded == rows  # a multiple of 8 x ranks
        source = target
    convert(source, of, None, "base", tmp_path / "again", changes={"vocab_size": 24})
    again = open_source(tmp_path / "again", of).weights
    assert_same(dict(again), dict(ours))


@pytest.mark.parametrize(
    ("of", "config", "form"),
    [(family, CONFIG, "original"), (family, CONFIG, "megatron"), (family, CONFIG, "huggingface"),
     (family, CONFIG, "pipeline"), (t5_family, T5_CONFIG, "megatron"), (t5_family, T5_CONFIG, "deepspeed")],
)  # fmt: skip
def test_inspection_tells_the_family_the_form_and_the_iteration(tmp_path: Path, of, config, form: str) -> None:
    ranks = 1 if form == "huggingface" else 2
    convert(write(tmp_path / "base", of, config), of, None, form, tmp_path / "out", ranks=ranks, iteration=7)
    found = describe(tmp_path / "out", FAMILIES)
    assert (found.family, found.layout, found.problem) == (of.name, form, None)
    assert found.iteration == (None if form == "huggingface" else 7)
    assert ("2 " in found.lying) == (ranks == 2)


@pytest.mark.parametrize(("of", "config"), [(family, CONFIG), (t5_family, T5_CONFIG)])
def test_unknown_heads_are_asked_for(tmp_path: Path, of, config) -> None:
    base, out = write(tmp_path / "base", of, config), tmp_path / "out"
    convert(base, of, None, "deepspeed", out)
    for name in ("cpm1_config.json", MANIFEST):
        (out / name).unlink()
    with pytest.raises(CheckpointError, match=r"do not tell num_heads( and head_dim)?; give .*: --config num_heads="):
        convert(out, of, None, "base", tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"num_heads 7 does not divide the \d+ rows of all heads"):
        convert(out, of, None, "base", tmp_path / "again", changes={"num_heads": 7})
    for number, changes in enumerate(({"num_heads": 4}, {"head_dim": config.head_dim})):
        convert(out, of, None, "base", tmp_path / str(number), changes=changes)
        again = open_source(tmp_path / str(number), of)
        assert (again.config().num_heads, again.config().head_dim) == (4, config.head_dim)
        assert_same(dict(again.weights), dict(open_source(base, of).weights))


def test_rows_that_fill_a_vocabulary_up_can_be_left_out_of_any_layout(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    convert(base, family, None, "megatron", tmp_path / "meg", ranks=4)
    convert(tmp_path / "meg", family, None, "base", tmp_path / "padded")
    padded = open_source(tmp_path / "padded", family)
    assert padded.config().vocab_size == 32
    for layout in ("base", "original", "huggingface", "megatron"):
        convert(tmp_path / "padded", family, None, layout, tmp_path / f"in_{layout}")
        convert(tmp_path / f"in_{layout}", family, None, "base", tmp_path / f"cut_{layout}", changes={"vocab_size": 24})
        cut = open_source(tmp_path / f"cut_{layout}", family)
        assert cut.config().vocab_size == 24
        assert_same(dict(cut.weights), dict(open_source(base, family).weights))
    with pytest.raises(CheckpointError, match="another shape"):
        convert(tmp_path / "padded", family, None, "base", tmp_path / "more", changes={"vocab_size": 40})


def test_weights_that_another_program_quantised_are_not_taken_for_numbers(tmp_path: Path) -> None:
    convert(write(tmp_path / "base"), family, None, "huggingface", tmp_path / "hub")
    tensors = {name: tensor.clone() for name, tensor in open_weights(tmp_path / "hub").items()}
    name = "transformer.h.0.mlp.c_fc.weight"
    torch.save({**tensors, name: tensors[name].mul(100).to(torch.int8)}, tmp_path / "hub" / "pytorch_model.bin")
    for written in (MANIFEST, "model.safetensors"):
        (tmp_path / "hub" / written).unlink()
    with pytest.raises(CheckpointError, match=r"c_fc\.weight is of int8, plain numbers are expected.*get the fp16"):
        convert(tmp_path / "hub", family, None, "base", tmp_path / "out")
    torch.save({**tensors, "transformer.h.0.mlp.c_fc.SCB": torch.ones(3)}, tmp_path / "hub" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"Another program has quantised these weights"):
        convert(tmp_path / "hub", family, None, "base", tmp_path / "out")
