"""A CPM-2 that has learned nothing yet, and rows that teach it to copy, for docs/ccpm_comparison.md.

python examples/comparing/make_copying.py runs/comparing/data tang_poems.jsonl runs/comparing/cpm2_fresh

The first folder is that of make_data.py: texts and lines of CCPM are taken from it, no labels. copies.jsonl: characters
without sense -> the same ones; hidden.jsonl: some of these, verses whose characters have moved, and verses whose
characters stand strewn in a modern text -> the verse. Of the fresh model head and embedding begin as one table, so
that what attention brings from a character already says that character.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hanlin.data.sources.jsonl import write_jsonl

COPIES, MOVED, HIDDEN = 20_000, 8_000, 16_000
CHARACTERS = 4600
_SPECIALS = ("<unk>", "<pad>", "<eod>", "<s>", "</s>", "<mask>", *(f"<s_{number}>" for number in range(100)))
_TABLE_STD = 0.1


def main(folder: Path, poems_file: Path, fresh: Path) -> None:
    draw = random.Random(1)
    choices = _rows(folder / "ccpm_train.jsonl")
    texts = [row["input"] for row in choices]
    poems = [row["text"].replace("\n", "") for row in _rows(poems_file)]
    verses = [verse for poem in poems for verse in re.split("[，。？！；]", poem) if 4 <= len(verse) <= 8]
    verses += [line for row in choices for line in row["options"]]
    counted = Counter("".join([*poems, *texts, *verses])).most_common()
    characters = [one for one, _ in counted[:CHARACTERS] if "\u4e00" <= one <= "\u9fff"]
    copies = [_copy(characters, draw) for _ in range(COPIES)]
    moved = [_moved(draw.choice(verses), draw) for _ in range(MOVED)]
    hidden = [_hidden(draw.choice(verses), draw.choice(texts)[:30], draw) for _ in range(HIDDEN)]
    mixed = [*copies[:MOVED], *moved, *hidden]
    draw.shuffle(mixed)
    write_jsonl(folder / "copies.jsonl", copies)
    write_jsonl(folder / "hidden.jsonl", mixed)
    write_jsonl(
        folder / "hidden_eval.jsonl", [_hidden(draw.choice(verses), draw.choice(texts)[:30], draw) for _ in range(256)]
    )
    _write_fresh(fresh, [*_SPECIALS, *(one for one, count in counted if count > 1 and not one.isspace())][:5706])


def _copy(characters: Sequence[str], draw: random.Random) -> dict[str, str]:
    """Of the commonest 20 to all characters: few of them are learned soon, and the way to copy with them."""
    few = characters[: int(10 ** draw.uniform(1.3, 3.66))]
    text = "".join(draw.choices(few, k=draw.randint(4, 8)))
    return {"input": text, "<ans>": text}


def _moved(verse: str, draw: random.Random) -> dict[str, str]:
    placed = sorted((at + draw.uniform(0, 3), one) for at, one in enumerate(verse))
    return {"input": "".join(one for _, one in placed), "<ans>": verse}


def _hidden(verse: str, text: str, draw: random.Random) -> dict[str, str]:
    share = draw.uniform(0.4, 1)
    kept = [one for one in verse if draw.random() < share]
    places = sorted(draw.uniform(0, len(text)) for _ in kept)
    placed = [*((at + 0.5, one) for at, one in enumerate(text)), *zip(places, kept, strict=True)]
    return {"input": "".join(one for _, one in sorted(placed, key=lambda pair: pair[0])), "<ans>": verse}


def _write_fresh(folder: Path, words: Sequence[str]) -> None:
    import torch

    from hanlin.formats.load import save_base
    from hanlin.models.cpm2 import family
    from hanlin.models.cpm2.config import SIZES
    from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer

    config = replace(SIZES["tiny"], vocab_size=64 * (len(words) // 64 + 1))
    model, generator = family.model()(config), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    weights = dict(model.named_parameters())
    torch.nn.init.normal_(weights["embedding.weight"], std=_TABLE_STD, generator=generator)
    weights["head.weight"].data.copy_(weights["embedding.weight"].data)
    save_base(folder, family, config, weights, Cpm2Tokenizer(words))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
