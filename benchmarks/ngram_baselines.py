"""Perplexity per character of a unigram and a 5-gram counted on the same split as a pretrained model's.

python benchmarks/ngram_baselines.py --corpus PREFIX --vocab VOCAB [--split 949,50,1] [--part valid] [--out result.json]

The texts are those of the token corpus, decoded, so that they are what the model sees; an unknown token counts as one
character. Compare with `character_perplexity` of `hanlin evaluate`.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any

from script import read_arguments, report

from hanlin.data.pretraining.indexed_data import IndexedData
from hanlin.data.pretraining.indexing import end_id
from hanlin.data.pretraining.sample_index import split_documents
from hanlin.evaluation.ngrams import CharacterModel
from hanlin.models.family import load_family

UNKNOWN = "\ufffd"


def decoded(data: IndexedData, documents: range, tokenizer: Any) -> list[str]:
    marks = {end_id(tokenizer): "", tokenizer.find("<unk>"): UNKNOWN}

    @cache
    def text_of(id: int) -> str:
        return marks[id] if id in marks else tokenizer.decode([id])

    return ["".join(map(text_of, data[item].tolist())) for item in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description="Counted baselines")
    parser.add_argument("--corpus", type=Path, required=True, help="prefix of .bin and .idx, or one of them")
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--family", default="cpm1")
    parser.add_argument("--split", default="949,50,1")
    parser.add_argument("--part", choices=("valid", "test"), default="valid")
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--split 6,2,1",
        {
            "--corpus": "golden/cpm1_indexed_dataset/mmap_i32_text_document.bin",
            "--vocab": "vocab/cpm1/chinese_vocab.model",
        },
    )
    prefix = args.corpus.with_suffix("") if args.corpus.suffix in (".bin", ".idx") else args.corpus
    data, tokenizer = IndexedData(prefix), load_family(args.family).tokenizer(args.vocab)
    parts = split_documents(args.split, len(data))
    train, held_out = (decoded(data, parts[name], tokenizer) for name in ("train", args.part))
    result: dict[str, Any] = {
        "split": args.split,
        "part": args.part,
        "documents": {"train": len(train), args.part: len(held_out)},
        "characters": {"train": sum(map(len, train)), args.part: sum(map(len, held_out))},
    }
    for order in (1, 5):
        start = time.perf_counter()
        value = CharacterModel(train, order).perplexity(held_out)
        result[f"order_{order}"] = {"perplexity": round(value, 2), "seconds": round(time.perf_counter() - start, 1)}
    report(result, args.out)


if __name__ == "__main__":
    main()
