"""CPM-1: a GPT-2 in two forms, that of the released models and that of the pretraining program."""

from __future__ import annotations

from hanlin.models.common.text_processor import TextOptions, TextProcessor
from hanlin.models.family import Family

from .config import SIZES, Cpm1Config
from .formats import FORMATS
from .tasks import TASKS
from .tokenizer import load_tokenizer


def _model() -> type:
    from .model import Cpm1

    return Cpm1


family = Family(
    name="cpm1",
    title="CPM-1",
    config=Cpm1Config,
    model=_model,
    tokenizer=load_tokenizer,
    processor=TextProcessor,
    options=TextOptions,
    formats=FORMATS,
    unwritable=dict.fromkeys(
        ("gguf", "ollama"),
        "llama.cpp computes its GPT-2, but none of its tokenizers gives CPM-1's ids, since jieba cuts the texts first",
    ),
    sizes=SIZES,
    lora_targets=("query", "key", "value"),
    is_causal=True,
    raw=TASKS,
)
