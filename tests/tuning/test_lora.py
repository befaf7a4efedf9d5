"""Low-rank additions on any model of linears."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan
from hanlin.layers.linear import Linear
from hanlin.layers.lora import LoraLinear, merge_lora
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.full import FullTuning
from hanlin.tuning.lora import LoraTuning

FAMILY = SimpleNamespace(name="any", lora_targets=("query",))


def make_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    parts = OrderedDict(query=Linear(6, 8, scale=0.25), act=nn.GELU(), plain=nn.Linear(8, 5))
    model: Any = nn.Sequential(OrderedDict(first=nn.Sequential(parts), second=nn.Linear(5, 3))).to(dtype)
    model.plan = Plan(first=(), blocks=(), last=())
    return model


def tuned(**settings) -> nn.Module:
    model = make_model()
    apply_tuning(model, LoraTuning(rank=2, **settings), FAMILY, torch.Generator().manual_seed(1))
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.double()
            nn.init.normal_(module.lora_B)
    return model


def test_a_fresh_addition_changes_nothing_and_names_stay() -> None:
    model, data = make_model(), torch.randn(4, 6, dtype=torch.float64)
    expected, names = model(data), set(model.state_dict())
    apply_tuning(model, LoraTuning(targets=("query", "plain")), FAMILY)
    assert model(data).equal(expected)
    added = {f"first.{name}.lora_{part}" for name in ("query", "plain") for part in "AB"}
    assert set(model.state_dict()) - names == added
    assert set(trained_parameters(model)) == added


@pytest.mark.parametrize(("form", "factor"), [("original", 8.0), ("scaled", 2.0)])
def test_the_addition_bypasses_the_scale_or_not(form: str, factor: float) -> None:
    model, data = tuned(form=form, alpha=16), torch.randn(4, 6, dtype=torch.float64)
    linear = model.get_submodule("first.query")
    assert isinstance(linear, LoraLinear)
    expected = data @ linear.weight.t() * 0.25 + data @ linear.lora_A.t() @ linear.lora_B.t() * factor
    torch.testing.assert_close(linear(data), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form", ["original", "scaled"])
def test_merging_keeps_the_function(form: str) -> None:
    model, data = tuned(form=form, targets=("query", "plain", "second")), torch.randn(4, 6, dtype=torch.float64)
    expected = model(data)
    merge_lora(model)
    assert set(model.state_dict()) == set(make_model().state_dict())
    torch.testing.assert_close(model(data), expected, atol=1e-12, rtol=1e-12)


def test_the_base_stays_bitwise_the_same_in_training() -> None:
    model = tuned()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {"first.query.lora_A", "first.query.lora_B"}


def test_the_addition_is_fp32_on_a_half_base() -> None:
    model = apply_tuning(make_model(torch.bfloat16), LoraTuning(), FAMILY)
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    assert model(torch.randn(4, 6).bfloat16()).dtype == torch.bfloat16


def test_first_values_lie_within_the_bound_and_follow_the_generator() -> None:
    one, two = (apply_tuning(make_model(), LoraTuning(), FAMILY, torch.Generator().manual_seed(5)) for _ in range(2))
    first = one.get_parameter("first.query.lora_A")
    assert first.abs().max() <= 6**-0.5
    assert first.abs().max() > 0.8 * 6**-0.5
    assert first.equal(two.get_parameter("first.query.lora_A"))


def test_a_target_that_matches_nothing_is_an_error_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no linear is called qwery; the model has plain, query, second"):
        apply_tuning(make_model(), LoraTuning(targets=("query", "qwery")), FAMILY)
    with pytest.raises(ConfigError, match="no default"):
        apply_tuning(make_model(), LoraTuning(), SimpleNamespace(name="any", lora_targets=()))


def test_full_tuning_trains_everything() -> None:
    model = make_model().requires_grad_(False)
    apply_tuning(model, FullTuning(), FAMILY)
    assert set(trained_parameters(model)) == {name for name, _ in model.named_parameters()}
