"""Useful tokens per second of a ChatGLM2 training step, against transformers' GlmForCausalLM (+ PEFT), and TRL.

python benchmarks/step_chatglm2.py [--out result.json]        (needs transformers; LoRA: peft; TRL if it is installed)

8 layers x 512 hidden, vocabulary 65,024, fp32, one thread; 8 samples a step with ADGEN's lengths (deciles of its 1,070
held-out rows), random ids, random weights, the same for both. theirs: rows padded to 193 as the original does it, the
loss over all positions, AdamW fused, as transformers 5 has it by default; full tuning is also compared with torch's own
default, which is not fused and was transformers' before. trl: SFTTrainer, the samples packed into one row by its best
fit, its own loss; ours: the same samples packed into one row, memory kept as `hanlin train` keeps it. The ways take
turns and CPU time counts; losses and gradient norms must agree before anything is timed. A useful token belongs to a
sample (padding does not count).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glm_peer import SMALL, TINY, make_pair
from script import is_installed, read_arguments, report, require
from turns import LR, as_trained, check_agreement, gradient_length, make_step, take_turns

from hanlin.core.batch import IGNORED, Batch, Sample
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.common import decoder_batch
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.tuning.apply import apply_tuning, trained_parameters

SOURCE, TARGET, PREFIX, RANK = 64, 128, 128, 8


def main() -> None:
    default = [name for name in PEERS if name != "lora" or is_installed("peft")]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tuning", nargs="+", choices=PEERS, default=default)
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1 --rows 2")
    require("transformers", *(["peft"] if "lora" in args.tuning else []))
    torch.set_num_threads(1)
    samples = draw_samples(args.rows)
    figures = {
        "useful_tokens": sum(sample.length for sample in samples),
        "padded_tokens": args.rows * (SOURCE + TARGET + 1),
        "labels": sum(sample.loss_tokens for sample in samples),
        **{tuning: compare(TINY if args.smoke else SMALL, tuning, samples, args.rounds) for tuning in args.tuning},
    }
    others = [name for name, is_used in (("peft", "lora" in args.tuning), ("trl", is_installed("trl"))) if is_used]
    report(figures, args.out, ["transformers", *others])


def draw_samples(count: int) -> list[Sample]:
    """Processor whose lengths have ADGEN's deciles: source 36/51/69, target 56/75/100, cut to 64 and 128."""
    rng = np.random.default_rng(0)
    sources = np.clip(rng.lognormal(np.log(51), 0.25, count), 12, SOURCE).astype(int)
    targets = np.clip(rng.lognormal(np.log(75), 0.226, count), 10, TARGET).astype(int)
    samples = []
    for source, target in zip(sources, targets, strict=True):
        tokens = rng.integers(300, 64000, source + target + 1).astype(np.int32)
        labels = np.append(tokens[1:], IGNORED).astype(np.int32)
        labels[: source - 1] = IGNORED
        samples.append(Sample({"tokens": tokens}, labels, (labels != IGNORED).astype(np.float32)))
    return samples


def compare(config: ChatGlm2Config, tuning: str, samples: list[Sample], rounds: int) -> dict[str, Any]:
    ours, theirs = make_pair(config)
    extra = {"prefix": {"length": PREFIX}, "lora": {"rank": RANK}}.get(tuning, {})
    settings = TUNING_METHODS.make({"method": tuning, **extra})
    apply_tuning(ours, settings, family, torch.Generator().manual_seed(1))
    peer = PEERS[tuning](theirs, ours)
    batch = decoder_batch.collate([samples], sum(sample.length for sample in samples), config.pad_id)
    step = make_step(ours, weight_decay=0.01)
    padded = pad_as_original(samples)
    check_equal(ours, batch, peer, padded)
    optimizers = {"glm": torch.optim.AdamW(peer.trained(), lr=LR, fused=True)}
    if tuning == "full":
        optimizers["glm_unfused"] = torch.optim.AdamW(peer.trained(), lr=LR)
    ways: dict[str, Callable[[], object]] = {
        name: partial(peer_step, peer, padded, optimizer) for name, optimizer in optimizers.items()
    }
    if tuning in ("full", "lora") and is_installed("trl"):
        packing = TrlPeer(peer, samples)
        check_agreement([(packing.loss(padded).item(), peer.loss(padded).item())])
        ways["trl"] = partial(peer_step, packing, padded, torch.optim.AdamW(peer.trained(), lr=LR, fused=True))
    turns = take_turns(ways | {"hanlin": as_trained(lambda: step.run(batch))}, rounds)
    tokens = sum(sample.length for sample in samples)
    return {
        "tokens_per_second": {way: turns.per_second(way, tokens) for way in turns.seconds},
        "ratio": {name: turns.ratio(name, "hanlin") for name in ways},
    }


def pad_as_original(samples: list[Sample]) -> dict[str, torch.Tensor]:
    length = SOURCE + TARGET + 1
    tokens = torch.zeros(len(samples), length, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORED)
    for number, sample in enumerate(samples):
        tokens[number, : sample.length] = torch.from_numpy(sample.inputs["tokens"]).long()
        labels[number, 1 : sample.length] = torch.from_numpy(sample.labels[:-1]).long()
    return {"input_ids": tokens, "labels": labels}


def check_equal(ours: Any, batch: Batch, peer: FullPeer, padded: dict[str, torch.Tensor]) -> None:
    our_loss = ours(**batch.inputs, labels=batch.labels, weights=batch.weights) / batch.loss_tokens
    their_loss = peer.loss(padded)
    our_loss.backward()
    their_loss.backward()
    lengths = gradient_length(trained_parameters(ours).values()), gradient_length(peer.trained())
    check_agreement([(our_loss.item(), their_loss.item()), lengths])
    for weight in [*ours.parameters(), *peer.trained()]:
        weight.grad = None


def peer_step(peer: FullPeer, padded: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    peer.loss(padded).backward()
    torch.nn.utils.clip_grad_norm_(peer.trained(), 1.0)
    optimizer.step()


class FullPeer:
    """transformers' model, all of it trained."""

    def __init__(self, model: Any, ours: Any) -> None:
        del ours
        self.model = model.train()

    def trained(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def loss(self, padded: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**padded, use_cache=False).loss


class LoraPeer(FullPeer):
    """PEFT's LoRA on query, key and value."""

    def __init__(self, model: Any, ours: Any) -> None:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]

        targets = ["q_proj", "k_proj", "v_proj"]
        super().__init__(get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules=targets)), ours)
        names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
        for name, weight in self.model.named_parameters():
            if "lora_" in name:
                _, _, _, _, layer, _, linear, matrix, *_ = name.split(".")
                own = ours.get_parameter(f"blocks.{layer}.attention.{names[linear]}.{matrix}")
                weight.data.copy_(own.data)


class TrlPeer(FullPeer):
    """The same model in TRL's SFTTrainer: samples packed into one row by its best fit, its loss, its collator."""

    def __init__(self, peer: FullPeer, samples: list[Sample]) -> None:
        from datasets import Dataset  # pyright: ignore[reportMissingImports]
        from tokenizers import Tokenizer, models  # pyright: ignore[reportMissingImports]
        from transformers import PreTrainedTokenizerFast  # pyright: ignore[reportMissingImports]
        from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

        self.model = peer.model
        rows = [
            {
                "input_ids": sample.inputs["tokens"].tolist(),
                "completion_mask": [0, *(sample.labels[:-1] != IGNORED).astype(int).tolist()],
            }
            for sample in samples
        ]
        words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
        with tempfile.TemporaryDirectory() as folder:
            settings = SFTConfig(
                folder, packing=True, packing_strategy="bfd", max_length=sum(sample.length for sample in samples),
                per_device_train_batch_size=1, completion_only_loss=True, gradient_checkpointing=False,
                bf16=False, use_cpu=True, report_to=[], disable_tqdm=True,
            )  # fmt: skip
            self.trainer = SFTTrainer(
                self.model,
                settings,
                train_dataset=Dataset.from_list(rows),
                processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
            )
            [self.batch] = self.trainer.get_train_dataloader()

    def loss(self, padded: dict[str, torch.Tensor]) -> torch.Tensor:
        del padded
        return self.trainer.compute_loss(self.model, dict(self.batch))


class PrefixPeer(FullPeer):
    """A prefix as the KV cache of every layer, which PEFT's prefix tuning gives the model as well; positions begin
    at 0.
    """

    def __init__(self, model: Any, ours: Any) -> None:
        super().__init__(model.requires_grad_(False), ours)
        self.config = ours.config
        self.table = torch.nn.Parameter(ours.prefix.embedding.weight.detach().clone())

    def trained(self) -> list[torch.nn.Parameter]:
        return [self.table]

    def loss(self, padded: dict[str, torch.Tensor]) -> torch.Tensor:
        from transformers import DynamicCache  # pyright: ignore[reportMissingImports]

        count, length = padded["input_ids"].shape
        own = self.config
        slots = self.table.view(PREFIX, 2 * own.num_layers, own.num_kv_heads, own.head_dim).permute(1, 2, 0, 3)
        cache = DynamicCache(config=self.model.config)
        for layer in range(own.num_layers):
            keys, values = (slots[2 * layer + part].expand(count, -1, -1, -1) for part in (0, 1))
            cache.update(keys, values, layer)
        positions = torch.arange(length).expand(count, -1)
        seen = torch.ones(count, PREFIX + length, dtype=torch.int64)
        return self.model(**padded, past_key_values=cache, position_ids=positions, attention_mask=seen).loss


PEERS = {"full": FullPeer, "lora": LoraPeer, "prefix": PrefixPeer}


if __name__ == "__main__":
    main()
