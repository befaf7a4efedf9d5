"""The parts of device_check.py: what is asked of one device, most worth knowing first.

No script itself. Every part tells what it finds by `Bench.keep`, at once, and raises where something is wrong. Nothing
here needs CUDA to be imported, and with `is_tiny` all of it runs on a CPU; what only CUDA has is then kept as skipped,
with the reason.
"""

from __future__ import annotations

import copy
import gc
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from device_plan import PlannedStep
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional

from hanlin.checkpoint.state import Checkpointer
from hanlin.core.batch import IGNORED, Batch
from hanlin.core.errors import ConfigError
from hanlin.core.ranks import group_of_one
from hanlin.core.transfer import to_device
from hanlin.layers.attention_kernels import AttentionUse, attention_kernels, kernel_scope
from hanlin.layers.block_attention import CausalRows, block_attention, make_causal_context
from hanlin.layers.flex import rehearse_flex
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.prefix import PrefixEncoder
from hanlin.layers.quantised import packed, packed_linears, packed_sizes, quantise_linears
from hanlin.models.family import load_family
from hanlin.parallel.compiled import compile_block
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import OPTIMIZERS, ParallelSettings, TrainSettings
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step, StepReport
from hanlin.tuning.apply import apply_tuning

GIB = 2**30
PEAK_TFLOPS = 989
"""Of dense bf16 products on an H100 or H200, by the maker."""
LOSS_BOUNDS = {"fp32": 3e-5, "bf16": 1e-2, "fp16": 4e-3}
"""How far a loss may be from the CPU's in fp32, as a share of it; its own bf16 and fp16 are 7e-3 and 2e-3 away."""
ATTENTION_BOUND = 4e-2
"""How far bf16 attention and its gradients may be from fp32's, as a share of the greatest number."""
FULL_GIB = 120
"""Of the device, from which on all of the 6B is trained: fp32 weights, gradients and Adam's state are 100 GB."""
FEW_LAYERS, LEAST_LAYERS = 14, 4


@dataclass(frozen=True)
class Bench:
    """keep: writes a result of the part down, by a name; is_tiny: small shapes, to see that every line runs."""

    device: torch.device
    is_tiny: bool
    keep: Callable[[str, Any], None]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def cudnn_choices(self) -> tuple[bool, ...]:
        """Attention with and without cuDNN's kernels, where there is a choice."""
        return (False, True) if self.is_cuda else (False,)

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give memory back and forget its peak."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / GIB, 2) if self.is_cuda else None

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one run, by the clock."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def median_seconds(self, run: Callable[[], object], warm: int = 2, rounds: int = 5) -> float:
        for _ in range(warm):
            run()
        return statistics.median(self.seconds(run) for _ in range(rounds))

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def skip(self, name: str, reason: str) -> None:
        self.keep(name, {"skipped": reason})


@dataclass(frozen=True)
class Part:
    """seconds: an estimate, on an H100."""

    run: Callable[[Bench], None]
    seconds: float


# --- machine ---


def measure_machine(bench: Bench) -> None:
    """What the device is, and its rates: products of matrices, and bytes copied (read and written)."""
    if bench.is_cuda:
        bench.keep("device", describe_cuda())
    else:
        bench.skip("device", "needs CUDA: name, memory, versions of cuDNN and NCCL")
    size = 512 if bench.is_tiny else 8192
    rates: dict[str, float] = {}
    for name, dtype, rounds in (("bf16", torch.bfloat16, 5), ("fp32", torch.float32, 2)):
        left, right = (bench.randn(size, size, dtype=dtype) for _ in range(2))
        seconds = bench.median_seconds(lambda a=left, b=right: a @ b, warm=rounds // 2, rounds=rounds)
        rates[f"matrix_{name}_tflops"] = round(2 * size**3 / seconds / 1e12, 2)
    source = torch.zeros(2**20 if bench.is_tiny else 2**31, dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.median_seconds(lambda: target.copy_(source))
    rates["copy_tb_per_second"] = round(2 * source.nbytes / seconds / 1e12, 3)
    bench.keep("rates", rates)


def describe_cuda() -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "gib": round(facts.total_memory / GIB, 1),
        "capability": f"{facts.major}.{facts.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": str(torch.cuda.nccl.version()),  # pyright: ignore[reportAttributeAccessIssue]
    }


# --- kernels ---


def measure_kernels(bench: Bench) -> None:
    """Attention: what the first call of a new shape costs, the calls after it, and gradients under a boolean mask."""
    if not bench.is_cuda:
        bench.skip("cudnn", "needs CUDA: cuDNN's attention against the others")
    for is_on in bench.cudnn_choices:
        with cudnn_attention(bench, is_on):
            for kind in ("causal", "bias", "bias_odd"):
                bench.keep(f"train_{kind}{suffix(is_on)}", time_shapes(bench, kind))
            bench.keep(f"decode{suffix(is_on)}", time_growing_cache(bench))
            broken = count_broken_gradients(bench)
            bench.keep(f"gradients_not_finite{suffix(is_on)}", broken)
            # cuDNN's is a known fault of torch (pytorch#196678), to be told and not to be counted.
            assert is_on or not broken, f"{broken} gradients of attention are not finite"


def compare_attention(bench: Bench) -> None:
    """Packed rows and rows with a prefix, by each kernel of `run.attention`: results, gradients, milliseconds forwards
    and backwards. What differs from plain products in fp32, or is left out by `auto`, fails.
    """
    scope = kernel_scope(bench.device)
    use = AttentionUse(torch.bfloat16, 16 if bench.is_tiny else 128, is_trained=True)
    if bench.is_cuda:
        assert scope.takes_sequences(use), "flash attention of samples one behind the other does not work here"
    else:
        bench.skip("varlen", "needs CUDA: flash attention of samples one behind the other, here by plain products")
    gap = rehearse_flex(bench.device, use.dtype, use.head_dim)
    bench.keep("flex", {"gap": round(gap, 5), "by": "flex_attention" if bench.is_cuda else "plain products"})
    assert gap < ATTENTION_BOUND, f"a bias pair by pair is off by {gap:.1e}"
    wrong = []
    for name, prefix in (("packed", 0), ("prefix", 5 if bench.is_tiny else 128)):
        rows = PackedAttention.draw(bench, use.head_dim, prefix)
        expected = [part.cpu() for part in rows.run("math", torch.float32)]
        found: dict[str, Any] = {}
        for kernel in ("auto", "efficient", "math"):
            parts = rows.run(kernel, use.dtype)
            gaps = [float((one.float().cpu() - other).abs().max() / other.abs().max())
                    for one, other in zip(parts, expected, strict=True)]  # fmt: skip
            seconds = bench.median_seconds(lambda k=kernel, r=rows: r.run(k, use.dtype))
            found[kernel] = {"ms": round(1e3 * seconds, 3), "gap": round(max(gaps), 5)}
            wrong += [f"{name} {kernel}"] if not max(gaps) < ATTENTION_BOUND else []
        bench.keep(name, found)
    assert not wrong, f"attention differs from plain products: {', '.join(wrong)}"


@dataclass(frozen=True)
class PackedAttention:
    """Causal attention of samples in packed rows, with few key heads; numbers: query, key and value `[rows, length,
    heads, head_dim]` on the CPU.
    """

    device: torch.device
    spans: torch.Tensor
    numbers: list[torch.Tensor]
    prefix: PrefixEncoder | None

    @staticmethod
    def draw(bench: Bench, head_dim: int, prefix: int) -> PackedAttention:
        generator = torch.Generator().manual_seed(0)
        count, length, heads = (2, 64, 4) if bench.is_tiny else (2, 4096, 32)
        ends = torch.randint(1, length // 8, (count, length), generator=generator).cumsum(1)
        spans = (torch.arange(length)[:, None] >= ends[:, None, :]).sum(-1)
        shapes = ((count, length, number, head_dim) for number in (heads, 2, 2))
        numbers = [torch.randn(shape, generator=generator) for shape in shapes]
        torch.manual_seed(0)
        encoder = PrefixEncoder(prefix, ("0",), 2, head_dim).to(bench.device) if prefix else None
        return PackedAttention(bench.device, spans, numbers, encoder)

    def run(self, kernel: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        """The result, and the gradients of query, key and value."""
        parts = [part.clone().to(self.device, dtype).requires_grad_() for part in self.numbers]
        spans = to_device({"spans": self.spans}, self.device)["spans"]
        use = AttentionUse(dtype, parts[0].shape[-1], is_trained=True)
        with attention_kernels(self.device, kernel):
            context = make_causal_context(CausalRows(spans, spans), self.prefix, None, use)
            mixed = block_attention(context, "0", *parts)
            mixed.float().square().sum().backward()
        return [mixed.detach(), *(part.grad for part in parts if part.grad is not None)]


@contextmanager
def cudnn_attention(bench: Bench, is_on: bool) -> Any:
    """Whether attention may go to cuDNN, within the block."""
    if not bench.is_cuda:
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(is_on)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def suffix(is_on: bool) -> str:
    return "_cudnn" if is_on else ""


def time_shapes(bench: Bench, kind: str) -> dict[str, list[float]]:
    """Forward and backward of attention at four lengths. kind: causal; bias: a mask that is added; bias_odd: at lengths
    that are no multiple of 8."""
    heads, head_dim = (2, 16) if bench.is_tiny else (32, 128)
    firsts, nexts = [], []
    for number in range(4):
        length = 32 + 8 * number if bench.is_tiny else 160 + 16 * number
        length += 3 if kind == "bias_odd" else 0
        query, key, value = (bench.randn(12, heads, length, head_dim).requires_grad_() for _ in range(3))
        bias = None if kind == "causal" else bench.randn(12, heads, length, length)

        def run(q=query, k=key, v=value, bias=bias) -> None:
            functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None).sum().backward()

        firsts.append(bench.seconds(run))
        nexts.append(bench.median_seconds(run, warm=1, rounds=3))
    return {"first_ms": in_ms(firsts), "next_ms": in_ms(nexts)}


def time_growing_cache(bench: Bench) -> dict[str, list[float]]:
    """One position looks at a KV cache that is one position longer each time."""
    head_dim = 16 if bench.is_tiny else 128
    seconds = []
    for length in range(513, 521):
        query, key = bench.randn(1, 2, 16, head_dim), bench.randn(1, 2, length, head_dim)
        mask = torch.ones(1, 1, 1, length, dtype=torch.bool, device=bench.device)
        run = lambda q=query, k=key, m=mask: functional.scaled_dot_product_attention(q, k, k, attn_mask=m)  # noqa: E731
        seconds.append(bench.seconds(run))
    return {"ms_per_new_length": in_ms(seconds)}


def count_broken_gradients(bench: Bench) -> int:
    """Numbers of a query's gradient that are not finite, where all scores are far below 0 (pytorch#196678)."""
    length, head_dim = 192, 64
    query, key, value = (0.1 * bench.randn(1, 1, length, head_dim) for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -120.0
    query.requires_grad_()
    key.requires_grad_()
    mask = torch.ones(length, length, dtype=torch.bool, device=bench.device).tril()[None, None]
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    mixed.backward(torch.randn_like(value))
    assert query.grad is not None
    return int((~query.grad.isfinite()).sum())


# --- right numbers ---


def check_numbers(bench: Bench) -> None:
    """Two steps of every family x tuning x precision, against the same ones on the CPU in fp32."""
    cases = import_cases()
    wrong = []
    for family, case in cases.CASES.items():
        for method in cases.METHODS:
            try:
                model = cases.make_model(case, method, torch.float32)
            except ConfigError as refusal:
                bench.skip(f"{family}/{method}", str(refusal))
                continue
            batch = cases.make_batch(case)
            if method == "prompt":
                side = "encoder_tokens" if "encoder_tokens" in batch.inputs else "tokens"
                batch.inputs[side][:, :3] = torch.tensor([-1, -2, -3])  # the soft prompts
            found = compare_precisions(bench.device, model, batch)
            bench.keep(f"{family}/{method}", found)
            wrong += [f"{family}/{method}/{name}" for name, facts in found.items() if not facts.get("ok")]
    assert not wrong, f"wrong numbers: {', '.join(wrong)}"


def import_cases() -> Any:
    """The small models of all families that the tests of layouts use."""
    folder = str(Path(__file__).parents[1] / "tests" / "parallel")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("cases")


def compare_precisions(device: torch.device, model: nn.Module, batch: Batch) -> dict[str, dict[str, Any]]:
    wanted = run_two_steps(torch.device("cpu"), "fp32", model, batch)
    found: dict[str, dict[str, Any]] = {}
    for precision, bound in LOSS_BOUNDS.items():
        try:
            steps = run_two_steps(device, precision, model, batch)
        except Exception as error:  # the other precisions and families are still to be asked
            found[precision] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        losses = [abs(ours.loss / one.loss - 1) for ours, one in zip(steps, wanted, strict=True)]
        norms = [abs(ours.grad_norm / one.grad_norm - 1) for ours, one in zip(steps, wanted, strict=True)]
        is_skipped = any(step.skipped for step in steps)
        found[precision] = {
            "loss_off_by": float(f"{max(losses):.1e}"),
            "grad_norm_off_by": float(f"{max(norms):.1e}"),
            "skipped": is_skipped,
            "ok": max(losses) < bound and not is_skipped,
        }
    return found


def run_two_steps(device: torch.device, precision: Any, model: nn.Module, batch: Batch) -> list[StepReport]:
    # Activations are computed again in bf16, so that this is asked as well.
    layout = ParallelSettings(checkpoint_activations="full" if precision == "bf16" else "none")
    settings = TrainSettings(steps=9, precision=precision, micro_batch_size=4, lr=1e-3, loss_scale=1024)
    parallel_model = parallelize(copy.deepcopy(model), device, precision, layout)
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 9)
    return [step.run(batch) for _ in range(2)]


# --- models of real size ---


SIZES = {"chatglm2": "6b", "cpm_bee": "10b", "cpm2": "11b"}


def size_of(bench: Bench, family_name: str, layers: int | None) -> tuple[str, dict[str, int]]:
    """The size that the device check takes of a family, and what it changes in it."""
    changes = {"num_layers": layers} if layers else {}
    if not bench.is_tiny:
        return SIZES[family_name], changes
    return "tiny", {"vocab_size": 500, "num_layers": 2, **changes}


def make_large(
    bench: Bench, method: str, layers: int | None = None, family_name: str = "chatglm2", form: Any = None
) -> tuple[Any, Any]:
    """A family's large model with random weights that are made on the device, and its configuration.

    layers: fewer than it has; form: how its matrices are packed. What the method trains is fp32, the rest bf16.
    """
    family = load_family(family_name)
    size, changes = size_of(bench, family_name, layers)
    config: Any = family.sizes[size]
    most = changes.get("num_layers", config.num_layers)
    config = replace(config, **{**changes, "num_layers": min(most, config.num_layers)})
    with torch.device("meta"):
        model: Any = family.model()(config)
        if form:
            quantise_linears(model, form)
        model = apply_tuning(model, TUNING_METHODS.make({"method": method}), family)
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype == torch.float32:
            weight.data = weight.data.to(torch.float32 if weight.requires_grad else torch.bfloat16)
    model = model.to_empty(device=bench.device)
    parameters, is_packed = dict(model.named_parameters()), packed_linears(model)
    with torch.no_grad():
        for name, packing in is_packed.items():
            linear = model.get_submodule(name)
            weight = bench.randn(linear.out_features, linear.in_features).mul_(0.02)
            for part, value in packed(packing, weight).items():
                parameters.pop(f"{name}.{part}").copy_(value)
        for name, weight in parameters.items():
            if weight.ndim > 1:
                weight.normal_(std=0.02)
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model, config


def draw_batch(bench: Bench, family_name: str, config: Any, rows: int, length: int, seed: int) -> Batch:
    """Rows of a family: packed, or of one sample each where the family is not ChatGLM2."""
    if family_name == "chatglm2":
        return draw_rows(bench, config.vocab_size, rows, length, seed)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, config.vocab_size, (rows, length), generator=draw)
    labels = torch.where(torch.rand(tokens.shape, generator=draw) < 0.6, tokens, IGNORED)
    inputs = {"tokens": tokens}
    if family_name == "cpm2":
        inputs["encoder_tokens"] = torch.randint(3, config.vocab_size, (rows, length), generator=draw)
    else:
        ones, columns = torch.ones_like(tokens), torch.arange(length).expand(rows, -1)
        inputs |= {
            "subs": 0 * ones,
            "is_context": columns < length // 4,
            "sample_ids": 0 * ones,
            "num_segments": 2 * ones,
            "segments": (columns >= length // 4).long(),
            "relation_offsets": 0 * ones,
            "relations": torch.tensor([0, 2, 3, 0]).expand(rows, -1),
            "lengths": torch.full((rows,), length),
        }
    return Batch(inputs, labels, torch.ones(rows, length), [(row,) for row in range(rows)])


def draw_rows(bench: Bench, vocab_size: int, rows: int, length: int, seed: int) -> Batch:
    """Rows packed full of samples of 50 to 300 tokens, 6 of 10 with a label."""
    shortest, longest = (8, 30) if bench.is_tiny else (50, 300)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocab_size, (rows, length), generator=draw)
    positions, spans = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row in range(rows):
        start, number = 0, 0
        while start < length:
            end = min(start + int(torch.randint(shortest, longest, (1,), generator=draw)), length)
            positions[row, start:end], spans[row, start:end] = torch.arange(end - start), number
            start, number = end, number + 1
    labels = torch.where(torch.rand(tokens.shape, generator=draw) < 0.6, tokens, IGNORED)
    inputs = {"tokens": tokens, "positions": positions, "spans": spans}
    return Batch(inputs, labels, torch.ones(rows, length), [(row,) for row in range(rows)])


def weights_outside_embedding(model: nn.Module) -> int:
    sizes = packed_sizes(model)  # what a packed tensor stands for
    weights = {name: sizes.get(name, weight.numel()) for name, weight in model.named_parameters()}
    return sum(count for name, count in weights.items() if "embedding" not in name)


# --- decoding ---


@torch.inference_mode()
def measure_decoding(bench: Bench) -> None:
    """Greedy, cached, in bf16, behind a prompt of 512 tokens: 1, 8 and 32 rows."""
    model, _ = make_large(bench, "full")
    model = model.requires_grad_(False).to(torch.bfloat16).eval()
    for is_on in bench.cudnn_choices:
        for rows in (1, 8) if is_on else (1, 8, 32):
            # cuDNN makes a plan for every new length, which takes long.
            count = 8 if is_on or bench.is_tiny else 40
            with cudnn_attention(bench, is_on), torch.autocast(bench.device.type, torch.bfloat16):
                bench.keep(f"rows_{rows}{suffix(is_on)}", time_columns(bench, model, rows, count))


def time_columns(bench: Bench, model: Any, rows: int, count: int) -> dict[str, Any]:
    kv_cache = KVCache()
    tokens = torch.randint(3, 100, (rows, 32 if bench.is_tiny else 512), device=bench.device)

    def read() -> None:
        nonlocal tokens
        tokens = model(tokens=tokens, kv_cache=kv_cache, logits_to_keep=1)[:, -1].argmax(-1, keepdim=True)
        tokens.tolist()  # the search waits for every column

    prompt = bench.seconds(read)
    columns = [bench.seconds(read) for _ in range(count)]
    median = statistics.median(columns)
    return {
        "prompt_seconds": round(prompt, 3),
        "column_ms": round(1e3 * median, 2),
        "first_ms": in_ms(columns[:5]),
        "tokens_per_second": round(rows / median),
        "weights_tb_per_second": round(2 * weights_outside_embedding(model) / median / 1e12, 3),
        "peak_gib": bench.peak_gib(),
    }


# --- training ---


def measure_adapters(bench: Bench) -> None:
    """Steps of LoRA with and without cuDNN's attention, and of P-Tuning v2."""
    for is_on in bench.cudnn_choices:
        with cudnn_attention(bench, is_on):
            bench.keep(f"lora{suffix(is_on)}", time_steps(bench, "lora", steps=5))
    with cudnn_attention(bench, is_on=False):
        bench.keep("prefix", time_steps(bench, "prefix", steps=4))


def measure_full(bench: Bench) -> None:
    """Steps of full tuning, activations kept or computed again; fewer layers where memory is short."""
    memory = torch.cuda.get_device_properties(0).total_memory / GIB if bench.is_cuda else 0
    layers = None if memory > FULL_GIB else FEW_LAYERS
    for recomputed in ("full", "none"):
        with cudnn_attention(bench, is_on=False):
            found = time_steps(bench, "full", steps=3, recomputed=recomputed, layers=layers)
        bench.keep(f"recompute_{recomputed}", found)


def measure_optimizers(bench: Bench) -> None:
    """Full tuning with what keeps less than AdamW does."""
    for optimizer in ("adamw_8bit", "adafactor"):
        with cudnn_attention(bench, is_on=False):
            found = time_steps(bench, "full", steps=3, recomputed="full", optimizer=optimizer)
        bench.keep(optimizer, found)


def measure_families(bench: Bench) -> None:
    """LoRA of CPM-Bee-10B and CPM-2-11B, a row of 1,024 tokens at a time."""
    for family_name in ("cpm_bee", "cpm2"):
        with cudnn_attention(bench, is_on=False):
            bench.keep(family_name, time_steps(bench, "lora", steps=4, recomputed="full", family_name=family_name))


@torch.inference_mode()
def measure_packed(bench: Bench) -> None:
    """LoRA and decoding of a base whose matrices are held packed."""
    forms: tuple[Any, ...] = ("nf4", "int8", "int4")
    for form in forms:
        bench.free()
        model, _ = make_large(bench, "lora", form=form)
        with cudnn_attention(bench, is_on=False), torch.autocast(bench.device.type, torch.bfloat16):
            bench.keep(f"decoding_{form}", time_columns(bench, model.requires_grad_(False).eval(), 1, 10))
        del model
    with torch.inference_mode(mode=False), cudnn_attention(bench, is_on=False):
        for form in forms[:2]:
            bench.keep(f"lora_{form}", time_steps(bench, "lora", steps=4, form=form))


def measure_compiled(bench: Bench) -> None:
    """Steps of LoRA with every block compiled for shapes that change, and with none."""
    # The CPU's code is made by a C++ compiler, in minutes; there it is enough to see that the blocks can be traced.
    backend, layers = ("inductor", 8) if bench.is_cuda else ("eager", 1)
    with cudnn_attention(bench, is_on=False):
        try:
            found = time_steps(bench, "lora", steps=5, layers=layers, backend=backend)
        finally:
            torch.compiler.reset()
        plain = time_steps(bench, "lora", steps=5, layers=layers)
    bench.keep("lora", {"backend": backend, **found})
    bench.keep("lora_plain", plain)


def time_steps(bench: Bench, method: str, *, layers: int | None = None, **options: Any) -> dict[str, Any]:
    """`measure_steps`, with fewer layers where the device's memory is too small, and how many were too many.

    layers: None: all that the model has.
    """
    too_many: list[int | str] = []
    while True:
        try:
            found = measure_steps(bench, method, layers=layers, **options)
            return {**found, "out_of_memory_with": too_many} if too_many else found
        except torch.OutOfMemoryError:
            too_many.append(layers or "all")
            if layers is not None and layers <= LEAST_LAYERS:
                raise
        # Not before the error is forgotten, which holds the frames and their tensors.
        bench.free()
        layers = FEW_LAYERS if layers is None else layers // 2


def measure_steps(
    bench: Bench,
    method: str,
    *,
    steps: int,
    recomputed: Any = "none",
    layers: int | None = None,
    backend: str = "",
    family_name: str = "chatglm2",
    form: Any = None,
    optimizer: str = "adamw",
    layout: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Training steps of two rows of 2,048 tokens, one after the other, in bf16; the first one warms up.

    layers: fewer than the model has; backend: of `torch.compile`, "" = none; form: how frozen matrices are packed;
    layout: settings of `parallel`.
    """
    bench.free()
    model, config = make_large(bench, method, layers, family_name, form)
    length = 64 if bench.is_tiny else 2048 if family_name == "chatglm2" else 1024
    chosen = OPTIMIZERS.make(optimizer)
    settings = TrainSettings(steps=99, precision="bf16", micro_batch_size=1, lr=1e-4, optimizer=chosen)
    parallel = {"checkpoint_activations": recomputed, **(layout or {})}
    parallel_model = parallelize(model, bench.device, "bf16", ParallelSettings(**parallel))
    for block in model.blocks.values() if backend else ():
        compile_block(block, backend)
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 99)
    seconds, reports = [], []
    for seed in range(steps):
        batch = draw_batch(bench, family_name, config, 2, length, seed)
        seconds.append(bench.seconds(lambda batch=batch: reports.append(step.run(batch))))
    median = statistics.median(seconds[1:])
    # Forward and backward of a product are 2 and 4 flops a weight; frozen weights have no gradient of their own.
    flops = (6 if method == "full" else 4) * weights_outside_embedding(model) * 2 * length
    found = {
        "layers": config.num_layers,
        "seconds": [round(value, 3) for value in seconds],
        "tokens_per_second": round(2 * length / median),
        f"share_of_{PEAK_TFLOPS}_tflops": round(flops / median / PEAK_TFLOPS / 1e12, 3),
        "peak_gib": bench.peak_gib(),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if bench.is_cuda else None,
        "loss": reports[-1].loss,
    }
    if form != "int4":  # no setting of a recipe
        size, changes = size_of(bench, family_name, config.num_layers)
        sample = 0 if family_name != "chatglm2" else 19 if bench.is_tiny else 175
        planned = PlannedStep(family_name, size, changes, method, length, sample, form, optimizer, parallel)
        found["planned_gib"] = planned.peak_gib(torch.cuda.get_device_name() if bench.is_cuda else None)
    assert not any(report.skipped for report in reports), f"steps were skipped: {found}"
    return found


# --- a group of processes ---


def check_group(bench: Bench) -> None:
    """One rank: sharding (FSDP2), collectives over objects, a checkpoint (DCP) that is written in the background."""
    if not bench.is_cuda:
        bench.skip("nccl", "needs CUDA: the same is asked of gloo")
    with group_of_one(bench.device):
        bench.keep("backend", distributed.get_backend_config())
        check_sharded(bench)


def check_sharded(bench: Bench) -> None:
    names = ("pipe", "replicate", "shard", "tensor")
    mesh = init_device_mesh(bench.device.type, (1, 1, 1, 1), mesh_dim_names=names)["shard"]
    objects: list[Any] = [None]
    distributed.all_gather_object(objects, {"rank": 0}, group=mesh.get_group())
    assert objects == [{"rank": 0}], objects
    distributed.barrier()
    model, config = make_large(bench, "lora", layers=4)
    batch = draw_rows(bench, config.vocab_size, 1, 64 if bench.is_tiny else 1024, seed=0).to(bench.device)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    with torch.no_grad():
        whole = mean_loss(bench, model, batch)
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    sharded = mean_loss(bench, model, batch)
    sharded.backward()
    bench.keep("sharded_lora", {"loss": sharded.item(), "loss_unsharded": whole.item()})
    assert abs(sharded.item() / whole.item() - 1) < LOSS_BOUNDS["bf16"], "sharding changes the loss"
    bench.keep("checkpoint", time_checkpoint(model))


def mean_loss(bench: Bench, model: Any, batch: Batch) -> torch.Tensor:
    with torch.autocast(bench.device.type, torch.bfloat16, cache_enabled=False):
        loss = model(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction="sum")
    return loss / batch.loss_tokens


def time_checkpoint(model: nn.Module) -> dict[str, float]:
    """Seconds until training goes on, and until the files of the trained weights are there."""
    tensors: Mapping[str, torch.Tensor] = {
        name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        checkpointer = Checkpointer(Path(folder) / "checkpoints", in_background=True)
        checkpointer.save(1, tensors, {})
        stopped = time.perf_counter() - start
        checkpointer.wait()
        return {"stopped_seconds": round(stopped, 3), "seconds": round(time.perf_counter() - start, 3)}


def in_ms(seconds: list[float]) -> list[float]:
    return [round(1e3 * value, 3) for value in seconds]
