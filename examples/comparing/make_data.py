"""Rows for docs/ccpm_comparison.md: what the small bases are pretrained on, and two tasks to tune them for.

python examples/comparing/make_data.py tang_poems.jsonl ccpm/ runs/comparing/data

tang_poems.jsonl has {"text": poem} rows; ccpm/ holds train.jsonl and eval.jsonl as they are published. All rows are
{"input": ..., "<ans>": ...}, with "options" where an answer is to be chosen. No label of a task is in what is
pretrained on: of CCPM's training rows there are the texts and one of the four lines, by chance, each by itself.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hanlin.data.sources.jsonl import write_jsonl

HELD_OUT_POEMS = 1036
HELD_OUT_PHRASES = 1000
CHARACTERS, LAST_CHARACTERS = 800, 100
"""Phrases are made of so many of the commonest characters, and end with one of so many of the commonest last ones."""
VOCABULARY_ROWS = 30_000
TONES = {"yī": "一", "yí": "二", "yǐ": "三", "yì": "四", "de": "轻"}
"""The demo's words for tones -> ours, which are one character each."""
_CCPM = re.compile(r"\[翻译\](.*?)\[0\](.*?)\[1\](.*?)\[2\](.*?)\[3\](.*?)\[答案\]")


def main(poems_file: Path, ccpm: Path, folder: Path) -> None:
    draw = random.Random(1)
    poems = [row["text"].replace("\n", "") for row in _rows(poems_file)]
    seen, held_out = poems[:-HELD_OUT_POEMS], poems[-HELD_OUT_POEMS:]
    choices = {part: [*map(_choice, _rows(ccpm / f"{part}.jsonl"))] for part in ("train", "eval")}
    texts = [text for row in choices["train"] for text in (row["input"], draw.choice(row["options"]))]
    pretrain = [*_pretrain(seen, texts, draw)]
    draw.shuffle(pretrain)
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "pretrain.jsonl", pretrain)
    write_jsonl(folder / "pretrain_eval.jsonl", [*_pretrain(held_out, [], draw)])
    for part, rows in choices.items():
        write_jsonl(folder / f"ccpm_{part}.jsonl", rows)
    for part, rows in _tones().items():
        write_jsonl(folder / f"tone_{part}.jsonl", rows)
    texts = [f"{row['input']}{row['<ans>']}" for row in pretrain[:VOCABULARY_ROWS]]
    write_jsonl(folder / "texts.jsonl", ({"text": text} for text in texts))
    _write_characters(folder / "characters.model", texts)


def _pretrain(poems: Sequence[str], texts: Sequence[str], draw: random.Random) -> Iterator[dict[str, Any]]:
    """A line of each poem -> the next; disturbed characters -> what they were."""
    pool = "".join(poems[:2000])
    for poem in poems:
        lines = [line for line in re.split(r"(?<=[，。？！；])", poem) if len(line) > 3]
        if len(lines) < 2 or max(map(len, lines)) > 40:
            continue
        at = draw.randrange(len(lines) - 1)
        kind = draw.randrange(3)
        if kind == 0:
            yield {"input": f"下句：{''.join(lines[max(0, at - 2) : at + 1])}", "<ans>": lines[at + 1]}
        else:  # of characters without sense nothing can be guessed
            yield _disturbed(lines[at] if kind == 1 else "".join(draw.choices(pool, k=draw.randint(4, 10))), pool, draw)
    for text in texts:
        yield _disturbed(text, pool, draw)


def _disturbed(text: str, pool: str, draw: random.Random) -> dict[str, Any]:
    """As it is; or a fifth of the characters is missing, a fifth is strange, and all have moved; or half so much."""
    strength = draw.choice((0.0, 0.5, 1.0))
    kept = [character for character in text if draw.random() > 0.2 * strength]
    placed = [(at + draw.uniform(0, 6 * strength), one) for at, one in enumerate(kept)]
    placed += [(draw.uniform(0, len(text)), draw.choice(pool)) for _ in range(round(len(text) * 0.2 * strength))]
    return {"input": f"复原：{''.join(one for _, one in sorted(placed))}", "<ans>": text}


def _choice(row: dict[str, Any]) -> dict[str, Any]:
    """A row of CCPM: which of four lines does a text describe?"""
    found = _CCPM.search(row["input"] if "[答案]" in row["input"] else row["input"] + "[答案]")
    assert found is not None, row
    text, *lines = found.groups()
    return {"input": text, "options": lines, "<ans>": lines[int(row["target"])]}


def _write_characters(file: Path, texts: Sequence[str]) -> None:
    """A sentencepiece model of characters, as ChatGLM2's tokenizer takes one."""
    from sentencepiece import SentencePieceTrainer

    with file.open("wb") as stream:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=stream, model_type="char", vocab_size=5000,
            hard_vocab_limit=False, character_coverage=0.999, normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip


def _tones() -> dict[str, list[dict[str, Any]]]:
    """The demo's phrases: the tone of the last character, of which a few are read in several ways."""
    from tempfile import TemporaryDirectory

    from hanlin.cli._demo_data import write_phrases

    with TemporaryDirectory() as name:
        data = write_phrases(Path(name), characters=CHARACTERS, eval_rows=HELD_OUT_PHRASES, seed=1)
        rows = {"train": _rows(data.tone_train), "eval": _rows(data.tone_eval)}
    ends = Counter(row["词语"][-1] for row in rows["train"])
    common = {character for character, _ in ends.most_common(LAST_CHARACTERS)}
    return {part: [_tone_row(row) for row in some if row["词语"][-1] in common] for part, some in rows.items()}


def _tone_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"input": f"声调：{row['词语']}", "<ans>": TONES[row["<ans>"][row["词语"][-1]]]}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
