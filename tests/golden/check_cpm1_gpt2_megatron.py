"""GPT-2 of the pretraining program: all forms of its files, logits, loss, gradients, texts, training, and back.

The same check serves the case with reset positions and masks, whose documents are samples of their own here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from cpm1_case import (
    FAMILY,
    Arrays,
    arrays_of,
    assert_close,
    check_gradients,
    check_training,
    documents,
    facts_of,
    load_model,
    positions,
)

from hanlin.core.batch import IGNORED
from hanlin.formats.convert import convert
from hanlin.formats.source import open_source
from hanlin.models.cpm1.model import Cpm1


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = facts_of(case)
    flags, atol = facts["argv"], facts["measured"]["suggested_atol"]
    inputs, expected = arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    size, heads = (int(flags[flags.index(flag) + 1]) for flag in ("--hidden-size", "--num-attention-heads"))
    # DeepSpeed's files lack the program's arguments.
    changes = {"num_heads": heads, "head_dim": size // heads, "gelu": "tanh" if "--openai-gelu" in flags else "erf"}
    eod = facts["config"]["eod_id"]
    for folder in sorted(path for path in case.iterdir() if path.is_dir()):
        model = load_model(folder, changes if "ds" in folder.name else {})
        assert vars(model.config) == {**vars(model.config), **changes}
        _check_network(model, inputs["text"], expected, flags, eod, atol)
        _check_generation(model, inputs["prompts"], expected, flags, eod)
    if facts["train"] is not None:
        batches = [
            {
                "tokens": text[:, :-1],
                "labels": text[:, 1:],
                "weights": torch.ones_like(text[:, 1:], dtype=torch.float32),
            }
            for text in inputs["train_text"]
        ]
        check_training(load_model(case / "ckpt", {}), batches, facts, expected)
    _check_layouts(case)


def _check_network(
    model: Cpm1, text: torch.Tensor, expected: Arrays, flags: list[str], eod: int, atol: dict[str, float]
) -> None:
    tokens, labels = text[:, :-1], text[:, 1:]
    is_end = tokens == eod
    given = {"tokens": tokens, "positions": positions(is_end & ("--reset-position-ids" in flags))}
    if "--reset-attention-mask" in flags:
        given["spans"] = documents(is_end)
    assert given["positions"].equal(expected["position_ids"])
    weights = (tokens != eod).float() if "--eod-mask-loss" in flags else torch.ones_like(tokens, dtype=torch.float32)
    assert weights.equal(expected["loss_mask"])
    assert_close("logits", model(**given), expected["logits"], atol["logits"])
    losses = model(**given, labels=labels, reduction="none")
    assert_close("token_losses", losses, expected["token_losses"], atol["loss"])
    loss = model(**given, labels=labels.masked_fill(weights == 0, IGNORED), weights=weights) / weights.sum()
    assert_close("loss", loss, expected["loss"], atol["loss"])
    check_gradients(model, loss, "megatron", expected, atol["grads"])


@torch.no_grad()
def _check_generation(model: Cpm1, prompts: torch.Tensor, expected: Arrays, flags: list[str], eod: int) -> None:
    """Greedy continuation of each prompt by itself: the rows of the original's batch are independent.

    The original finds documents and positions once, in the prompts padded with <eod>; with its reset flags every new
    column after the first is thus alone at position 0. We feed what it fed; our own generation does not do so.
    """
    rows, lengths = expected["greedy_tokens"], expected["greedy_lengths"]
    for prompt, row, length in zip(prompts, rows, lengths.tolist(), strict=True):
        ids = prompt[prompt >= 0].tolist()
        padded = torch.tensor([ids + [eod] * (length - len(ids))])
        is_end = padded == eod
        places = positions(is_end & ("--reset-position-ids" in flags))
        spans = documents(is_end & ("--reset-attention-mask" in flags))
        while len(ids) < length:
            own = {"tokens": torch.tensor([ids]), "positions": places[:, : len(ids)], "spans": spans[:, : len(ids)]}
            ids.append(int(model(**own, logits_to_keep=1)[0, -1].argmax()))
        assert ids == row[:length].tolist()


def _check_layouts(case: Path) -> None:
    """The original's two shards are written from its one, and each layout comes back with the same bits."""
    whole = open_source(case / "ckpt", FAMILY).weights
    halves = open_source(case / "ckpt_mp2", FAMILY).weights
    assert all(halves[name].equal(whole[name]) for name in whole)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, layout, ranks in (("two", "megatron", 2), ("released", "original", 4), ("hub", "huggingface", 1)):
            convert(case / "ckpt", FAMILY, None, layout, folder / name, ranks=ranks)
            changes: dict[str, Any] = {"vocab_multiple": _multiple(case)}
            convert(folder / name, FAMILY, None, "megatron", folder / f"{name}_back", changes=changes)
            back = open_source(folder / f"{name}_back", FAMILY).weights
            assert sorted(back) == sorted(whole)
            assert all(back[tensor].equal(whole[tensor]) for tensor in whole)
        _check_shards(case / "ckpt_mp2", folder / "two")


def _multiple(case: Path) -> int:
    flags = facts_of(case)["argv"]
    return int(flags[flags.index("--make-vocab-size-divisible-by") + 1])


def _check_shards(theirs: Path, ours: Path) -> None:
    compared = (
        "num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "make_vocab_size_divisible_by",
        "padded_vocab_size", "tokenizer_type", "model_parallel_size",
    )  # fmt: skip
    for file in sorted(theirs.rglob("model_optim_rng.pt")):
        [written] = [path for path in ours.rglob(file.name) if path.parent.name == file.parent.name]
        states = [torch.load(path, weights_only=False) for path in (file, written)]
        assert states[1]["checkpoint_version"] == states[0]["checkpoint_version"]
        arguments = [vars(state["args"]) for state in states]
        assert [arguments[1][name] for name in compared] == [arguments[0][name] for name in compared]
        models = [_flat(state["model"]) for state in states]
        assert list(models[0]) == list(models[1])
        assert all(models[0][name].equal(models[1][name]) for name in models[0])


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return dict(sorted(flat.items()))
