"""Greedy and beam search, the end of a row, streaming, and the distribution that is drawn from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glm_case import load_model
from golden_case import Case, Reading, close

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
TOP_K = 50
"""Of transformers' sampling, where a case does not say another."""


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


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected, model = case.arrays("inputs.npz"), case.arrays(), load_model(case.weights())
    if "input_ids" in inputs:
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        _check_answers(case, model, ids, mask, expected)
        if "stream_last" in expected:
            _check_stream(model, ids, mask, expected)
    if "logits_last" in inputs:
        _check_probabilities(inputs["logits_last"], expected, case.tolerance("probs", default=1e-5))
    case.set_aside(r"inputs\.npz: position_ids", "ours are counted by the processor")
    case.set_aside(r".*invalid_score_processor", "logits that are no numbers are an error here, not id 5")


def _check_answers(case: Case, model: Any, ids: torch.Tensor, mask: torch.Tensor, expected: Reading) -> None:
    """Rows may end early, and an array be as long as its longest row."""
    stated, width = case.facts["args"], ids.shape[1]
    room = stated["max_length"] - width
    greedy = GreedySettings(max_new_tokens=room)
    # The original divides by a length that counts the padding before the prompt.
    beam = BeamSettings(beams=stated.get("num_beams", 1), max_new_tokens=room, count_padding=True)
    runs: dict[str, tuple[int, GenerateSettings]] = {"greedy_ids": (NO_STOP, greedy)}
    if "eos_token_id_for_eos_run" in expected:
        end = int(expected["eos_token_id_for_eos_run"])
        runs |= {"greedy_ids_with_eos": (end, greedy), "beam_ids": (end, beam)}
    for name, (stop, options) in runs.items():
        if name in expected:
            theirs = _of_original(expected[name], width, stop)
            ours = _answers(model, Rows(ids, mask, stop), options)
            if name != "beam_ids":  # what follows is the same however long the row may be
                ours = [row[: expected[name].shape[1] - width] for row in ours]
            assert ours == theirs, name


def _answers(model: Any, given: Rows, options: GenerateSettings) -> list[list[int]]:
    engine = Engine(model, given, family=family)  # pyright: ignore[reportArgumentType]
    *_, searches = engine.search(given.prompts, options)
    return [list(search.best.tokens) for search in searches]


def _of_original(ids: torch.Tensor, prompt_length: int, end: int) -> list[list[int]]:
    """The answers of rows that are filled with padding after their ends."""
    answers = []
    for row in ids[:, prompt_length:].tolist():
        answers.append(row[: row.index(end) + 1] if end in row else row)
    return answers


def _check_stream(model: Any, ids: torch.Tensor, mask: torch.Tensor, expected: Reading) -> None:
    """The stream began at a row of the batch, without its padding; it yields once per token."""
    streamed = expected["stream_last"][0].tolist()
    for number, row in enumerate(ids):
        prompt = row[mask[number].bool()].tolist()
        if streamed[: len(prompt)] == prompt:
            options = GreedySettings(max_new_tokens=len(streamed) - len(prompt))
            given = Rows(ids[number : number + 1], mask[number : number + 1], NO_STOP)
            steps = Engine(model, given).search(given.prompts, options)  # pyright: ignore[reportArgumentType]
            lengths = [len((search.found or search.beams)[0].tokens) for [search] in steps]
            assert lengths == list(range(1, options.max_new_tokens + 1))
            assert len(lengths) == int(expected.get("stream_n_yields", len(lengths)))
            assert _answers(model, given, options) == [streamed[len(prompt) :]]
            return
    raise AssertionError("the stream belongs to no row of the batch")


def _check_probabilities(logits: torch.Tensor, expected: Reading, atol: float) -> None:
    """Names such as probs_top_p0.7_t0.95, with top_k or without."""
    for name in expected.names("probs_"):
        told = {kind: float(number) for kind, number in re.findall(r"(top_p|top_k|t)([\d.]+)", name)}
        top_k = int(told.get("top_k", TOP_K))
        ours = warp(logits, told.get("t", 1.0), top_k, told.get("top_p", 1.0)).softmax(-1)
        close(name, ours, expected, atol, rtol=0)
        np.testing.assert_array_equal(ours > 0, expected[name] > 0, err_msg=name)
