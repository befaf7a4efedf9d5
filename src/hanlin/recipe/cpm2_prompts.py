"""The JSON files that say in CPM-2's program how soft prompts are tuned -> values of `tuning.prompt.PromptTuning`.

`init_scratch` means there that the prompts copy embeddings that are still random, all the same vector; here they are
drawn at random, which lets them differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hanlin.core.errors import ConfigError
from hanlin.core.files import read_json_object

_KEYS = ("init_scratch", "init_from_vocab", "fix_model", "fix_prompt", "mask_prompt2token", "mask_token2prompt")
_STACKS = ("enc", "dec")
_STACK_KEYS = ("prompt_len", "init_tokens", "default_init_token", "sample_from_vocab", "ratio_list")


def read_prompt_file(path: Path) -> dict[str, Any]:
    """The values that an original file stands for.

    Raises: ConfigError.
    """
    return translate(read_json_object(path.expanduser(), ConfigError), str(path))


def translate(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """place: what messages begin with.

    Raises: ConfigError.
    """
    _refuse_unknown(place, values, (*_KEYS, *_STACKS))
    encoder, decoder = (_stack(place, values, key) for key in _STACKS)
    if decoder.get("prompt_len", 0):
        raise ConfigError(f"{place}: dec.prompt_len is {decoder['prompt_len']}; the decoder takes no prompts, write 0")
    if not isinstance(encoder.get("prompt_len"), int) or encoder["prompt_len"] < 1:
        raise ConfigError(f"{place}: enc.prompt_len must be the number of prompts; found {encoder.get('prompt_len')!r}")
    flags = {key: bool(values.get(key, False)) for key in _KEYS}
    from_start = "random" if flags["init_scratch"] else "checkpoint"
    return {
        "length": encoder["prompt_len"],
        "ratios": _ratios(place, encoder.get("ratio_list", ())),
        "init": "vocabulary" if flags["init_from_vocab"] else from_start,
        "init_text": encoder.get("init_tokens", ""),
        "init_token": encoder.get("default_init_token", "<mask>"),
        "init_spread": bool(encoder.get("sample_from_vocab", False)),
        "trains_model": not flags["fix_model"],
        "trains_prompts": flags["fix_model"] or not flags["fix_prompt"],
        # kept: where both are given, the second wins.
        "sees_tokens": not flags["mask_prompt2token"] or flags["mask_token2prompt"],
        "is_seen": not flags["mask_token2prompt"],
    }


def _ratios(place: str, shares: Sequence[float]) -> tuple[float, ...]:
    if len(shares) not in (0, 3, 4):
        raise ConfigError(f"{place}: enc.ratio_list must have three or four shares; found {len(shares)}")
    return tuple(map(float, shares))


def _stack(place: str, values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    stack = values.get(key, {})
    if not isinstance(stack, dict):
        raise ConfigError(f"{place}: {key} must be an object with prompt_len; found {stack!r}")
    _refuse_unknown(place, stack, _STACK_KEYS)
    return stack


def _refuse_unknown(place: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{place}: there is no key {unknown[0]!r}; known: {', '.join(known)}")
