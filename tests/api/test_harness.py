"""lm-evaluation-harness asks our models; `make clients` puts it into .clients/, without it these tests are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2_pieces import small_pieces
from tiny_pieces import small_tokenizer

import hanlin
from hanlin.api.dialogue import conversation_of
from hanlin.cli.main import main
from hanlin.evaluation.continuations import score_continuations
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.family import load_family

CLIENTS = Path(os.environ.get("HANLIN_CLIENTS", Path(__file__).parents[2] / ".clients"))
HARNESS = CLIENTS / "lm_eval"
NEEDS_HARNESS = pytest.mark.skipif(
    not HARNESS.is_dir(), reason=f"needs lm-evaluation-harness in {HARNESS}: make clients"
)
BEE = Path(__file__).parents[1] / "golden/cases/bee_generate"
MESSAGES = [{"role": "user", "content": "举头望"}]
LONG = "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 6
PAIRS = [("床前明月光，", "疑是地上霜。"), ("举头望", "明月"), ("举头望", "霜"), ("低头 ", "思故乡"), (LONG, "明月")]
BEGUN = [("", "明月"), ("", "床前明月光")]

ASK = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
kind, path, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if kind == "hanlin":
    import hanlin.api.harness
    how = {"path": path}
else:
    how = {"pretrained": path, "dtype": "float32", "trust_remote_code": True}
model = get_model(kind).create_from_arg_obj(how, {"batch_size": 2, "device": "cpu"})
def instances(kind, requests):
    return [Instance(kind, {}, tuple(one), number) for number, one in enumerate(requests)]
messages = asked.pop("messages")
found = {kind: getattr(model, kind)(instances(kind, requests)) for kind, requests in asked.items()}
if kind == "hanlin":
    found["chat"] = model.loglikelihood(instances("loglikelihood", [(model.apply_chat_template(messages), "明月")]))
print(json.dumps({"name": model.tokenizer_name, **found}))
"""


def ask(kind: str, path: Path, **asked: Any) -> dict[str, Any]:
    env = {
        **os.environ,
        "PYTHONPATH": str(HARNESS),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(path.parent / "code"),
    }
    line = [sys.executable, "-c", ASK, kind, str(path), json.dumps(asked)]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session", params=["cpm1", "chatglm2"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny weights in transformers' layout: GPT-2's, and Glm's."""
    folder, family = tmp_path_factory.mktemp(request.param), load_family(request.param)
    tokenizer: Any = small_tokenizer() if family.name == "cpm1" else ChatGlm2Tokenizer(small_pieces())
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "head_dim": 8, "ffn_size": 64}
    # The long context is too long for the first alone; of the other one ours keeps the marks before every row.
    config = family.config(vocab_size=tokenizer.vocab_size, max_length=64 if family.name == "cpm1" else 512, **sizes)
    model = family.model()(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_base(folder / "base", family, config, base_parameters(model), tokenizer)
    convert(folder / "base", family, None, "huggingface", folder / "out")
    return folder / "out"


@NEEDS_HARNESS
@pytest.mark.slow
def test_the_harness_has_the_numbers_of_its_own_model(exported: Path) -> None:
    """Of Glm without what follows nothing, whose two first marks `hf` scores as well, and without texts, since
    transformers writes other ones of bytes that are no characters.
    """
    greedy = {"until": ["。"], "max_gen_toks": 6, "do_sample": False}
    asked: dict[str, Any] = {"loglikelihood": PAIRS, "messages": MESSAGES}
    if is_gpt2 := "cpm1" in str(exported):
        asked["loglikelihood"] = [*PAIRS, *BEGUN]
        asked["loglikelihood_rolling"] = [(LONG,), ("明月",)]
        asked["generate_until"] = [(context, greedy) for context, _ in PAIRS[:4]]
    ours, theirs = ask("hanlin", exported, **asked), ask("hf", exported, **asked)
    for (own, is_greedy), (other, other_greedy) in zip(ours["loglikelihood"], theirs["loglikelihood"], strict=True):
        assert own == pytest.approx(other, abs=1e-3)
        assert is_greedy == other_greedy
    if is_gpt2:
        assert ours["generate_until"] == theirs["generate_until"]
        assert ours["loglikelihood_rolling"] == pytest.approx(theirs["loglikelihood_rolling"], abs=1e-2)
    engine = hanlin.load(exported)._engine
    [(_, expected)] = score_continuations(engine, [(conversation_of(MESSAGES), "明月")], 1)
    assert ours["chat"] == [[pytest.approx(expected.log_likelihood, abs=1e-4), expected.is_greedy]]


TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["好", "坏"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@NEEDS_HARNESS
@pytest.mark.slow
def test_the_command_scores_a_task_of_the_harness(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "今天天气"}\n{"question": "北京"}\n', "utf-8")
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"), "utf-8")
    words = ["--model", "hanlin", "--model_args", f"path={BEE}", "--tasks", "mine", "--include_path", str(tmp_path),
             "--device", "cpu", "--output_path", str(tmp_path / "out.json"), "--log_samples"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(HARNESS), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    line = [sys.executable, "-m", "hanlin", "lm_eval", *words]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    [kept] = tmp_path.rglob("samples_mine_*.jsonl")
    model = hanlin.load(BEE)
    for line in kept.read_text("utf-8").splitlines():
        sample = json.loads(line)
        rows = [{"input": sample["doc"]["question"], "<ans>": answer} for answer in ("好", "坏")]
        expected = [one.log_likelihood for one in model.score(rows, progress=False)]
        assert [float(found[0]) for found in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-3)


def test_without_the_harness_it_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["lm_eval", "--model", "hanlin", "--tasks", "ceval-valid"]) == 2
    assert "pip install 'hanlin[lm-eval]'" in capsys.readouterr().err


def test_the_commands_own_help_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lm_eval", "--help"])
    assert ended.value.code == 0
    assert "--model hanlin" in capsys.readouterr().out
