from __future__ import annotations

from hanlin.tokens.stream import stream_pieces


def test_pieces_add_up_to_the_last_text():
    assert list(stream_pieces(["你", "你", "你好", "你好吗"])) == ["你", "好", "吗"]


def test_half_a_character_is_held_back():
    assert list(stream_pieces(["a", "a\ufffd", "a\ufffd\ufffd", "a好"])) == ["a", "好"]


def test_what_stays_broken_is_shown_at_the_end():
    assert list(stream_pieces(["a\ufffd"])) == ["a", "\ufffd"]


def test_no_texts_give_no_pieces():
    assert list(stream_pieces([])) == []
