"""Continuations are as likely as the model's own logits say, for every family and however they are batched."""

from __future__ import annotations

import pytest
import torch
from decision_cases import FAMILIES, engine_of_family, label_engine

from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.data.processor import ContinuesTexts
from hanlin.evaluation import continuations
from hanlin.evaluation.continuations import Continuation, score_continuations
from hanlin.evaluation.likelihoods import sample_likelihoods
from hanlin.generate.engine import Engine
from hanlin.models.family import ScoresTexts

PAIRS = [
    ("床前明月光，", "疑是地上霜。"),
    ("举头望", "明月"),
    ("举头望", "明"),
    ("举头望", "霜"),
    ("月", "低头思故乡。"),
]
TEXT_FAMILIES = [name for name in FAMILIES if isinstance(engine_of_family(name).processor, ContinuesTexts)]


def scored(engine: Engine, pairs: list[tuple[str, str]], batch_size: int = 3) -> list[Continuation]:
    found = dict(score_continuations(engine, pairs, batch_size))
    return [found[number] for number in range(len(pairs))]


def by_hand(engine: Engine, read: list[int], learned: list[int]) -> tuple[float, bool]:
    """Of one row, without padding or cache."""
    tokens = torch.tensor([[*read, *learned]])
    with torch.no_grad():
        logits = engine.model(tokens=tokens[:, :-1])[0, -len(learned) :].double()
    known = logits[:, : engine.processor.tokenizer.vocab_size]
    chosen = torch.tensor(learned)
    total = logits.log_softmax(-1).gather(-1, chosen[:, None]).sum()
    return float(total), bool((known.argmax(-1) == chosen).all())


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_continuation_is_as_likely_as_the_logits_say(family: str) -> None:
    engine = engine_of_family(family)
    for (context, continuation), found in zip(PAIRS, scored(engine, PAIRS), strict=True):
        read, whole = (engine.processor.text_ids(text) for text in (context, context + continuation))
        total, is_greedy = by_hand(engine, whole[: len(read)], whole[len(read) :])
        assert found.log_likelihood == pytest.approx(total, abs=1e-4)
        assert (found.tokens, found.is_greedy) == (len(whole) - len(read), is_greedy)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_what_greedy_search_writes_is_greedy(family: str) -> None:
    engine = engine_of_family(family)
    ids = engine.processor.text_ids("举头望")
    with torch.no_grad():
        logits = engine.model(tokens=torch.tensor([ids]))[0, -1, : engine.processor.tokenizer.vocab_size]
    prompt = engine.processor.prompt(engine.processor.continuation(ids))
    told = [continuations.LearnedIds(prompt, [id]) for id in logits.topk(2).indices.tolist()]
    assert [one.is_greedy for _, one in sorted(continuations.score_ids(engine, told, 2))] == [True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_changes_nothing(family: str) -> None:
    engine = engine_of_family(family)
    alone = [scored(engine, [pair])[0] for pair in PAIRS]
    for size in (2, 8):
        for one, other in zip(scored(engine, PAIRS, size), alone, strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
            assert (one.tokens, one.is_greedy) == (other.tokens, other.is_greedy)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_long_continuation_is_told_in_pieces(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of_family(family)
    whole = scored(engine, PAIRS)
    monkeypatch.setattr(continuations, "_POSITIONS_AT_ONCE", 6)
    for one, other in zip(scored(engine, PAIRS), whole, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
        assert one.is_greedy == other.is_greedy


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TEXT_FAMILIES])
def test_other_families_are_told_an_answer(family: str) -> None:
    engine = engine_of_family(family)
    turns = [Conversation((ChatMessage("user", one), ChatMessage("assistant", other))) for one, other in PAIRS]
    samples = [engine.processor.sample(engine.processor.record_of(turn)) for turn in turns]  # type: ignore[attr-defined]
    expected = dict(sample_likelihoods(engine, enumerate(samples), 2))
    for number, found in enumerate(scored(engine, PAIRS)):
        assert found.log_likelihood == pytest.approx(expected[number].log_likelihood, abs=1e-4)
        assert found.tokens == expected[number].tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_may_follow_nothing(family: str) -> None:
    if not isinstance(engine_of_family(family).processor, ScoresTexts):
        with pytest.raises(DataError, match="cannot tell one that follows nothing"):
            scored(engine_of_family(family), [("", "明月")])
        return
    [found] = scored(engine_of_family(family), [("", "明月")])
    assert found.log_likelihood < 0
    assert found.tokens >= 1


@pytest.mark.parametrize("family", [name for name in FAMILIES if engine_of_family(name).max_length is not None])
def test_a_context_that_is_too_long_loses_its_beginning(family: str) -> None:
    engine = engine_of_family(family)
    assert engine.max_length is not None
    long = "床前明月光，" * engine.max_length
    one, other = scored(engine, [(long, "霜"), ("月" + long, "霜")])
    assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)


def test_a_dialogue_is_read_in_the_template() -> None:
    engine = engine_of_family("chatglm2")
    asked = Conversation((ChatMessage("user", "举头望"),))
    [found] = dict(score_continuations(engine, [(asked, "明月")], 1)).values()
    processor = engine.processor
    ids = processor.encode_prompt({"prompt": "举头望"})  # type: ignore[attr-defined]
    learned = processor.text_ids("明月")[len(processor.text_ids("")) :]  # type: ignore[attr-defined]
    total, is_greedy = by_hand(engine, ids, learned)
    assert found.log_likelihood == pytest.approx(total, abs=1e-4)
    assert found.is_greedy == is_greedy


def test_blanks_at_the_end_of_a_context_belong_to_what_follows() -> None:
    engine = engine_of_family("cpm1")
    one, other = scored(engine, [("举头 ", "明月"), ("举头", " 明月")])
    assert one == other


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TEXT_FAMILIES])
def test_blanks_around_an_answer_are_none_of_it(family: str) -> None:
    one, other = scored(engine_of_family(family), [("举头", " 明月 "), ("举头", "明月")])
    assert one == other


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(DataError, match="record 2: the continuation is empty"):
        scored(engine_of_family("cpm1"), [("明", "月"), ("明", "")])
    with pytest.raises(ConfigError, match="this model says labels"):
        scored(label_engine(), PAIRS)
