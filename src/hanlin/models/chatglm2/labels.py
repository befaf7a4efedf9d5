"""The processor of a ChatGLM2 with a head for labels."""

from __future__ import annotations

from hanlin.core.errors import ConfigError
from hanlin.models.common.label_processor import LabelKeys, LabelProcessor

from .processor import ChatGlm2Processor


def label_processor(processor: ChatGlm2Processor) -> LabelProcessor:
    """Those of a model with a head for labels: the response column holds the label, prompt_length cuts the text.

    Raises: ConfigError.
    """
    options, config = processor.options, processor.config
    without_effect = ("compatible", "answer_length", "eval_prompt_length")
    if (name := next((name for name in without_effect if getattr(options, name)), None)) is not None:
        raise ConfigError(f"{name} has no effect on labels (model.config.labels); remove it")
    columns = LabelKeys(options.prompt_column, options.response_column)
    return LabelProcessor(processor, config.labels, config.label_kind, columns, options.prompt_length)
