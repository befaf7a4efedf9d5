from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import case_of

from hanlin.core.batch import IGNORED
from hanlin.core.errors import DataError, HanlinError
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.generate.running_batch import AnswerRequest, TokenScores
from hanlin.models.cpm_bee import CpmBeeConfig, CpmBeeTokenizer, family
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.models.family import BeamVariant
from hanlin.recipe.settings import GenerateSettings

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
WORDS = [*MARKS, "<", "input", "options", *"今天气好坏abcdx"]
RECORDS = [
    {"input": "今天天气", "<ans>": ""},
    {"input": "ab<mask_0>cd<mask_1>", "<ans>": {"<mask_0>": "", "<mask_1>": ""}},
    {"input": "😀b😁", "options": {"<option_4>": "x", "<option_1>": "好"}, "<ans>": ""},
    {"input": "abcdabcd", "<ans>": {"a": {"b": "", "c": ""}, "d": ""}},
    {"input": "x", "<ans>": ""},
]
GREEDY = GreedySettings(max_new_tokens=12, repetition_penalty=1.2)
BEAM = BeamSettings(beams=3, max_new_tokens=12, repetition_penalty=1.3, repetition_window=4)
SAMPLE = SampleSettings(max_new_tokens=12, temperature=1.1, top_k=9, top_p=0.95)


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = CpmBeeTokenizer(WORDS)
    config = CpmBeeConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        head_dim=8,
        ffn_size=48,
        num_distance_buckets=32,
        num_relation_buckets=64,
        max_distance=64,
        half_frequencies=False,
    )
    model = family.model()(config).double()
    model.init_weights(torch.Generator().manual_seed(5))
    # Strong enough, and so drawn, that the answers are long, differ and quote marks of their records.
    torch.nn.init.normal_(model.embedding.weight, std=2.0, generator=torch.Generator().manual_seed(11))
    return Engine(model.eval(), CpmBeeProcessor(tokenizer, config))


@pytest.mark.parametrize("options", [GREEDY, BEAM, SAMPLE], ids=lambda options: options.method)
def test_answers_do_not_depend_on_the_batch_size(engine: Engine, options: GenerateSettings):
    alone = engine.generate(RECORDS, options.model_copy(update={"batch_size": 1}), seed=3)
    sharded = engine.generate(RECORDS, options.model_copy(update={"batch_size": 4}), seed=3)
    assert alone == sharded
    assert alone != RECORDS


def test_counting_padding_divides_all_scores_of_a_batch_by_the_longest_prompt(engine: Engine):
    """The tokens are the same here: with one beam no two scores are compared."""
    counting = Engine(
        engine.model, engine.processor, family=replace(family, beam_variant=BeamVariant(length_includes_prompt=True))
    )
    options = BeamSettings(beams=1, max_new_tokens=12)
    prompts = [counting.prompt(record, options) for record in (RECORDS[0], RECORDS[3], RECORDS[4])]
    *_, plain = counting.search(prompts, options)
    *_, padded = counting.search(prompts, options.model_copy(update={"count_padding": True}))
    end, longest = engine.processor.tokenizer.marks["</s>"], max(prompt.length for prompt in prompts)  # type: ignore[attr-defined]
    for prompt, one, other in zip(prompts, plain, padded, strict=True):
        assert one.best.tokens == other.best.tokens
        new = 1 + len(one.best.tokens) - (one.best.tokens[-1] == end)
        assert one.best.score * (prompt.length + new) == pytest.approx(other.best.score * (longest + new))
    assert len({prompt.length for prompt in prompts}) > 1


def test_records_keep_their_order_and_are_not_changed(engine: Engine):
    before = copy.deepcopy(RECORDS)
    answered = engine.generate(RECORDS, GREEDY)
    assert before == RECORDS
    assert [record["input"] for record in answered] == [record["input"] for record in RECORDS]
    assert list(answered[3]["<ans>"]["a"]) == ["b", "c"]


def test_only_tokens_of_the_window_are_penalised(engine: Engine):
    penalised = GREEDY.model_copy(update={"repetition_penalty": 3.0})
    windows = (None, 1, 3, 1000)
    found = {n: engine.generate(RECORDS, penalised.model_copy(update={"repetition_window": n})) for n in windows}
    assert found[None] == found[1000]
    assert found[1] != found[3] != found[None]


def test_no_records_give_no_answers(engine: Engine):
    assert engine.generate([], GREEDY) == []


@pytest.mark.parametrize("record", RECORDS[:3] + RECORDS[4:], ids=lambda record: record["input"])
def test_cached_search_agrees_with_the_training_forward(engine: Engine, record: dict):
    """With the found answers as gold, and no KV cache, each label is the best id at its position."""
    options = GreedySettings(max_new_tokens=40)
    prompt = engine.prompt(record, options)
    *_, [search] = engine.search([prompt], options)
    sample = engine.processor.sample(engine.processor.answer(prompt, search.best.tokens))
    batch = engine.processor.collate([[sample]], sample.length)
    with torch.no_grad():
        logits = engine.model(**batch.inputs)[batch.labels != IGNORED]
    if "😀" not in record["input"]:
        logits[:, WORDS.index("<unk>")] = -torch.inf
    # Without marks of its own a training batch has a placeholder among its columns.
    logits = logits[:, : len(WORDS) + len(prompt.state.slots.entries)]
    found = len(search.best.tokens)
    assert logits.argmax(-1).tolist()[:found] == batch.labels[batch.labels != IGNORED].tolist()[:found]


def test_sampling_follows_the_seed(engine: Engine):
    first, again = (engine.generate(RECORDS, SAMPLE, seed=1) for _ in range(2))
    assert first == again
    assert engine.generate(RECORDS, SAMPLE, seed=2) != first


def test_equal_records_have_random_streams_of_their_own(engine: Engine):
    answers = [record["<ans>"] for record in engine.generate([RECORDS[0]] * 6, SAMPLE)]
    assert len(set(answers)) > 1
    assert record_stream(0, 1).random() == np.random.default_rng([0, 1]).random()


@pytest.mark.parametrize("options", [GREEDY, SAMPLE], ids=lambda options: options.method)
def test_streamed_pieces_add_up_to_the_answer(engine: Engine, options: GenerateSettings):
    pieces = list(engine.stream(RECORDS[0], options, seed=4))
    assert len(pieces) > 1
    assert "".join(pieces) == engine.generate(RECORDS[:1], options, seed=4)[0]["<ans>"]


def test_streamed_answers_are_divided_by_a_newline(engine: Engine):
    filled = engine.generate(RECORDS[1:2], GREEDY)[0]["<ans>"]
    text = "".join(engine.stream(RECORDS[1], GREEDY))
    assert text == "\n".join(answer for answer in filled.values() if answer is not None)


def test_a_beam_search_cannot_be_streamed(engine: Engine):
    with pytest.raises(HanlinError, match=r"generate\.method=greedy"):
        engine.stream(RECORDS[0], BEAM)


def test_the_answers_of_a_record_share_the_token_limit(engine: Engine):
    prompts = [engine.prompt(record, BEAM) for record in RECORDS]
    for options in (GREEDY, BEAM, SAMPLE):
        *_, searches = engine.search(prompts, options, [record_stream(0, n) for n in range(len(prompts))])
        assert max(len(search.best.tokens) for search in searches) == options.max_new_tokens


def test_a_prompt_without_room_for_its_answer_is_named(engine: Engine):
    narrow = Engine(engine.model, engine.processor, max_length=40)
    with pytest.raises(DataError, match=r"record 3: its prompt has \d+ tokens and up to 12 may follow.* at most 40"):
        narrow.generate(RECORDS, GREEDY)


def test_a_record_that_is_no_prompt_is_named(engine: Engine):
    with pytest.raises(DataError, match=r"record 2: "):
        engine.generate([RECORDS[0], {"input": "x"}], GREEDY)


@pytest.mark.parametrize("options", [BEAM, GREEDY, SAMPLE], ids=lambda options: options.method)
def test_logits_that_are_no_numbers_are_an_error(engine: Engine, options: GenerateSettings):
    broken = Engine(copy.deepcopy(engine.model), engine.processor)
    torch.nn.init.constant_(broken.model.norm.weight, torch.nan)
    with pytest.raises(HanlinError, match=r"not numbers .*hanlin inspect --values"):
        broken.generate(RECORDS[:1], options)


def test_a_model_in_training_goes_on_training(engine: Engine):
    engine.model.train()
    try:
        engine.generate(RECORDS[:1], GREEDY)
        assert engine.model.training
    finally:
        engine.model.eval()


def test_bf16_writes_answers_too(engine: Engine):
    model = copy.deepcopy(engine.model).float()
    answered = Engine(model, engine.processor, precision="bf16").generate(RECORDS, BEAM)
    assert len(answered) == len(RECORDS)


@pytest.mark.parametrize("name", ["chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee"])
def test_rows_that_fill_a_vocabulary_up_are_never_chosen_nor_told(name: str, tmp_path: Path) -> None:
    """However likely the model finds them."""
    case = case_of(name, tmp_path)
    size = case.tokenizer.vocab_size
    case = replace(case, config=replace(case.config, vocab_size=size + 3))
    model = case.model().requires_grad_(False)
    model.register_forward_hook(lambda _, given, logits: logits.index_fill(-1, torch.tensor([size, size + 2]), 1e3))
    engine = Engine(model, case.processor, family=case.family)
    record, stream = case.records[0], np.random.default_rng(0)
    for options in (
        GreedySettings(max_new_tokens=3),
        SampleSettings(max_new_tokens=3, temperature=2.0, top_p=1.0),
        BeamSettings(max_new_tokens=3, beams=2),
    ):
        is_traced, running = options.method != "beam", engine.run_together()
        trace: list[TokenScores] | None = [] if is_traced else None
        asked = AnswerRequest(engine.prompt(record, options), options, stream, trace, top=size + 3)
        with engine.inference():
            searches = running.add([0], [asked])
            while not running.is_empty:
                searches = running.step()
        assert searches is not None
        ids = list(searches[0].best.tokens) + [id for one in trace or [] for id, _ in one.likeliest]
        own = set(case.processor.prompt(record).state.by_id) if name == "cpm_bee" else set()
        assert all(id < size or id in own for id in ids), (options.method, max(ids), size)
