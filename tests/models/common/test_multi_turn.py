"""Several answers in one sample: the labels of a sample for each, whatever the tokenizer makes of an answer inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hanlin.core.batch import IGNORED, Sample
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.common import decoder_batch
from hanlin.models.common.multi_turn import LearnedTurn, sample_of_turns, shown_ids

END, NEXT = 2, 3
CONFIG = ChatGlm2Config(
    vocab_size=60, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=32, max_length=128
)
# The answer of the first turn is 20 21 alone and 20 22 inside; the second one's prompt forks in its middle.
FORKED = [
    LearnedTurn([10, 11, 12], [20, 21], END),
    LearnedTurn([10, 11, 12, 20, 22, 13, 14, 30], [40, 41, 42], END),
    LearnedTurn([10, 11, 12, 20, 22, 13, 14, 31, 41, 15, 16], [50], END),
]
STRAIGHT = [
    LearnedTurn([10, 11, 12], [20, 21], END),
    LearnedTurn([10, 11, 12, 20, 21, NEXT, 13], [40], None),
    LearnedTurn([10, 11, 12, 20, 21, NEXT, 13, 40, 41, NEXT, 14], [50, 51], END),
]


def test_a_dialogue_whose_answers_keep_their_ids_is_read_once() -> None:
    sample = sample_of_turns(STRAIGHT)
    assert set(sample.inputs) == {"tokens"}
    assert sample.inputs["tokens"].tolist() == [*STRAIGHT[-1].ids, END]
    _ = IGNORED
    assert sample.labels.tolist() == [_, _, 20, 21, END, _, 40, _, _, _, 50, 51, END, _]


def test_an_answer_with_other_ids_goes_on_beside_the_rest() -> None:
    sample = sample_of_turns(FORKED)
    assert sample.inputs["tokens"].tolist() == [*FORKED[-1].ids, END, 21, 30, 40, 41, 42]
    assert sample.inputs["positions"].tolist() == [*range(13), 4, 7, 8, 9, 10]
    assert sample.inputs["branches"].tolist() == [0] * 13 + [13] + [14] * 4
    assert sample.loss_tokens == sum(len(turn.answer) + 1 for turn in FORKED)
    shown = shown_ids(sample, {END})
    assert [id for id, _ in shown] == [
        10, 11, 12, 20, 21, END, 22, 13, 14, 30, 40, 41, 42, END, 31, 41, 15, 16, 50, END
    ]  # fmt: skip
    assert [id for id, is_learned in shown if is_learned] == [20, 21, END, 40, 41, 42, END, 50, END]


def summed(rows: list[list[Sample]]) -> tuple[float, list[torch.Tensor]]:
    model, generator = ChatGlm2(CONFIG).double(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    batch = decoder_batch.collate(rows, max(sum(sample.length for sample in row) for row in rows) + 3, 0)
    loss = model(**batch.inputs, labels=batch.labels, weights=batch.weights.double())
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


SAME = [LearnedTurn([10, 11, 12], [20], END), LearnedTurn([10, 11, 12], [21], END)]


@pytest.mark.parametrize("turns", [STRAIGHT, FORKED, SAME], ids=["straight", "forked", "same"])
def test_the_loss_and_the_gradients_are_those_of_a_sample_for_each_answer(turns: list[LearnedTurn]) -> None:
    together, gradients = summed([[sample_of_turns(turns)]])
    alone, wanted = summed([[sample_of_turns([turn])] for turn in turns])
    assert together == pytest.approx(alone, abs=1e-10)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-11)


def test_packed_rows_keep_samples_and_their_branches_apart() -> None:
    plain = sample_of_turns([LearnedTurn([9, 8], [7], END)])
    samples = [sample_of_turns(FORKED), plain, sample_of_turns(STRAIGHT), sample_of_turns(FORKED)]
    together, _ = summed([samples, [samples[0], plain]])
    alone = [summed([[sample]])[0] for sample in [*samples, samples[0], plain]]
    assert together == pytest.approx(sum(alone), abs=1e-9)


def test_any_dialogue_keeps_every_loss() -> None:
    """Prompts that begin alike for a while, and then anything."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        base, turns = rng.integers(4, 60, 40).tolist(), []
        for end in (6, 14, 25, 40):
            prompt = base[:end]
            fork = int(rng.integers(3, end + 1))
            prompt[fork:] = rng.integers(4, 60, end - fork).tolist() if end < 40 else prompt[fork:]
            turns.append(LearnedTurn(prompt, rng.integers(4, 60, int(rng.integers(1, 5))).tolist(), END))
        together, _ = summed([[sample_of_turns(turns)]])
        assert together == pytest.approx(summed([[sample_of_turns([turn])] for turn in turns])[0], abs=1e-9)
