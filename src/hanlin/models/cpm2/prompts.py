"""What CPM-2's prompt JSON files say: how many soft prompts, where, how they begin, what is trained beside them.

The original files are read as they are. `init_scratch` means there that the prompts copy embeddings that are still
random, all the same vector; here they are drawn at random like any fresh table, which lets them differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hanlin.core.config import nearest
from hanlin.core.errors import ConfigError
from hanlin.formats.files import read_json

from .tokenizer import Cpm2Tokenizer

_KEYS = ("init_scratch", "init_from_vocab", "fix_model", "fix_prompt", "mask_prompt2token", "mask_token2prompt")
_STACK_KEYS = ("prompt_len", "init_tokens", "default_init_token", "sample_from_vocab", "ratio_list")


@dataclass(frozen=True)
class PromptSettings:
    """Plain values; the keys of the original stand behind them."""

    # enc.prompt_len
    length: int = 100
    # enc.ratio_list: shares of the prompts at the places of the data set's template; empty: the template's own.
    ratios: tuple[float, ...] = ()
    # init_from_vocab, init_scratch; neither: what a checkpoint holds, else random.
    init: Literal["vocabulary", "random", "checkpoint"] = "random"
    # enc.init_tokens: a text whose tokens are the first prompts.
    init_text: str = ""
    # enc.default_init_token: the token of all other prompts.
    init_token: str = "<mask>"
    # enc.sample_from_vocab: all other prompts are the tokens 100, 200, 300, ...
    init_spread: bool = False
    # not fix_model; not fix_prompt
    trains_model: bool = False
    trains_prompts: bool = True
    # Whether prompts look at tokens (not mask_prompt2token), and tokens at prompts (not mask_token2prompt).
    sees_tokens: bool = True
    is_seen: bool = True

    def borders(self, default: Sequence[float]) -> list[int]:
        """The numbers of the first prompt after each place of a template with these default shares."""
        ratios = self.ratios or tuple(default)
        # kept (cpm2_prompt): sums of floats, cut off and not rounded.
        return [int(sum(ratios[: place + 1]) * self.length) for place in range(len(ratios))]


def read_prompt_settings(path: Path) -> PromptSettings:
    """An original JSON file of the folder `prompt_files` or like it.

    Raises: ConfigError, CheckpointError when it is no JSON object.
    """
    values = read_json(Path(path))
    _refuse_unknown(path, values, (*_KEYS, "enc", "dec"))
    encoder, decoder = _stack(path, values, "enc"), _stack(path, values, "dec")
    if decoder.get("prompt_len", 0):
        raise ConfigError(f"{path}: dec.prompt_len is {decoder['prompt_len']}; the decoder takes no prompts, write 0")
    if not isinstance(encoder.get("prompt_len"), int) or encoder["prompt_len"] < 1:
        raise ConfigError(f"{path}: enc.prompt_len must be the number of prompts; found {encoder.get('prompt_len')!r}")
    ratios = tuple(float(share) for share in encoder.get("ratio_list", ()))
    if len(ratios) not in (0, 3, 4):
        raise ConfigError(f"{path}: enc.ratio_list must have three or four shares; found {len(ratios)}")
    flags = {key: bool(values.get(key, False)) for key in _KEYS}
    from_start = "random" if flags["init_scratch"] else "checkpoint"
    return PromptSettings(
        length=encoder["prompt_len"],
        ratios=ratios,
        init="vocabulary" if flags["init_from_vocab"] else from_start,
        init_text=encoder.get("init_tokens", ""),
        init_token=encoder.get("default_init_token", "<mask>"),
        init_spread=bool(encoder.get("sample_from_vocab", False)),
        trains_model=not flags["fix_model"],
        trains_prompts=not flags["fix_prompt"],
        # kept: where both are given, the second wins.
        sees_tokens=not flags["mask_prompt2token"] or flags["mask_token2prompt"],
        is_seen=not flags["mask_token2prompt"],
    )


def first_tokens(settings: PromptSettings, tokenizer: Cpm2Tokenizer) -> list[int]:
    """For each prompt the token whose embedding it begins with.

    Raises: ConfigError for a token that the vocabulary lacks.
    """
    ids = tokenizer.encode(settings.init_text)[: settings.length]
    rest = range(settings.length - len(ids))
    if settings.init_spread:
        ids += [100 * (number + 1) for number in rest]
    elif (default := tokenizer.find(settings.init_token)) is not None:
        ids += [default for _ in rest]
    else:
        raise ConfigError(f"default_init_token: {settings.init_token!r} is not in the vocabulary")
    return ids


def _stack(path: Path, values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    stack = values.get(key, {})
    if not isinstance(stack, dict):
        raise ConfigError(f"{path}: {key} must be an object with prompt_len; found {stack!r}")
    _refuse_unknown(path, stack, _STACK_KEYS)
    return stack


def _refuse_unknown(path: Path, values: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{path}: there is no key {unknown[0]!r}{nearest(unknown[0], known)}")
