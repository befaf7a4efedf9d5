"""What `convert --to huggingface` writes, in the hands of transformers: text to ids to logits to answers, as ours."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2_pieces import small_byte_ranks
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import GLM4_PATTERN, ChatGlm2Tokenizer
from hanlin.tokens.byte_ranks import ByteRanks

SMALL = ChatGlm2Config(
    vocab_size=480, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, max_length=256
)
TOOLS = [{"type": "function", "function": {"name": "查天气", "parameters": {"城市": ["北京", 1]}}}]
ANSWER = {"role": "assistant", "content": "简单, 12 世界\n你好"}


def export(
    folder: Path, tokenizer: ChatGlm2Tokenizer, generation: Any, options: ChatGlm2Options | None = None
) -> tuple[ChatGlm2, ChatGlm2Config]:
    """A small model of the generation, and its export in `folder`."""
    tokenizer = tokenizer.with_roles() if generation == "chatglm3" else tokenizer
    config = replace(SMALL, generation=generation)
    torch.manual_seed(0)
    model = ChatGlm2(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_base(folder.with_name("base"), family, config, base_parameters(model), tokenizer)
    convert(folder.with_name("base"), family, None, "huggingface", folder, options=options)
    return model, config


@pytest.fixture(scope="module", params=["chatglm2", "codegeex2", "chatglm3", "glm4"])
def exported(request: pytest.FixtureRequest, tokenizer: ChatGlm2Tokenizer, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("glm") / "out"
    if request.param == "glm4":
        pytest.importorskip("tiktoken", reason="needs the package tiktoken")
        tokenizer = ChatGlm2Tokenizer(ByteRanks(small_byte_ranks(), GLM4_PATTERN))
    model, config = export(folder, tokenizer, request.param)
    own = ChatGlm2Processor(tokenizer, config, ChatGlm2Options())
    return folder, model, own, AutoTokenizer.from_pretrained(folder)


def test_texts_have_the_same_ids_and_come_back(exported: Any) -> None:
    _, _, own, theirs = exported
    assert isinstance(theirs, PreTrainedTokenizerFast)
    for text in ("你好", " 黑色  九分裤\n\n", "def f(x):\n\treturn x  # sop", "[Round 1] 😀 ▁", "a<b>c", ""):
        ids = own.tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs(text).input_ids == [*own.tokenizer.prefix, *ids]
        assert theirs.decode(ids) == own.tokenizer.decode(ids)


def test_the_template_gives_the_ids_of_ours(exported: Any) -> None:
    _, _, own, theirs = exported
    history = [["黑色 sop", " 简单"], ["九分\n百搭", "好"]]
    record = {"prompt": " 你好 ", "history": history, "response": ANSWER["content"]}
    messages = [{"role": role, "content": text} for pair in history for role, text in zip(ROLES, pair, strict=True)]
    messages.append({"role": "user", "content": [{"type": "text", "text": " 你好 "}]})
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked == own.encode_prompt(record)
    answered = theirs.apply_chat_template([*messages, ANSWER], return_dict=False)
    assert answered == own.sample(record).inputs["tokens"].tolist()


ROLES = ("user", "assistant")


def test_roles_and_tools_have_the_ids_of_ours_where_there_is_a_place_for_them(exported: Any) -> None:
    _, _, own, theirs = exported
    said = [{"role": "system", "content": "简单"}, {"role": "user", "content": "天气"}]
    called = {"role": "assistant", "metadata": "查天气", "content": "f(城市='北京')"}
    seen = {"role": "observation", "content": '{"t": 1}'}
    asked = {"role": "user", "content": "好吗"}
    record = {"prompt": "好吗", "history": [{**said[0], "tools": TOOLS}, said[1], called, seen, ANSWER]}
    messages = [*said, called, {**seen, "role": "tool"}, ANSWER, asked]
    if own.config.generation not in ("chatglm3", "glm4"):
        for given, tools in ((said, None), ([asked], TOOLS), ([asked, asked], None)):
            with pytest.raises(TemplateError, match=r"expected in turn|no form for tools"):
                theirs.apply_chat_template(given, tools=tools)
        return
    got = theirs.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert got == own.encode_prompt(record)
    alone = theirs.apply_chat_template([asked], tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert alone == own.encode_prompt({"prompt": "好吗", "tools": TOOLS})
    with pytest.raises(TemplateError, match="metadata"):
        theirs.apply_chat_template([{"role": "assistant", "content": "", "tool_calls": [{}]}])


@pytest.mark.parametrize(
    ("generation", "chosen"),
    [
        ("chatglm2", {"system": "first_question"}),
        ("codegeex2", {"system": "first_question"}),
        ("chatglm3", {"template": "rounds", "system": "first_question", "source_prefix": "写: "}),
        ("chatglm2", {"template": "问{round}'\\n：{question}\n答：", "system": "first_question"}),
        ("chatglm2", {"template": "roles"}),
    ],
)
def test_the_template_of_the_options_is_written(
    generation: str, chosen: dict[str, Any], tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    options = ChatGlm2Options(**chosen)
    _, config = export(tmp_path / "out", tokenizer, generation, options)
    own = ChatGlm2Processor(tokenizer, config, options)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = [("system", "简单 a"), ("user", "你好"), ("assistant", "好"), ("user", "黑色\n裤")]
    messages = [{"role": role, "content": text} for role, text in said]
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked == own.encode_prompt({"messages": messages})
    answered = [*messages, ANSWER]
    sample = own.sample({"messages": answered[:1] + answered[-2:]})
    assert theirs.apply_chat_template(answered[:1] + answered[-2:], return_dict=False) == (
        sample.inputs["tokens"].tolist()
    )


def test_a_template_that_names_columns_is_refused(tokenizer: ChatGlm2Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"names \{title\}, a column of a record.*data\.options\.template"):
        export(tmp_path / "out", tokenizer, "chatglm2", ChatGlm2Options(template="{title}: {question}"))
    assert not (tmp_path / "out").exists()


# As a user's program: without the packages that slow tokenizers need.
CONSUMER = """
import json, sys
sys.modules["google.protobuf"] = sys.modules["sentencepiece"] = sys.modules["tiktoken"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, question = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": question}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1].tolist()
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
# We never choose rows of the embedding that are no tokens; of these weights, which are drawn, they are often likeliest.
surplus = list(range(len(tokenizer), len(logits)))
answer = write(messages, max_new_tokens=24, do_sample=False, return_tensors=True, suppress_tokens=surplus)
print(json.dumps({
    "class": type(model).__name__, "ids": inputs["input_ids"][0].tolist(), "logits": logits,
    "ends": model.generation_config.eos_token_id, "answer": answer[0]["generated_token_ids"],
}))
"""


@pytest.mark.parametrize("generation", ["chatglm2", "chatglm3"])
def test_a_users_program_gets_our_logits_and_our_answer(
    generation: str, tokenizer: ChatGlm2Tokenizer, tmp_path: Path
) -> None:
    model, config = export(tmp_path / "out", tokenizer, generation)
    line = [sys.executable, "-c", CONSUMER, str(tmp_path / "out"), "黑色 裤"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    own = ChatGlm2Processor(tokenizer, config, ChatGlm2Options())
    record = {"prompt": "黑色 裤"}
    ids = own.encode_prompt(record)
    assert (found["class"], found["ids"]) == ("GlmForCausalLM", ids)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(found["logits"]), model(tokens=torch.tensor([ids]))[0, -1], rtol=1e-4, atol=1e-5
        )
    ends = found["ends"] if isinstance(found["ends"], list) else [found["ends"]]
    assert set(ends) == {*config.end_ids, *own.template.ends(own.tokenizer)}
    # As ids: of bytes that are no characters transformers and sentencepiece write other numbers of U+FFFD.
    [answer] = Engine(model, own).generate([record], GreedySettings(max_new_tokens=24), seed=0)
    assert own.answer_texts(own.prompt(record), found["answer"][len(ids) :]) == [answer["response"]]


def test_without_a_tokenizer_the_weights_are_written_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_base(tmp_path / "base", family, SMALL, base_parameters(ChatGlm2(SMALL)))
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert "without a tokenizer" in caplog.text
