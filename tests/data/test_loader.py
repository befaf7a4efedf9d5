"""Batches: the same sequence for any number of ranks, after a resume, and in every process."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from letter_family import JoiningProcessor, LetterProcessor, Letters, letters, write_rows

from hanlin.core.batch import Batch
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.loader import Loader
from hanlin.data.pack import shuffle_once
from hanlin.data.prepare import Prepared, prepare
from hanlin.recipe.settings import DataSettings

LENGTH = 24


@pytest.fixture
def data(tmp_path: Path) -> Prepared:
    return make_data(tmp_path, letters(57))


def make_data(folder: Path, *files: list) -> Prepared:
    paths = [write_rows(folder / f"{number}.jsonl", rows) for number, rows in enumerate(files)]
    settings = DataSettings(max_length=LENGTH, cache=folder / "cache")
    return prepare(paths, LetterProcessor(), settings, tokenizer=Letters(), progress=False)


def loader(data: Prepared, processor: LetterProcessor | None = None, **options) -> Loader:
    return Loader(data, processor or LetterProcessor(), **{"max_length": LENGTH, "batch_size": 4, "seed": 3, **options})


def rows_of(batches) -> list[list[list[int]]]:
    return [[list(row) for row in batch.rows] for batch in batches]


def equal(one: Batch, two: Batch) -> bool:
    return torch.equal(one.inputs["tokens"], two.inputs["tokens"]) and torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_sample_once(data: Prepared, pack: bool, shuffle: bool) -> None:
    one = loader(data, pack=pack, shuffle=shuffle)
    batches = list(one)
    seen = [number for batch in rows_of(batches) for row in batch for number in row]
    assert sorted(seen) == list(range(57))
    assert len(batches) == one.steps_per_epoch(0)
    assert [batch.size for batch in batches[:-1]] == [4] * (len(batches) - 1)
    assert sum(batch.loss_tokens for batch in batches) == data.loss_tokens.sum()
    if not pack and not shuffle:
        assert seen == list(range(57))


def test_epochs_differ_with_shuffling_and_are_equal_without(data: Prepared) -> None:
    one, two = loader(data), loader(data, shuffle=False)
    assert rows_of(one) != rows_of(one)
    assert rows_of(two) == rows_of(two)


def test_an_order_drawn_once_is_repeated_in_every_epoch(data: Prepared) -> None:
    one = loader(data, shuffle="once", pack=False)
    first, second = rows_of(one), rows_of(one)
    assert first == second
    assert [number for batch in first for [number] in batch] == shuffle_once(57, 3).tolist()
    assert first != rows_of(loader(data, shuffle="once", pack=False, seed=4))
    packed = [number for batch in rows_of(loader(data, shuffle="once")) for row in batch for number in row]
    assert sorted(packed) == list(range(57))


def test_packed_batches_have_one_length_and_others_that_of_their_longest_row(data: Prepared) -> None:
    assert {batch.labels.shape[1] for batch in loader(data)} == {LENGTH}
    for batch in loader(data, pack=False):
        assert batch.labels.shape[1] == max(data.lengths[row[0]] for row in batch.rows)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_ranks_together_see_the_batches_of_one_rank(data: Prepared, pack: bool, world: int) -> None:
    whole = list(loader(data, pack=pack))
    parts = [list(loader(data, pack=pack, rank=rank, world=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [row for share in shares for row in share.rows if row] == list(batch.rows)
        assert len({share.labels.shape[1] for share in shares}) == 1
        assert {share.most_rows for share in shares} == {max(share.size for share in shares)}
        assert sum(share.loss_tokens for share in shares) == batch.loss_tokens
        full = torch.cat([share.inputs["tokens"] for share in shares if any(share.rows)])
        assert torch.equal(full, batch.inputs["tokens"])


@pytest.mark.parametrize("seen", [0, 1, 5, 9, 10, 11, 23])
def test_a_resumed_loader_goes_on_where_the_other_stopped(tmp_path: Path, seen: int) -> None:
    data = make_data(tmp_path, letters(57, draw=True))
    options = {"in_context": (0.5, 0.5), "processor": JoiningProcessor()}
    first = loader(data, **options)
    stream = first.forever()
    for _ in range(seen):
        next(stream)
    state = first.state_dict()
    second = loader(data, **options)
    second.load_state_dict(state)
    assert second.state_dict() == state
    for one, two in itertools.islice(zip(stream, second.forever(), strict=True), 15):
        assert rows_of([one]) == rows_of([two])
        assert equal(one, two)


def test_the_state_is_that_of_the_next_batch(data: Prepared) -> None:
    one = loader(data)
    for number, _ in enumerate(one, 1):
        position = one.state_dict()["epoch"], one.state_dict()["batch"]
        assert position == ((0, number) if number < one.steps_per_epoch(0) else (1, 0))


def test_a_pass_for_evaluation_leaves_the_position(data: Prepared) -> None:
    one = loader(data)
    next(iter(one))
    assert rows_of(one.once()) == rows_of(one.once())
    assert one.state_dict()["batch"] == 1


def test_other_data_and_another_order_are_refused(tmp_path: Path, data: Prepared) -> None:
    state = loader(data).state_dict()
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="other training data"):
        loader(make_data(tmp_path / "other", letters(56))).load_state_dict(state)
    with pytest.raises(DataError, match=r"seed=3 \(now 4\), batch_size=4 \(now 5\)"):
        loader(data, seed=4, batch_size=5).load_state_dict(state)
    loader(data, rank=1, world=2).load_state_dict(state)


def test_samples_that_vary_do_so_each_epoch_and_the_same_on_every_rank(tmp_path: Path) -> None:
    data = make_data(tmp_path, letters(8, draw=True))
    one = loader(data, batch_size=8, pack=False)
    first, again = list(one.once(0)), list(one.once(0))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    answers = {tuple(batch.labels[batch.labels >= 0].tolist()) for epoch in range(6) for batch in one.once(epoch)}
    assert len(answers) == 6


def test_examples_come_from_the_same_file_and_fit(tmp_path: Path) -> None:
    data = make_data(
        tmp_path, letters(20), [{"text": row["text"].upper(), "<ans>": "答案"} for row in letters(20, seed=5)]
    )
    one = loader(data, JoiningProcessor(), in_context=(1, 1, 2), pack=False)
    shown = 0
    for batch in one:
        for tokens, (number,) in zip(batch.inputs["tokens"], batch.rows, strict=True):
            text = "".join(map(chr, tokens[tokens > 0].tolist()))
            own = data.record(number)["text"] + "答案"
            assert text.startswith(own)
            rest = text.removeprefix(own)
            shown += text.count("答案") - 1
            assert rest.replace("答案", "").isupper() == (number >= 20) or not rest
            assert own != rest
    assert shown > 10
    assert sum(batch.loss_tokens for batch in one.once()) == data.loss_tokens.sum()


def test_examples_without_a_family_that_has_them_are_refused(data: Prepared) -> None:
    with pytest.raises(ConfigError, match="in_context"):
        loader(data, in_context=(0.5, 0.5))


def test_a_batch_names_its_rows(tmp_path: Path, data: Prepared) -> None:
    batch = next(iter(loader(data, shuffle=False, pack=False)))
    assert loader(data).where(batch) == [f"{tmp_path / '0.jsonl'}:{line}" for line in (1, 2, 3, 4)]
