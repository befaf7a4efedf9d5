"""What is brought to a device, and what of it is known on the host."""

from __future__ import annotations

import torch

from hanlin.core.batch import IGNORED, Batch
from hanlin.core.labels import at_places, find_places, labelled_places, with_places
from hanlin.core.transfer import on_host, to_device

CPU = torch.device("cpu")


def make_batch() -> Batch:
    labels = torch.tensor([[IGNORED, 4, IGNORED], [2, IGNORED, 3]])
    return Batch({"tokens": torch.arange(6).view(2, 3)}, labels, torch.ones(2, 3))


def test_a_batch_that_is_there_stays_as_it_is_and_may_change() -> None:
    batch = make_batch()
    assert batch.to(CPU) is batch
    assert labelled_places(batch.labels).tolist() == [1, 3, 5]
    batch.labels[0, 0] = 1
    assert labelled_places(batch.to(CPU).labels).tolist() == [0, 1, 3, 5]


def test_places_that_labels_bear_are_not_looked_for() -> None:
    labels = make_batch().labels
    places = find_places(labels)
    assert labelled_places(with_places(labels.clone(), places)) is places
    assert at_places(labels, places).tolist() == [4, 2, 3]


def test_what_was_not_brought_is_fetched() -> None:
    values = torch.arange(3)
    assert on_host(values).equal(values)
    assert to_device({"a": values}, CPU)["a"] is values
