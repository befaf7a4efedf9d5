"""An answer that is decoded while it is written is, at each token, the text of all its tokens."""

from __future__ import annotations

import pytest
from family_cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from hanlin.generate.answer_text import follow_text
from hanlin.models.family import FollowsAnswers


def test_a_growing_answer_has_the_text_of_its_tokens(case: Case) -> None:
    processor = case.processor
    prompt = processor.prompt(case.records[0])
    some = [id for text in case.texts for id in case.tokenizer.encode(text)]
    ids = st.sampled_from(some) | st.integers(0, case.tokenizer.vocab_size - 1) | st.sampled_from(range(3, 20))

    @given(st.lists(st.lists(ids, max_size=40), max_size=3))
    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    def holds(answers: list[list[int]]) -> None:
        follow = follow_text(processor, prompt, is_plain=False)
        for tokens in answers:  # another one begins anew, also in the middle of what is known
            for count in range(len(tokens) + 1):
                assert follow(tokens[:count]) == "\n".join(processor.answer_texts(prompt, tokens[:count]))
        assert follow(answers[0] if answers else []) == "\n".join(
            processor.answer_texts(prompt, answers[0] if answers else [])
        )

    holds()


def test_few_tokens_of_a_long_answer_are_decoded_again(case: Case) -> None:
    processor = case.processor
    if not isinstance(processor, FollowsAnswers):
        pytest.skip("it decodes answers from their beginning")
    prompt, decoded = processor.prompt(case.records[0]), []
    [id, *_] = case.tokenizer.encode(case.texts[0])[-3:]
    decode = processor.tokenizer.decode
    processor.tokenizer.decode = lambda ids, **given: decoded.append(len(list(ids))) or decode(ids, **given)
    try:
        follow = follow_text(processor, prompt, is_plain=False)
        for count in range(1, 300):
            follow([id] * count)
    finally:
        del processor.tokenizer.decode
    assert sum(decoded) < 300 * 40
