"""What `convert --to huggingface` writes of a CPM-1, in the hands of transformers: text to ids to logits to answers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pieces import small_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, pipeline

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.common.text_processor import TextOptions, TextProcessor
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.byte_pairs import BytePairTokenizer, _letters
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1.formats import FORMATS
from hanlin.models.cpm1.model import Cpm1
from hanlin.models.cpm1.tokenizer import load_tokenizer
from hanlin.models.cpm1_t5 import family as t5_family
from hanlin.tokens.wordpiece import WordPiece

SMALL = shape(32, 2, 4, vocab_size=320, max_length=64)
TEXTS = ["床前明月光，疑是地上霜", " 举头\n\n望 明月\t", "a<eod>b</s> <pad>😀▂", "", "对话上文: 1.5 ▁"]


@pytest.fixture(autouse=True)
def code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers keeps the Python files of the folders that it loads."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
    monkeypatch.setattr("sys.path", [*sys.path])


def export(folder: Path, tokenizer: object) -> Cpm1:
    model = Cpm1(SMALL).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_base(folder.with_name("base"), family, SMALL, base_parameters(model), tokenizer)
    convert(folder.with_name("base"), family, None, "huggingface", folder)
    return model


def test_transformers_gets_our_ids_our_logits_and_our_answer(tmp_path: Path) -> None:
    tokenizer, out = small_tokenizer(), tmp_path / "out"
    model = export(out, tokenizer)
    theirs = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    their_model = AutoModelForCausalLM.from_pretrained(out)
    assert isinstance(their_model, GPT2LMHeadModel)
    for text in TEXTS:
        assert theirs(text).input_ids == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text)).replace("⁇", "<unk>")
    assert their_model.generation_config.eos_token_id == theirs.eos_token_id == tokenizer.find("<eod>")
    tokens = torch.tensor([tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        torch.testing.assert_close(their_model(tokens).logits, model(tokens=tokens), rtol=1e-4, atol=1e-5)

    own, record = TextProcessor(tokenizer, SMALL, TextOptions()), {"prompt": TEXTS[0]}
    write = pipeline("text-generation", model=their_model, tokenizer=theirs)
    written = write(TEXTS[0], max_new_tokens=8, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
    answers = Engine(model, own).generate([record], GreedySettings(max_new_tokens=8), seed=0)
    assert answers == [own.answer(own.prompt(record), written[tokens.shape[1] :])]

    theirs.save_pretrained(out / "again")
    again = AutoTokenizer.from_pretrained(out / "again", trust_remote_code=True)
    assert again(TEXTS[0]).input_ids == tokens[0].tolist()


def test_without_trust_no_other_ids_are_given(tmp_path: Path) -> None:
    export(tmp_path / "out", small_tokenizer())
    with pytest.raises(ValueError):  # noqa: PT011 transformers' own words change with its version
        AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert load_tokenizer(tmp_path / "out").fingerprint == small_tokenizer().fingerprint


def test_byte_pairs_load_as_those_of_gpt2(tmp_path: Path) -> None:
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokens = [*_letters().values(), *("".join(pair) for pair in merges), "<eod>"]
    tokenizer = BytePairTokenizer({token: id for id, token in enumerate(tokens)}, merges)
    export(tmp_path / "out", tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the the  they're\n 床前 😀", " then ", ""):
        assert theirs(text).input_ids == tokenizer.encode(text)


def test_what_gpt2_does_not_compute_is_refused() -> None:
    for changed, reason in (({"residual_after_norm": True}, "residuals"), ({"head_dim": 4}, "4 heads of 4")):
        with pytest.raises(CheckpointError, match=reason):
            FORMATS["huggingface"].write_config(replace(SMALL, **changed))


def test_layouts_that_a_family_cannot_have_are_refused_with_the_reason(tmp_path: Path) -> None:
    export(tmp_path / "out", small_tokenizer())
    with pytest.raises(CheckpointError, match="decoder block uses one norm twice"):
        convert(tmp_path / "base", t5_family, None, "huggingface", tmp_path / "t5")


def test_of_a_list_of_words_it_is_said_that_nobody_there_gives_the_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path / "out", WordPiece(["<unk>", "<pad>", "<eod>", "月"]))
    assert "known to no class of transformers" in caplog.text
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
