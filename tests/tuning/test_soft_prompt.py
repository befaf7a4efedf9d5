"""Soft prompts as a tuning method: what is trained, how they begin, and their files in our form and the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import case_of
from torch import nn

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.cpm2_prompts import PROMPTS as PROMPT_FILE
from hanlin.adapters.folder import save_adapter
from hanlin.adapters.opening import format_to_write, is_adapter, open_adapter
from hanlin.core.batch import IGNORED
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.formats import PROMPTS
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.prompt import PromptTuning, first_tokens

CONFIG = Cpm2Config(vocab_size=40, hidden_size=8, num_layers=2, num_heads=2, head_dim=4, ffn_size=12, init_std=0.05)


def settings(**changes: Any) -> PromptTuning:
    return PromptTuning(length=6, **changes)


def fresh(seed: int = 0) -> Any:
    model = family.model()(CONFIG)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def tuned(wanted: PromptTuning, seed: int = 0) -> Any:
    return apply_tuning(fresh(), wanted, family, torch.Generator().manual_seed(seed)).eval()


def logits(model: Any) -> torch.Tensor:
    return model(tokens=torch.tensor([[1, 2]]), encoder_tokens=torch.tensor([[-1, 5, -6, 7]]))


@pytest.mark.parametrize(
    ("changes", "has_prompt", "has_base"),
    [
        ({}, True, False),
        ({"trains_model": True}, True, True),
        ({"trains_model": True, "trains_prompts": False}, False, True),
    ],
)
def test_prompts_model_or_both_are_trained(changes: dict[str, bool], has_prompt: bool, has_base: bool) -> None:
    model = tuned(settings(**changes))
    names = set(trained_parameters(model))
    assert ("soft_prompt.weight" in names) == has_prompt
    assert (set(base_parameters(model)) <= names) == has_base
    assert has_base or names == {"soft_prompt.weight"}


def test_random_prompts_are_as_large_as_embeddings_and_differ() -> None:
    weight = tuned(PromptTuning(length=100)).soft_prompt.weight
    assert float(weight.detach().std()) == pytest.approx(CONFIG.init_std, rel=0.2)
    assert len(weight.unique(dim=0)) == 100


def test_prompts_begin_with_the_tokens_of_a_text_and_then_the_default() -> None:
    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def find(self, token: str) -> int | None:
            return {"<mask>": 6}.get(token)

    assert first_tokens(PromptTuning(length=4, init_text="ab"), Letters()) == [97, 98, 6, 6]
    assert first_tokens(PromptTuning(length=5, init="text", init_text="ab"), Letters()) == [97, 98, 97, 98, 97]
    with pytest.raises(ConfigError, match=r"tuning\.init_text: has no tokens"):
        first_tokens(PromptTuning(length=5, init="text"), Letters())
    assert first_tokens(PromptTuning(length=2, init_text="abc"), Letters()) == [97, 98]
    assert first_tokens(PromptTuning(length=3, init_text="a", init_spread=True), Letters()) == [97, 100, 200]
    with pytest.raises(ConfigError, match="'<x>' is not in the vocabulary"):
        first_tokens(PromptTuning(init_token="<x>"), Letters())


def test_a_model_without_soft_prompts_says_so() -> None:
    with pytest.raises(ConfigError, match="takes no soft prompts"):
        apply_tuning(nn.Linear(2, 2), settings(), family)


@pytest.mark.parametrize("name", ["chatglm2", "cpm1", "cpm1_t5", "cpm_bee"])
def test_every_family_has_places_for_prompts(name: str, tmp_path: Path) -> None:
    """In front, and behind what is given, where no answer begins yet; the answer's loss is asked of the same ids."""
    case = case_of(name, tmp_path)
    side = "encoder_tokens" if name == "cpm1_t5" else "tokens"
    bare = case.processor.sample(case.records[0])
    front = case.processor.with_prompts(PromptTuning(length=4)).sample(case.records[0])
    assert front.inputs[side].tolist() == [-1, -2, -3, -4, *bare.inputs[side]]
    asked = case.processor.with_prompts(PromptTuning(length=4)).prompt(case.records[0])
    assert asked.inputs[side][:4].tolist() == [-1, -2, -3, -4]
    assert sorted(front.labels[front.labels != IGNORED]) == sorted(bare.labels[bare.labels != IGNORED])
    with pytest.raises(ConfigError, match=r"tuning\.ratios"):
        case.processor.with_prompts(PromptTuning(length=4, ratios=(0.5, 0.5, 0)))
    with pytest.raises(ConfigError, match=r"tuning\.ratios"):  # no prompt would stand anywhere
        case.processor.with_prompts(PromptTuning(length=4, ratios=(0, 0, 0)))
    if name == "cpm_bee":
        with pytest.raises(ConfigError, match=r"tuning\.ratios: these rows have their prompts in front;"):
            case.processor.with_prompts(PromptTuning(length=4, ratios=(0.5, 0, 0.5)))
        return
    both = case.processor.with_prompts(PromptTuning(length=4, ratios=(0.5, 0, 0.5))).sample(case.records[0])
    ids = both.inputs[side].tolist()
    assert ids[:2] == [-1, -2]
    place = ids.index(-3)
    assert ids[place : place + 2] == [-3, -4]
    assert [id for id in ids if id >= 0] == bare.inputs[side].tolist()
    if name == "cpm1_t5":
        assert place == len(ids) - 2
    else:
        assert np.flatnonzero(both.labels != IGNORED)[0] == place + 1


def test_prompts_of_an_encoder_may_be_hidden_in_cpm1s_t5(tmp_path: Path) -> None:
    case = case_of("cpm1_t5", tmp_path)
    logits = {}
    for is_seen in (True, False):
        wanted = PromptTuning(length=4, is_seen=is_seen)
        model = case.family.model()(case.config)
        model.init_weights(torch.Generator().manual_seed(0))
        apply_tuning(model, wanted, case.family, torch.Generator().manual_seed(0))
        processor = case.processor.with_prompts(wanted)
        batch = processor.collate([[processor.sample(case.records[0])]], 64)
        logits[is_seen] = model.eval()(**batch.inputs)
    assert not logits[True].allclose(logits[False])
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"tuning\.sees_tokens: only an encoder"):
        case_of("cpm1", tmp_path / "other").processor.with_prompts(PromptTuning(length=4, is_seen=False))


def test_an_adapter_folder_holds_the_prompts_and_all_settings(tmp_path: Path) -> None:
    wanted = settings(ratios=(0.5, 0.5, 0.0), sees_tokens=False)
    model = tuned(wanted)
    save_adapter(model, wanted, tmp_path / "adapter")
    assert list(open_weights(tmp_path / "adapter")) == ["soft_prompt.weight"]
    assert is_adapter(tmp_path / "adapter")
    assert open_adapter(tmp_path / "adapter", family).settings == wanted
    other = tuned(wanted, seed=1)
    load_adapter(other, open_adapter(tmp_path / "adapter", family))
    assert logits(other).equal(logits(model))


def test_prompts_go_out_and_in_under_the_originals_name(tmp_path: Path) -> None:
    wanted = settings()
    model = tuned(wanted)
    PROMPT_FILE.save(model, wanted, tmp_path / "prompts.pt", family)
    assert list(torch.load(tmp_path / "prompts.pt", weights_only=True)) == [PROMPTS]
    assert is_adapter(tmp_path / "prompts.pt")
    assert open_adapter(tmp_path / "prompts.pt", family).settings == wanted
    other = tuned(wanted, seed=1)
    load_adapter(other, open_adapter(tmp_path / "prompts.pt", family))
    assert other.soft_prompt.weight.equal(model.soft_prompt.weight)
    with pytest.raises(ConfigError, match="of a prompt is written as adapter, peft, delta, original"):
        format_to_write(wanted, "quantized")
    with pytest.raises(CheckpointError, match="soft prompts of cpm2 are not the same in PEFT"):
        format_to_write(wanted, "peft").save(model, wanted, tmp_path / "peft", family)


def test_an_adapter_of_another_length_is_refused(tmp_path: Path) -> None:
    save_adapter(tuned(settings()), settings(), tmp_path / "adapter")
    model = apply_tuning(fresh(), PromptTuning(length=5), family)
    with pytest.raises(CheckpointError, match=r"found \[6, 8\], expected \[5, 8\]"):
        load_adapter(model, open_adapter(tmp_path / "adapter", family))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_original_checkpoint_is_written_with_its_prompts_and_serves_as_both(tmp_path: Path, ranks: int) -> None:
    model = tuned(settings())
    save_base(tmp_path / "base", family, CONFIG, base_parameters(model))
    more = {PROMPTS: model.soft_prompt.weight.detach()}
    convert(tmp_path / "base", family, None, "original", tmp_path / "whole", ranks=ranks, more=more)
    assert not is_adapter(tmp_path / "whole")
    assert open_adapter(tmp_path / "whole", family).settings == settings()
    other = apply_tuning(fresh(seed=1), settings(), family)
    load_into(other, tmp_path / "whole", family)
    load_adapter(other, open_adapter(tmp_path / "whole", family))
    assert logits(other.eval()).equal(logits(model))
