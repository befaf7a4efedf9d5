import pickle

import pytest
from chatglm2_pieces import small_byte_ranks

from hanlin.core.errors import DataError
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
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
        (b"IQ== 0\nIg== 1\n", "254 of the 256 single bytes have no rank"),
        (b"IQ== 0\nIg==\n", "line 2: a token in base64 and its rank"),
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


# --- GLM-4 ---


def glm4_file(folder):
    (folder / "tokenizer.model").write_bytes(small_byte_ranks())
    return folder


def test_glm_4_has_byte_strings_and_its_own_special_tokens(tmp_path):
    pytest.importorskip("tiktoken", reason="needs the package tiktoken")
    tokenizer = ChatGlm2Tokenizer.load(glm4_file(tmp_path))
    assert tokenizer.encode("你好ab") == [260, 261]
    assert tokenizer.encode("<|user|>") != [tokenizer.role("user")]
    assert tokenizer.decode([260, 10**9, -1, tokenizer.end, 261]) == "你好ab"
    assert tokenizer.decode([257, 228]).endswith("\ufffd")
    # 151,329 published byte strings: [gMASK] 151331, <sop> 151333, <|user|> 151336, <|observation|> 151338.
    first = tokenizer.pieces.size
    assert tokenizer.prefix == (first + 2, first + 4)
    assert tokenizer.end == first
    assert (tokenizer.role("user"), tokenizer.role("observation")) == (first + 7, first + 9)
    assert tokenizer.encode_many(["你好", "ab"], threads=-1) == [[260], [261]]


def test_glm_4_saved_and_loaded_is_the_same(tmp_path):
    pytest.importorskip("tiktoken", reason="needs the package tiktoken")
    tokenizer = ChatGlm2Tokenizer.load(glm4_file(tmp_path))
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    loaded = ChatGlm2Tokenizer.load(tmp_path / "saved")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.specials == tokenizer.specials
    assert pickle.loads(pickle.dumps(loaded)).encode("你好") == [260]


def test_glm_4_speaks_in_roles_and_learns_its_own_end(tmp_path):
    pytest.importorskip("tiktoken", reason="needs the package tiktoken")
    tokenizer = ChatGlm2Tokenizer.load(glm4_file(tmp_path))
    config = ChatGlm2Config(generation="glm4", vocab_size=tokenizer.vocab_size, end_ids=(tokenizer.end,))
    sample = ChatGlm2Processor(tokenizer, config).sample({"prompt": "你好", "response": "ab"})
    newline = tokenizer.encode("\n")
    prompt = [*tokenizer.prefix, tokenizer.role("user"), *newline, 260, tokenizer.role("assistant")]
    assert sample.inputs["tokens"].tolist()[: len(prompt)] == prompt
    assert tokenizer.end in sample.labels.tolist()
