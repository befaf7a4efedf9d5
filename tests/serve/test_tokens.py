"""Texts as ids, prompts as ids, and how likely their tokens are: what programs that score models ask for."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
import pytest
import torch
from test_routes import client_of, post

from hanlin.data.forms.content import PlainText
from hanlin.evaluation.likelihoods import sample_likelihoods
from hanlin.generate.engine import Engine
from hanlin.generate.prompt_scores import score_prompts_in_steps
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]
TEXT = "床前明月光,疑是地上霜."


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


@pytest.mark.parametrize("family", ["cpm1", "chatglm2"])
def test_echoed_tokens_add_up_to_the_score_of_a_text(
    serve: Start, engine_of: Callable[[str], Engine], family: str
) -> None:
    engine = engine_of(family)
    url, _ = serve(engine=engine)
    info = get(f"{url}/tokenizer_info")
    [start] = post(url, "/tokenize", {"prompt": info["bos_token"] or info["eos_token"]})[1]["tokens"]
    ids = post(url, "/tokenize", {"prompt": TEXT, "add_special_tokens": False})[1]["tokens"]
    body = {"prompt": [[start, *ids]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    status, found = post(url, "/v1/completions", body)
    assert status == 200, found
    noted = found["choices"][0]["logprobs"]
    told = noted["token_logprobs"][-len(ids) - 1 : -1]
    [(_, expected)] = sample_likelihoods(engine, [(0, engine.processor.text_sample(TEXT))], 1)
    assert expected.tokens == len(ids)
    assert sum(told) == pytest.approx(expected.log_likelihood, abs=1e-4)
    pairs = zip(noted["top_logprobs"][1:], noted["token_logprobs"][1:], strict=True)
    assert all(len(top) == 1 and max(top.values()) >= own for top, own in pairs)
    assert len(noted["tokens"]) == len(noted["text_offset"]) == len(noted["token_logprobs"])


def test_ids_are_read_as_they_stand(serve: Start, text_engine: Engine) -> None:
    url, _ = serve(engine=text_engine)
    client = client_of(url)
    ids = post(url, "/tokenize", {"prompt": TEXT})[1]["tokens"]
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 5}
    of_text = client.completions.create(prompt=TEXT, **asked)
    of_ids = client.completions.create(prompt=ids, **asked)
    of_several = client.completions.create(prompt=[ids, ids[:2]], **asked)
    assert of_ids.choices[0].text == of_text.choices[0].text == of_several.choices[0].text
    assert of_ids.usage == of_text.usage
    assert post(url, "/detokenize", {"tokens": ids})[1] == {"prompt": TEXT}


def test_what_stands_before_every_row_is_put_before_ids_that_lack_it(engine_of: Callable[[str], Engine]) -> None:
    processor = engine_of("chatglm2").processor
    whole = processor.text_ids("床前")
    prefix = list(processor.tokenizer.prefix)
    assert whole[: len(prefix)] == prefix
    for ids in (whole, whole[1:], whole[2:]):
        assert processor.prompt(processor.continuation(ids)).ids == whole
    assert processor.prompt(processor.continuation(prefix)).ids == prefix


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_comes_first(serve: Start, text_engine: Engine, stream: bool) -> None:
    client = client_of(serve(engine=text_engine)[0])
    prompts = ["床前", TEXT]
    asked: dict[str, Any] = {"model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 4, "logprobs": 2}
    alone = client.completions.create(**asked)
    if stream:
        texts, noted = ["", ""], [[], []]
        for chunk in client.completions.create(**asked, echo=True, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
            if chunk.choices[0].logprobs:
                noted[chunk.choices[0].index] += chunk.choices[0].logprobs.token_logprobs or []
    else:
        found = client.completions.create(**asked, echo=True).choices
        texts = [choice.text for choice in found]
        noted = [choice.logprobs.token_logprobs or [] for choice in found if choice.logprobs]
    for text, told, prompt, choice in zip(texts, noted, prompts, alone.choices, strict=True):
        assert text == prompt + choice.text
        assert choice.logprobs is not None
        own = choice.logprobs.token_logprobs or []
        assert told[0] is None
        assert told[len(told) - len(own) :] == own
        assert None not in told[1:]


def test_prompts_are_told_without_an_answer_too(serve: Start, text_engine: Engine) -> None:
    url, service = serve(engine=text_engine)
    status, found = post(url, "/v1/completions", {"prompt": TEXT, "max_tokens": 0, "prompt_logprobs": 2})
    [choice] = found["choices"]
    assert (status, choice["text"], choice["finish_reason"]) == (200, "", "length")
    assert found["usage"]["completion_tokens"] == 0
    ids = service.tokenizer.encode(TEXT)
    assert choice["prompt_logprobs"][0] is None
    for id, told in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True):
        assert 2 <= len(told) <= 3
        ranks = {one["rank"]: one["logprob"] for one in told.values()}
        assert ranks[told[str(id)]["rank"]] <= ranks[1]
        assert told[str(id)]["decoded_token"] == service.tokenizer.decode([id])
    _, echoed = post(url, "/v1/completions", {"prompt": TEXT, "max_tokens": 0, "echo": True})
    assert (echoed["choices"][0]["text"], echoed["choices"][0]["logprobs"]) == (TEXT, None)


def test_a_long_prompt_is_scored_in_parts_as_in_one(text_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = text_engine.processor
    prompt = processor.prompt(processor.record_of(PlainText(TEXT)))
    *_, [whole] = score_prompts_in_steps(text_engine, [prompt], 3)
    monkeypatch.setattr("hanlin.generate.prompt_scores._POSITIONS_AT_ONCE", 3)
    *before, [parted] = score_prompts_in_steps(text_engine, [prompt], 3)
    assert len(before) > 2
    for one, other in zip(whole, parted, strict=True):
        assert (one.noted.token, one.rank) == (other.noted.token, other.rank)
        torch.testing.assert_close(one.noted.score, other.noted.score)


def test_a_bias_chooses_and_bans(serve: Start, engine: Engine) -> None:
    client, tokenizer = client_of(serve()[0]), engine.processor.tokenizer
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "床前明月光"}], "max_tokens": 3}
    wanted = next(id for id in range(tokenizer.vocab_size) if "\u4e00" <= tokenizer.decode([id]) < "\uf000")
    text = tokenizer.decode([wanted])
    chosen = client.chat.completions.create(**asked, temperature=0, logit_bias={str(wanted): 100}, logprobs=True)
    assert chosen.choices[0].message.content == text * 3
    noted = chosen.choices[0].logprobs
    assert noted is not None
    assert max(one.logprob for one in noted.content or []) < -1e-3  # told as the model has it
    [free] = client.chat.completions.create(**asked, temperature=0, logprobs=True).choices
    assert free.logprobs is not None
    first = (free.logprobs.content or [])[0].token
    assert first != text
    banned = {str(id): -100 for id in range(tokenizer.vocab_size) if tokenizer.decode([id]).strip() == first}
    [other] = client.chat.completions.create(**asked, temperature=0, logprobs=True, logit_bias=banned).choices
    assert other.logprobs is not None
    assert (other.logprobs.content or [])[0].token != first


def test_ids_of_messages_are_those_that_are_read(serve: Start, engine_of: Callable[[str], Engine]) -> None:
    for family in ("chatglm2", "cpm2", "cpm_bee"):
        url, _ = serve(engine=engine_of(family))
        asked = {"messages": [{"role": "user", "content": "床前明月光"}]}
        told = post(url, "/tokenize", {**asked, "return_token_strs": True})[1]
        _, answer = post(url, "/v1/chat/completions", {**asked, "max_tokens": 1})
        assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) == answer["usage"]["prompt_tokens"]
        assert told["max_model_len"] == get(f"{url}/v1/models")["data"][0]["max_model_len"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "prompt"),
        ("/v1/completions", {"prompt": [1, "床"]}, "prompt"),
        ("/v1/completions", {"prompt": [1.0]}, "prompt"),
        ("/v1/completions", {"prompt": [True]}, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt"),
        ("/v1/completions", {"prompt": [10**8]}, "prompt"),
        ("/v1/completions", {"prompt": [2**40]}, "prompt"),
        ("/v1/completions", {"prompt": [[1], "床"]}, "prompt"),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": 5}, "prompt"),
        ("/v1/completions", {"prompt": {"text": "床"}}, "prompt"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": "床", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": "床", "echo": 1}, "echo"),
        ("/v1/completions", {"prompt": "床", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": "床", "prompt_logprobs": -1}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": "床", "suffix": "光"}, "suffix"),
        ("/v1/completions", {"prompt": "床", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "床", "logprobs": True}, "logprobs"),
        ("/v1/completions", {"prompt": "床" * 500, "echo": True, "max_tokens": 1}, "prompt"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "床", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [{"role": "wizard", "content": "床"}]}, "messages"),
        ("/tokenize", {"prompt": "床", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "床", "model": "other"}, "model"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": "床"}, "tokens"),
        ("/detokenize", {"tokens": [1], "x": 1}, "x"),
    ],
)
def test_what_cannot_be_read_as_ids_is_refused(
    serve: Start, text_engine: Engine, path: str, body: Any, param: str | None
) -> None:
    status, answer = post(serve(engine=text_engine)[0], path, body)
    assert status in (400, 404), answer
    assert answer["error"]["param"] == param, answer
    assert "\n" not in answer["error"]["message"]


def test_a_model_that_goes_on_with_no_text_says_so_and_drops_none(
    serve: Start, engine_of: Callable[[str], Engine]
) -> None:
    url, _ = serve(engine=engine_of("cpm_bee"))
    with pytest.raises(openai.BadRequestError, match="chat/completions"):
        client_of(url).completions.create(model="tiny", prompt="床前", max_tokens=2)
    status, answer = post(url, "/v1/chat/completions", {"record": {"text": "床前"}, "max_tokens": 2})
    assert (status, answer["error"]["param"]) == (400, "record")
    assert post(url, "/tokenize", {"prompt": "床前"})[1]["count"] == 2
    assert get(f"{url}/tokenizer_info")["eos_token"] is None
