"""Tokens per second of greedy decoding, against transformers' generate in all its manners.

python benchmarks/decode.py [--compiled] [--out result.json]        (needs transformers)

ChatGLM2's shape (8 layers x 512 hidden, vocabulary 65,024) beside GlmForCausalLM, GPT-2's (12 x 512, 30,000) beside
GPT2LMHeadModel; fp32, one thread; random weights, random prompts of 64 tokens, 64 new tokens, the same for all; batch 1
and 16. Theirs with its usual cache, with the static one, and (--compiled, minutes and a C++ compiler) with that and a
compiled model; `ratio` is to the fastest of them. All must write the same tokens; then the ways take turns, CPU time
counts. --weights half: numbers that half precision has, as published checkpoints of fp16 are; single: any of fp32.
`lookup`: one answer with `generate.lookup` beside one without it. Random weights say the same again and again at the
end: that is the most it can give.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glm_peer import SMALL, TINY, make_pair
from script import read_arguments, report, require
from turns import Turns, take_turns

from hanlin.core.batch import Prompt, PromptBatch
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models import chatglm2, cpm1
from hanlin.models.common import decoder_batch
from hanlin.models.cpm1.config import shape

NEVER: frozenset[int] = frozenset()
SHAPES = {
    "chatglm2": (chatglm2.family, SMALL, TINY),
    "gpt2": (cpm1.family, replace(shape(512, 12, 8), vocab_size=30_000), replace(shape(32, 2, 4), vocab_size=65_024)),
}
Ids = list[list[int]]


class Prompts:
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
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--weights", nargs="+", choices=["half", "single"], default=["half", "single"])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1 --prompt 6 --tokens 4 --batches 1 2")
    require("transformers")
    torch.set_num_threads(1)
    figures = {}
    for name, weights, size in product(args.shapes, args.weights, args.batches):
        family, config, tiny = SHAPES[name]
        ours, theirs = make_pair(tiny if args.smoke else config, family, is_half=weights == "half")
        engine = Engine(ours.eval().requires_grad_(False), Prompts(), family=family)  # pyright: ignore[reportArgumentType]
        engine.prepack_weights(is_alone=size == 1)
        prompts = np.random.default_rng(0).integers(300, config.vocab_size - 1000, (size, args.prompt))
        kind = "" if (name, weights) == ("chatglm2", "single") else f"{name}_{weights}_"
        figures[f"{kind}batch_{size}"] = compare(engine, theirs.eval(), prompts, args)
    report(figures, args.out, ["transformers"])


def compare(engine: Engine, theirs: Any, prompts: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    ask = partial(decode_theirs, theirs, prompts, args.tokens)
    ways: dict[str, Callable[[], Ids]] = {
        "transformers": ask,
        "static": partial(ask, cache_implementation="static"),
        "hanlin": partial(decode_ours, engine, prompts, args.tokens),
    }
    if args.compiled:
        compiled = torch.compile(theirs.forward, dynamic=False)
        ways["compiled"] = partial(ask, cache_implementation="static", forward=compiled)
    if len(prompts) == 1:
        ways["lookup"] = partial(decode_ours, engine, prompts, args.tokens, lookup=16)
    expected = ask()
    for name, way in ways.items():
        assert way() == expected, f"{name} writes other tokens"
    return summed(take_turns(ways, args.rounds), prompts.shape[0] * args.tokens)


def summed(turns: Turns, count: int) -> dict[str, Any]:
    rates = {way: turns.per_second(way, count) for way in turns.seconds}
    fastest = max(rates.keys() - {"hanlin", "lookup"}, key=rates.__getitem__)
    found = {"tokens_per_second": rates, "fastest_peer": fastest, "ratio": turns.ratio(fastest, "hanlin")}
    return {**found, "lookup": turns.ratio("hanlin", "lookup")} if "lookup" in rates else found


def decode_ours(engine: Engine, prompts: np.ndarray, tokens: int, lookup: int = 0) -> Ids:
    given = [
        Prompt(None, {"tokens": row[:-1].astype(np.int32)}, decoder_batch.TextCursor(int(row[-1]), len(row) - 1, NEVER))
        for row in prompts
    ]
    *_, searches = engine.search(given, GreedySettings(max_new_tokens=tokens, lookup=lookup))
    return [list(search.best.tokens) for search in searches]


@torch.inference_mode()
def decode_theirs(model: Any, prompts: np.ndarray, tokens: int, *, forward: Any = None, **options: Any) -> Ids:
    ids, own = torch.from_numpy(prompts), model.forward
    model.forward = forward or own
    try:
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
            min_new_tokens=tokens, eos_token_id=None, pad_token_id=0, disable_compile=True, **options,
        )  # fmt: skip
    finally:
        model.forward = own
    return written[:, ids.shape[1] :].tolist()


if __name__ == "__main__":
    main()
