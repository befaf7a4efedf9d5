from __future__ import annotations

import random
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.models.cpm_bee.ant import CpmAntTokenizer
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer, escape, unescape

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
WORDS = [*MARKS, "<", " <", ">", "今天", "今", "天", "气", "a", "ab", "c", " c"]


@pytest.fixture(scope="module")
def bee() -> CpmBeeTokenizer:
    return CpmBeeTokenizer(WORDS)


def test_newline_and_space_have_the_ids_of_their_names(bee: CpmBeeTokenizer) -> None:
    assert bee.encode("\n ") == [WORDS.index("</n>"), WORDS.index("</_>")]
    assert bee.decode([4, 5]) == "\n "


def test_a_table_hands_new_ids_from_text_to_text(bee: CpmBeeTokenizer) -> None:
    table: dict[int, str] = {}
    size = bee.vocab_size
    assert bee.encode("<mask_3>a😀é", table) == [size, WORDS.index("a"), size + 1]
    assert bee.encode("😀é<mask_4><mask_3>", table) == [size + 1, size + 2, size]
    assert table == {size: "<mask_3>", size + 1: "😀é", size + 2: "<mask_4>"}


def test_an_escaped_bracket_may_be_part_of_a_longer_token(bee: CpmBeeTokenizer) -> None:
    assert [token.text for token in bee.tokenize("a <<c<mask>")] == ["a", " <", "c", "<mask>"]
    assert "".join(token.source for token in bee.tokenize("a <<c<mask>")) == "a <<c<mask>"


@pytest.mark.parametrize(("text", "place"), [("今a<b", 3), ("<", 1), ("<<<", 3), ("a<mask>c<d<<", 9), ("<a<b>", 1)])
def test_a_bracket_that_opens_no_mark_is_refused_with_its_place(bee: CpmBeeTokenizer, text: str, place: int) -> None:
    with pytest.raises(DataError, match=f'^character {place}: .*write "<<" for a literal'):
        bee.encode(text)


@pytest.mark.parametrize("seed", range(10))
def test_decoding_undoes_encoding(bee: CpmBeeTokenizer, seed: int) -> None:
    rng = random.Random(seed)
    pieces = [*"今天气ac \n>😀é", "<<", "<mask>", "<mask_1>", "<foo>", "今天"]
    for _ in range(50):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 20)))
        table: dict[int, str] = {}
        assert bee.decode(bee.encode(text, table), table) == text
        assert unescape(escape(text)) == text


def test_unknown_marks_can_be_made_literal(bee: CpmBeeTokenizer) -> None:
    text = "<问题>a<<b<mask_2><option></n><_x><foo_1>"
    assert bee.escape_unknown_marks(text) == "<<问题>a<<b<mask_2><option><</n><<_x><<foo_1>"


def test_an_id_without_a_string_is_refused(bee: CpmBeeTokenizer) -> None:
    with pytest.raises(DataError, match="neither in the vocabulary"):
        bee.decode([bee.vocab_size])
    assert bee.decode([-1, -100]) == ""


def test_a_saved_vocabulary_loads_again_from_file_and_folder(bee: CpmBeeTokenizer, tmp_path: Path) -> None:
    bee.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes().decode().split("\n") == [*WORDS, ""]
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert CpmBeeTokenizer.load(path).encode("今天<ans> c\n") == bee.encode("今天<ans> c\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "lacks <pad>, <unk>"),
        ("\n".join([*MARKS, "a", "a"]).encode(), "lists 'a' twice"),
        ("\n".join([*MARKS, "今"]).encode("gb18030"), "not UTF-8"),
        (None, "there is no vocabulary at"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        CpmBeeTokenizer.load(path)
    assert str(path) in str(error.value)


def test_cpm_ant_makes_each_unknown_character_one_token(tmp_path: Path) -> None:
    path = tmp_path / "ant.txt"
    path.write_text("<pad>\n<unk>\n</n>\n</_>\n今天\n天\na\n", "utf-8")
    ant = CpmAntTokenizer.load(path)
    assert ant.encode("今天 a\n😀😁") == [4, 3, 6, 2, 1, 1]
    assert ant.encode("a" * 201) == [1]
    assert ant.decode([4, 2]) == "今天\n"
