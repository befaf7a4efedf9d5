"""Soft prompts and what they hide from each other, under layouts against one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, Case
from ranks import run_ranks
from sampled import sampled
from test_layouts import LAYOUTS, SEQUENCE, _compare, compute, world_of

from hanlin.recipe.settings import ParallelSettings


def with_prompts(family: str, key: str) -> Case:
    """The case with prompts 0, 1 and 2 in its rows."""
    case = CASES[family]

    def inputs(draw: torch.Generator) -> dict[str, torch.Tensor]:
        found = case.inputs(draw)
        found[key][:, :3] = torch.tensor([-1, -2, -3])
        return found

    return replace(case, inputs=inputs)


ALONG_THE_TEXT = {
    f"along the text {name}": {**SEQUENCE[name], "sequence_parallel": True}
    for name in ("1x2x1", "1x2x2 some recomputed", "2x2x2 recomputed")
}
CHOSEN = {name: LAYOUTS[name] for name in ("2x1x1 parameters", "1x2x1", "1x1x2")} | ALONG_THE_TEXT
FAMILIES = {"cpm2": "encoder_tokens", "cpm1": "tokens"}
MATRIX = [(family, name) for family in FAMILIES for name in CHOSEN if family == "cpm2" or name not in ALONG_THE_TEXT]


OFTEN = [cell for cell in MATRIX if "2x2x2" not in cell[1]]
"""Eight processes take long; what they have together the others have by twos."""


@pytest.mark.parametrize(("family", "layout"), sampled(MATRIX, OFTEN))
def test_prompts_get_the_gradients_of_one_process(family: str, layout: str) -> None:
    case, settings = with_prompts(family, FAMILIES[family]), ParallelSettings(**CHOSEN[layout])
    expected = compute(case, "prompt", ParallelSettings(), torch.float64)
    assert set(expected["gradients"]) == {"soft_prompt.weight"}
    results = run_ranks(world_of(settings), compute, case, "prompt", settings, torch.float64)
    _compare(expected, results, 1e-12)
