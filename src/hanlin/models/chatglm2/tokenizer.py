"""Text <-> ids: pieces, and special tokens that have the ids after them.

The pieces of ChatGLM2, ChatGLM3 and CodeGeeX2 are sentencepiece's, those of GLM-4 byte strings with ranks (tiktoken).

Special tokens are never read out of text: a user who types "[gMASK]" or "</s>" gets ordinary pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.files import read_json_object
from hanlin.tokens.byte_ranks import LINE, ByteRanks
from hanlin.tokens.sentencepiece import SentencePiece

from .generation import named_generation

# The second is what documents of the time call it, left over from ChatGLM-6B (v1).
MODEL_FILES = ("tokenizer.model", "ice_text.model")
SETTINGS_FILE = "tokenizer_config.json"
SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("system", "user", "assistant", "observation")
BOS, EOS, PAD = 1, 2, 0

TextOrId = int | str
"""A token's id, or a text that is encoded on its own."""

GLM4_SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *(f"<|{role}|>" for role in ROLES),
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
"""In the order of their ids, from 151,329 on in the published vocabulary."""
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ChatGlm2Tokenizer:
    """Ids of the pieces, then of the special tokens, then (ChatGLM3) of the roles."""

    def __init__(self, pieces: SentencePiece | ByteRanks, *, has_roles: bool = False) -> None:
        self.pieces = pieces
        self.is_glm4 = isinstance(pieces, ByteRanks)
        self.has_roles = has_roles or self.is_glm4
        names = GLM4_SPECIALS if self.is_glm4 else [*SPECIALS, *(f"<|{role}|>" for role in ROLES if has_roles)]
        self._specials = {name: pieces.size + number for number, name in enumerate(names)}
        self._names = {id: name for name, id in self._specials.items()}
        self.prefix = (self._specials["[gMASK]"], self._specials["<sop>" if self.is_glm4 else "sop"])
        self.end = self._specials["<|endoftext|>"] if self.is_glm4 else EOS
        """The id that ends an answer."""

    @classmethod
    def load(cls, path: Path) -> ChatGlm2Tokenizer:
        """Read a tokenizer.model, or that of a folder.

        Raises: DataError.
        """
        path = Path(path)
        file = _model_file(path) if path.is_dir() else path
        if file.is_file() and LINE.match(file.read_bytes()):
            try:
                return cls(ByteRanks(file.read_bytes(), GLM4_PATTERN))
            except DataError as error:
                raise DataError(f"{file}: {error}") from None
        pieces = SentencePiece.load(file)
        if pieces.size <= EOS or (pieces.piece(BOS), pieces.piece(EOS)) != ("<s>", "</s>"):
            raise DataError(
                f"{file}: a sentencepiece model, but not ChatGLM2's: its pieces 1 and 2 are not <s> and </s>"
            )
        return cls(pieces, has_roles=_lists_roles(file.with_name(SETTINGS_FILE)))

    def with_roles(self) -> ChatGlm2Tokenizer:
        """The same tokenizer with ChatGLM3's role tokens."""
        return self if self.has_roles else ChatGlm2Tokenizer(self.pieces, has_roles=True)

    def save(self, folder: Path) -> None:
        kind = "ChatGLM4Tokenizer" if self.is_glm4 else "ChatGLMTokenizer"
        settings = {"tokenizer_class": kind, "additional_special_tokens": list(self._specials)}
        (Path(folder) / MODEL_FILES[0]).write_bytes(self.pieces.model)
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    @property
    def vocab_size(self) -> int:
        return self.pieces.size + len(self._specials)

    @property
    def unknown_id(self) -> int | None:
        return self.pieces.unknown_id if isinstance(self.pieces, SentencePiece) else None

    @property
    def fingerprint(self) -> str:
        """Changes when any text would get other ids."""
        return f"{self.pieces.fingerprint} roles={self.has_roles}"

    @property
    def specials(self) -> dict[str, int]:
        """The special tokens and their ids."""
        return dict(self._specials)

    def find(self, token: str) -> int | None:
        """The id of a special token such as `[gMASK]`, None if there is none."""
        return self._specials.get(token)

    def role(self, name: str) -> int:
        """The id of a role's token; the tokenizer must have roles."""
        assert self.has_roles, "use with_roles()"
        return self._specials[f"<|{name}|>"]

    def encode(self, text: str) -> list[int]:
        """The pieces of a text; a piece "▁" (a leading space) comes first where the first word has none of its own."""
        return self.pieces.encode(text)

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` for many texts at once; threads: -1 = one per core."""
        return self.pieces.encode_many(texts, threads)

    def encode_parts(self, many: Iterable[Sequence[TextOrId]], threads: int = 1) -> list[list[int]]:
        """The ids of each sequence of parts, the texts of all of them encoded at once, and each of them once."""
        many = list(many)
        texts = list(dict.fromkeys(part for parts in many for part in parts if isinstance(part, str)))
        encoded = dict(zip(texts, self.encode_many(texts, threads), strict=True))
        result = []
        for parts in many:
            ids: list[int] = []
            for part in parts:
                ids += encoded[part] if isinstance(part, str) else (part,)
            result.append(ids)
        return result

    def encode_prompt(self, text: str) -> list[int]:
        """[gMASK] sop and the pieces: what every prompt begins with."""
        return [*self.prefix, *self.pieces.encode(text)]

    def decode(self, ids: Iterable[int], *, show_specials: bool = False) -> str:
        """The text of the ids. Any number is allowed: what is no piece is left out.

        show_specials: write the special tokens by name, as ChatGLM3's tokenizer does it.
        While ids are still coming, an unfinished character is U+FFFD at the end (see tokens/stream.py).
        """
        if not show_specials:
            return self.pieces.decode(ids)
        text, run = "", []
        for id in ids:
            if id in self._names:
                text, run = text + self.pieces.decode(run) + self._names[id], []
            else:
                run.append(id)
        return text + self.pieces.decode(run)


def _model_file(folder: Path) -> Path:
    for name in MODEL_FILES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: no {MODEL_FILES[0]} in this folder; copy it from the model's original folder")


def byte_ranks_in(folder: Path) -> bool | None:
    """Whether the vocabulary in a folder is one of byte strings with ranks; None where none lies there."""
    found = next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)
    if found is None:
        return None
    with found.open("rb") as stream:
        return LINE.match(stream.read(1 << 12)) is not None


def _lists_roles(settings: Path) -> bool:
    """Whether a tokenizer_config.json is ChatGLM3's.

    Raises: DataError.
    """
    if not settings.is_file():
        return False
    values = read_json_object(settings, DataError)
    return "<|user|>" in str(values) or named_generation(values.get("name_or_path")) == "chatglm3"
