from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from chatglm2_pieces import small_byte_ranks, small_pieces
from cpm2_tiny import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pieces import small_tokenizer

from hanlin.models.chatglm2.tokenizer import GLM4_PATTERN, ChatGlm2Tokenizer
from hanlin.tokens.byte_ranks import ByteRanks
from hanlin.tokens.stream import Growing, Pieces, stream_pieces


def test_pieces_add_up_to_the_last_text():
    assert list(stream_pieces(["你", "你", "你好", "你好吗"])) == ["你", "好", "吗"]


def test_half_a_character_is_held_back():
    assert list(stream_pieces(["a", "a\ufffd", "a\ufffd\ufffd", "a好"])) == ["a", "好"]


def test_what_stays_broken_is_shown_at_the_end():
    assert list(stream_pieces(["a\ufffd"])) == ["a", "\ufffd"]


def test_no_texts_give_no_pieces():
    assert list(stream_pieces([])) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChatGlm2Tokenizer(small_pieces()),
        lambda: ChatGlm2Tokenizer(small_pieces()).with_roles(),
        lambda: ChatGlm2Tokenizer(ByteRanks(small_byte_ranks(), GLM4_PATTERN)),
        small_tokenizer,
        make_tokenizer,
        lambda: make_tokenizer(is_bilingual=True),
    ],
    ids=["bytes-in-pieces", "roles", "bytes", "pieces", "words", "bilingual"],
)
def test_ids_that_grow_are_decoded_as_at_once(make: Callable[[], object]) -> None:
    tokenizer: object = make()
    begins = getattr(tokenizer, "begins_word", None)
    decode: Callable[[Sequence[int]], str] = tokenizer.decode  # pyright: ignore
    few = st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=4)  # pyright: ignore

    @given(few, st.lists(st.integers(0, 3), max_size=70), st.lists(st.sampled_from(["a", "ab", "好", " "]), max_size=3))
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    def holds(chosen: list[int], places: list[int], stops: list[str]) -> None:
        """Also with stop texts that begin anywhere: what is shown piece by piece is the same."""
        ids = [chosen[place % len(chosen)] for place in places]
        growing, shown, expected = Growing(decode, begins), Pieces(stops), Pieces(stops)
        for count in range(len(ids) + 1):
            text, whole = growing(ids[:count]), decode(ids[:count])
            assert text == whole
            assert shown.add(text) == expected.add(whole)

    holds()


def test_characters_of_several_bytes_and_half_ones_are_decoded_as_at_once() -> None:
    tokenizer = ChatGlm2Tokenizer(small_pieces())
    first = tokenizer.encode("\u0001")[-1] - 1  # of the bytes' pieces
    data = "好🙂é".encode() + b"\xf0\x9f\x99" + "好".encode() * 20 + b"\xe5\xa5" + b"abc" + b"\xa5\xbd" * 15
    ids = [first + byte for byte in data]
    growing = Growing(tokenizer.decode)
    assert [growing(ids[:count]) for count in range(len(ids))] == [tokenizer.decode(ids[:n]) for n in range(len(ids))]
