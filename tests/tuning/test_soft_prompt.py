"""Soft prompts as a tuning method: what is trained, how they begin, and their files in our form and the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.cpm2_prompts import PROMPTS as PROMPT_FILE
from hanlin.adapters.folder import save_adapter
from hanlin.adapters.opening import format_to_write, is_adapter, open_adapter
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.models.chatglm2 import family as decoder_family
from hanlin.models.chatglm2.config import ChatGlm2Config
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
    assert first_tokens(PromptTuning(length=2, init_text="abc"), Letters()) == [97, 98]
    assert first_tokens(PromptTuning(length=3, init_text="a", init_spread=True), Letters()) == [97, 100, 200]
    with pytest.raises(ConfigError, match="'<x>' is not in the vocabulary"):
        first_tokens(PromptTuning(init_token="<x>"), Letters())


def test_a_family_without_soft_prompts_says_so() -> None:
    shape = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "ffn_size": 8}
    model = decoder_family.model()(ChatGlm2Config(vocab_size=9, max_length=8, **shape))
    with pytest.raises(ConfigError, match="takes no soft prompts"):
        apply_tuning(model, settings(), decoder_family)


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
