"""CPM-2's samples: packed rows have the losses of single ones; prompts, cuts and answers are as asked."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpm2_tiny import RANKING, ROWS, make_tokenizer, write_rows
from rich.console import Console

from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.expand import records_in
from hanlin.data.prepare import prepare
from hanlin.data.report import render_report
from hanlin.data.sources import LeftOutError
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.pieces import START_ID
from hanlin.models.cpm2.processor import Cpm2Processor
from hanlin.models.cpm2.record import Cpm2Options
from hanlin.recipe.settings import DataSettings
from hanlin.tuning.prompt import PromptTuning, init_random

TOKENIZER = make_tokenizer()
CONFIG = Cpm2Config(
    vocab_size=TOKENIZER.vocab_size, hidden_size=8, num_layers=1, num_heads=2, head_dim=4, ffn_size=8, init_std=0.3
)


def make_processor(dataset: str, **options: Any) -> Cpm2Processor:
    return Cpm2Processor(TOKENIZER, CONFIG, Cpm2Options(dataset=dataset, **options))  # pyright: ignore


def make_model(num_prompts: int = 0) -> Cpm2:
    model, generator = Cpm2(CONFIG), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    if num_prompts:
        PromptTuning(length=num_prompts).add_to(model, None)
        init_random(model, generator)
    return model.eval()


def records_of(processor: Cpm2Processor, dataset: str) -> list[Any]:
    return records_in(ROWS[dataset], processor)


@pytest.mark.parametrize("has_prompts", [False, True])
@pytest.mark.parametrize("dataset", sorted(ROWS))
def test_packed_samples_have_the_losses_of_single_ones(dataset: str, has_prompts: bool) -> None:
    processor, model = make_processor(dataset), make_model(20 if has_prompts else 0)
    if has_prompts:
        processor = processor.with_prompts(PromptTuning(length=20))
    made = [processor.sample(record) for record in records_of(processor, dataset)]
    packed = processor.collate([made], sum(sample.length for sample in made))
    alone = processor.collate([[sample] for sample in made], max(sample.length for sample in made))
    losses = [float(model(**b.inputs, labels=b.labels, weights=b.weights).detach()) for b in (packed, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert packed.loss_tokens == pytest.approx(len(made))
    assert int(packed.inputs["lengths"].sum()) == int(alone.inputs["lengths"].sum())


def test_a_sample_takes_the_columns_of_its_longer_side() -> None:
    processor = make_processor("text")
    for record in ({"source": "天气" * 5, "target": "好"}, {"source": "天", "target": "好天气" * 5}):
        sample = processor.sample(record)
        assert sample.length == max(len(sample.inputs["tokens"]), len(sample.inputs["encoder_tokens"]))
        assert sample.loss_tokens == len(sample.inputs["tokens"])


def test_long_answers_weigh_as_much_as_short_ones_or_by_their_tokens() -> None:
    record = {"source": "天", "target": "天气好"}
    assert make_processor("text").sample(record).weights.sum() == pytest.approx(1)
    assert make_processor("text", loss="token").sample(record).weights.sum() == 5  # <s_0>, three characters, <s_1>


def test_what_is_cut_off_is_not_read_and_its_end_not_learned() -> None:
    sample = make_processor("text", source_length=2, answer_length=1).sample({"source": "天气好", "target": "好天气"})
    assert TOKENIZER.decode(sample.inputs["encoder_tokens"]) == "天气"
    assert TOKENIZER.decode(sample.labels[sample.labels != IGNORED]) == "<s_0>好"


def test_only_the_long_text_is_shortened() -> None:
    processor = make_processor("text")
    record = {"source": "天气好" * 9, "target": "好天气"}
    [shorter] = processor.fit(record, 10, "truncate")
    assert shorter == {"source": ("天气好" * 9)[:10], "target": "好天气"}
    assert processor.sample(shorter).length == 10
    with pytest.raises(DataError, match="cut to nothing"):
        processor.fit({"source": "天", "target": "好" * 20}, 10, "truncate")
    with pytest.raises(DataError, match="cannot be shortened or split"):
        processor.fit(record, 10, "split")
    with pytest.raises(DataError, match="source_length"):
        make_processor("adgen").fit(ROWS["adgen"][0], 5, "truncate")


def test_the_report_shows_prompts_by_their_numbers() -> None:
    processor = make_processor("lcqmc").with_prompts(PromptTuning(length=10, ratios=(0.3, 0.3, 0.4)))
    record = {"sentence1": "天气", "sentence2": "好", "label": 1}
    assert processor.show(processor.sample(record)) == [("[1..3]天气[4..6]好[7..10]", False), ("<s_0>相似", True)]


@pytest.mark.parametrize("dataset", sorted(set(ROWS) - {"sogou-log"}))
def test_an_answer_comes_back_into_its_record(dataset: str) -> None:
    processor = make_processor(dataset)
    for record in records_of(processor, dataset):
        [gold], answer = processor.gold(record), processor.data_set.answer
        assert answer is not None
        asked = {key: value for key, value in record.items() if key != answer.key}
        prompt = processor.prompt(asked)
        is_word = len(prompt.inputs["tokens"]) == 1
        said = [TOKENIZER.find(gold or "")] if is_word else [*TOKENIZER.encode(f"{gold}"), TOKENIZER.sentinel(1)]
        answered = processor.answer(prompt, said if is_word else [TOKENIZER.sentinel(0), *said])  # pyright: ignore
        assert processor.gold(answered) == [gold]
        assert answer.key not in asked
        cursor = prompt.cursor
        for token in said if is_word else [TOKENIZER.sentinel(0), *said]:
            assert not cursor.is_done
            cursor = cursor.advance(token)  # pyright: ignore[reportArgumentType]
        assert cursor.is_done


def test_a_word_that_is_no_label_is_kept_as_it_was_said() -> None:
    processor = make_processor("lcqmc")
    answered = processor.answer(processor.prompt({"sentence1": "天", "sentence2": "好"}), [TOKENIZER.find("书")])  # pyright: ignore
    assert answered["label"] == "书"
    assert processor.gold(answered) == ["书"]


def test_compatible_answers_lose_their_first_and_last_token() -> None:
    tokens = TOKENIZER.encode("天气好")
    prompt = make_processor("lcsts").prompt({"text": "天"})
    assert make_processor("lcsts").answer_texts(prompt, tokens) == ["天气好"]
    assert make_processor("lcsts", compatible=True).answer_texts(prompt, tokens) == ["气"]
    assert make_processor("lcsts").answer_texts(prompt, [*tokens[:2], TOKENIZER.pad_id, tokens[2]]) == ["天气"]


def test_each_label_word_is_a_candidate() -> None:
    processor = make_processor("ccpm")
    candidates = processor.candidates(ROWS["ccpm"][0])
    assert [processor.gold(candidate) for candidate in candidates] == [["一"], ["二"], ["三"], ["四"]]
    with pytest.raises(DataError, match="no options"):
        make_processor("math").candidates(ROWS["math"][0])


def test_titles_are_no_answers_and_answers_no_titles() -> None:
    processor = make_processor("sogou-log")
    assert processor.ranked_example(ROWS["sogou-log"][0]).best == "pos_doc"
    assert processor.ranked_example(RANKING[0]).best is None
    processor.check(RANKING[0])
    for call in (processor.prompt, processor.gold, processor.candidates):
        with pytest.raises(DataError, match="task rank"):
            call(ROWS["sogou-log"][0])
    with pytest.raises(DataError, match="not learned from"):
        processor.sample(RANKING[0])
    with pytest.raises(DataError, match="nothing to rank"):
        make_processor("math").ranked_example(ROWS["math"][0])


def test_long_pairs_are_left_out() -> None:
    processor = make_processor("sogou-log")
    assert processor.records is not None
    short, long = ({"query": "书", "pos_doc": "书" * count, "neg_doc": "山"} for count in (100, 200))
    assert processor.records(short) == [short]
    with pytest.raises(LeftOutError, match="more than 150 tokens"):
        processor.records(long)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="no effect with dataset math"):
        Cpm2Options(dataset="math", source_column="a")
    with pytest.raises(ConfigError, match="source_length is 0"):
        Cpm2Options(source_length=0)
    with pytest.raises(ConfigError, match="the model only 5"):
        Cpm2Processor(TOKENIZER, Cpm2Config(vocab_size=5))
    with pytest.raises(DataError, match="would read nothing"):
        make_processor("text").sample({"source": "", "target": "天"})


def test_a_lone_token_is_given_twice_only_if_asked() -> None:
    tokenizer = make_tokenizer(is_bilingual=True)
    config = Cpm2Config(vocab_size=tokenizer.vocab_size)
    for doubles, count in ((True, 2), (False, 1)):
        processor = Cpm2Processor(tokenizer, config, Cpm2Options(doubles_lone=doubles))
        assert len(processor.sample({"source": "天", "target": "好"}).inputs["encoder_tokens"]) == count


def test_prompts_pad_the_encoder_alone() -> None:
    processor = make_processor("math")
    batch = processor.collate_prompts([processor.prompt(row) for row in ROWS["math"]])
    assert batch.inputs["tokens"].shape == (2, 0)
    spans = batch.inputs["encoder_spans"]
    assert np.unique(spans.numpy()).tolist() == [-1, 0]
    assert batch.inputs["encoder_tokens"][spans < 0].eq(TOKENIZER.pad_id).all()


@pytest.mark.parametrize("dataset", sorted(ROWS))
def test_many_records_get_the_samples_of_each(dataset: str) -> None:
    processor = make_processor(dataset)
    records = [*records_of(processor, dataset), {"nothing": 1}]
    *made, wrong = processor.process_many(records)
    assert isinstance(wrong, DataError)
    for sample, record in zip(made, records, strict=False):
        expected = processor.sample(record)
        assert isinstance(sample, type(expected))
        for name, array in expected.inputs.items():
            assert sample.inputs[name].tolist() == array.tolist()
        assert sample.labels.tolist() == expected.labels.tolist()


def test_a_piece_of_the_stream_is_read_with_spans_taken_out_which_the_decoder_gives_back() -> None:
    marks, processor = make_processor("text").marks, make_processor("text", density=0.3)
    documents = [TOKENIZER.encode("天气好天气好天气好"), TOKENIZER.encode("好天气好天气")]
    stream = np.array([id for document in documents for id in (*document, marks.end)])
    sample = processor.window(stream, np.random.default_rng(0))
    context, tokens = sample.inputs["encoder_tokens"].tolist(), sample.inputs["tokens"].tolist()
    labels = sample.labels[: len(tokens)]
    assert tokens[:2] == [START_ID, marks.first_span]
    assert put_back(context, tokens, marks.first_span) == stream.tolist()
    assert labels[:-1].tolist() == [IGNORED if id == marks.end else wanted for id, wanted in pairwise(tokens)]
    assert sample.weights.sum() == pytest.approx(1)


def test_pieces_of_the_stream_fill_the_encoder_s_columns() -> None:
    processor = make_processor("text")
    stream = np.full(processor.window_tokens(40), 5)
    drawn = [processor.window(stream, np.random.default_rng(seed)) for seed in range(4)]
    assert all(38 <= sample.length <= 40 for sample in drawn)
    assert len({sample.labels.tobytes() for sample in drawn}) > 1


def test_soft_prompts_have_no_place_in_a_stream() -> None:
    with pytest.raises(ConfigError, match="no place for soft prompts"):
        make_processor("text").with_prompts(PromptTuning()).window_tokens(40)


def put_back(context: list[int], tokens: list[int], first: int) -> list[int]:
    """The text that what is read and what is wanted make together."""
    starts = [place for place, id in enumerate(tokens) if id >= first]
    spans = {tokens[start]: tokens[start + 1 : end] for start, end in pairwise([*starts, len(tokens)])}
    return [id for one in context for id in spans.get(one, [one])]


@pytest.mark.parametrize("options", [["一行", "人初"], {"<option_0>": "一行", "<option_1>": "人初"}])
def test_the_options_of_any_record_are_its_candidates(options: Any) -> None:
    processor = make_processor("text", source_column="input", target_column="<ans>")
    record = {"input": "诗人啊", "options": options, "<ans>": "人初"}
    candidates = processor.candidates(record)
    assert [processor.gold(candidate) for candidate in candidates] == [["一行"], ["人初"]]
    assert [{**candidate, "<ans>": "人初"} for candidate in candidates] == [record] * 2
    for bad in ({**record, "options": [1]}, {**record, "options": []}, {"input": "诗", "<ans>": "一"}):
        with pytest.raises(DataError, match="'options' must list the texts that likelihood chooses from"):
            processor.candidates(bad)


def test_rows_that_are_left_out_stand_in_the_report(tmp_path: Path) -> None:
    rows = [*ROWS["adgen"], {"title": "裙", "feature": [["颜色", 5]], "desc": "白"}, {**ROWS["adgen"][0], "desc": " "}]
    path = write_rows(tmp_path / "adgen.json", rows)
    settings = DataSettings(max_length=64, cache=tmp_path / "cache", bad_rows="drop")
    processor = make_processor("adgen")
    for _ in ("encoded", "from the cache"):
        report = prepare([path], processor, settings, tokenizer=processor.tokenizer, progress=False).report
        assert (report.counts.rows, report.counts.read, report.samples, report.dropped) == (5, 5, 2, 3)
        assert tuple(report.counts.examples[0]) == (f"{path}:2", "title, tags and feature are empty")
        assert sorted(where for where, _ in report.counts.examples) == [f"{path}:{line}" for line in (2, 4, 5)]


def test_of_a_row_of_several_records_only_the_bad_one_goes(tmp_path: Path) -> None:
    [texts, questions, name] = ROWS["c3"][0]
    path = write_rows(tmp_path / "c3.json", [[texts, [*questions, "去哪里"], name]], as_list=True)
    settings = DataSettings(max_length=64, cache=tmp_path / "cache")
    processor = make_processor("c3")
    with pytest.raises(DataError, match=r"c3.json:1 \(entry 1\): the key 'choice' is missing"):
        prepare([path], processor, settings, tokenizer=processor.tokenizer, progress=False)
    dropping = settings.model_copy(update={"bad_rows": "drop"})
    report = prepare([path], processor, dropping, tokenizer=processor.tokenizer, progress=False).report
    assert (report.counts.rows, report.counts.read, report.samples, report.dropped) == (1, 3, 2, 1)
    shown = StringIO()
    Console(file=shown, width=200).print(render_report(report))
    assert "1, with 3 records" in shown.getvalue()


def test_an_answer_is_one_of_its_options() -> None:
    processor, record = make_processor("text"), {"source": "天气", "options": ["好", "山"]}
    processor.check({**record, "target": "好"})
    processor.check({"source": "天气", "target": "书", "options": None})
    with pytest.raises(DataError, match="'target': '书' is none of the options in 'options'"):
        processor.check({**record, "target": "书"})
