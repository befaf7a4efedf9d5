"""Which of the models of this shape a folder holds: what each clue says, and what becomes of contradictions."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_folder import write_original

from hanlin.cli.main import main
from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import from_original, to_original
from hanlin.models.chatglm2.generation import GENERATION_KEY, GENERATIONS, named_generation, tell_generation
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer

ORIGINAL = {"model_type": "chatglm", "padded_vocab_size": 65024, "multi_query_attention": True, "seq_length": 32768}


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("/home/x/GLM-4-main/models/chatglm2-6b", "chatglm2"),
        ("C:\\chatglm3\\chatglm2-6b-32k\\", "chatglm2"),
        ("THUDM/glm-4-9b-chat", "glm4"),
        ("ZhipuAI/chatglm3_6b_base", "chatglm3"),
        ("codegeex2-6b-int4", "codegeex2"),
        ("output/chatglm3/checkpoint-3000", None),
        ("chatglm2-and-chatglm3", None),
        ("chatglm23", None),
        ("zai/GLM-4.5-Air", None),
        (None, None),
    ],
)
def test_the_last_part_of_a_name_alone_says_something(name: str | None, generation: str | None) -> None:
    assert named_generation(name) == generation


@pytest.mark.parametrize(
    ("code", "generation"),
    [
        ('SPECIALS = ["<|system|>", "<|user|>"]', "chatglm3"),
        ('prompt = "[Round {}]\\n\\n问：{}\\n\\n答："', "chatglm2"),
        ("cos = (seq_idx / self.rope_ratio)", "chatglm2"),
        ("base = 10000 * self.rope_ratio", "chatglm3"),
    ],
)
def test_the_text_of_the_code_beside_tells_it(code: str, generation: str) -> None:
    assert tell_generation({**ORIGINAL, "seq_length": 8192}, {}, code).generation == generation


@pytest.mark.parametrize(
    ("extra", "tokenizer", "code", "has_byte_ranks", "says"),
    [
        ({"_name_or_path": "chatglm2-6b"}, {"additional_special_tokens": ["<|user|>"]}, "", None, "lists <|user|>"),
        ({"_name_or_path": "chatglm2-6b"}, {"name_or_path": "THUDM/chatglm3-6b"}, "", None, "config.json names it"),
        ({"_name_or_path": "chatglm2-6b"}, {}, "base * rope_ratio", None, "multiply the rotation's base"),
        ({"_name_or_path": "glm-4-9b"}, {}, "", None, "65,024 tokens"),
        ({"_name_or_path": "chatglm3-6b", "interleaved_qkv": False}, {}, "", None, "only CodeGeeX2 writes"),
        ({"padded_vocab_size": 151552}, {}, "", False, "sentencepiece"),
        ({"padded_vocab_size": 50, "_name_or_path": "chatglm2-6b"}, {}, "", True, "tiktoken"),
        ({"padded_vocab_size": 151552, GENERATION_KEY: "chatglm2"}, {}, "", None, "says so"),
    ],
)
def test_clues_that_contradict_each_other_are_refused(
    extra: dict, tokenizer: dict, code: str, has_byte_ranks: bool | None, says: str
) -> None:
    with pytest.raises(CheckpointError, match="contradict") as raised:
        tell_generation({**ORIGINAL, **extra}, tokenizer, code, has_byte_ranks)
    assert says in str(raised.value)


def test_a_length_that_is_not_chatglm2s_needs_a_word() -> None:
    assert tell_generation(ORIGINAL).generation == "chatglm2"
    with pytest.raises(CheckpointError, match=f'seq_length is 8192.*"{GENERATION_KEY}": one of chatglm2, chatglm3'):
        tell_generation({**ORIGINAL, "seq_length": 8192})
    assert tell_generation({**ORIGINAL, "seq_length": 8192, GENERATION_KEY: "chatglm3"}).generation == "chatglm3"


def test_what_config_json_states_outweighs_names_and_code() -> None:
    told = tell_generation({**ORIGINAL, "_name_or_path": "chatglm2-6b", GENERATION_KEY: "chatglm3"}, {}, "[Round ")
    assert told.generation == "chatglm3"
    with pytest.raises(CheckpointError, match="chatglm_generation is 'glm5'"):
        tell_generation({**ORIGINAL, GENERATION_KEY: "glm5"})


@pytest.mark.parametrize("generation", GENERATIONS)
def test_our_exports_read_back_as_what_they_were(generation: str) -> None:
    config = family.config(generation=generation, vocab_size=99)
    if generation == "chatglm2":
        config = family.config(position_divisor=4.0)
    assert from_original(to_original(config)) == config


def test_files_beside_the_weights_are_read_and_every_command_says_what_they_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_original(tmp_path / "original")
    values = read_json_object(folder / "config.json")
    del values[GENERATION_KEY]
    write_json(folder / "config.json", {**values, "_name_or_path": "/home/x/GLM-4-main/output"})
    (folder / "tokenization_chatglm.py").write_text(f'ROLES = ["<|user|>"]\nopen({str(tmp_path / "ran")!r}, "w")\n')
    assert read_config(folder, family).generation == "chatglm3"
    words = ["--base", str(folder), "run.threads=1", "generate.method=greedy", "generate.max_new_tokens=2"]
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "rows.jsonl").write_text('{"prompt": "你好", "response": "世界"}\n')
    recipe.write_text(
        f"model: {{family: chatglm2, base: {folder}}}\ndata: {{train: {tmp_path}/rows.jsonl, cache: {tmp_path}/cache, "
        f"max_length: 64}}\ntrain: {{steps: 1, batch_size: 1}}\nrun: {{folder: {tmp_path}/run, threads: 1}}\n"
    )
    monkeypatch.setattr("builtins.input", lambda prompt: "stop")
    for command in (
        ["check", str(recipe)],
        ["train", str(recipe)],
        ["inspect", str(folder)],
        ["generate", *words, "--record", '{"prompt": "你好"}'],
        ["chat", *words],
    ):
        assert main(command) == 0
        streams = capsys.readouterr()
        assert "generation chatglm3: the Python files beside it know the token <|user|>" in streams.out + streams.err
    assert not (tmp_path / "ran").exists()


def test_the_word_chatglm3_in_a_path_adds_no_tokens(tmp_path: Path, tokenizer: ChatGlm2Tokenizer) -> None:
    tokenizer.save(tmp_path)
    size = tokenizer.vocab_size
    for name, added in (("/home/chatglm3/chatglm2-6b", 0), ("THUDM/chatglm3-6b", 4)):
        write_json(tmp_path / "tokenizer_config.json", {"name_or_path": name})
        assert ChatGlm2Tokenizer.load(tmp_path).vocab_size == size + added
