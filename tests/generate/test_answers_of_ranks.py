"""Answers of several ranks are those of one process, for every family, search and layout."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from chatglm2_pieces import small_pieces
from cpm2_tiny import make_tokenizer
from ranks import run_ranks
from sampled import sampled
from tiny_pieces import small_tokenizer

from hanlin.core.errors import RankError
from hanlin.core.ranks import read_ranks
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.generate.prompt_scores import score_prompts_in_steps
from hanlin.generate.running_batch import AnswerRequest, BatchLimits
from hanlin.layers.slot_cache import Budget
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.cpm_bee import CpmBeeTokenizer
from hanlin.models.family import load_family, make_options
from hanlin.parallel.inference_model import ShardedInferenceModel
from hanlin.parallel.leading import follow, leading
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings
from hanlin.recipe.tuning import TuningMethod
from hanlin.tokens.wordpiece import WordPiece
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.full import FullTuning
from hanlin.tuning.prefix import PrefixTuning

LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "tensor": {"tensor": 2},
    "pipe": {"pipe": 2},
    "tensor, along the text": {"tensor": 2, "sequence_parallel": True},
    "tensor, pipe": {"tensor": 2, "pipe": 2},
}
SEARCHES = [
    GreedySettings(max_new_tokens=5, batch_size=2),
    BeamSettings(beams=3, max_new_tokens=5, batch_size=2),
    SampleSettings(max_new_tokens=5, top_k=20, top_p=0.95, batch_size=2),
]
MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
POEM = "床前明月光疑是地上霜举头望低思故乡"
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "head_dim": 4, "ffn_size": 24}
FAMILIES = {
    "cpm_bee": (
        lambda: CpmBeeTokenizer([*MARKS, "<", "input", *POEM]),
        {"num_distance_buckets": 32, "num_relation_buckets": 64, "max_distance": 64},
        [{"input": POEM[:length], "<ans>": ""} for length in (3, 9, 1, 5, 6)],
    ),
    "chatglm2": (
        lambda: ChatGlm2Tokenizer(small_pieces()),
        {"num_kv_heads": 2, "max_length": 256},
        [{"prompt": text} for text in ("你好", "黑色九分裤，简单", "世界", "Hello", "问：你好")],
    ),
    "cpm1": (small_tokenizer, {"max_length": 64}, [{"prompt": POEM[:length]} for length in (3, 9, 1, 5, 6)]),
    "cpm1_t5": (
        lambda: WordPiece(["<unk>", "<pad>", "<eod>", *POEM, *(f"<s_{number}>" for number in range(9))]),
        {"max_length": 64},
        [{"source": POEM[:length]} for length in (3, 9, 1, 5, 6)],
    ),
    "cpm2": (make_tokenizer, {}, [{"source": "天气书北京"[:length], "target": ""} for length in (3, 5, 1, 4, 2)]),
}

MATRIX = list(product(FAMILIES, LAYOUTS))
SELDOM = [
    *product(("cpm_bee", "cpm1", "cpm1_t5"), ("tensor, pipe", "data")),
    *product(("cpm_bee", "cpm1_t5"), ("tensor, along the text",)),
]
PREFIX = PrefixTuning(length=3)


def make_engine(name: str, layout: dict[str, Any] | None, tuning: TuningMethod | None = None) -> Engine:
    """layout: None for a process alone."""
    family, (make, values, _) = load_family(name), FAMILIES[name]
    tokenizer: Any = make()
    config = family.config(**{**SHAPE, **values, "vocab_size": tokenizer.vocab_size})
    processor = family.processor(tokenizer, config, make_options(family, {}))
    model = family.model()(config).double()
    draw = torch.Generator().manual_seed(5)
    model.init_weights(draw)
    apply_tuning(model, tuning or FullTuning(), family, draw)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:  # so that each answer has many letters
            torch.nn.init.normal_(weight, std=5.0 if "blocks" in name else 1.0, generator=draw)
    model.double().requires_grad_(False).eval()
    if layout is None:
        return Engine(model, processor, family=family)
    names, spare = [name for name, _ in model.named_parameters()], copy.deepcopy(model)
    settings = ParallelSettings(**layout)
    parallel_model = parallelize(model, torch.device("cpu"), settings=settings, copy=lambda: copy.deepcopy(spare))
    sharded = ShardedInferenceModel(parallel_model, names)
    return Engine(sharded.eval(), processor, family=family, mesh=sharded.mesh)


def answers(name: str, layout: dict[str, Any] | None, tuning: TuningMethod | None = None) -> list[list[Any]]:
    """What one rank gets to know, by search."""
    engine, (_, _, records) = make_engine(name, layout, tuning), FAMILIES[name]
    assert engine.mesh.is_main == read_ranks().is_main
    return [engine.generate(records[:3], search, seed=3) for search in SEARCHES]


def answers_in_turns(name: str, layout: dict[str, Any] | None) -> Any:
    """What the main rank finds, which alone knows who joins and leaves when."""
    engine, (_, _, records) = make_engine(name, layout), FAMILIES[name]
    if not engine.mesh.is_main:
        follow(engine.model, engine.inference)
        return None
    with nullcontext() if layout is None else leading(engine.model):
        prompts = [engine.processor.prompt(record) for record in records]
        found: dict[tuple[bool, int], Any] = {}
        for limits in (None, BatchLimits(Budget(640), prompt_tokens=3, kept=2)):  # the first batch is forgotten
            running, waiting, steps = engine.run_together(limits), list(range(6)), 0
            while waiting or not running.is_empty:
                with engine.inference():
                    while waiting and waiting[0] <= steps:
                        asked = AnswerRequest(prompts[waiting[0] % 5], SEARCHES[waiting[0] % 3], record_stream(3, 1))
                        if running.add(waiting[:1], [asked]) is None:
                            break
                        del waiting[0]
                    done = {number: one.best for number, one in running.step().items() if one.is_done}
                found |= {(limits is None, number): best for number, best in done.items()}
                steps += 1
                if steps == 4:
                    running.drop(2)
            assert len(found) >= 5
        scored = [*score_prompts_in_steps(engine, prompts[:1], 2)][-1] if name == "chatglm2" else []
        scores = [round(one.noted.score, 9) for own in scored for one in own]
        return sorted((key, one.tokens, round(one.score, 9)) for key, one in found.items()), scores


def compare(family: str, layout: dict[str, Any], tuning: TuningMethod | None = None) -> None:
    alone = answers(family, None, tuning)
    settings = ParallelSettings(**layout)
    world = (settings.data or 1) * settings.tensor * settings.pipe
    assert run_ranks(world, answers, family, layout, tuning) == [alone] * world


@pytest.mark.parametrize(("family", "layout"), sampled(MATRIX, [cell for cell in MATRIX if cell not in SELDOM]))
def test_answers_are_those_of_one_process(family: str, layout: str) -> None:
    compare(family, LAYOUTS[layout])


def test_a_prefix_stands_before_the_blocks_of_every_rank() -> None:
    compare("chatglm2", LAYOUTS["tensor, pipe"], PREFIX)


def test_several_stages_of_a_rank_have_a_cache_each() -> None:
    compare("cpm2", {"pipe": 2, "schedule": "interleaved"})


@pytest.mark.parametrize(("family", "layout"), [("cpm_bee", "tensor"), ("chatglm2", "tensor, pipe"), ("cpm2", "pipe")])
def test_the_main_rank_alone_knows_who_is_answered(family: str, layout: str) -> None:
    settings = ParallelSettings(**LAYOUTS[layout])
    world = settings.tensor * settings.pipe
    found, *others = run_ranks(world, answers_in_turns, family, LAYOUTS[layout])
    assert found == answers_in_turns(family, None)
    assert others == [None] * (world - 1)


def test_a_call_that_fails_is_told_at_once_and_ends_the_block() -> None:
    failures: list[int] = []

    def broken() -> AbstractContextManager[None]:
        raise ValueError("no memory")

    def lead(name: str) -> None:
        engine = make_engine(name, LAYOUTS["tensor"])
        if not engine.mesh.is_main:
            follow(engine.model, broken)
        with leading(engine.model, on_failure=lambda: failures.append(1)):
            for _ in range(2):
                with pytest.raises((RuntimeError, RankError)):
                    engine.generate(FAMILIES[name][2][:1], SEARCHES[0])
            assert failures == [1]

    with pytest.raises(AssertionError, match="no memory"):
        run_ranks(2, lead, "chatglm2")
