"""CPM-2's files: prompts are found beside the tensors of the base, and every tensor of a model has its place."""

from __future__ import annotations

from pathlib import Path

import torch

from hanlin.adapters.cpm2_prompts import find_prompts
from hanlin.formats.ranks import write_ranks
from hanlin.formats.rules import find_moves
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.formats import FORMATS, PARTITIONS, PROMPTS
from hanlin.models.cpm2.model import Cpm2


def test_prompts_are_found_beside_the_tensors_of_any_number_of_ranks(tmp_path: Path) -> None:
    prompts = torch.randn(5, 4)
    for ranks in (1, 2):
        write_ranks(tmp_path / str(ranks), {PROMPTS: prompts, "lm_head.weight": torch.ones(4, 4)}, PARTITIONS, ranks)
        found = find_prompts(tmp_path / str(ranks), family)
        assert found is not None
        assert found.equal(prompts)
    write_ranks(tmp_path / "base", {"lm_head.weight": torch.ones(4, 4)}, PARTITIONS)
    assert find_prompts(tmp_path / "base", family) is None


def test_every_parameter_has_a_name_of_theirs() -> None:
    config = Cpm2Config(vocab_size=8, hidden_size=4, num_layers=2, num_heads=2, head_dim=2, ffn_size=4)
    names = [name for name, _ in Cpm2(config).named_parameters()]
    moves = find_moves(FORMATS["original"].rules(config), names, "to_theirs")
    assert sorted(source for move in moves for source in move.sources) == sorted(names)
