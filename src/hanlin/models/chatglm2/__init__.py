"""ChatGLM2, and what shares its shape (ChatGLM3, CodeGeeX2, GLM-4): a decoder for dialogues."""

from __future__ import annotations

from pathlib import Path

from hanlin.models.common.label_processor import LabelProcessor
from hanlin.models.family import BeamVariant, Family

from .config import SIZES, ChatGlm2Config
from .formats import FORMATS
from .labels import label_processor
from .processor import ChatGlm2Processor
from .record import ChatGlm2Options
from .tokenizer import ChatGlm2Tokenizer


def _model() -> type:
    from .model import ChatGlm2

    return ChatGlm2


def _tokenizer(path: Path) -> ChatGlm2Tokenizer:
    return ChatGlm2Tokenizer.load(path)


def _processor(
    tokenizer: ChatGlm2Tokenizer, config: ChatGlm2Config, options: ChatGlm2Options | None = None
) -> ChatGlm2Processor | LabelProcessor:
    processor = ChatGlm2Processor(tokenizer, config, options)
    return label_processor(processor) if config.labels else processor


family = Family(
    name="chatglm2",
    title="ChatGLM2",
    config=ChatGlm2Config,
    model=_model,
    tokenizer=_tokenizer,
    processor=_processor,
    options=ChatGlm2Options,
    formats=FORMATS,
    sizes=SIZES,
    lora_targets=("query", "key", "value"),
    is_causal=True,
    # That of transformers 4.30, in which the original runs.
    beam_variant=BeamVariant(length_includes_prompt=True, end_needs_top_beams=True, checks_done_after_ends=True),
)
