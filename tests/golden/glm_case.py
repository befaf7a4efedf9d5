"""What the checks of ChatGLM2 share: the case's model and tokenizer, its inputs by our names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from golden_case import Case, Reading

from hanlin.core.batch import IGNORED
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2

Arrays = dict[str, torch.Tensor]

TOKENIZER = "chatglm2_tokenizer"
LOGITS_ATOL = GRADIENT_ATOL = 2e-5


def logits_atol(case: Case) -> float:
    return case.tolerance("suggested_fp32_atol_logits", "logits_atol", "fp32_atol_real_tokens", default=LOGITS_ATOL)


def gradient_atol(case: Case) -> float:
    return case.tolerance("suggested_atol_grad", default=GRADIENT_ATOL)


def tokenizer_folder(case: Case) -> Path | None:
    """Where the case's tokenizer lies: in it, in its model, or as the original's beside it; None: it is not here."""
    beside = [case.parent / TOKENIZER, Path(__file__).parents[3] / "shared" / "golden" / TOKENIZER]
    for name in (".", "model"):
        if case.holds(f"{name}/tokenizer.model"):
            for file in ("tokenizer.model", "tokenizer_config.json"):
                _ = case / f"{name}/{file}" if name != "." else case / file
            return case.folder / name
    return next((folder for folder in beside if (folder / "tokenizer.model").is_file()), None)


def needed_tokenizer(case: Case) -> Path:
    folder = tokenizer_folder(case)
    if folder is None:
        pytest.skip(f"tokenizer.model is neither in the case nor beside it in {TOKENIZER}")
    return folder


def load_model(folder: Path) -> ChatGlm2:
    """The weights of a folder in fp32."""
    with torch.device("meta"):
        model = ChatGlm2(read_config(folder, family))
    load_into(model, folder, family, dtype=torch.float32)
    return model.eval()


def kinds_of(inputs: Reading) -> list[str]:
    """What the batches of a case are called: right, left, nomask, ..."""
    return [name.removesuffix(".input_ids") for name in inputs if name.endswith(".input_ids")]


def inputs_of(arrays: Mapping[str, torch.Tensor]) -> Arrays:
    """tokens, positions and spans of the original's input_ids, position_ids and attention_mask."""
    inputs = {"tokens": arrays["input_ids"]}
    if "position_ids" in arrays:
        inputs["positions"] = arrays["position_ids"]
    if "attention_mask" in arrays:
        inputs["spans"] = arrays["attention_mask"].long() - 1
    return inputs


def prompt_of(arrays: Mapping[str, torch.Tensor]) -> Arrays:
    """The prompt of a decoding case, in the original's names of a batch."""
    names = {"input_ids": "prompt_ids", "attention_mask": "prompt_mask", "position_ids": "prompt_position_ids"}
    return {name: arrays[theirs] for name, theirs in names.items() if theirs in arrays}


def next_positions(prompt: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`[batch, 1]`, of the first token behind the prompt."""
    if "position_ids" in prompt:
        return prompt["position_ids"][:, -1:] + 1
    return torch.full_like(prompt["input_ids"][:, :1], prompt["input_ids"].shape[1])


def labels_of(arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Ours stand where the token is predicted, one place before the original's."""
    labels = arrays["labels"]
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)), dim=1)


def mean_loss(model: ChatGlm2, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    labels = labels_of(arrays)
    return model(**inputs_of(arrays), labels=labels) / (labels != IGNORED).sum()


def real_columns(arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What padding computes is of no consequence, and differs from the original on purpose."""
    if "attention_mask" in arrays:
        return arrays["attention_mask"].bool()
    return torch.ones_like(arrays["input_ids"], dtype=torch.bool)
