"""ChatGLM2, and what shares its shape (ChatGLM3, CodeGeeX2, GLM-4): a decoder for dialogues."""

from __future__ import annotations

from pathlib import Path

from hanlin.models.family import BeamManner, Family
from hanlin.models.labels import LabelSamples

from .config import SIZES, ChatGlm2Config
from .formats import FORMATS
from .record import ChatGlm2Options
from .samples import ChatGlm2Samples, label_samples
from .tokenizer import ChatGlm2Tokenizer


def _model() -> type:
    from .model import ChatGlm2

    return ChatGlm2


def _tokenizer(path: Path) -> ChatGlm2Tokenizer:
    return ChatGlm2Tokenizer.load(path)


def _samples(
    tokenizer: ChatGlm2Tokenizer, config: ChatGlm2Config, options: ChatGlm2Options | None = None
) -> ChatGlm2Samples | LabelSamples:
    samples = ChatGlm2Samples(tokenizer, config, options)
    return label_samples(samples) if config.labels else samples


family = Family(
    name="chatglm2",
    title="ChatGLM2",
    config=ChatGlm2Config,
    model=_model,
    tokenizer=_tokenizer,
    samples=_samples,
    options=ChatGlm2Options,
    formats=FORMATS,
    sizes=SIZES,
    lora_targets=("query", "key", "value"),
    # That of transformers 4.30, in which the original runs.
    beam_manner=BeamManner(counts_prompt=True, ends_among_best=True, settles_late=True),
)
