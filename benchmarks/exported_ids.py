"""Whether exported tokenizers give our ids: four kinds of lines, in transformers and, where it is built, in llama.cpp.

python benchmarks/exported_ids.py [--lines 100000] [--poems tang_poems.jsonl] [--out result.json]

Lines are made from a fixed seed: verses (of a file of poems, else of random characters), web-like text (Chinese and
English, addresses, numbers, marks), code, and what is rare: emoji, control and private characters, other scripts, white
space of all kinds. Vocabularies of ChatGLM2's and GLM-4's kind are trained on a share of them, a small model with each
is exported (`convert --to huggingface`, `--to gguf`), and a process of its own, in which sentencepiece, protobuf and
tiktoken cannot be imported, encodes all lines with AutoTokenizer. A line with other ids ends the script with its kind,
its text and both ids.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from script import SHARED, is_installed, read_arguments, report, require
from sentencepiece import SentencePieceTrainer

from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.chatglm2.tokenizer import GLM4_PATTERN, ChatGlm2Tokenizer
from hanlin.tokens.byte_ranks import ByteRanks
from hanlin.tokens.sentencepiece import SentencePiece

SEED = 1
CONSUMER = """
import json, sys
sys.modules["google.protobuf"] = sys.modules["sentencepiece"] = sys.modules["tiktoken"] = None
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
lines = json.load(open(sys.argv[2], encoding="utf-8"))
json.dump(tokenizer(lines, add_special_tokens=False).input_ids, open(sys.argv[3], "w"))
"""
WORDS = ["def", "class", "return", "import", "self", "for", "None", "range", "value", "index", "the", "of", "to"]
ZH = "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么"
CODE = [
    "def {a}({b}: int = {n}) -> str:\n\treturn f'{{{b}}}'  # {z}", "for (int i = 0; i < {n}; ++i) {{ {a}[i] += {b}; }}",
    "    if {a} != {b}:\n        raise ValueError(\"{z}\")\n\n", "SELECT {a}, {b} FROM t WHERE {a} >= {n}; -- {z}",
    '{{"{a}": [{n}, null, true], "{b}": "{z}\\n"}}', "<div class=\"{a}\">{z}&nbsp;<b>{b}</b></div>",
]  # fmt: skip
WEB = [
    "{z}，{z}！https://www.{a}.com/{b}?id={n}&q=%E4%BD%A0", "【{z}】{n}元起　{z}…… 联系：{a}@{b}.cn 电话 {n}-{n}",
    "The {a} of {b} is {n}%. {z}（{z}）",
    "　　{z}。“{z}”——{z}；  {z}\n\n{n}. {z}", "#{z}# @{a} //{z} :) ^_^ {n}年{n}月",
]  # fmt: skip
RARE = [
    (0x1F300, 0x1FAFF), (0x0000, 0x0020), (0x2000, 0x206F), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xE000, 0xE0FF),
    (0x0600, 0x06FF), (0x0E00, 0x0E7F), (0xAC00, 0xD7A3), (0x0300, 0x036F), (0x2580, 0x259F), (0xFE00, 0xFE0F),
    (0xFF00, 0xFFEF), (0x10FF00, 0x10FFFD), (0x0400, 0x04FF), (0x1F1E6, 0x1F1FF),
]  # fmt: skip


def make_lines(count: int, poems: Path | None) -> dict[str, list[str]]:
    """A quarter of the lines of each kind."""
    draw = random.Random(SEED)
    verses = [] if poems is None else _verses(poems)
    makers: dict[str, Callable[[], str]] = {
        "poems": (lambda: draw.choice(verses)) if verses else (lambda: _chinese(draw, 24, wide=True)),
        "web": lambda: _filled(draw, WEB),
        "code": lambda: _filled(draw, CODE),
        "rare": lambda: _rare(draw),
    }
    return {kind: [make() for _ in range(count // len(makers))] for kind, make in makers.items()}


def _verses(poems: Path) -> list[str]:
    with poems.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [verse for text in texts for verse in [text, *text.split("\n")] if verse]


def _chinese(draw: random.Random, most: int, *, wide: bool = False) -> str:
    return "".join(
        chr(draw.randint(0x4E00, 0x9FFF)) if wide and draw.random() < 0.5 else draw.choice(ZH)
        for _ in range(draw.randint(1, most))
    )


def _filled(draw: random.Random, forms: Sequence[str]) -> str:
    def word() -> str:
        return draw.choice(WORDS) + draw.choice(["", "_", "2", draw.choice(WORDS).title()])

    parts = [
        draw.choice(forms).format(a=word(), b=word(), n=draw.randint(0, 10 ** draw.randint(1, 9)), z=_chinese(draw, 9))
        for _ in range(draw.randint(1, 3))
    ]
    return draw.choice(["", " ", "\n", "\t"]).join(parts)


def _rare(draw: random.Random) -> str:
    def piece() -> str:
        low, high = draw.choice(RARE)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 4)))

    common = ["▁", "  ", "<0x0A>", "<unk", "��", "\u200d", "ﬁ", "a", "你好", "'S", "\r\n", "100000"]
    return "".join(piece() if draw.random() < 0.6 else draw.choice(common) for _ in range(draw.randint(1, 8)))


def make_tokenizers(lines: Sequence[str], vocab_size: int) -> dict[str, ChatGlm2Tokenizer]:
    """By the generation of the model."""
    model = BytesIO()
    SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter([line.replace("\0", "") for line in lines]), model_writer=model, model_type="bpe",
        vocab_size=vocab_size, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, character_coverage=0.98, minloglevel=2, max_sentence_length=1 << 16,
    )  # fmt: skip
    pieces = ChatGlm2Tokenizer(SentencePiece(model.getvalue()))
    ranks = ChatGlm2Tokenizer(ByteRanks(_byte_ranks(lines, vocab_size), GLM4_PATTERN))
    return {"chatglm3": pieces.with_roles(), "glm4": ranks}


def _byte_ranks(lines: Sequence[str], vocab_size: int) -> bytes:
    """tiktoken's file of byte pairs that the package tokenizers has learned."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GLM4_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    bytes_of = {chr(byte): byte for byte in seen} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
    merges = json.loads(learner.to_str())["model"]["merges"]
    joined = [bytes(bytes_of[letter] for letter in left + right) for left, right in merges]
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *joined])
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


def export(folder: Path, generation: Any, tokenizer: ChatGlm2Tokenizer) -> None:
    small = ChatGlm2Config(hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=32)
    config = replace(small, generation=generation, vocab_size=tokenizer.vocab_size + 3, end_ids=(tokenizer.end,))
    model = ChatGlm2(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_base(folder / "base", family, config, base_parameters(model), tokenizer)
    convert(folder / "base", family, None, "huggingface", folder / "out")
    if is_installed("gguf"):
        convert(folder / "base", family, None, "gguf", folder / "out.gguf")


def compare(kinds: dict[str, list[str]], ours: list[list[int]], theirs: list[list[int]], who: str) -> dict[str, int]:
    """How many lines of each kind have the same ids, which is all of them, or the script ends."""
    named = [(kind, line) for kind, lines in kinds.items() for line in lines]
    for (kind, line), expected, found in zip(named, ours, theirs, strict=True):
        if expected != found:
            raise SystemExit(f"{who}, {kind}: {line!r}\n  ours   {expected}\n  theirs {found}")
    return {kind: len(lines) for kind, lines in kinds.items()}


def in_transformers(folder: Path, lines: list[str]) -> list[list[int]]:
    given, made = folder / "lines.json", folder / "ids.json"
    given.write_text(json.dumps(lines), encoding="utf-8")
    subprocess.run([sys.executable, "-c", CONSUMER, str(folder / "out"), str(given), str(made)], check=True)
    return json.loads(made.read_text(encoding="utf-8"))


def in_llama_cpp(file: Path, lines: list[str]) -> list[list[int]]:
    import llama_cpp  # pyright: ignore[reportMissingImports]

    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    return [model.tokenize(line.encode(), add_bos=True, special=True) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description="Ids of exported tokenizers")
    parser.add_argument("--lines", type=int, default=100_000, help="of all kinds together")
    parser.add_argument("--poems", type=Path, help="JSON lines with text; default: those of ../shared")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--lines 400 --vocab-size 2200")
    require("transformers", "tokenizers", "tiktoken")
    poems = args.poems or SHARED / "data/poetry/tang_poems.jsonl"
    kinds = make_lines(args.lines, poems if poems.is_file() else None)
    lines = [line for group in kinds.values() for line in group]
    usual = [line for kind, group in kinds.items() if kind != "rare" for line in group]
    tokenizers = make_tokenizers(random.Random(SEED).sample(usual, min(len(usual), 10_000)), args.vocab_size)
    figures: dict[str, Any] = {}
    for generation, tokenizer in tokenizers.items():
        begin = time.perf_counter()
        with TemporaryDirectory() as place:
            folder = Path(place)
            export(folder, generation, tokenizer)
            ours = tokenizer.encode_many(lines)
            found = {"transformers": compare(kinds, ours, in_transformers(folder, lines), "transformers")}
            if is_installed("llama_cpp") and (folder / "out.gguf").is_file():
                found["llama.cpp"] = compare(kinds, ours, in_llama_cpp(folder / "out.gguf", lines), "llama.cpp")
        ids = sum(map(len, ours))
        figures[generation] = {"same_ids": found, "ids": ids, "seconds": round(time.perf_counter() - begin, 1)}
    packages = ["transformers", "tokenizers", "sentencepiece", "tiktoken"]
    report({"lines": len(lines), "poems": poems.is_file(), **figures}, args.out, packages)


if __name__ == "__main__":
    main()
