"""The GGUF files of the GLM family: read back with llama.cpp's own library, and run by llama.cpp where it is built."""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from chatglm2_pieces import small_byte_ranks
from gguf import GGUFReader, dequantize

from hanlin.api.conversion import ConvertSettings
from hanlin.api.conversion import convert_weights as convert_any
from hanlin.core.errors import CheckpointError, ConfigError, DataError
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.chatglm2 import family, gguf
from hanlin.models.chatglm2.chat_template import chat_template
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.formats import FORMATS
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options, template_of
from hanlin.models.chatglm2.templates import RoleTemplate
from hanlin.models.chatglm2.tokenizer import GLM4_PATTERN, ChatGlm2Tokenizer
from hanlin.models.family import load_family
from hanlin.tokens.byte_ranks import ByteRanks

SMALL = ChatGlm2Config(
    vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=64, max_length=256,
    rotary_base=500.0, position_divisor=2.0,
)  # fmt: skip
GENERATIONS = ["chatglm2", "codegeex2", "chatglm3", "glm4"]
TEXTS = ("你好", " 黑色  九分裤\n\n", "def f(x):\n\treturn x  # sop", "[Round 1] 😀 ▁", "a<b>c", "")


def write_base(folder: Path, tokenizer: ChatGlm2Tokenizer, generation: Any) -> tuple[ChatGlm2, ChatGlm2Processor]:
    if generation == "glm4":
        pytest.importorskip("tiktoken", reason="needs the package tiktoken")
        tokenizer = ChatGlm2Tokenizer(ByteRanks(small_byte_ranks(), GLM4_PATTERN))
    tokenizer = tokenizer.with_roles() if generation == "chatglm3" else tokenizer
    config = replace(SMALL, generation=generation, end_ids=(tokenizer.end,))
    torch.manual_seed(0)
    model = ChatGlm2(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_base(folder, family, config, base_parameters(model), tokenizer)
    return model, ChatGlm2Processor(tokenizer, config, ChatGlm2Options())


def values_of(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_metadata_vocabulary_and_template_are_read_back(
    generation: Any, tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    _, own = write_base(tmp_path / "base", tokenizer, generation)
    written = convert_any(tmp_path / "base", tmp_path / "out.gguf", ConvertSettings(to="gguf"))
    assert written.num_bytes == (tmp_path / "out.gguf").stat().st_size
    found, tokens = values_of(GGUFReader(tmp_path / "out.gguf")), own.tokenizer
    assert {name: found[f"chatglm.{name}"] for name in ("context_length", "block_count", "rope.dimension_count")} == {
        "context_length": 256, "block_count": 2, "rope.dimension_count": 4
    }  # fmt: skip
    assert (found["chatglm.rope.scaling.type"], found["chatglm.rope.scaling.factor"]) == ("linear", 2.0)
    assert found["chatglm.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    assert found["tokenizer.chat_template"] == chat_template(own.template, generation)
    pieces, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(pieces) == len(set(pieces)) == len(kinds) == SMALL.vocab_size
    assert [pieces[id] for id in tokens.prefix] == ["[gMASK]", "<sop>"]
    assert kinds[tokens.vocab_size :] == [5] * (SMALL.vocab_size - tokens.vocab_size)
    ends = [found[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")[: 3 if tokens.has_roles else 1]]
    assert ends == [tokens.end, *own.template.ends(tokens)]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "q8_0"])
def test_tensors_come_back_within_the_rounding_of_their_kind(
    dtype: Any, tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    model, _ = write_base(tmp_path / "base", tokenizer, "chatglm2")
    convert_any(tmp_path / "base", tmp_path / "out.gguf", ConvertSettings(to="gguf", dtype=dtype))
    ours = {name: parameter.detach() for name, parameter in base_parameters(model).items()}
    reader = GGUFReader(tmp_path / "out.gguf")
    found = {tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    assert kinds == {{"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[dtype]}
    rules = {theirs: rule for rule in gguf.rules(model.config) for theirs in rule.theirs}
    seen = {}
    for name, tensor in found.items():
        layer = re.search(r"\d+", name)
        rule = rules[re.sub(r"\.\d+\.", ".{i}.", name)]
        names = [ours.format(i=layer[0] if layer else "") for ours in rule.ours]
        seen |= dict(zip(names, rule.to_ours((tensor,)), strict=True))
    assert seen.keys() == ours.keys()
    for name, tensor in ours.items():
        assert (seen[name] - tensor).abs().max() <= bound(dtype, tensor), name


def bound(dtype: str, tensor: torch.Tensor) -> float:
    """The largest error of a number: half a unit in the last place, or half a step of the scale (which is in fp16)."""
    largest = float(tensor.abs().max())
    relative = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254 + 2**-11}
    return 0.0 if dtype == "q8_0" and tensor.dim() == 1 else relative[dtype] * largest


def test_ollama_gets_a_folder_with_the_template_and_all_stops(tokenizer: ChatGlm2Tokenizer, tmp_path: Path) -> None:
    _, own = write_base(tmp_path / "base", tokenizer, "chatglm3")
    convert(tmp_path / "base", family, None, "ollama", tmp_path / "out", packing="q8_0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "manifest.json", "model.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text("utf-8")
    assert text.startswith("FROM ./model.gguf\n")
    tokens = values_of(GGUFReader(tmp_path / "out" / "model.gguf"))["tokenizer.ggml.tokens"]
    ends = [own.tokenizer.end, *own.template.ends(own.tokenizer)]
    assert re.findall('PARAMETER stop "(.*)"', text) == [tokens[id] for id in ends]


# There is no Go here, so its templates are rewritten as Jinja's, which are the same in the few words that are used.
GO = {
    r"range \.Messages": "for m in messages", r"range \$i, \$m := \.Messages": "for m in messages",
    r'if eq (?:\$m)?\.Role "(\w+)"': r"if m.role == '\1'", r'else if eq \$m\.Role "(\w+)"': r"elif m.role == '\1'",
    r"if eq \$i (\d+)": r"if loop.index0 == \1", r"if le \$i (\d+)": r"if loop.index0 <= \1",
    r"else if le \$i (\d+)": r"elif loop.index0 <= \1", "else": "else",
}  # fmt: skip


def rendered_go(text: str, messages: list[dict[str, str]]) -> str:
    ends: list[str] = []

    def jinja(match: re.Match[str]) -> str:
        word = match[1]
        if word == "end":
            return f"{{% {ends.pop()} %}}"
        for pattern, form in GO.items():
            if found := re.fullmatch(pattern, word):
                if word.startswith(("range", "if")):
                    ends.append("endfor" if word.startswith("range") else "endif")
                return f"{{% {found.expand(form)} %}}"
        if word == "(index $.Messages 0).Content":
            return "{{ messages[0].content }}"
        assert re.fullmatch(r"(\$m)?\.(Role|Content)", word), word
        return f"{{{{ m.{word.rpartition('.')[2].lower()} }}}}"

    template = re.sub(r"\{\{ (.*?) \}\}", jinja, text)
    return jinja2.Environment(keep_trailing_newline=True).from_string(template).render(messages=messages)


WRITTEN = [(generation, {}) for generation in GENERATIONS] + [
    ("chatglm2", {"system": "first_question"}), ("codegeex2", {"system": "first_question"}),
    ("glm4", {"template": "问{round}：{question}\n答{round}：", "source_prefix": "it's \\n "}),
]  # fmt: skip
"""Generations, and the options of the samples."""


@pytest.mark.parametrize(("generation", "chosen"), WRITTEN)
def test_ollamas_template_says_what_the_chat_template_says(
    generation: Any, chosen: dict[str, Any], tmp_path: Path
) -> None:
    options = ChatGlm2Options(**chosen)
    gguf.write_modelfile(tmp_path, replace(SMALL, generation=generation), options)
    said = re.findall(r'TEMPLATE """(.*)"""', (tmp_path / "Modelfile").read_text("utf-8"), re.DOTALL)[0]
    turns = [("user", "你好"), ("assistant", "好"), ("user", "黑色\n裤"), ("assistant", "百搭"), ("user", "a b")]
    own = template_of(options, generation)
    takes_system = isinstance(own, RoleTemplate) or own.joins_system
    system = [("system", "简单")] if takes_system else []
    messages = [{"role": role, "content": text} for role, text in [*system, *turns]]
    template = jinja2.Environment().from_string(chat_template(own, generation))
    assert rendered_go(said, messages) == template.render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_chat_templates_keep_to_what_llama_cpp_reads(generation: Any) -> None:
    template = template_of(ChatGlm2Options(), generation)
    assert "//" not in chat_template(template, generation)  # its engine has no division of whole numbers


def test_what_llama_cpp_cannot_compute_or_read_is_refused_with_the_reason(
    tokenizer: ChatGlm2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changed, reason in (({"norm": "layer"}, "LayerNorm"), ({"labels": ("a",)}, "head"), ({"head_dim": 4}, "wide")):
        with pytest.raises(CheckpointError, match=reason):
            FORMATS["gguf"].write_config(replace(SMALL, **changed))
    write_base(tmp_path / "base", tokenizer, "chatglm2")
    with pytest.raises(CheckpointError, match="no q8_0"):
        convert(tmp_path / "base", family, None, "huggingface", tmp_path / "hf", packing="q8_0")
    (tmp_path / "base" / "tokenizer.model").unlink()
    (tmp_path / "base" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="--vocab"):
        convert(tmp_path / "base", family, None, "gguf", tmp_path / "out.gguf")
    for name in ("cpm1", "cpm1_t5", "cpm2", "cpm_bee"):
        with pytest.raises(CheckpointError, match=r"is not written as gguf: llama\.cpp"):
            convert(tmp_path / "base", load_family(name), None, "gguf", tmp_path / "out.gguf")
    (tmp_path / "base" / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="a GGUF file, which is written and not read"):
        convert(tmp_path / "base" / "other.gguf", family, None, "base", tmp_path / "back")
    monkeypatch.setattr("hanlin.formats.convert.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hanlin\[gguf\]'"):
        convert(tmp_path / "base", family, None, "gguf", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_llama_cpp_gets_our_ids_our_logits_and_our_answer(
    generation: Any, tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    llama = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source; optional")
    model, own = write_base(tmp_path / "base", tokenizer, generation)
    convert(tmp_path / "base", family, None, "gguf", tmp_path / "out.gguf")
    theirs = llama.Llama(str(tmp_path / "out.gguf"), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0)
    for text in TEXTS:
        assert theirs.tokenize(text.encode(), add_bos=True, special=True) == own.tokenizer.encode(text)
    record = {"prompt": "黑色 裤"}
    template = jinja2.Environment().from_string(theirs.metadata["tokenizer.chat_template"])
    asked = template.render(messages=[{"role": "user", "content": record["prompt"]}], add_generation_prompt=True)
    ids = theirs.tokenize(asked.encode(), add_bos=True, special=True)
    assert ids == own.encode_prompt(record)
    theirs.eval(ids)
    with torch.no_grad():
        logits = model(tokens=torch.tensor([ids]))[0]
    # Its kernels round the inputs of a product once more.
    torch.testing.assert_close(torch.tensor(theirs.scores[: len(ids)]), logits, rtol=0, atol=2e-3)
    vocabulary, written = llama.llama_model_get_vocab(theirs.model), []
    for token in theirs.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        if llama.llama_vocab_is_eog(vocabulary, token) or len(written) == 24:
            break
        written.append(token)
    [answer] = Engine(model, own).generate([record], GreedySettings(max_new_tokens=24), seed=0)
    assert own.answer_texts(own.prompt(record), written) == [answer["response"]]


@pytest.mark.parametrize("most", [100_000, 188_000])
def test_a_disk_that_is_full_is_said_and_leaves_nothing(
    most: int, tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    write_base(tmp_path / "base", tokenizer, "chatglm2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(DataError, match=r"out.gguf.*cannot be written.*(ulimit -f)"):
            convert_any(tmp_path / "base", tmp_path / "out.gguf", ConvertSettings(to="gguf"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


@pytest.mark.parametrize(("ffn_size", "number", "kind"), [(64, 1e7, "Q8_0"), (65, 7e4, "F16")])
def test_numbers_that_a_packing_cannot_hold_are_refused(
    ffn_size: int, number: float, kind: str, tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    config = replace(SMALL, ffn_size=ffn_size, end_ids=(tokenizer.end,))
    weights = {name: torch.zeros_like(one) for name, one in base_parameters(ChatGlm2(config)).items()}
    weights["blocks.1.ffn.down.weight"][3, 5] = number
    save_base(tmp_path / "base", family, config, weights, tokenizer)
    with pytest.raises(CheckpointError, match=f"blk.1.ffn_down.weight has numbers up to .*, which {kind} cannot hold"):
        convert_any(tmp_path / "base", tmp_path / "out.gguf", ConvertSettings(to="gguf", dtype="q8_0"))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(("num_heads", "head_dim", "turned"), [(4, 7, 3), (32, 1, 0)])
def test_heads_whose_numbers_are_no_pairs_are_refused(num_heads: int, head_dim: int, turned: int) -> None:
    config = replace(SMALL, num_heads=num_heads, head_dim=head_dim, hidden_size=num_heads * head_dim)
    with pytest.raises(CheckpointError, match=f"{turned} of {head_dim} are turned"):
        gguf.shape_values(config)
