"""What is written behind contexts is what generation writes, up to the first text that ends it."""

from __future__ import annotations

import pytest
from decision_cases import FAMILIES, engine_of_family

from hanlin.core.errors import DataError
from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.data.processor import ContinuesTexts
from hanlin.evaluation.continued_texts import OpenText, continue_texts, until
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings

CONTEXTS = ["床前明月光，", "举头望", "月", "举头望明月，低头"]
GREEDY = GreedySettings(max_new_tokens=8)


def written(engine: Engine, texts: list[OpenText], batch_size: int = 3) -> list[str]:
    found = dict(continue_texts(engine, texts, batch_size))
    return [found[number] for number in range(len(texts))]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_search_writes_the_same(family: str) -> None:
    engine = engine_of_family(family)
    processor = engine.processor
    if isinstance(processor, ContinuesTexts):
        records = [processor.continuation(processor.text_ids(one)) for one in CONTEXTS]
    else:
        records = [processor.record_of(Conversation((ChatMessage("user", one),))) for one in CONTEXTS]  # type: ignore[attr-defined]
    answers = [processor.answer_of(one) for one in engine.generate(records, GREEDY)]  # type: ignore[attr-defined]
    assert written(engine, [OpenText(one, GREEDY) for one in CONTEXTS]) == answers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_ends_before_what_stops_it(family: str) -> None:
    engine = engine_of_family(family)
    [whole] = written(engine, [OpenText("举头望", GREEDY)])
    stop = whole[-1]
    texts = [OpenText("举头望", GREEDY, ("never", stop)), OpenText("举头望", GREEDY)]
    assert written(engine, texts) == [whole[: whole.index(stop)], whole]


def test_each_context_may_have_its_own_settings() -> None:
    engine = engine_of_family("cpm1")
    drawn = SampleSettings(max_new_tokens=8, temperature=5.0, top_p=1.0)
    texts = [OpenText("月", GREEDY), OpenText("月", drawn), OpenText("月", GreedySettings(max_new_tokens=2))]
    greedy, sampled, short = written(engine, texts)
    assert greedy == written(engine, texts[:1])[0]
    assert sampled != greedy
    assert greedy.startswith(short)


def test_a_long_context_loses_its_beginning() -> None:
    engine = engine_of_family("cpm1")
    assert engine.max_length is not None
    long = "床前明月光，" * engine.max_length
    assert len(set(written(engine, [OpenText(long, GREEDY), OpenText("月" + long, GREEDY)]))) == 1
    with pytest.raises(DataError, match="leave no room for a context"):
        written(engine, [OpenText("月", GreedySettings(max_new_tokens=engine.max_length))])


def test_the_first_stop_counts() -> None:
    assert until("ab\ncd.", ("d", "\n", "")) == ("ab", True)
    assert until("ab", ("\n",)) == ("ab", False)
