"""Greedy and beam search, the end of a row, streaming, and the distribution that is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glm_case import arrays_of, assert_close, facts_of, load_model

from hanlin.core.batch import Prompt, PromptBatch
from hanlin.generate.engine import Engine
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.sampling import warp
from hanlin.models.chatglm2 import family
from hanlin.models.common import decoder_batch
from hanlin.models.common.decoder_batch import TextCursor
from hanlin.recipe.settings import GenerateSettings

PAD, NO_STOP = 0, 2
PROBABILITIES_ATOL = 1e-5


class Rows:
    """Prompts that are ids already; all that a search asks of a `Processor`."""

    def __init__(self, ids: torch.Tensor, mask: torch.Tensor, end: int) -> None:
        tokens = [row[row_mask.bool()].int().numpy() for row, row_mask in zip(ids, mask, strict=True)]
        self.prompts = [
            Prompt(None, {"tokens": row[:-1]}, TextCursor(int(row[-1]), len(row) - 1, frozenset([end])))
            for row in tokens
        ]

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        inputs = decoder_batch.pad_left([prompt.inputs["tokens"] for prompt in prompts], PAD)
        return PromptBatch(inputs, [prompt.cursor for prompt in prompts], [[] for _ in prompts])


def check(case: Path, vocab: Path) -> None:
    del vocab
    arguments, inputs, expected = (
        facts_of(case)["args"],
        arrays_of(case / "inputs.npz"),
        arrays_of(case / "expected.npz"),
    )
    model, ids, mask = load_model(case), inputs["input_ids"], inputs["attention_mask"]
    room = arguments["max_length"] - ids.shape[1]
    greedy = GreedySettings(max_new_tokens=room)
    beam = BeamSettings(beams=arguments["num_beams"], max_new_tokens=room)
    end = int(expected["eos_token_id_for_eos_run"])
    for name, stop, options in (
        ("greedy_ids", NO_STOP, greedy),
        ("greedy_ids_with_eos", end, greedy),
        ("beam_ids", end, beam),
    ):
        assert _answers(model, Rows(ids, mask, stop), options) == _of_original(expected[name], ids.shape[1], stop), name
    _check_one_row(model, inputs, expected["stream_last"][0].tolist())
    _check_probabilities(inputs["logits_last"], expected)


def _answers(model: Any, given: Rows, options: GenerateSettings) -> list[list[int]]:
    engine = Engine(model, given, beam_variant=family.beam_variant)  # pyright: ignore[reportArgumentType]
    *_, searches = engine.search(given.prompts, options)
    return [list(search.best.tokens) for search in searches]


def _of_original(ids: torch.Tensor, prompt_length: int, end: int) -> list[list[int]]:
    """The answers of rows that are filled with padding after their ends."""
    answers = []
    for row in ids[:, prompt_length:].tolist():
        answers.append(row[: row.index(end) + 1] if end in row else row)
    return answers


def _check_one_row(model: Any, inputs: dict[str, torch.Tensor], streamed: list[int]) -> None:
    """The stream began at a row of the batch, without its padding."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for number, row in enumerate(ids):
        prompt = row[mask[number].bool()].tolist()
        if streamed[: len(prompt)] == prompt:
            options = GreedySettings(max_new_tokens=len(streamed) - len(prompt))
            given = Rows(ids[number : number + 1], mask[number : number + 1], NO_STOP)
            steps = Engine(model, given).search(given.prompts, options)  # pyright: ignore[reportArgumentType]
            lengths = [len((search.found or search.beams)[0].tokens) for [search] in steps]
            assert lengths == list(range(1, options.max_new_tokens + 1))
            assert _answers(model, given, options) == [streamed[len(prompt) :]]
            return
    raise AssertionError("the stream belongs to no row of the batch")


def _check_probabilities(logits: torch.Tensor, expected: dict[str, torch.Tensor]) -> None:
    for name, theirs in expected.items():
        if name.startswith("probs_"):
            top_p, temperature = (float(part) for part in name.removeprefix("probs_top_p").split("_t"))
            ours = warp(logits, temperature, 50, top_p).softmax(-1)
            assert_close(name, ours, theirs, PROBABILITIES_ATOL, rtol=0)
            np.testing.assert_array_equal(ours > 0, theirs > 0, err_msg=name)
