"""Where the CPU time of a training step goes: products, attention, passes over activations, optimizer, Python.

python benchmarks/profile_step.py [--out result.json]

One thread, fp32; nothing is compared. small_gpt2 and small_bee have the blocks of `hanlin demo`, a million weights:
16 rows of 32 positions, and 4 rows of 512 packed with its phrases. gpt2_256 and gpt2_1024: 6 layers x 384 hidden, 2,048
tokens a step. chatglm2: 8 layers x 512 hidden, 8 samples of ADGEN's lengths, all of it trained, with LoRA and with
P-Tuning v2.
milliseconds: of a step, the median. products_at_best: the share of the step that the FLOP of its matrix products take
at the rate of products of 1024 x 1024 matrices, which take turns with the steps. shares: of the time in which torch's
profiler watches the step; what watching costs is charged to Python and autograd, most of all where operations are
short. least_share, of GPT-2: the time of a step of two tokens, which no faster operation makes shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from glm_peer import SMALL, TINY
from script import read_arguments, report
from step_chatglm2 import PREFIX, RANK, draw_samples
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from turns import Matrices, Turns, make_step, spread, take_turns

from hanlin.cli._demo_data import write_phrases
from hanlin.core.batch import Batch
from hanlin.core.device import keep_freed_memory
from hanlin.data.loader import Loader
from hanlin.data.prepare import prepare
from hanlin.data.sources import open_records
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.common import decoder_batch
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1.model import Cpm1
from hanlin.models.cpm_bee import CpmBeeTokenizer
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.recipe.settings import DataSettings
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.tokens.vocabulary import build_vocabulary
from hanlin.training.step import Step
from hanlin.tuning.apply import apply_tuning

KINDS: dict[str, tuple[str, ...]] = {
    "products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_"),
    "attention": ("aten::_scaled_dot_product",),
    "activation": ("aten::gelu", "aten::silu", "aten::sigmoid"),
    "layer_norm": ("aten::native_layer_norm",),
    "softmax": ("aten::_softmax", "aten::exp", "aten::log"),
    "optimizer": ("aten::_fused_adamw_",),
    "clipping": ("aten::linalg_vector_norm", "aten::_foreach"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::stack", "aten::index_select"),
    "views": (
        "aten::view", "aten::_unsafe_view", "aten::as_strided", "aten::t", "aten::transpose", "aten::slice",
        "aten::select", "aten::unsqueeze", "aten::expand", "aten::empty", "aten::detach", "detach", "aten::split",
    ),
    "other_passes": ("aten::",),
}  # fmt: skip
"""By the beginnings of operations' names; the first kind that fits counts. What is in none is Python and autograd."""
EXACT = {"products", "views"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="of each model, and half as many that are watched")
    parser.add_argument("--models", nargs="+", choices=MAKE, default=list(MAKE))
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--steps 1")
    torch.set_num_threads(1)
    report({name: measure(*MAKE[name](args.smoke), args.steps) for name in args.models}, args.out)


def measure(step: Step, batch: Batch, steps: int) -> dict[str, Any]:
    keep_freed_memory()  # as `hanlin train` does
    turns = take_turns({"step": lambda: step.run(batch), "matrices": Matrices()}, steps)
    whole = 1000 * median(turns.seconds["step"])
    return {
        "parameters": sum(weight.numel() for weight in step.parallel_model.parameters.values()),
        "positions": batch.labels.numel(),
        "milliseconds": round(whole, 1),
        "products_at_best": _at_best(turns, _product_flops(lambda: step.run(batch))),
        **_least(step, batch, steps, whole),
        "shares": _shares(lambda: step.run(batch), steps),
    }


def _at_best(turns: Turns, flops: float) -> dict[str, float]:
    """The time of so many FLOP as matrices are multiplied in the same round, as a share of the step's."""
    pairs = zip(turns.seconds["matrices"], turns.seconds["step"], strict=True)
    return spread([flops / Matrices.flops * matrices / step for matrices, step in pairs])


def _product_flops(run: Callable[[], object]) -> int:
    """Of what counts as products below."""
    aten = torch.ops.aten
    with FlopCounterMode(display=False, custom_mapping={aten.addmm_: _addmm_flop}) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(kind, 0) for kind in (aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm))


def _addmm_flop(_: Any, left: Sequence[int], right: Sequence[int], **options: Any) -> int:
    return 2 * math.prod(left) * right[1]


def _least(step: Step, batch: Batch, steps: int, whole: float) -> dict[str, float]:
    """Where two tokens can be cut out of the inputs: not where these say how all of them belong together."""
    if batch.inputs.keys() != {"tokens"}:
        return {}
    one = {"tokens": batch.inputs["tokens"][:1, :2]}
    least = Batch(one, batch.labels[:1, :2], batch.weights[:1, :2], rows=[[0]])
    return {"least_share": round(_milliseconds(lambda: step.run(least), steps) / whole, 3)}


def _milliseconds(run: Callable[[], object], steps: int) -> float:
    run()
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return 1000 * median(seconds)


def _shares(run: Callable[[], object], steps: int) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        for _ in range(max(1, steps // 2)):
            run()
        whole = 1e6 * (time.perf_counter() - start)
    found: Counter[str] = Counter()
    for event in seen.key_averages():
        if (kind := _kind(event.key)) is not None:
            found[kind] += event.self_cpu_time_total
    shares = {kind: round(found[kind] / whole, 3) for kind in KINDS}
    return {**shares, "python_and_autograd": round(1 - found.total() / whole, 3)}


def _kind(operation: str) -> str | None:
    for kind, names in KINDS.items():
        if operation in names if kind in EXACT else operation.startswith(names):
            return kind
    return None


# --- models and batches ---


class Shape(NamedTuple):
    hidden: int
    layers: int
    heads: int
    vocab: int


def make_gpt2(sizes: Shape, count: int, length: int, is_smoke: bool) -> tuple[Step, Batch]:
    layers, length = (1, 16) if is_smoke else (sizes.layers, length)
    config = shape(sizes.hidden, layers, sizes.heads, dropout=0.0, attention_dropout=0.0)
    config = dataclasses.replace(
        config, vocab_size=sizes.vocab, max_length=length, head_dim=sizes.hidden // sizes.heads
    )
    tokens = torch.randint(config.vocab_size, (count, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch({"tokens": tokens[:, :-1]}, tokens[:, 1:], torch.ones(count, length), rows=[[0]] * count)
    return _step_of(Cpm1(config)), batch


def make_chatglm2(tuning: dict[str, Any], is_smoke: bool) -> tuple[Step, Batch]:
    config, samples = (TINY, draw_samples(2)) if is_smoke else (SMALL, draw_samples(8))
    batch = decoder_batch.collate([samples], sum(sample.length for sample in samples), config.pad_id)
    model, draws = ChatGlm2(config), torch.Generator().manual_seed(0)
    model.init_weights(draws)
    apply_tuning(model, TUNING_METHODS.make(tuning), family, draws)
    return make_step(model.train()), batch


def make_bee(is_smoke: bool) -> tuple[Step, Batch]:
    """Pinyin of phrases, as the demo trains it."""
    with tempfile.TemporaryDirectory() as folder:
        rows, vocab = Path(folder) / "pinyin_train.jsonl", Path(folder) / "vocab.txt"
        write_phrases(rows.parent, characters=100 if is_smoke else 800, eval_rows=1, seed=1)
        records = open_records(rows)
        words = build_vocabulary((records[number] for number in range(len(records))), 20_000, 1)
        vocab.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        tokenizer = CpmBeeTokenizer.load(vocab)
        config = CpmBeeConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=128, num_layers=1 if is_smoke else 4, num_heads=4, head_dim=32,
            ffn_size=320, num_distance_buckets=32, num_relation_buckets=96, max_distance=64, half_frequencies=False,
        )  # fmt: skip
        processor = CpmBeeProcessor(tokenizer, config)
        data = DataSettings(train=(rows,), max_length=512, cache=Path(folder) / "cache")
        samples = prepare([rows], processor, data, tokenizer=tokenizer, limit=1000)
        return _step_of(CpmBee(config)), next(Loader(samples, processor, max_length=512, batch_size=4).forever())


def _step_of(model: Any) -> Step:
    model.init_weights(torch.Generator().manual_seed(0))
    return make_step(model.train())


MAKE: dict[str, Callable[[bool], tuple[Step, Batch]]] = {
    "small_gpt2": partial(make_gpt2, Shape(128, 4, 4, 1560), 16, 32),
    "small_bee": make_bee,
    "gpt2_256": partial(make_gpt2, Shape(384, 6, 6, 30_000), 8, 256),
    "gpt2_1024": partial(make_gpt2, Shape(384, 6, 6, 30_000), 2, 1024),
    "chatglm2": partial(make_chatglm2, {"method": "full"}),
    "chatglm2_lora": partial(make_chatglm2, {"method": "lora", "rank": RANK}),
    "chatglm2_prefix": partial(make_chatglm2, {"method": "prefix", "length": PREFIX}),
}


if __name__ == "__main__":
    main()
