"""What the checks of ChatGLM2's network share: the case's model, its inputs by our names, closeness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.core.batch import IGNORED
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2

Arrays = dict[str, torch.Tensor]


def facts_of(case: Path) -> dict[str, Any]:
    return json.loads((case / "case.json").read_text())


def arrays_of(path: Path, prefix: str = "") -> Arrays:
    """The arrays of a file whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in np.load(path).items()
        if name.startswith(prefix)
    }


def load_model(folder: Path) -> ChatGlm2:
    """The weights of a folder in fp32."""
    with torch.device("meta"):
        model = ChatGlm2(read_config(folder, family))
    load_into(model, folder, family, dtype=torch.float32)
    return model.eval()


def inputs_of(arrays: Arrays) -> Arrays:
    """tokens, positions and spans of the original's input_ids, position_ids and attention_mask."""
    inputs = {"tokens": arrays["input_ids"]}
    if "position_ids" in arrays:
        inputs["positions"] = arrays["position_ids"]
    if "attention_mask" in arrays:
        inputs["spans"] = arrays["attention_mask"].long() - 1
    return inputs


def labels_of(arrays: Arrays) -> torch.Tensor:
    """Ours stand where the token is predicted, one place before the original's."""
    labels = arrays["labels"]
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)), dim=1)


def mean_loss(model: ChatGlm2, arrays: Arrays) -> torch.Tensor:
    labels = labels_of(arrays)
    return model(**inputs_of(arrays), labels=labels) / (labels != IGNORED).sum()


def real_columns(arrays: Arrays) -> torch.Tensor:
    """What padding computes is of no consequence, and differs from the original on purpose."""
    mask = arrays.get("attention_mask")
    return torch.ones_like(arrays["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float, rtol: float = 1e-4) -> None:
    difference = (ours.detach().double() - theirs.double()).abs()
    limit = atol + rtol * theirs.double().abs()
    assert difference.shape == theirs.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    assert bool((difference <= limit).all()), (
        f"{name}: differs by up to {float(difference.max()):.3g} (atol {atol:.3g})"
    )
