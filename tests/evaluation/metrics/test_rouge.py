import random

import pytest

from hanlin.evaluation.metrics.rouge import common_length, cut_words, rouge_jieba_sets, rouge_l, rouge_n


def test_ngrams_count_once():
    assert rouge_n(["a", "a", "b"], ["a", "b", "c"], 1) == pytest.approx(100 * 2 * (2 / 2) * (2 / 3) / (5 / 3))
    assert rouge_n(["a", "b"], ["b", "a"], 2) == 0


def test_rouge_l_takes_whole_texts():
    assert rouge_l(["a", "a", "b"], ["a", "b"]) == pytest.approx(100 * 2 * (2 / 3) * 1 / (5 / 3))


@pytest.mark.parametrize(("prediction", "reference"), [("", "好"), ("好", ""), (" \n", "好"), ("", "")])
def test_empty_texts_score_nothing(prediction, reference):
    assert set(rouge_jieba_sets(prediction, reference).values()) == {0}


def test_a_line_of_blanks_is_an_empty_word():
    assert cut_words("你好。\n世界") == ["你好", "。", "", "世界"]


def test_common_length_equals_the_textbook():
    draw = random.Random(3)
    for _ in range(50):
        left, right = (draw.choices("abcd", k=draw.randrange(12)) for _ in range(2))
        assert common_length(left, right) == _textbook(left, right)


def _textbook(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        last = row
        row = [0]
        for place, other in enumerate(right):
            row.append(last[place] + 1 if word == other else max(row[place], last[place + 1]))
    return row[-1]
