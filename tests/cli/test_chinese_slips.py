"""Who reads Chinese is told what is wrong in Chinese alone, whatever is put into a message, in every command."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from small_bee import write_base

from hanlin.cli.main import command_names, main

RECIPE = """\
model: {family: cpm_bee, base: base}
data: {train: rows.jsonl, eval: rows.jsonl, max_length: 64}
train: {steps: 2, batch_size: 1}
run: {folder: run}
"""
GRID = """\
folder: grid
recipes: {small: recipe.yaml}
methods: {full: {}}
seeds: [1]
score: generate.exact_match
"""
SLIPS = """\
trian
--nope
calibrate
calibrate --base base --input nope.jsonl --questions rows.jsonl
chat --base nope
chat --base base generate.beams=x
check
check nope.yaml
check broken.yaml
compare
compare nope.yaml
compare recipe.yaml
compare grid.yaml --only zzz
completion foo
convert
convert nope out
convert base out --to foo
convert base out --dtype fp8
convert base out --merge nope
convert rows.jsonl out
data
data foo rows.jsonl
data show nope.jsonl
data show rows.jsonl --rows x
data show rows.jsonl --format foo
decide --base base --input rows.jsonl
decide --base base --input rows.jsonl --questions plain.txt
deepspeed
deepspeed nope.json
deepspeed recipe.yaml
deepspeed list.json
demo --foo
doctor foo
evaluate
evaluate recipe.yaml --weights nope
evaluate recipe.yaml evaluate.tasks=[foo]
generate --base base --record [1
generate --base base --input bad.jsonl --output out.jsonl
generate recipe.yaml --record {} --input rows.jsonl
help foo
help train.lrr
init rows.jsonl
init nope.jsonl --base base
init bad.jsonl --base base
init rows.jsonl --size small
init rows.jsonl --family cpm1 --size foo
init rows.jsonl --base base --device A100
init rows.jsonl --base base train.lrr=3
inspect
inspect nope
launch --hostfile nope train recipe.yaml
launch train recipe.yaml
lm_eval --model hanlin
plan
plan recipe.yaml --device foo
plan recipe.yaml --per-node x
plan recipe.yaml --size foo
prepare
prepare --from foo rows.jsonl out.jsonl
prepare --from ccpm rows.jsonl out.jsonl
prepare --to indexed rows.jsonl out
recipes show foo
recipes copy cpm_bee_ccpm_lora rows.jsonl
report nope
report base
reproduce foo
reproduce cpm2-lcqmc --weights nope
serve --base nope
serve --base base --max-rows x
suite ceval
suite ceval --base base --data . --split foo
suite ceval --base base --data .
tokenizer
tokenizer train nope --out v.model --size 10
tokenizer train rows.jsonl --out v.foo --size 10
train
train nope.yaml
train .
train recipe.yaml --nporc 2
train recipe.yaml --nproc x
train recipe.yaml foo.bar=3
train recipe.yaml run=3
train recipe.yaml train.lrr=1
train recipe.yaml train.lr=x
train recipe.yaml "train.lr={a: 1}"
train recipe.yaml tuning.method=lorra
train recipe.yaml tuning.method=prompt tuning.ratios=3
train recipe.yaml tuning.method=lora tuning.rnk=3
train recipe.yaml tuning.method=full tuning.rank=3
train recipe.yaml tuning.ratios=33_34_33 tuning.method=prompt
train recipe.yaml tuning.method=prompt tuning.ratios=33_34
train recipe.yaml train.warmup_steps=-1
train recipe.yaml data.split=[1,2]
train recipe.yaml train.epochs=1
train recipe.yaml train.schedule=foo
train recipe.yaml run.seed=-1
train recipe.yaml data.eval_share=3
train recipe.yaml parallel.tensor=2 parallel.pipe=9
train recipe.yaml parallel.shard=foo
train recipe.yaml "data.transform={a: $b}"
train recipe.yaml data.transform={a:
train recipe.yaml data.format=foo
train recipe.yaml data.format=alpaca
train recipe.yaml data.options.foo=3
train recipe.yaml model.config.hidden_size=x
train recipe.yaml model.size=foo
train recipe.yaml train.precision=fp16 train.weight_dtype=bf16
train recipe.yaml train.objective=dpo
train recipe.yaml generate.beams=0
train recipe.yaml generate.temperature=3
train recipe.yaml train.objective=dpoo
train recipe.yaml train.optimizer.foo=3
train recipe.yaml model.family=nope
train recipe.yaml model.base=nowhere
train recipe.yaml model.adapter=nope
train recipe.yaml model.quantise=nf5
train recipe.yaml run.device=foo
train recipe.yaml run.trackers=[foo]
train recipe.yaml data.train=bad.jsonl
train recipe.yaml data.max_length=3
train recipe.yaml parallel.data=3
"""
# No name is called so: where one of them stands, something was said in English.
_SAYING = re.compile(
    r"(?<![\w.-])(?:a|an|and|are|as|at|be|but|by|cannot|each|expected|for|found|from|has|have|here|in|is|it|its|known|many"
    r"|must|named|no|not|of|on|only|or|see|such|than|that|the|their|there|they|this|to|unknown|where|which|with|you"
    r"|your)(?![\w.=/-])"
)
_KEPT = re.compile(r"""`[^`]*`|'[^']*'|"[^"]*"|\S*[/=_]\S*|--[a-z-]+""")
_CUT_NAME = re.compile(r"[A-Za-z][._][\u4e00-\u9fff]|[\u4e00-\u9fff][._][A-Za-z]")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANLIN_LANG", "zh")
    write_base(tmp_path / "base")
    Path("rows.jsonl").write_text(json.dumps({"input": "床前", "<ans>": "明月"}, ensure_ascii=False) + "\n", "utf-8")
    Path("bad.jsonl").write_text('{"input": "床前"}\n{"x": 1, "x": 2}\nnope\n', "utf-8")
    Path("broken.yaml").write_text("model: {family: cpm_be}\ntrian: 3\n", "utf-8")
    for name, text in {"recipe.yaml": RECIPE, "grid.yaml": GRID, "plain.txt": "x", "list.json": "[1]"}.items():
        Path(name).write_text(text, "utf-8")


def told(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = main(shlex.split(words))
    except SystemExit as end:
        code = end.code
    assert code == 2, words
    return capsys.readouterr().err


def english_lines(text: str) -> list[str]:
    kept = {line: _KEPT.sub(" ", line) for line in text.splitlines()}
    return [line for line, rest in kept.items() if _SAYING.search(rest) or _CUT_NAME.search(line)]


@pytest.mark.parametrize("words", SLIPS.splitlines())
def test_a_slip_is_told_in_chinese_alone(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = told(words, capsys)
    assert re.search("[\u4e00-\u9fff]", message), message
    assert english_lines(message) == [], message


@pytest.mark.parametrize(
    "text",
    ["a: b: c", "a: [1", "a: {b", "a: *x", 'a: "x', "a: @x", "- a\nb: c", "a: 1\n b: 2", "a\nb: c", 'a: "\\q"', 
     "--- a\n--- b", "a: &x 1\nb: &x 2\nc: *", "a: - b", "a:\n\t- b", "a: !x!y z", "a：b"],
)  # fmt: skip
def test_what_is_no_yaml_is_told_in_chinese_alone(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(text, "utf-8")
    message = told("check own.yaml", capsys)
    assert re.search("[\u4e00-\u9fff]", message.partition("own.yaml")[2]), message
    assert english_lines(message) == [], message


def test_every_command_slips_here() -> None:
    assert {line.split()[0] for line in SLIPS.splitlines()} >= set(command_names())


@pytest.mark.parametrize(
    ("line", "is_english"),
    [
        ("hanlin: train.lr: 应为数; found a section", True),
        ("没有设置 'foo'; see `hanlin help`", True),
        ("缺少以下参数：data.选项.NAME=VALUE", True),
        ("hanlin train recipe.yaml   with other settings", True),
        ("train.method: 应为以下之一：full, lora；见 docs/settings.md", False),
    ],
)
def test_what_is_half_english_is_noticed(line: str, is_english: bool) -> None:
    assert (english_lines(line) != []) == is_english
