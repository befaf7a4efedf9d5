"""Which of the models of this shape lies in a folder: told from clues in its files, with the reasons.

The originals of five different models write the same `model_type`, and one key (`rope_ratio`) means a divisor of the
positions in one and a factor of the rotation's base in others. So every clue in the folder is asked which of the models
it allows: the names it calls itself by (the last part of a path alone: a folder above it says nothing), the tokens of
its tokenizer, the size and the kind of its vocabulary, and the text of the Python files beside it, which are read and
never run. Clues that contradict each other are refused; where they do not suffice, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hanlin.core.errors import CheckpointError

Generation = Literal["chatglm2", "chatglm3", "codegeex2", "glm4"]
GENERATIONS: list[Generation] = list(get_args(Generation))

GENERATION_KEY = "chatglm_generation"
"""Ours in a foreign config.json: which of the models it is. It decides, since nothing of the originals' keys does."""

_SCALES_BASE = frozenset[Generation](("chatglm3", "glm4"))
_GLM4_VOCAB_SIZE, _OTHER_VOCAB_SIZE = 151552, 65024
_NAMES = {
    "chatglm2": r"chatglm[-_]?2(?!\d)",
    "chatglm3": r"chatglm[-_]?3(?!\d)",
    "codegeex2": r"codegeex[-_]?2(?!\d)",
    "glm4": r"(?<![a-z])(chat)?glm[-_]?4(?![\d.])",
}
_ROLE = "<|user|>"
# Of a Python file's text: the first of each group that is found. {models}: what the text says.
_CODE: tuple[tuple[tuple[str, tuple[Generation, ...], str], ...], ...] = (
    (
        (
            r"(base|10000(\.0)?)\s*\*\s*(self\.)?rope_ratio",
            ("chatglm3", "glm4"),
            "multiply the rotation's base by rope_ratio",
        ),
        (r"/\s*(self\.)?rope_ratio", ("chatglm2",), "divide the positions by rope_ratio"),
    ),
    (
        (r"import tiktoken", ("glm4",), "import tiktoken"),
        (r"<\|user\|>", ("chatglm3", "glm4"), f"know the token {_ROLE}"),
        (r"\[Round ", ("chatglm2", "codegeex2"), "write rounds as [Round 1]"),
    ),
)


@dataclass(frozen=True)
class Told:
    """Which of the models it is, and why we think so."""

    generation: Generation
    reason: str


@dataclass(frozen=True)
class Clue:
    """What a file allows it to be, and the words for it; certain: nothing else outweighs it."""

    allows: frozenset[Generation]
    text: str
    certain: bool = False


def tell_generation(
    values: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any] | None = None,
    code: str = "",
    has_byte_ranks: bool | None = None,
) -> Told:
    """Tell which of the models a folder holds.

    values: its config.json; tokenizer_config: its `tokenizer_config.json`; code: the text of the Python files in it,
    which is searched, never run; has_byte_ranks: whether its vocabulary is one of byte strings with ranks (tiktoken's),
    None where none lies there.
    Raises: CheckpointError when clues contradict each other, or do not suffice.
    """
    clues = list(_clues(values, tokenizer_config or {}, code, has_byte_ranks))
    if stated := _stated(values):
        clues = [stated, *(clue for clue in clues if clue.certain)]
    possible: frozenset[Generation] = frozenset(GENERATIONS).intersection(*(clue.allows for clue in clues))
    if not possible:
        raise CheckpointError(
            f"these files contradict each other about which model this is: {_joined(clues)}. Put right what is wrong, "
            f'or say it in config.json: "{GENERATION_KEY}": one of {", ".join(GENERATIONS)}'
        )
    if len(possible) > 1:
        _refuse_guess(values, possible)
    generation = min(possible, key=GENERATIONS.index)
    if {"chatglm2", "chatglm3"} <= possible:
        return Told(generation, "nothing sets it apart from ChatGLM2-6B (ChatGLM3-6B has another chat template)")
    return Told(generation, _joined(clue for clue in clues if generation in clue.allows and len(clue.allows) < 3))


def _joined(clues: Iterable[Clue]) -> str:
    return "; ".join(dict.fromkeys(clue.text for clue in clues))


def named_generation(name: object) -> Generation | None:
    """The model that the last part of a path names; None where it names none of them, or several."""
    last = re.split(r"[/\\]", str(name or "").rstrip("/\\"))[-1].lower()
    found: list[Generation] = [generation for generation in GENERATIONS if re.search(_NAMES[generation], last)]
    return found[0] if len(found) == 1 else None


def _stated(values: Mapping[str, Any]) -> Clue | None:
    if (stated := values.get(GENERATION_KEY)) is None:
        return None
    if stated not in GENERATIONS:
        raise CheckpointError(f"config.json: {GENERATION_KEY} is {stated!r}, expected one of {', '.join(GENERATIONS)}")
    return Clue(frozenset((stated,)), f"config.json says so ({GENERATION_KEY})")


def _clues(
    values: Mapping[str, Any], tokenizer_config: Mapping[str, Any], code: str, has_byte_ranks: bool | None
) -> Iterator[Clue]:
    names = {"config.json": values.get("_name_or_path"), "tokenizer_config.json": tokenizer_config.get("name_or_path")}
    for file, name in names.items():
        if named := named_generation(name):
            yield Clue(frozenset((named,)), f"{file} names it {name!r}")
    if "interleaved_qkv" in values or "rotary_percent" in values:
        written = "config.json has keys that only CodeGeeX2 writes (interleaved_qkv, rotary_percent)"
        yield Clue(frozenset(("codegeex2",)), written)
    size = values.get("padded_vocab_size", values.get("vocab_size"))
    if isinstance(size, int) and size >= _GLM4_VOCAB_SIZE:
        yield Clue(frozenset(("glm4",)), f"it has {size:,} tokens, as GLM-4", certain=True)
    if size == _OTHER_VOCAB_SIZE:
        yield Clue(frozenset(GENERATIONS) - {"glm4"}, f"it has {size:,} tokens, fewer than GLM-4", certain=True)
    if has_byte_ranks is not None:
        allowed = frozenset(("glm4",)) if has_byte_ranks else frozenset(GENERATIONS) - {"glm4"}
        kind = "tiktoken's, as GLM-4's" if has_byte_ranks else "sentencepiece's"
        yield Clue(allowed, f"its vocabulary is {kind}", certain=True)
    if tokenizer_config.get("tokenizer_class") == "ChatGLM4Tokenizer":
        yield Clue(frozenset(("glm4",)), "tokenizer_config.json names GLM-4's tokenizer")
    if _ROLE in str({**tokenizer_config, "name_or_path": ""}):
        yield Clue(_SCALES_BASE, f"tokenizer_config.json lists {_ROLE}")
    for group in _CODE:
        for pattern, allowed, text in group:
            if re.search(pattern, code):
                yield Clue(frozenset(allowed), f"the Python files beside it {text}")
                break


def _refuse_guess(values: Mapping[str, Any], possible: frozenset[Generation]) -> None:
    """Raises: CheckpointError where a guess among several models might change the arithmetic or the chat's form."""
    known = ", ".join(one for one in GENERATIONS if one in possible)
    way_out = f'; say it in config.json: "{GENERATION_KEY}": one of {known}'
    ratio = values.get("rope_ratio")
    if ratio not in (None, 1) and possible & _SCALES_BASE and possible - _SCALES_BASE:
        raise CheckpointError(
            f"config.json: rope_ratio is {ratio}, which divides the positions in ChatGLM2-6B-32K but multiplies the "
            f"rotation's base in ChatGLM3-6B-32K, and nothing here says which of them this is{way_out}"
        )
    length = values.get("seq_length")
    if values.get("padded_vocab_size") == _OTHER_VOCAB_SIZE and length == 8192 and {"chatglm2", "chatglm3"} <= possible:
        raise CheckpointError(
            "config.json: seq_length is 8192, as in ChatGLM3-6B and CodeGeeX2-6B (ChatGLM2-6B has 32768), and nothing "
            f"here says which of them this is; their chat templates differ{way_out}"
        )
