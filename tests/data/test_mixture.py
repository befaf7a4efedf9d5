"""A list of data sets read by weight: what an epoch draws, for any number of ranks, and what is wrong with a list."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from letter_family import JoiningProcessor, Letters, letters, write_rows

from hanlin.core.errors import ConfigError, DataError
from hanlin.data.loader import Loader
from hanlin.data.mixture import Mixture, open_mixture
from hanlin.data.mixture_file import is_mixture, read_mixture
from hanlin.data.sources.bee import write_bee
from hanlin.recipe.settings import DataSettings

LENGTH = 24
TWO_FORMS = [{"text": "$text", "<ans>": "甲"}, {"*": "$*", "<ans>": "乙"}]


def write_list(folder: Path, *entries: dict[str, Any]) -> Path:
    """A list of data sets `task.0`, `task.1`, ... with `rows` rows each; its other keys are those of the entries."""
    (folder / "sets").mkdir(exist_ok=True)
    for number, entry in enumerate(entries):
        rows = letters(entry.pop("rows", 5), seed=number, draw=entry.pop("draw", False))
        write_rows(folder / "sets" / f"{number}.jsonl", rows)
    named = [
        {"task_name": "task", "dataset_name": str(number), "path": f"sets/{number}.jsonl", **entry}
        for number, entry in enumerate(entries)
    ]
    path = folder / "datasets.json"
    path.write_text(json.dumps(named, indent=1, ensure_ascii=False), "utf-8")
    return path


def mixture(folder: Path, *entries: dict[str, Any], **settings: Any) -> Mixture:
    given = DataSettings(mixture=write_list(folder, *entries), max_length=LENGTH, cache=folder / "cache", **settings)
    return open_mixture(given, JoiningProcessor(), tokenizer=Letters())


def loader(data: Mixture, **options: Any) -> Loader:
    return Loader(data, JoiningProcessor(), **{"max_length": LENGTH, "batch_size": 4, "seed": 3, **options})


def draws(data: Mixture, epochs: int, **options: Any) -> list[list[int]]:
    one = loader(data, **options)
    return [[number for batch in one.once(epoch) for row in batch.rows for number in row] for epoch in range(epochs)]


def set_of(data: Mixture, number: int) -> str:
    return Path(data.where(number).split(":")[0]).stem


def test_without_weights_an_epoch_reads_each_row_once(tmp_path: Path) -> None:
    data = mixture(tmp_path, {"rows": 9}, {"rows": 30})
    first, second = draws(data, 2)
    assert sorted(first) == sorted(second) == list(range(39))
    assert first != second


@pytest.mark.parametrize("pack", [True, False])
def test_data_sets_are_read_by_weight_and_rows(tmp_path: Path, pack: bool) -> None:
    data = mixture(tmp_path, {"rows": 10, "weight": 3}, {"rows": 20}, {"rows": 10, "weight": 0.5}, {"weight": 0})
    # 10 x 3 : 20 x 1 : 10 x 0.5 of the 40 samples that an epoch draws
    epochs = draws(data, 11, pack=pack)
    assert Counter(set_of(data, number) for number in itertools.chain(*epochs)) == {"0": 240, "1": 160, "2": 40}
    assert {len(drawn) for drawn in epochs} <= {39, 40, 41}
    for name, rows in (("0", 10), ("1", 20), ("2", 10)):
        seen = Counter(number for number in itertools.chain(*epochs) if set_of(data, number) == name)
        assert len(seen) == rows
        assert max(seen.values()) - min(seen.values()) <= 1  # a row comes again when all others have come


def test_a_folder_of_the_originals_binary_form_is_a_data_set(tmp_path: Path) -> None:
    rows = letters(20, seed=1)
    write_bee(tmp_path / "bee", "rows", rows, form="pickle")
    data = mixture(tmp_path, {"rows": 10}, {"path": "bee", "weight": 0.5})
    assert [data._parts[1].record(number) for number in range(20)] == rows
    shares = Counter(set_of(data, number) for number in itertools.chain(*draws(data, 2)))
    assert shares == {"0": 30, "rows": 30}  # two epochs of 30 draws, half of them from each


def test_absolute_weights_do_not_look_at_the_rows(tmp_path: Path) -> None:
    data = mixture(tmp_path, {"rows": 4, "abs_weight": 0.75}, {"rows": 36, "abs_weight": 0.25})
    [drawn] = draws(data, 1)
    assert Counter(set_of(data, number) for number in drawn) == {"0": 30, "1": 10}


def test_each_row_takes_its_transforms_in_turns(tmp_path: Path) -> None:
    data = mixture(tmp_path, {"rows": 12, "transforms": TWO_FORMS})
    answers = [[data.where(number) + data._parts[number // 12].record(number % 12)["<ans>"] for number in drawn]
               for drawn in draws(data, 4)]  # fmt: skip
    for one, two in itertools.pairwise(answers):
        assert len({answer[:-1] for answer in one}) == 12  # each row once
        assert len({*one, *two}) == 24  # in both of its forms
    assert {"甲", "乙"} == {answer[-1] for answer in answers[0]}


def test_an_epoch_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    entries = [{"rows": 10, "weight": 2, "transforms": TWO_FORMS}, {"rows": 21}]
    one = draws(mixture(tmp_path, *map(dict, entries)), 3)
    late = loader(mixture(tmp_path, *map(dict, entries)))
    assert [number for batch in late.once(2) for row in batch.rows for number in row] == one[2]
    assert draws(mixture(tmp_path, *map(dict, entries)), 1, seed=4) != one[:1]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_ranks_together_see_the_batches_of_one(tmp_path: Path, world: int) -> None:
    data = mixture(tmp_path, {"rows": 10, "weight": 2, "incontext_weight": [1, 1]}, {"rows": 21, "draw": True})
    whole = list(loader(data))
    parts = [list(loader(data, rank=rank, world=world)) for rank in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [row for share in shares for row in share.rows if row] == list(batch.rows)
        full = torch.cat([share.inputs["tokens"] for share in shares if any(share.rows)])
        assert torch.equal(full, batch.inputs["tokens"])


@pytest.mark.parametrize("seen", [0, 3, 5, 17])
def test_a_resumed_loader_goes_on_where_the_other_stopped(tmp_path: Path, seen: int) -> None:
    data = mixture(tmp_path, {"rows": 10, "weight": 2, "incontext_weight": [1, 1]}, {"rows": 21, "draw": True})
    first, second = loader(data), loader(data)
    stream = first.forever()
    for _ in range(seen):
        next(stream)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for one, two in itertools.islice(zip(stream, second.forever(), strict=True), 12):
        assert torch.equal(one.inputs["tokens"], two.inputs["tokens"])
        assert torch.equal(one.labels, two.labels)


def test_a_changed_list_is_another_order_and_a_resume_says_so(tmp_path: Path) -> None:
    state = loader(mixture(tmp_path, {"rows": 10}, {"rows": 20})).state_dict()
    loader(mixture(tmp_path, {"rows": 10, "weight": 2}, {"rows": 20, "weight": 2.0})).load_state_dict(state)
    for change in ({"weight": 2}, {"incontext_weight": [1, 1]}, {"transforms": TWO_FORMS}, {"rows": 11}):
        with pytest.raises(DataError, match="other training data"):
            loader(mixture(tmp_path, {"rows": 10, **change}, {"rows": 20})).load_state_dict(state)


def test_a_sample_that_comes_twice_comes_with_other_examples_and_another_order(tmp_path: Path) -> None:
    one = loader(mixture(tmp_path, {"rows": 4, "incontext_weight": [0, 1], "draw": True}), pack=False)
    texts: dict[int, set] = {number: set() for number in range(4)}
    for batch in itertools.islice(one.forever(), 24):
        for tokens, (number,) in zip(batch.inputs["tokens"].tolist(), batch.rows, strict=True):
            texts[number].add(tuple(tokens))
    assert min(map(len, texts.values())) > 3


def test_examples_come_from_the_same_data_set_in_the_same_form(tmp_path: Path) -> None:
    data = mixture(
        tmp_path, {"rows": 12, "transforms": TWO_FORMS, "incontext_weight": [0, 1]}, {"rows": 12, "weight": 2}
    )
    shown = Counter[str]()
    for batch in loader(data, pack=False).once():
        for tokens, (number,) in zip(batch.inputs["tokens"].tolist(), batch.rows, strict=True):
            text = "".join(map(chr, filter(None, tokens)))
            forms = {mark for mark in ("甲", "乙", "答案") if mark in text}
            assert len(forms) == 1
            shown[set_of(data, number)] += sum(map(text.count, forms)) - 1
    assert shown["1"] == 0
    assert shown["0"] >= 4


SCRIPT = """
def transform(data, num_sample, r):
    assert num_sample == 0
    return {"text": data["text"], "<ans>": r.choice("甲乙丙丁")}
"""


def test_a_script_makes_records_and_its_choices_stay(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text(SCRIPT, "utf-8")
    data = mixture(tmp_path, {"rows": 30, "transforms": "make.py"})
    answers = [data._parts[0].record(number)["<ans>"] for number in range(30)]
    assert set(answers) == set("甲乙丙丁")
    assert draws(mixture(tmp_path, {"rows": 30, "transforms": "make.py"}), 1) == draws(data, 1)


def test_what_is_drawn_is_in_the_report(tmp_path: Path) -> None:
    report = mixture(tmp_path, {"rows": 10, "weight": 3}, {"rows": 30}).report
    assert (report.samples, report.counts.read) == (40, 40)
    assert [(one.name, one.share, one.passes) for one in report.sets] == [("task.0", 0.5, 2), ("task.1", 0.5, 20 / 30)]


def test_bad_rows_of_all_data_sets_are_listed_at_once(tmp_path: Path) -> None:
    path = write_list(
        tmp_path, {"transforms": [{"text": "$body"}]}, {}, {"transforms": [{"text": "$text", "<ans>": 3}]}
    )
    settings = DataSettings(mixture=path, max_length=LENGTH, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"(?s)task\.0: .*no key 'body'.*task\.2: .*2\.jsonl:1: the value of '<ans>'"):
        open_mixture(settings, JoiningProcessor(), tokenizer=Letters())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": -1}, r"datasets\.json:2 \(entry 1\): weight: expected greater than or equal to 0; found -1"),
        ({"weight": 0}, "all weights are 0"),
        ({"wieght": 1}, "wieght: there is no such key; known: task_name, dataset_name, path, weight"),
        ({"path": "no/such"}, "path: there is no .*no/such; a relative path counts from the folder of the list"),
        ({"transforms": "no.py"}, "transforms: there is no .*no.py"),
        ({"transforms": {"<ans>": "$a"}}, "transforms: expected a list of mappings, or the path of a script"),
        ({"transforms": [{"*": "$a"}]}, r"transforms: '\*': '\$a' must have as many \* on both sides"),
        ({"incontext_weight": [0.0]}, "incontext_weight: all are 0"),
        ({"abs_weight": 1, "weight": 1}, "abs_weight: stands beside weight"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_mixture(write_list(tmp_path, entry))


def test_entries_must_agree_with_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.0: two data sets have this"):
        read_mixture(write_list(tmp_path, {}, {"dataset_name": "0"}))
    with pytest.raises(ConfigError, match="some data sets have it and some have not"):
        read_mixture(write_list(tmp_path, {"abs_weight": 0.5}, {}))
    (tmp_path / "make.py").write_text(SCRIPT, "utf-8")
    with pytest.raises(ConfigError, match="not with a script"):
        read_mixture(write_list(tmp_path, {"transforms": "make.py", "incontext_weight": [1, 1]}))


def test_a_list_is_told_from_records(tmp_path: Path) -> None:
    assert is_mixture(write_list(tmp_path, {}))
    (tmp_path / "rows.json").write_text(json.dumps(letters(3)))
    assert not is_mixture(tmp_path / "rows.json")
    assert not is_mixture(write_rows(tmp_path / "rows.jsonl", letters(3)))
