"""What the contract needs of each family: a tiny configuration, a vocabulary, some records and texts.

Those of our families stand here. A file of a user's own may state them as `contract = {...}`; what it leaves out is
tried by default (see docs/adding_a_family.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from chatglm2_pieces import small_pieces
from cpm2_tiny import make_tokenizer as cpm2_tokenizer
from tiny_pieces import small_tokenizer as cpm1_tokenizer

from hanlin.core.batch import Batch
from hanlin.core.errors import HanlinError
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer
from hanlin.models.family import Family, TakesPrompts, load_family, make_options
from hanlin.tokens.wordpiece import WordPiece
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.ia3 import Ia3Tuning
from hanlin.tuning.lora import LoraTuning
from hanlin.tuning.prefix import PrefixTuning
from hanlin.tuning.prompt import PromptTuning

METHODS = {
    "ia3": Ia3Tuning(),
    "lora": LoraTuning(rank=2),
    "prefix": PrefixTuning(length=3),
    "prompt": PromptTuning(length=3),
}
TEXTS = ("床前明月光，", "疑是地上霜。")
# Two short ones together are shorter than the long one, so that they may share what a row has for one sample.
_PAIRS = (
    ("床前明月光，", "疑是地上霜。"),
    ("举头望明月，", "低头"),
    ("明月", "举头望明月，低头思故乡。床前明月光，疑是地上霜。"),
    ("月", "霜"),
    ("地", "光"),
)
_KEYS = (("prompt", "answer"), ("prompt", "response"), ("source", "target"), ("input", "<ans>"))


@dataclass(frozen=True)
class Case:
    """A family with all that a test of it needs.

    name: as a recipe's `model.family`; config: values over the defaults; records: three or more that can be trained on
    and answered; texts: those that come back from the tokenizer as they were; tuning: the methods that the model takes;
    for_format: values of the configuration that a file layout wants; lossy, read_only: layouts that round the weights,
    or that are never written; unreached: parts of the names of parameters that no gradient reaches, by design.
    """

    name: str
    family: Family
    config: Any
    vocab: Path
    records: Sequence[Any]
    texts: Sequence[str] = TEXTS
    tuning: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    for_format: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lossy: Sequence[str] = ()
    read_only: Sequence[str] = ()
    unreached: Sequence[str] = ()

    @cached_property
    def tokenizer(self) -> Any:
        return self.family.tokenizer(self.vocab)

    @cached_property
    def processor(self) -> Any:
        return self.family.processor(self.tokenizer, self.config, make_options(self.family, self.options))

    def empty(self, **changes: Any) -> Any:
        """The model on the meta device."""
        with torch.device("meta"):
            return self.family.model()(replace(self.config, **changes))

    def model(self, method: str | None = None, **changes: Any) -> Any:
        """The model in fp64 with values that hide nothing, and its tuning.

        Each weight gets noise after `init_weights`, so that norms, biases and additions are not 1 or 0.
        """
        draw = torch.Generator().manual_seed(3)
        model = self.family.model()(replace(self.config, **changes))
        model.init_weights(draw)
        if method is not None:
            apply_tuning(model, METHODS[method], self.family, draw)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.2)
        return model.double().eval()

    def batch(self, records: Sequence[Any] | None = None, method: str | None = None) -> Batch:
        """One record a row."""
        processor = self.processor_for(method)
        made = [processor.sample(record) for record in records or self.records]
        return processor.collate([[sample] for sample in made], max(sample.length for sample in made))

    def processor_for(self, method: str | None) -> Any:
        """The processor as the method needs its rows."""
        return self.processor if method is None else METHODS[method].adapt_processor(self.processor, self.family)


def summed_loss(model: Any, batch: Batch, **inputs: Any) -> torch.Tensor:
    return model(**batch.inputs, labels=batch.labels, weights=batch.weights, **inputs)


# --- our families ---

_SHAPE: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8}
# Without dropout, and without rows that fill up the embedding in Megatron's files.
_MEGATRON = {"dropout": 0.0, "attention_dropout": 0.0, "vocab_multiple": 1}
_LETTERS = sorted(set("床前明月光疑是地上霜举头望低思故乡，。"))
_BEE_MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>", "<"]


def _saved(tokenizer: Any, folder: Path) -> Path:
    folder.mkdir()
    tokenizer.save(folder)
    return folder


def _pairs(first: str, second: str) -> list[dict[str, str]]:
    return [{first: one, second: other} for one, other in _PAIRS]


def _chatglm2(folder: Path) -> dict[str, Any]:
    return {
        "vocab": _saved(ChatGlm2Tokenizer(small_pieces()), folder),
        "config": {**_SHAPE, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 24, "max_length": 256},
        "records": _pairs("prompt", "response"),
        "texts": ("你好，世界！", "类型#裤*颜色#黑色", "床前明月光"),
        "tuning": ("ia3", "lora", "prefix", "prompt"),
        "lossy": ("int8", "int4"),
        "read_only": ("quantized",),
    }


def _cpm1(folder: Path) -> dict[str, Any]:
    return {
        "vocab": _saved(cpm1_tokenizer(), folder),
        # The originals know no other proportions.
        "config": {**_SHAPE, "ffn_size": 64, "max_length": 64, **_MEGATRON},
        "records": _pairs("prompt", "answer"),
        "texts": ("床前明月光", "疑是地上霜", "举头望明月,低头思故乡."),
        "tuning": ("ia3", "lora", "prefix", "prompt"),
    }


def _cpm1_t5(folder: Path) -> dict[str, Any]:
    words = ["<unk>", "<pad>", "<eod>", *_LETTERS, *(f"<s_{number}>" for number in range(12))]
    return {
        "vocab": _saved(WordPiece(words), folder),
        "config": {**_SHAPE, "ffn_size": 24, "max_length": 64, **_MEGATRON},
        "records": _pairs("source", "target"),
        "tuning": ("ia3", "lora", "prefix", "prompt"),
    }


def _cpm2(folder: Path) -> dict[str, Any]:
    return {
        "vocab": _saved(cpm2_tokenizer(), folder),
        "config": {**_SHAPE, "ffn_size": 24, "num_distance_buckets": 8, "max_distance": 16},
        "records": [
            {"source": "今天天气好，去公园。", "target": "公园"},
            {"source": "山很高", "target": "山高水长"},
            {"source": "山", "target": "水"},
        ],
        "texts": ("今天天气好，去公园。", "灯熄灭了"),
        "tuning": ("ia3", "lora", "prefix", "prompt"),
        "for_format": {"experts": {"num_experts": 2}},
    }


def _cpm_bee(folder: Path) -> dict[str, Any]:
    return {
        "vocab": _saved(CpmBeeTokenizer([*_BEE_MARKS, "input", "prompt", *_LETTERS]), folder),
        "config": {
            **_SHAPE,
            "ffn_size": 24,
            "num_distance_buckets": 8,
            "num_relation_buckets": 32,
            "max_distance": 16,
            "half_frequencies": False,
        },
        "records": _pairs("input", "<ans>"),
        "tuning": ("ia3", "lora", "prefix", "prompt"),
    }


BUILT_IN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "chatglm2": _chatglm2,
    "cpm1": _cpm1,
    "cpm1_t5": _cpm1_t5,
    "cpm2": _cpm2,
    "cpm_bee": _cpm_bee,
}


# --- any family ---


def case_of(name: str, folder: Path) -> Case:
    """The case of a family by its name or file; folder: an empty one for its vocabulary."""
    family = load_family(name)
    stated = BUILT_IN[name](folder / "vocab") if name in BUILT_IN else _stated(name)
    known = {field.name for field in fields(Case)} - {"name", "family"}
    assert set(stated) <= known, f"contract of {name}: {sorted(set(stated) - known)} is none of {sorted(known)}"
    vocab = Path(stated.get("vocab") or _vocabulary_of_texts(folder))
    try:
        config = _config(family, vocab, stated.get("config", {}))
    except HanlinError as error:
        raise AssertionError(
            f'{name}: state a small vocabulary: contract = {{"vocab": "vocab.txt"}} ({error})'
        ) from error
    case = Case(**{"records": (), **stated, "name": name, "family": family, "vocab": vocab, "config": config})
    case = case if case.records else replace(case, records=_records_that_fit(case))
    return case if "tuning" in stated else replace(case, tuning=tuple(_found_methods(case)))


def _stated(name: str) -> dict[str, Any]:
    """The `contract` of a user's file; a path in it counts from the file."""
    path = Path(name).resolve()
    stated = dict(getattr(sys.modules.get(str(path)), "contract", {}))
    if "vocab" in stated:
        stated["vocab"] = path.parent / stated["vocab"]
    return stated


def _config(family: Family, vocab: Path, values: Mapping[str, Any]) -> Any:
    """One row per token, unless it is stated otherwise; lists as in a recipe."""
    has_size = any(field.name == "vocab_size" for field in fields(family.config))
    size = {"vocab_size": family.tokenizer(vocab).vocab_size} if has_size else {}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return family.config(**{**size, **plain})


def _vocabulary_of_texts(folder: Path) -> Path:
    """A text from which a tokenizer that learns its tokens from one can be loaded."""
    path = folder / "texts.txt"
    path.write_text("".join(f"{one}{other}\n" for one, other in _PAIRS), "utf-8")
    return path


def _records_that_fit(case: Case) -> list[Any]:
    """Records of the first of the usual forms that the processor can read."""
    for keys in _KEYS:
        records = _pairs(*keys)
        try:
            for record in records:
                case.processor.check(record)
        except HanlinError:
            continue
        return records
    raise AssertionError(f'{case.name}: reads none of the usual records; state some: contract = {{"records": [...]}}')


def _found_methods(case: Case) -> Iterator[str]:
    if case.family.lora_targets:
        yield "lora"
    model = case.empty()
    called = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    if called >= {*Ia3Tuning().outputs, *Ia3Tuning().inputs}:
        yield "ia3"
    if hasattr(model, "prefix"):
        yield "prefix"
    if hasattr(model, "soft_prompt") and isinstance(case.processor, TakesPrompts):
        yield "prompt"
