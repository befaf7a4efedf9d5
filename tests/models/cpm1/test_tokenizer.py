"""CPM-1's tokenizers on a vocabulary made here."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import sentencepiece

from hanlin.core.errors import DataError
from hanlin.models.cpm1.tokenizer import Cpm1Tokenizer, load_tokenizer
from hanlin.tokens.wordpiece import WordPiece

TEXT = "清华 大学 是 中国 的 大学 。 ▂ ▃ a b c , 1 2 3"


def train(path: Path, symbols: list[str]) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 4),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        control_symbols=[symbol for symbol in symbols if symbol != "<eod>"],
        user_defined_symbols=[symbol for symbol in symbols if symbol == "<eod>"],
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("pieces") / "chinese_vocab.model", ["<sep>", "<pad>", "<mask>", "<eod>"])


def test_white_space_comes_back_and_unknown_characters_are_shown(model_file: Path) -> None:
    tokenizer = Cpm1Tokenizer.load(model_file)
    text = "清华大学 是\n a  b。"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("是龘")) == "是⁇"
    assert tokenizer.encode("") == []


def test_markers_are_silent_but_the_end_of_a_document_is_shown(model_file: Path) -> None:
    tokenizer = Cpm1Tokenizer.load(model_file)
    ids = [tokenizer.find(token) for token in ("<sep>", "<pad>", "<mask>", "<s>", "<eod>")]
    assert None not in ids
    assert tokenizer.decode([*(id for id in ids if id is not None), 10**6, -1]) == "<eod>"


def test_the_file_may_be_called_as_transformers_calls_it(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(model_file.read_bytes())
    assert load_tokenizer(tmp_path).fingerprint == Cpm1Tokenizer.load(model_file).fingerprint


def test_saved_and_pickled_tokenizers_give_the_same_ids(model_file: Path, tmp_path: Path) -> None:
    tokenizer = Cpm1Tokenizer.load(model_file)
    tokenizer.save(tmp_path)
    for copy in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.encode("清华大学 1") == tokenizer.encode("清华大学 1")
        assert copy.fingerprint == tokenizer.fingerprint


def test_a_folder_with_words_only_gives_the_word_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of"):
        load_tokenizer(tmp_path)
    WordPiece(["<unk>", "大学"]).save(tmp_path)
    assert load_tokenizer(tmp_path).encode("大学") == [1]


def test_another_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one of CPM-1: it lacks <pad>, <eod>"):
        load_tokenizer(train(tmp_path / "other.model", []))
