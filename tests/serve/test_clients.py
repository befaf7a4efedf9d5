"""Other clients than the one that is installed here; `make clients` puts them into .clients/."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openai
import pytest
from test_routes import answer_of

from hanlin.evaluation.likelihoods import sample_likelihoods
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]
CLIENTS = Path(os.environ.get("HANLIN_CLIENTS", Path(__file__).parents[2] / ".clients"))
ASKED = [{"role": "user", "content": "床前明月光"}]
TEXTS = ["床前明月光,疑是地上霜.", "举头望明月"]

OPENAI = """
import json, sys, openai
url, asked = sys.argv[1], json.loads(sys.argv[2])
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
how = {"model": "tiny", "messages": asked, "temperature": 0, "max_tokens": 8}
whole = client.chat.completions.create(**how, logprobs=True, top_logprobs=2, logit_bias={"5": 1}, seed=3, user="u")
chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
told = [(one.token, one.logprob, len(one.top_logprobs)) for one in whole.choices[0].logprobs.content]
gone_on = client.completions.create(model="tiny", prompt=asked[0]["content"], temperature=0, max_tokens=4, echo=True)
try:
    client.chat.completions.create(**how, top_p=2)
except openai.BadRequestError as error:
    refused = error.body["param"]
try:
    client.models.retrieve("other")
except openai.NotFoundError as error:
    missing = error.code
print(json.dumps({
    "version": openai.__version__, "text": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    "usage": chunks[-1].usage.total_tokens == whole.usage.total_tokens, "told": len(told), "refused": refused,
    "missing": missing, "models": [one.id for one in client.models.list()], "echo": gone_on.choices[0].text,
}))
"""
LITELLM = """
import json, sys, litellm
url, asked = sys.argv[1], json.loads(sys.argv[2])
how = {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none", "messages": asked, "temperature": 0,
       "max_tokens": 8, "num_retries": 0}
whole = litellm.completion(**how)
text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**how, stream=True))
try:
    litellm.completion(**{**how, "model": "openai/other"})
except litellm.NotFoundError:
    missing = True
print(json.dumps({"whole": whole.choices[0].message.content, "text": text, "missing": missing}))
"""
LM_EVAL = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
url, texts = sys.argv[1], json.loads(sys.argv[2])
model = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model="tiny", max_length=64)
def asked(kind, *arguments):
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]
rolling = model.loglikelihood_rolling(asked("loglikelihood_rolling", *[(text,) for text in texts]), disable_tqdm=True)
whole = model.loglikelihood(asked("loglikelihood", *[("", text) for text in texts]), disable_tqdm=True)
written = model.generate_until(asked("generate_until", (texts[0][:2], {"until": ["\\n"], "max_gen_toks": 4})))
print(json.dumps({"backend": model.tokenizer_backend, "rolling": rolling, "whole": whole, "written": written}))
"""


RESOURCES = ("test_completions", "test_models", "test_decisions", "chat/test_completions")


def run_with(client: str, script: str, *arguments: Any) -> Any:
    """What a script prints that finds this client before all else."""
    folder = CLIENTS / client
    if not folder.is_dir():
        pytest.skip(f"needs {client} in {CLIENTS}: make clients")
    given = [one if isinstance(one, str) else json.dumps(one) for one in arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    found = subprocess.run(
        [sys.executable, "-c", script, *given],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("client", ["openai1", "openai2", "installed"])
def test_every_major_version_of_openai_is_answered(serve: Start, engine: Engine, client: str) -> None:
    url, _ = serve()
    if client == "installed":
        client = str(Path(openai.__file__).parents[1])
    found = run_with(client, OPENAI, url, ASKED)
    assert client not in ("openai1", "openai2") or found["version"].startswith(f"{client[-1]}.")
    assert found["text"] == answer_of(engine, ASKED, GreedySettings(max_new_tokens=8))
    assert found["echo"].startswith(ASKED[0]["content"])
    assert (found["refused"], found["missing"], found["models"]) == ("top_p", "model_not_found", ["tiny"])
    assert found["usage"]
    assert found["told"] > 0


@pytest.mark.slow
def test_openais_own_tests_of_its_resources_pass_or_are_refused(serve: Start, engine: Engine, tmp_path: Path) -> None:
    """Those of the routes that are here; what they ask that is not honoured is told in a sentence."""
    suite = next(CLIENTS.glob("openai_suite/openai-*"), None)
    if suite is None:
        pytest.skip(f"needs the sources of OpenAI's client in {CLIENTS}: make clients")
    asked = ("gpt-3.5-turbo-instruct", "gpt-6-astra", "model")
    url, _ = serve(adapters={name: copy.copy(engine) for name in asked})
    kept = {
        "TEST_API_BASE_URL": f"{url}/v1",
        "PYTHONPATH": os.pathsep.join(map(str, (CLIENTS / "openai_suite", suite))),
    }
    files = [f"tests/api_resources/{name}.py" for name in RESOURCES]
    options = ["-o", "addopts=", "-W", "ignore", "-k", "not aiohttp", f"--junitxml={tmp_path / 'found.xml'}"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *files]
    subprocess.run(command, check=False, cwd=suite, env={**os.environ, **kept}, capture_output=True, timeout=300)
    passed = set()
    for case in ElementTree.parse(tmp_path / "found.xml").iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.test_')[2]}.{case.get('name', '')}"
        failures = [one.get("message", "") for one in case if one.tag in ("failure", "error")]
        if not failures:
            passed.add(name.partition("[")[0])
        assert all(re.search(r"Error code: (400|404|405) - \w", one) for one in failures), (name, failures)
    ways = ("method", "raw_response", "streaming_response")
    for side in ("", "Async"):
        for way in ways:
            assert {f"models.Test{side}Models.test_{way}_{what}" for what in ("list", "retrieve")} <= passed
            assert f"decisions.Test{side}Decisions.test_{way}_create" in passed
            for overload in (1, 2):
                assert f"completions.Test{side}Completions.test_{way}_create_overload_{overload}" in passed


@pytest.mark.slow
def test_litellm_is_answered(serve: Start, engine: Engine) -> None:
    found = run_with("litellm", LITELLM, serve()[0], ASKED)
    expected = answer_of(engine, ASKED, GreedySettings(max_new_tokens=8))
    assert (found["whole"], found["text"], found["missing"]) == (expected, expected, True)


@pytest.mark.slow
def test_lm_eval_scores_as_we_do(serve: Start, text_engine: Engine) -> None:
    found = run_with("lm_eval", LM_EVAL, serve(engine=text_engine)[0], TEXTS)
    samples = [(number, text_engine.processor.text_sample(text)) for number, text in enumerate(TEXTS)]
    scores = dict(sample_likelihoods(text_engine, samples, 2))
    expected = [scores[number].log_likelihood for number in range(len(TEXTS))]
    assert found["backend"] == "remote"
    assert found["rolling"] == pytest.approx(expected, abs=1e-4)
    assert [score for score, _ in found["whole"]] == pytest.approx(expected, abs=1e-4)
    assert len(found["written"]) == 1
