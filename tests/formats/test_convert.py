"""CPM-Bee weights through every layout and back, bit by bit; and weights that do not fit."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.core.manifest import MANIFEST
from hanlin.formats.convert import convert
from hanlin.formats.describe import describe
from hanlin.formats.files import open_weights
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.formats.source import read_config
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee

CONFIG = CpmBeeConfig(
    vocab_size=20,
    hidden_size=8,
    num_layers=3,
    num_heads=2,
    head_dim=6,
    ffn_size=10,
    num_distance_buckets=8,
    num_relation_buckets=12,
    removed_attention=(1,),
    removed_ffn=(0,),
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model() -> CpmBee:
    model = CpmBee(CONFIG).half()
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def original(model: CpmBee, tmp_path: Path) -> Path:
    """A folder in the original's layout."""
    save_base(tmp_path / "first", family, CONFIG, base_parameters(model))
    convert(tmp_path / "first", family, None, "original", tmp_path / "original")
    (tmp_path / "original" / MANIFEST).unlink()  # the originals have none
    return tmp_path / "original"


def load(path: Path, **options) -> CpmBee:
    with torch.device("meta"):
        model = CpmBee(read_config(path, family))
    load_into(model, path, family, **options)
    return model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> Path:
    """Change the tensors of an original folder, on purpose."""
    (folder / MANIFEST).unlink(missing_ok=True)
    tensors = torch.load(folder / "pytorch_model.bin")
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_every_layout_and_back_is_bitwise(original: Path, model: CpmBee, tmp_path: Path) -> None:
    convert(original, family, None, "huggingface", tmp_path / "hf")
    convert(tmp_path / "hf", family, None, "base", tmp_path / "base")
    convert(tmp_path / "base", family, None, "original", tmp_path / "back")
    for path in (original, tmp_path / "hf", tmp_path / "base", tmp_path / "back"):
        assert read_config(path, family) == CONFIG
        assert same(load(path), model)
    assert next(iter(open_weights(tmp_path / "hf"))).startswith("cpmbee.")
    assert {t.dtype for t in torch.load(tmp_path / "back" / "pytorch_model.bin").values()} == {torch.float16}


def test_names_are_the_originals(original: Path) -> None:
    names = list(torch.load(original / "pytorch_model.bin"))
    assert len(names) == 1 + 1 + 1 + 2 * 5 + 2 * 4
    assert "encoder.layers.2.self_att.self_attention.project_q.weight" in names
    assert read_json_object(original / "config.json")["mask_modules"] == [[False, True], [True, False], [False, False]]


def test_without_a_config_file_shapes_tell_it(original: Path, model: CpmBee, tmp_path: Path) -> None:
    (original / "config.json").unlink()
    read = read_config(original / "pytorch_model.bin", family, {"num_distance_buckets": 8, "num_relation_buckets": 12})
    assert read == CONFIG


def test_the_config_may_have_the_originals_name_or_the_weights(original: Path) -> None:
    for name in ("cpm-bee-10b.json", "pytorch_model.json"):
        next(original.glob("*.json")).rename(original / name)
        assert read_config(original / "pytorch_model.bin", family) == CONFIG


def test_a_tied_head_is_dropped_if_it_is_a_copy(original: Path, model: CpmBee, tmp_path: Path) -> None:
    convert(original, family, None, "huggingface", tmp_path / "hf")
    embedding = model.embedding.weight.detach()
    rewrite(tmp_path / "hf", lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert same(load(tmp_path / "hf"), model)
    rewrite(tmp_path / "hf", lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight must be a copy of cpmbee.input_embedding.weight"):
        load(tmp_path / "hf")


def test_loading_chooses_dtype_and_keeps_what_is_frozen(original: Path, model: CpmBee) -> None:
    wide = load(original, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert wide.norm.weight.equal(model.norm.weight.float())
    with torch.device("meta"):
        frozen = CpmBee(CONFIG).requires_grad_(False)
    load_into(frozen, original, family)
    assert not any(p.requires_grad for p in frozen.parameters())


Q = "encoder.layers.0.self_att.self_attention.project_q.weight"
MISFITS = {
    "missing": (lambda f: rewrite(f, lambda t: t.pop(Q)), ["missing, 1", Q]),
    "surplus": (lambda f: rewrite(f, lambda t: t.update(extra=t[Q])), ["surplus, 1", "extra"]),
    "misspelt": (lambda f: rewrite(f, lambda t: t.update({Q + "s": t.pop(Q)})), [f"{Q} (nearest: {Q}s)"]),
    "shape": (lambda f: rewrite(f, lambda t: t.update({Q: t[Q][:-1]})), [f"{Q}: found [11, 8], expected [12, 8]"]),
    "foreign": (lambda f: rewrite(f, lambda t: [t.clear(), t.update(x=torch.ones(1))]), ["no layout", "first: x"]),
    "config_type": (lambda f: change_config(f, dim_ff="ten"), ["ffn_size", "'ten'"]),
    "config_masks": (lambda f: change_config(f, mask_modules=[True]), ["mask_modules"]),
    "config_mask_count": (lambda f: change_config(f, mask_modules=[[False, False]]), ["mask_modules has 1 pairs"]),
    "config_json": (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
    "config_scale": (lambda f: change_config(f, distance_scale=8), ["distance_scale"]),
    "config_layers": (lambda f: change_config(f, num_layers=4, mask_modules=None), ["missing, 18"]),
}


def change_config(folder: Path, **changes: object) -> None:
    write_json(folder / "config.json", {**read_json_object(folder / "config.json"), **changes})


@pytest.mark.parametrize("kind", MISFITS)
def test_weights_that_do_not_fit_are_named(kind: str, original: Path, tmp_path: Path) -> None:
    spoil, words = MISFITS[kind]
    spoil(original)
    with pytest.raises(CheckpointError) as raised:
        load(original)
    assert all(word in str(raised.value) for word in [str(original), *words]), str(raised.value)
    with pytest.raises(CheckpointError):
        convert(original, family, None, "base", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_weights_file_of_a_base_folder_stands_for_the_folder(original: Path, model: CpmBee, tmp_path: Path) -> None:
    convert(original, family, None, "base", tmp_path / "base")
    assert same(load(tmp_path / "base" / "model.safetensors"), model)


def test_a_base_folders_config_is_read_without_torch(original: Path, tmp_path: Path) -> None:
    convert(original, family, None, "base", tmp_path / "base")
    code = f"""
import sys
from hanlin.formats.source import read_config
from hanlin.models.cpm_bee import family
read_config({str(tmp_path / "base")!r}, family)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_base_folder_of_another_family_is_refused(original: Path, tmp_path: Path) -> None:
    convert(original, family, None, "base", tmp_path / "base")
    change_config(tmp_path / "base", family="cpm2")
    with pytest.raises(CheckpointError, match="cpm2"):
        read_config(tmp_path / "base", family)


def test_an_existing_target_is_kept_unless_asked(original: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(original, family, None, "base", tmp_path / "base")
    convert(original, family, None, "base", tmp_path / "base", overwrite=True)
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_the_vocabulary_goes_along(original: Path, tmp_path: Path) -> None:
    (original / "vocab.txt").write_text("a\nb\n")
    convert(original, family, None, "base", tmp_path / "base")
    assert (tmp_path / "base" / "vocab.txt").read_text() == "a\nb\n"


def test_describe_tells_layout_and_size(original: Path, model: CpmBee) -> None:
    told = describe(original, [family])
    assert (told.family, told.layout, told.problem) == ("cpm_bee", "original", None)
    assert (told.num_layers, told.dtypes) == (3, {"float16": sum(p.numel() for p in model.parameters())})
    rewrite(original, lambda tensors: tensors.pop(Q))
    assert Q in str(describe(original, [family]).problem)


@pytest.mark.parametrize("layout", ["base", "original", "huggingface"])
def test_a_converted_folder_that_was_changed_is_not_taken_for_it(
    original: Path, model: CpmBee, layout: str, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    convert(original, family, None, layout, written)
    file = next(path for path in written.iterdir() if path.suffix in (".bin", ".safetensors"))
    content, weight = file.read_bytes(), model.blocks["1"].ffn.up.weight.detach().numpy().tobytes()
    assert weight in content
    file.write_bytes(content.replace(weight, bytes(len(weight))))
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        load(written)
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        convert(written, family, None, "base", tmp_path / "again")
    assert not (tmp_path / "again").exists()
