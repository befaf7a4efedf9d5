"""Answer tokens per second of ChatGLM2's greedy decoding, against transformers' GlmForCausalLM.generate.

python benchmarks/decode_chatglm2.py [--out result.json]        (needs transformers)

8 layers x 512 hidden, vocabulary 65,024, fp32, one thread; random weights, random prompts of 64 tokens, 64 new tokens,
the same for both; batch 1 and 16. Both must write the same tokens; then the ways take turns, CPU time counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glm_peer import SMALL, TINY, make_pair
from script import read_arguments, report, require
from turns import take_turns

from hanlin.core.batch import Prompt, PromptBatch
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.common import decoder_batch

NEVER: frozenset[int] = frozenset()


class Ids:
    """Prompts that are ids already; all that a search asks of a `Processor`."""

    def collate_prompts(self, prompts: list[Prompt]) -> PromptBatch:
        inputs = decoder_batch.pad_left([prompt.inputs["tokens"] for prompt in prompts], SMALL.pad_id)
        return PromptBatch(inputs, [prompt.cursor for prompt in prompts], [[] for _ in prompts])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1 --prompt 6 --tokens 4 --batches 1 2")
    require("transformers")
    torch.set_num_threads(1)
    ours, theirs = make_pair(TINY if args.smoke else SMALL)
    engine = Engine(ours.eval().requires_grad_(False), Ids())  # pyright: ignore[reportArgumentType]
    prompts = np.random.default_rng(0).integers(300, 64000, (max(args.batches), args.prompt))
    figures = {
        f"batch_{size}": compare(engine, theirs.eval(), prompts[:size], args.tokens, args.rounds)
        for size in args.batches
    }
    report(figures, args.out, ["transformers"])


def compare(engine: Engine, theirs: Any, prompts: np.ndarray, tokens: int, rounds: int) -> dict[str, Any]:
    assert decode_theirs(theirs, prompts, tokens) == decode_ours(engine, prompts, tokens), "the ways write other tokens"
    ways = {
        "glm": lambda: decode_theirs(theirs, prompts, tokens),
        "hanlin": lambda: decode_ours(engine, prompts, tokens),
    }
    turns = take_turns(ways, rounds)
    count = prompts.shape[0] * tokens
    return {
        "tokens_per_second": {way: turns.per_second(way, count) for way in ways},
        "ratio": turns.ratio("glm", "hanlin"),
        "same_tokens": True,
    }


def decode_ours(engine: Engine, prompts: np.ndarray, tokens: int) -> list[list[int]]:
    given = [
        Prompt(None, {"tokens": row[:-1].astype(np.int32)}, decoder_batch.TextCursor(int(row[-1]), len(row) - 1, NEVER))
        for row in prompts
    ]
    *_, searches = engine.search(given, GreedySettings(max_new_tokens=tokens))
    return [list(search.best.tokens) for search in searches]


@torch.inference_mode()
def decode_theirs(model: Any, prompts: np.ndarray, tokens: int) -> list[list[int]]:
    ids = torch.from_numpy(prompts)
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, eos_token_id=None
    )
    return written[:, ids.shape[1] :].tolist()


if __name__ == "__main__":
    main()
