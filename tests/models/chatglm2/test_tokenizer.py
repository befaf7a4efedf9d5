import pickle

import pytest

from hanlin.core.errors import DataError
from hanlin.models.chatglm2.tokenizer import EOS, ChatGlm2Tokenizer
from hanlin.tokens.stream import stream_pieces


def test_special_tokens_typed_by_a_user_are_text(tokenizer):
    ids = tokenizer.encode("[gMASK]</s><|user|>")
    assert max(ids) < tokenizer.pieces.size
    assert EOS not in ids
    assert tokenizer.decode(ids) == "[gMASK]</s><|user|>"


def test_decoding_takes_any_number(tokenizer):
    ids = [-100, *tokenizer.encode("你好"), *range(tokenizer.vocab_size, tokenizer.vocab_size + 3), 10**12, EOS]
    assert tokenizer.decode(ids) == "你好"


def test_special_tokens_are_shown_on_demand(tokenizer):
    roles = tokenizer.with_roles()
    ids = [*roles.prefix, roles.role("user"), *roles.encode("你好")]
    assert roles.decode(ids, show_specials=True) == "[gMASK]sop<|user|>你好"
    assert roles.decode(ids) == tokenizer.decode(ids) == "你好"


def test_half_characters_are_held_back_while_streaming(tokenizer):
    text = "你好😀𠀀!"
    ids = tokenizer.encode(text)
    pieces = list(stream_pieces(tokenizer.decode(ids[: end + 1]) for end in range(len(ids))))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("has_roles", [False, True])
def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path, has_roles):
    saved = tokenizer.with_roles() if has_roles else tokenizer
    saved.save(tmp_path)
    loaded = ChatGlm2Tokenizer.load(tmp_path)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.specials == saved.specials
    assert ChatGlm2Tokenizer.load(tmp_path / "tokenizer.model").encode("你好") == saved.encode("你好")
    assert pickle.loads(pickle.dumps(saved)).encode("黑色") == saved.encode("黑色")


def test_the_name_that_documents_of_the_time_give_the_file_is_accepted(tokenizer, tmp_path):
    (tmp_path / "ice_text.model").write_bytes(tokenizer.pieces.model)
    assert ChatGlm2Tokenizer.load(tmp_path).vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no sentencepiece model"),
        (b"no model", "no sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        ChatGlm2Tokenizer.load(tmp_path)
    assert str(file) in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.model"):
        ChatGlm2Tokenizer.load(tmp_path)


def test_many_texts_at_once_get_the_same_ids(tokenizer):
    texts = ["你好", "", "Hello world", "类型#裤"]
    assert tokenizer.encode_many(texts, threads=2) == [tokenizer.encode(text) for text in texts]
