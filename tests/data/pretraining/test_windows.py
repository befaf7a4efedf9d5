"""Windows of token corpora: the original's order, blends, the same batches for any number of ranks, exact resume."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from letter_family import LetterProcessor
from rich.console import Console

from hanlin.core.batch import Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.loader import Loader
from hanlin.data.pretraining.blend import blend
from hanlin.data.pretraining.indexed_data import IndexedData, written_index
from hanlin.data.pretraining.sample_index import build_index, split_documents
from hanlin.data.pretraining.span_corruption import PARTS, Marks, corrupt_spans
from hanlin.data.pretraining.windows import CorpusWindows, WindowRequest, open_windows
from hanlin.data.report import render_report

LENGTH, VOCAB, SPLIT = 8, 100, "8,1,1"


class TokenProcessor(LetterProcessor):
    """Windows are next-token samples; a draw is kept beside them."""

    marks = Marks(first_span=90, end=1, pad=0, vocab_size=VOCAB)

    def window_tokens(self, max_length: int) -> int:
        return max_length + 1

    def window(self, tokens: np.ndarray, rng: np.random.Generator) -> Sample:
        ids = tokens.astype(np.int32)
        inputs = {"tokens": ids[:-1], "draw": rng.integers(1000, size=1).astype(np.int32)}
        return Sample(inputs, ids[1:], np.ones(len(ids) - 1, np.float32))

    def pair(self, context: np.ndarray, target: np.ndarray) -> Sample:
        ids = context.astype(np.int32)
        return Sample({"tokens": ids, "target": target}, ids, np.ones(len(ids), np.float32))


def documents(count: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 90, size=rng.integers(3, 30)).tolist() for _ in range(count)]


def write_corpus(prefix: Path, items: Sequence[Sequence[int]]) -> Path:
    with written_index(prefix, vocab_size=VOCAB) as writer:
        for item in items:
            writer.add(item)
            writer.end_document()
    return prefix


def open_part(folder: Path, *prefixes: Path, part: str = "train", **wanted) -> CorpusWindows:
    made = WindowRequest(**{"split": SPLIT, "part": part, "max_length": LENGTH, "seed": 5, **wanted})
    return open_windows(prefixes, TokenProcessor(), made, VOCAB, folder / "cache")


def read(windows: CorpusWindows) -> list[list[int]]:
    samples = [windows.get(number) for number in range(len(windows))]
    return [[*sample.inputs["tokens"].tolist(), int(sample.labels[-1])] for sample in samples]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a", documents(40, 0))


def test_windows_come_in_the_order_of_the_original_index(tmp_path: Path, corpus: Path) -> None:
    data = IndexedData(corpus)
    for part, items in split_documents(SPLIT, len(data)).items():
        index = build_index(data.sizes, items, 300, LENGTH, 5)
        expected = [index.tokens(number, data).tolist() for number in range(300)]
        for _ in range(2):  # built, then found in the cache
            assert read(open_part(tmp_path, corpus, part=part, count=300)) == expected


def test_one_pass_reads_the_part_once(tmp_path: Path, corpus: Path) -> None:
    windows = open_part(tmp_path, corpus, part="valid")
    tokens = sum(len(IndexedData(corpus)[item]) for item in range(32, 36))
    assert len(windows) == (tokens - 1) // LENGTH
    assert len(open_part(tmp_path, corpus, part="valid", limit=2)) == 2
    assert len(open_part(tmp_path, corpus, part="valid", limit=1000)) == len(windows)
    assert windows.report.tokens == len(windows) * LENGTH
    with (console := Console(width=90)).capture() as shown:
        console.print(render_report(windows.report))
    assert "documents" in shown.get()
    assert "rows read" not in shown.get()


def test_the_blend_keeps_to_its_shares_all_along() -> None:
    sets, numbers = blend([0.5, 0.2, 0.3], 10)
    assert sets.tolist() == [0, 2, 1, 0, 2, 0, 1, 0, 2, 0]  # by the original's rule, by hand
    assert numbers.tolist() == [0, 0, 0, 1, 1, 2, 1, 3, 2, 4]
    sets, _ = blend([0.1, 0.9], 1000)
    assert np.abs(np.cumsum(sets) - 0.9 * np.arange(1, 1001)).max() < 1.5


def test_corpora_are_blended_by_weight_or_by_size(tmp_path: Path, corpus: Path) -> None:
    other = write_corpus(tmp_path / "b", [[99] * 50] * 20)
    by_weight = read(open_part(tmp_path, corpus, other, count=100, weights=(1, 3)))
    assert sum(99 in window for window in by_weight) == 75
    by_size = read(open_part(tmp_path, corpus, other, count=100))
    sizes = [IndexedData(prefix).sizes[: int(0.8 * n)].sum() for prefix, n in ((corpus, 40), (other, 20))]
    assert sum(99 in window for window in by_size) == pytest.approx(100 * sizes[1] / sum(sizes), abs=1)


def test_ranks_together_read_what_one_reads_and_a_resume_goes_on(tmp_path: Path, corpus: Path) -> None:
    def loader(**ranks) -> Loader:
        windows = open_part(tmp_path, corpus, count=40)
        return Loader(windows, TokenProcessor(), max_length=LENGTH, batch_size=4, pack=False, shuffle=False, **ranks)

    whole = list(loader())
    assert [list(row) for batch in whole for row in batch.rows] == [[number] for number in range(40)]
    shares = zip(whole, loader(rank=0, world=2), loader(rank=1, world=2), strict=True)
    assert all(torch.equal(batch.labels, torch.cat([a.labels, b.labels])) for batch, a, b in shares)
    first, second = loader(), loader()
    list(itertools.islice(first, 3))
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second)).labels, whole[3].labels)


def test_other_data_or_more_passes_are_another_identity(tmp_path: Path, corpus: Path) -> None:
    identity = open_part(tmp_path, corpus, count=20).identity
    assert open_part(tmp_path, corpus, count=21).identity == identity
    assert open_part(tmp_path, corpus, count=500).identity != identity
    assert open_part(tmp_path, corpus, count=20, seed=6).identity != identity
    write_corpus(corpus, [[2, *ids[1:]] for ids in documents(40, 0)])
    assert open_part(tmp_path, corpus, count=20).identity != identity


def test_a_window_draws_from_its_own_generator(tmp_path: Path, corpus: Path) -> None:
    windows, again = (open_part(tmp_path, corpus, count=20) for _ in range(2))
    draws = [int(windows.get(number).inputs["draw"][0]) for number in range(20)]
    assert draws == [int(again.get(number).inputs["draw"][0]) for number in range(20)]
    assert len(set(draws)) > 10


def test_documents_without_their_spans_are_read_from_three_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    made = [corrupt_spans([*ids, 1], VOCAB, generator) for ids in documents(20, 1) if len(ids) >= 10]
    for part, items in zip(PARTS, zip(*((m.context, m.target, m.offsets) for m in made), strict=True), strict=True):
        write_corpus(tmp_path / f"c_{part}", items)
    windows = open_part(tmp_path, tmp_path / "c", split="1", count=5)
    sample = windows.get(0)
    assert sample.length == LENGTH
    num_spans = int((sample.inputs["tokens"] >= 90).sum())
    marks = sample.inputs["target"][sample.inputs["target"] >= 90].tolist()
    assert marks == list(range(90, 91 + num_spans))


def test_mistakes_are_named(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"a: data\.split .1. leaves no tokens for valid"):
        open_part(tmp_path, corpus, part="valid", split="1")
    with pytest.raises(ConfigError, match=r"data\.weights: 1 weights .* for 2 corpora"):
        open_part(tmp_path, corpus, corpus, weights=(1,))
    wanted = WindowRequest(SPLIT, "train", LENGTH, 5)
    with pytest.raises(DataError, match=r"a: document \d+, token \d+: id \d+, but the tokenizer has 20 tokens"):
        open_windows([corpus], TokenProcessor(), wanted, 20, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"data\.split: this family"):
        open_windows([corpus], LetterProcessor(), wanted, VOCAB, tmp_path / "cache")


def test_an_id_outside_the_vocabulary_is_found_before_its_window_comes(tmp_path: Path) -> None:
    items = documents(40, 0)
    items[39][-1] = VOCAB + 3  # of the test part, the last token of all
    corpus = write_corpus(tmp_path / "a", items)
    with pytest.raises(DataError, match=rf"a: document 39, token \d+: id 103, but the tokenizer has {VOCAB} tokens"):
        open_part(tmp_path, corpus, count=5)


@pytest.mark.parametrize("name", ["index_doc_idx", "index_sample_idx", "index_shuffle_idx", "cache"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_index_of_windows_is_made_again(
    tmp_path: Path, corpus: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(open_part(tmp_path, corpus, count=300))
    file = next((tmp_path / "cache").glob(f"index-*/{name}.*"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-8])
    with caplog.at_level(logging.WARNING):
        assert read(open_part(tmp_path, corpus, count=300)) == before
    assert "the index of windows" in caplog.text
    assert "damaged" in caplog.text
    assert read(open_part(tmp_path, corpus, count=300)) == before


def test_every_byte_of_a_corpus_is_its_identity(tmp_path: Path) -> None:
    many = [[2] * 1_000_000, [3] * 1_000_000]
    identity = open_part(tmp_path, write_corpus(tmp_path / "a", many), split="1", count=5).identity
    many[0][-1] = 4
    assert open_part(tmp_path, write_corpus(tmp_path / "a", many), split="1", count=5).identity != identity


def span_files() -> list[list[list[int]]]:
    """Of 13 documents with one to eight spans."""
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(0)
    texts = [
        rng.integers(2, 90, size=size).tolist() for size in (20, 90, 40, 60, 100, 50, 90, 80, 40, 150, 30, 70, 120)
    ]
    made = [corrupt_spans([*ids, 1], VOCAB, generator) for ids in texts]
    return [list(items) for items in zip(*((m.context, m.target, m.offsets) for m in made), strict=True)]


def check_wrong_spans(folder: Path, files: list[list[list[int]]], said: str) -> None:
    for part, items in zip(PARTS, files, strict=True):
        write_corpus(folder / f"c_{part}", items)
    with pytest.raises(DataError, match=said):
        open_part(folder, folder / "c", split="1", count=5)


def test_three_files_of_different_runs_are_refused(tmp_path: Path) -> None:
    context, target, offsets = span_files()
    check_wrong_spans(
        tmp_path,
        [context, target, offsets[:-1]],
        "documents of the three files: c_context 13, c_target 13, c_target_offset 12",
    )
    check_wrong_spans(tmp_path, [context, target, [*offsets[:-1], offsets[-1][:-1]]], "document 12: an odd count")
    check_wrong_spans(tmp_path, [context[::-1], target, offsets], "c_context: document 0: its places of spans are not")
    assert len(offsets[1]) == len(offsets[6])
    swapped = [target[{1: 6, 6: 1}.get(place, place)] for place in range(13)]
    check_wrong_spans(tmp_path, [context, swapped, offsets], "c_target: document 1: its ")
    other = [list(ids) for ids in context]
    other[3][other[3].index(VOCAB)] = VOCAB + 1
    check_wrong_spans(tmp_path, [other, target, offsets], "c_context: document 3: its spans are not numbered on")
    other = [list(ids) for ids in offsets]
    other[5][0] += 1
    check_wrong_spans(tmp_path, [context, target, other], "c_target_offset: document 5: its spans do not follow")
    other = [list(ids) for ids in target]
    other[6][:2] = other[6][1::-1]
    check_wrong_spans(tmp_path, [context, other, offsets], "c_target: document 6: its spans begin elsewhere")
