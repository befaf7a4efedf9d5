"""Answer tokens per second: cached against uncached decoding, and against the original's manner of beam search.

python benchmarks/decode_cpm_bee.py --vocab bee.txt --texts rows.jsonl [--out result.json]

Random weights in a small shape with the real vocabulary, one thread, the same records; the ways take turns, the ratio
is the median of the rounds' ratios, and all must write the same tokens. The original's manner: each prompt goes through
the model once per beam, logits are made for all of its columns, attention is written out, keys and values are
concatenated and reordered as a whole at each step, finished records stay in the batch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from script import read_arguments, report
from torch.nn import functional
from turns import spread

from hanlin.core.batch import Cursor, Prompt
from hanlin.generate.beam import Beam, BeamRules, Candidate, advance, start_search
from hanlin.generate.engine import Engine
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.sampling import ban_ids
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm_bee import SIZES, CpmBeeTokenizer, family
from hanlin.models.cpm_bee.model import Inputs, MaskInputs, relations_between, visibility
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.recipe.settings import GenerateSettings

Answers = list[tuple[int, ...]]
ROW_INPUTS = ("relations", "ext_tokens", "ext_subs")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines; the strings become inputs")
    parser.add_argument("--size", default="small", choices=sorted(SIZES))
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--size tiny --records 2 --tokens 2 --beams 2 --rounds 1",
        {"--vocab": "vocab/bee/bee.txt", "--texts": "data/ccpm/train.jsonl"},
    )
    torch.set_num_threads(1)
    engine = make_engine(args.vocab, args.size)
    records = read_records(args.texts, args.records)
    greedy = GreedySettings(max_new_tokens=args.tokens, batch_size=args.records)
    beam = BeamSettings(beams=args.beams, max_new_tokens=args.tokens, batch_size=args.records)
    result = {
        "model": args.size,
        "records": len(records),
        "mean_prompt_tokens": round(sum(engine.prompt(r, greedy).length for r in records) / len(records), 1),
        "greedy_cached_against_uncached": compare(engine, records, greedy, decode_uncached, args.rounds),
        "greedy_one_record": compare(engine, records[:1], greedy, decode_uncached, args.rounds),
        "beam_against_original_manner": compare(engine, records, beam, decode_as_original, args.rounds),
        "beam_one_record": compare(engine, records[:1], beam, decode_as_original, args.rounds),
    }
    report(result, args.out)


def make_engine(vocab: Path, size: str) -> Engine:
    tokenizer, config = CpmBeeTokenizer.load(vocab), SIZES[size]
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(0))
    # Fresh embeddings give flat logits, whose order rounding would decide.
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(1))
    return Engine(model.eval(), CpmBeeProcessor(tokenizer, config))


def read_records(path: Path, count: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [{"input": "".join(v for v in row.values() if isinstance(v, str)), "<ans>": ""} for row in rows]


def compare(
    engine: Engine,
    records: Sequence[dict[str, str]],
    options: GenerateSettings,
    other: Callable[[Engine, list[Prompt], GenerateSettings], Answers],
    rounds: int,
) -> dict[str, float | bool]:
    prompts = [engine.prompt(record, options) for record in records]
    times: list[tuple[float, float]] = []
    ours = Answers()
    for _ in range(rounds + 1):  # the first round warms up
        begin = time.perf_counter()
        theirs = other(engine, prompts, options)
        middle = time.perf_counter()
        ours = decode_cached(engine, prompts, options)
        times.append((middle - begin, time.perf_counter() - middle))
        assert ours == theirs, "the ways write other tokens"
    tokens = sum(map(len, ours))
    return {
        "other_tokens_per_second": round(tokens / median(slow for slow, _ in times[1:]), 1),
        "hanlin_tokens_per_second": round(tokens / median(fast for _, fast in times[1:]), 1),
        "ratio": spread([slow / fast for slow, fast in times[1:]]),
        "same_tokens": True,
    }


def decode_cached(engine: Engine, prompts: list[Prompt], options: GenerateSettings) -> Answers:
    *_, searches = engine.search(prompts, options)
    return [search.best.tokens for search in searches]


@torch.inference_mode()
def decode_uncached(engine: Engine, prompts: list[Prompt], options: GenerateSettings) -> Answers:
    """Greedy; each step reads the prompt and all that was written again."""
    batch = engine.processor.collate_prompts(prompts)
    inputs, cursors = dict(batch.inputs), list(batch.cursors)
    answers: Answers = [()] * len(prompts)
    for _ in range(options.max_new_tokens):
        # Written columns are no context here, so that the prompt does not see them, as in training.
        inputs |= with_columns(inputs, cursors, is_context=False)
        logits = engine.model(**inputs, kv_cache=KVCache(), logits_to_keep=1)[:, -1]
        for row, token in enumerate(ban_ids(logits, batch.banned).argmax(-1).tolist()):
            if not cursors[row].is_done:
                answers[row] += (token,)
                cursors[row] = cursors[row].advance(token)
        if all(cursor.is_done for cursor in cursors):
            break
    return answers


@dataclass
class Cache:
    """What the original keeps: facts of all columns, and per block keys and values, concatenated at each step."""

    facts: dict[str, torch.Tensor] = field(default_factory=dict)
    blocks: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def append(self, name: str, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if name in self.blocks:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self.blocks[name], (keys, values), strict=True))
        self.blocks[name] = keys, values
        return keys, values

    def reorder(self, rows: list[int]) -> None:
        chosen = torch.tensor(rows)
        self.facts = {name: fact[chosen] for name, fact in self.facts.items()}
        self.blocks = {name: (keys[chosen], values[chosen]) for name, (keys, values) in self.blocks.items()}


@torch.inference_mode()
def decode_as_original(engine: Engine, prompts: list[Prompt], options: GenerateSettings) -> Answers:
    batch = engine.processor.collate_prompts(prompts)
    rules = BeamRules(options.beams, options.max_new_tokens)
    inputs = {name: tensor.repeat_interleave(rules.beams, dim=0) for name, tensor in batch.inputs.items()}
    searches = [start_search(cursor) for cursor in batch.cursors]
    banned = [columns for columns in batch.banned for _ in range(rules.beams)]
    cache = Cache()
    forward_as_original(engine.model, inputs, cache)
    constant = {name: inputs[name] for name in ROW_INPUTS}
    while not all(search.is_done for search in searches):
        beams = [
            filled(search.beams, cursor, rules.beams) for search, cursor in zip(searches, batch.cursors, strict=True)
        ]
        flat = [beam for some in beams for beam in some]
        cache.reorder([n // rules.beams * rules.beams + beam.parent for n, beam in enumerate(flat)])
        columns = with_columns({name: t[:, :0] for name, t in inputs.items()}, [beam.cursor for beam in flat])
        logits = forward_as_original(engine.model, {**columns, **constant}, cache)[:, -1]
        scores = ban_ids(logits, banned).log_softmax(-1)
        scores += torch.tensor([[beam.score] for beam in flat])
        for number, search in enumerate(searches):
            if not search.is_done:
                own = scores[number * rules.beams :][: len(search.beams)]
                searches[number] = advance(search, original_candidates(own, 2 * rules.beams), rules)
    return [search.best.tokens for search in searches]


def filled(beams: Sequence[Beam], cursor: Cursor, count: int) -> list[Beam]:
    """Dummy beams stand in for those that a finished record, or the first step, lacks."""
    return [*beams, *[beams[0] if beams else Beam.first(cursor)] * (count - len(beams))]


def original_candidates(scores: torch.Tensor, count: int) -> list[Candidate]:
    values, places = scores.flatten().topk(count)
    beams, tokens = (places // scores.shape[1]).tolist(), (places % scores.shape[1]).tolist()
    return [Candidate(*parts) for parts in zip(beams, tokens, values.tolist(), strict=True)]


def with_columns(inputs: dict[str, torch.Tensor], cursors: Sequence[Cursor], **changes: int) -> dict[str, torch.Tensor]:
    """The inputs per column with the cursors' next columns behind them."""
    new = [{**cursor.inputs(), **changes} for cursor in cursors]
    return {
        name: torch.cat([inputs[name], torch.tensor([[column[name]] for column in new]).to(inputs[name].dtype)], dim=1)
        for name in new[0]
    }


def forward_as_original(model: Any, inputs: dict[str, torch.Tensor], cache: Cache) -> torch.Tensor:
    """Logits of all columns."""
    given = Inputs(**inputs)
    names = ("positions", "is_context", "sample_ids", "num_segments", "segments")
    new = {name: inputs[name] for name in names}
    known = {name: torch.cat([cache.facts[name], new[name]], dim=1) if cache.facts else new[name] for name in names}
    cache.facts = known
    queries, keys = (_columns(facts) for facts in (new, known))
    bias = model.position_bias(queries, keys, relations_between(queries, keys, given.relation_offsets, given.relations))
    hidden_keys = ~visibility(queries, keys)[:, None]
    hidden = model.embedding(given.tokens, given.subs)
    for name, block in model.blocks.items():
        layer = block.attention
        normed = layer.norm(hidden)
        query, key, value = (
            linear(normed).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            for linear in (layer.query, layer.key, layer.value)
        )
        key, value = cache.append(name, key, value)
        scores = query @ key.transpose(-1, -2) / math.sqrt(layer.head_dim) + bias
        shares = scores.masked_fill(hidden_keys, -torch.inf).softmax(-1).masked_fill(hidden_keys, 0)
        hidden = (hidden + layer.output((shares @ value).transpose(1, 2).flatten(2))) / 1.05
        hidden = (hidden + block.ffn(hidden)) / 1.05
    hidden = model.norm(hidden)
    entries = model.embedding(inputs["ext_tokens"][0], inputs["ext_subs"][0])
    return torch.cat(
        [functional.linear(hidden * model.embedding.scale, model.embedding.weight), functional.linear(hidden, entries)],
        -1,
    )


def _columns(facts: dict[str, torch.Tensor]) -> MaskInputs:
    return MaskInputs(**facts, spans=torch.zeros_like(facts["segments"]), exists=facts["num_segments"] != 0)


if __name__ == "__main__":
    main()
