"""Weights that a run starts from: the same whether one process makes them or each rank its share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cpm2_tiny import make_tokenizer, write_original
from tiny_folder import write_original as write_chatglm2

from hanlin.checking import check
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.ranks import Ranks
from hanlin.formats import source
from hanlin.formats.convert import convert
from hanlin.formats.fingerprint import Fingerprint, weights_fingerprint
from hanlin.formats.load import save_base
from hanlin.formats.translate import Translated
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.chatglm2 import family as chatglm2
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.recipe.reading import make_recipe
from hanlin.run import hash_shares
from hanlin.run.components import build_components
from hanlin.run.weights import _additions, _base_model, _tuned_model, load_engine, parallelize_tuned

GREEDY = GreedySettings(max_new_tokens=6)


@pytest.mark.parametrize("tuning", [{"method": "prompt", "length": 4}, {"method": "lora", "rank": 2}])
def test_ranks_begin_with_the_additions_of_one_process(tuning: dict, tmp_path: Path) -> None:
    model = {"family": "cpm2", "base": str(write_original(tmp_path))}
    components = build_components(make_recipe({"model": model, "tuning": tuning, "run": {"folder": str(tmp_path)}}))
    weights = dict(_tuned_model(components).named_parameters())
    additions = dict(_additions(components))
    assert additions
    for name, addition in additions.items():
        assert addition.equal(weights[name].detach()), name


def test_a_frozen_base_is_opened_once_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, read = [], []
    base = write_original(tmp_path)
    real_open, real_read = source.open_theirs, Translated.__getitem__
    monkeypatch.setattr(source, "open_theirs", lambda *given: opened.append(given) or real_open(*given))
    monkeypatch.setattr(Translated, "__getitem__", lambda self, name: read.append(name) or real_read(self, name))
    model = {"family": "cpm2", "base": str(base)}
    values = {"model": model, "tuning": {"method": "lora", "rank": 2}, "run": {"folder": str(tmp_path)}}
    components, fingerprint = build_components(make_recipe(values)), Fingerprint()
    parallelize_tuned(components, torch.device("cpu"), 1, fingerprint)
    assert len(opened) == 1
    assert len(read) == len(set(read)) > 0
    model = _base_model(components, torch.float32)
    assert fingerprint.value() == weights_fingerprint(model.named_parameters())


def test_each_weight_is_hashed_once_on_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    everything, half = ["a", "b", "c", "d"], ["a", "b"]
    ranks = [(("one", 0), everything), (("one", 1), everything), (("one", 2), half), (("two", 3), everything)]
    hashed: dict[str, list[str]] = {"one": [], "two": []}
    told = []
    for (machine, _), names in ranks:
        monkeypatch.setattr(hash_shares.socket, "gethostname", lambda machine=machine: machine)
        told.append(hash_shares._reader(names))
    monkeypatch.setattr(hash_shares, "gather_values", lambda mine: told)
    for (machine, rank), names in ranks:
        monkeypatch.setattr(hash_shares.socket, "gethostname", lambda machine=machine: machine)
        monkeypatch.setattr(hash_shares, "read_ranks", lambda rank=rank: Ranks(rank, 4))
        mine = hash_shares.names_to_hash(names)
        assert mine <= set(names)
        hashed[machine] += mine
    # Ranks of one machine that read the same share it; one that reads other names hashes all of them.
    assert {machine: sorted(names) for machine, names in hashed.items()} == {
        "one": sorted([*everything, *half]),
        "two": everything,
    }


def test_it_is_said_that_a_half_base_is_trained_and_written_in_fp32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, base = make_tokenizer(), tmp_path / "base"
    config = Cpm2Config(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2, head_dim=8, ffn_size=24
    )
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(0))
    half = {name: weight.detach().half() for name, weight in model.named_parameters()}
    save_base(base, family, config, half, tokenizer)
    caplog.set_level("INFO", "hanlin")
    for method, is_said in (("lora", False), ("full", True)):
        values = {"model": {"family": "cpm2", "base": str(base)}, "tuning": {"method": method}}
        recipe = make_recipe({**values, "run": {"folder": str(tmp_path / "run")}})
        parallelize_tuned(build_components(recipe), torch.device("cpu"), 1)
        assert ("float16; its weights are trained and written in float32" in caplog.text) == is_said


def test_experts_are_read_when_an_engine_needs_them(tmp_path: Path) -> None:
    tokenizer, base = make_tokenizer(), tmp_path / "base"
    config = Cpm2Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        ffn_size=24,
        num_experts=4,
    )
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(base, family, config, dict(model.named_parameters()), tokenizer)
    values = {"model": {"family": "cpm2", "base": str(base)}, "run": {"folder": str(tmp_path), "device": "cpu"}}
    records = [{"source": "今天天气", "target": ""}]
    answers = [
        load_engine(make_recipe({**values, "generate": {"expert_memory": memory}})).generate(records, GREEDY)
        for memory in (None, 1e-5)  # room for two of sixteen
    ]
    assert answers[0] == answers[1]


def test_expert_memory_without_experts_is_refused(tmp_path: Path) -> None:
    values = {"model": {"family": "cpm2", "base": str(write_original(tmp_path))}, "run": {"folder": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"generate.expert_memory: only for a model.base with a mixture of experts"):
        load_engine(make_recipe({**values, "generate": {"expert_memory": 1.0}}))


@pytest.mark.parametrize("tuning", [{"method": "lora", "rank": 2}, {"method": "prefix", "length": 3}])
@pytest.mark.parametrize("is_classifier", [False, True])
def test_ranks_begin_with_the_head_for_labels_of_one_process(tuning: dict, is_classifier: bool, tmp_path: Path) -> None:
    """Drawn fresh for a language model, from the base where it has one; trained and kept beside a frozen base."""
    base = write_chatglm2(tmp_path / "original")
    if is_classifier:
        torch.save(torch.load(base / "pytorch_model.bin", weights_only=True) | HEAD, base / "pytorch_model.bin")
    model = {"family": "chatglm2", "base": str(base), "config": {"labels": ["x", "y"]}}
    components = build_components(make_recipe({"model": model, "tuning": tuning, "run": {"folder": str(tmp_path)}}))
    tuned = _tuned_model(components)
    weights, additions = dict(tuned.named_parameters()), dict(_additions(components))
    assert additions.keys() >= {"head.label_weight", "head.label_bias"}
    assert additions.keys() == {name for name, weight in weights.items() if weight.requires_grad}
    for name, addition in additions.items():
        assert addition.equal(weights[name].detach()), name
    found = weights["head.label_weight"].detach()
    assert found.equal(HEAD["classifier_head.weight"].float()) if is_classifier else 0.01 < float(found.std()) < 0.03
    assert load_engine(make_recipe({"model": model, "run": {"folder": str(tmp_path)}})) if is_classifier else True


def test_a_quantised_base_gets_a_fresh_head_for_labels(tmp_path: Path) -> None:
    convert(write_chatglm2(tmp_path / "original"), chatglm2, None, "int4", tmp_path / "int4")
    values = {
        "model": {"family": "chatglm2", "base": str(tmp_path / "int4"), "config": {"labels": ["x", "y"]}},
        "tuning": {"method": "lora"},
        "run": {"folder": str(tmp_path)},
        "train": {"precision": "bf16"},
    }
    model = _tuned_model(build_components(make_recipe(values)))
    head, packed = model.get_parameter("head.label_weight"), model.get_parameter("blocks.0.ffn.up.weight")
    assert (head.dtype, head.requires_grad) == (torch.float32, True)
    assert (packed.dtype, packed.requires_grad) == (torch.int8, False)


HEAD = {"classifier_head.weight": torch.ones(2, 32).half(), "classifier_head.bias": torch.ones(2).half()}


def test_the_identity_follows_what_the_tensors_do_not_say(tmp_path: Path) -> None:
    base = {"family": "cpm2", "base": str(write_original(tmp_path))}

    def identity(**changes: object) -> str:
        return build_components(make_recipe({"model": base, "run": {"folder": str(tmp_path)}, **changes})).identity()

    plain = identity()
    assert identity() == plain
    assert identity(generate={"method": "greedy"}) == plain
    assert identity(data={"options": {"dataset": "ccpm"}}) != plain
    assert identity(model={**base, "config": {"norm_eps": 0.5}}) != plain


def test_damaged_weights_of_ours_are_refused_by_check_and_by_whoever_loads_them(tmp_path: Path) -> None:
    base = write_chatglm2(tmp_path / "original")
    convert(base, chatglm2, None, "base", tmp_path / "base")
    values = {"model": {"family": "chatglm2", "base": str(tmp_path / "base")}, "run": {"folder": str(tmp_path)}}
    recipe = make_recipe(values)
    assert not check(recipe, purpose="generate")
    file = tmp_path / "base" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [problem] = check(recipe, purpose="generate")
    assert problem.key == "model.base"
    assert "model.safetensors was changed" in problem.text
    for load in (load_engine, lambda recipe: parallelize_tuned(build_components(recipe), torch.device("cpu"), 1)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors was changed"):
            load(recipe)
