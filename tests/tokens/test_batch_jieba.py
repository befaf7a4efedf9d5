"""Many texts cut at once: jieba's words, to the last one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jieba

from hanlin.tokens.batch_jieba import LONGEST_BLOCK, batch_segmenter
from hanlin.tokens.segments import BLANK, LINE_BREAK, cut_segments

VISIBLE = {ord(" "): ord(BLANK), ord("\n"): ord(LINE_BREAK)}
ODD = [*" \n\r\t，。！？《\u3000\x00αé㶉\U0001f600\u3400\u9fd6\x1f\x85\u2028\ufeff", "\r\n", "\ud800"]


def check(texts: list[str]) -> None:
    for text, joined in zip(texts, batch_segmenter().join(texts, VISIBLE), strict=True):
        assert joined == " ".join(cut_segments(text)), text


def test_texts_of_every_kind_of_character_are_cut_as_jieba_cuts_them() -> None:
    rng = random.Random(0)
    jieba.initialize()
    words = [word for word, frequency in jieba.dt.FREQ.items() if frequency]
    chinese = [chr(code) for code in range(0x4E00, 0x9FD6)]
    kinds = [words, words, words, chinese, list("abcXYZ019+#&._%-"), ODD]
    check(["".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(60))) for _ in range(150)])


def test_the_ends_of_texts_are_kept_apart() -> None:
    check([""])
    check(["", " ", "\n", "\r\n", "\r", "a", "一", "", ""])
    check(["\n\n床前", "", "明月光\r"])


def test_words_that_are_made_of_letters_or_found_by_the_model_are_cut_alike() -> None:
    # In the dictionary; letters and digits; only the model finds them; a near tie in the model (1.5e-7).
    check(
        ["C++和c#，AT&T公司", "卷11_3.5%的v1.2-beta", "T恤 100.5%..", "他来到了网易杭研大厦", "白云常在眼，常在此山头"]
    )


def test_a_block_too_long_for_the_batch_is_cut_by_jieba() -> None:
    check(["春眠不觉晓" * LONGEST_BLOCK, "a" * (LONGEST_BLOCK + 1), "床" * LONGEST_BLOCK, "ab1"])


def test_the_poems_are_cut_alike(shared: Path) -> None:
    with (shared / "data" / "poetry" / "tang_poems.jsonl").open(encoding="utf-8") as lines:
        check([json.loads(line)["text"] for number, line in enumerate(lines) if number % 40 == 0])
