"""tokenizer.json, the fast tokenizers of transformers, from vocabularies of other kinds: the same ids for any text.

A byte-pair model of sentencepiece merges the pair whose joined piece has the best score; a tokenizer.json lists the
pairs themselves: each piece parted in every way into two pieces, in the order of the scores of what they join to. For
byte strings with ranks (tiktoken) the pairs are those that make the string when lower ranks are merged. Special tokens
are found in texts there, as everywhere in transformers; here they never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hanlin.core.errors import DataError
from hanlin.tokens.byte_ranks import ByteRanks
from hanlin.tokens.sentencepiece import SentencePiece
from hanlin.tokens.sentencepiece_file import SentencePieceFile, read_file

__all__ = ["tokenizer_json"]

_SPACE = "▁"
_SENTENCEPIECE = {
    "algorithm": "bpe",
    "has_charmap": False,
    "adds_space_before": True,
    "removes_extra_spaces": False,
    "escapes_spaces": True,
    "space_is_suffix": False,
    "falls_back_to_bytes": True,
}
"""The kind of model whose ids are given here: that of ChatGLM2, as of Llama."""


def tokenizer_json(
    pieces: SentencePiece | ByteRanks, specials: Mapping[str, int], prefix: Iterable[str]
) -> dict[str, Any]:
    """The values of a tokenizer.json.

    specials: special tokens and their ids, found in texts before anything else; prefix: those that stand before every
    text unless `add_special_tokens=False`.
    Raises: DataError for a vocabulary whose ids a tokenizer.json cannot give.
    """
    inner = _of_byte_ranks(pieces) if isinstance(pieces, ByteRanks) else _of_sentencepiece(pieces)
    added = [
        {"id": id, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for name, id in sorted(specials.items(), key=lambda item: item[1])
    ]
    first = [{"SpecialToken": {"id": name, "type_id": 0}} for name in prefix]
    texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    processor = {
        "type": "TemplateProcessing",
        "single": [*first, texts[0]],
        "pair": [*first, *texts],
        "special_tokens": {name: {"id": name, "ids": [specials[name]], "tokens": [name]} for name in prefix},
    }
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return {**head, **inner, "post_processor": processor}


def _model(vocab: Mapping[str, int], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    neutral = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    rest = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **neutral, **rest, **settings, "vocab": dict(vocab), "merges": merges}


def _of_sentencepiece(pieces: SentencePiece) -> dict[str, Any]:
    file = read_file(pieces.model)
    _check_kind(file)
    names = [piece.text for piece in file.pieces]
    vocab = {name: id for id, name in enumerate(names)}
    joined = {piece.text: piece.score for piece in file.pieces if piece.kind == "normal"}
    pairs = [(-score, vocab[a], vocab[b]) for name, score in joined.items() for a, b in _parted(name, joined)]
    unknown = next(piece.text for piece in file.pieces if piece.kind == "unknown")
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _model(
            vocab,
            [[names[a], names[b]] for _, a, b in sorted(pairs)],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _check_kind(file: SentencePieceFile) -> None:
    found = [
        f"{name} is {value}" for name, wanted in _SENTENCEPIECE.items() if (value := getattr(file, name)) != wanted
    ]
    found += [
        f"it has {kind} pieces" for kind in ("user-defined", "unused") if any(p.kind == kind for p in file.pieces)
    ]
    if found:
        raise DataError(f"no tokenizer.json gives the ids of this sentencepiece model: {', '.join(found)}")


def _parted(name: str, known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(name)):
        if name[:cut] in known and name[cut:] in known:
            yield name[:cut], name[cut:]


def _of_byte_ranks(ranks: ByteRanks) -> dict[str, Any]:
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    made = sorted((rank, token) for token, rank in ranks.ranks.items())
    merges = [[spelled(half) for half in _halves(token, ranks.ranks)] for _, token in made if len(token) > 1]
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": ranks.pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", **byte_level},
            ],
        },
        "decoder": {"type": "ByteLevel", **byte_level},
        "model": _model({spelled(token): rank for rank, token in made}, merges, ignore_merges=True),
    }


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The two parts that a token is made of when only lower ranks are merged.

    Raises: DataError for a token that merging never makes.
    """
    parts = [token[n : n + 1] for n in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[n] + parts[n + 1], len(ranks)) for n in range(len(parts) - 1)]
        at = min(range(len(joined)), key=joined.__getitem__)
        if joined[at] >= ranks[token]:
            raise DataError(f"the token {token!r} is not made of two others; its vocabulary is of another kind")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2's): itself where it can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
