"""A ChatGLM2 of a few weights whose records are ids."""

from __future__ import annotations

import numpy as np

from hanlin.core.batch import Prompt, PromptBatch
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.common import decoder_batch
from hanlin.models.common.decoder_batch import TextCursor

CONFIG = ChatGlm2Config(
    vocab_size=50, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, max_length=64
)


class Ids:
    """Records that are ids, and answers that are read as they are; barred: ids that no answer has."""

    def __init__(self, barred: tuple[int, ...] = ()) -> None:
        self._barred = barred

    def prompt(self, record: list[int]) -> Prompt:
        cursor = TextCursor(record[-1], len(record) - 1, frozenset())
        return Prompt(record, {"tokens": np.array(record[:-1], np.int32)}, cursor)

    def collate_prompts(self, prompts: list[Prompt]) -> PromptBatch:
        inputs = decoder_batch.pad_left([prompt.inputs["tokens"] for prompt in prompts], 0)
        return PromptBatch(inputs, [prompt.cursor for prompt in prompts], [[*self._barred] for _ in prompts])

    def answer_texts(self, prompt: Prompt, tokens: tuple[int, ...]) -> list[str]:
        return ["".join(chr(65 + token) for token in tokens)]
