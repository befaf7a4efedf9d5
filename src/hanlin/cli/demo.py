"""The whole road on real small data, in minutes on two CPU cores: data, training, scores, a second task by LoRA.

A small CPM-Bee learns from scratch to read Chinese phrases aloud (pinyin); then a LoRA on top of it learns their tones.
Last, a small GPT-2 (CPM-1) is pretrained on lines of plain text, numbers and dates as they are read aloud and as they
are written, and goes on with new ones. The phrases are the dictionary of the package pypinyin, the lines are made up.
Every step is a command that is shown as it is run.

hanlin demo            in a few minutes
hanlin demo --quick    in a minute: it shows the way, and learns little
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hanlin.cli._demo_data import NumberData, PhraseData

HELP = "see it work: train, tune, score and ask small models, in a few minutes"

CHARACTERS, HELD_OUT, SEED = 800, 400, 1
LINES, PIECES = 30_000, 60
SHOWN = 5
RUNS = ("pinyin", "tone", "numbers")
_ASKED_IN_BROWSER = "http://127.0.0.1:8000/#词语=语文&任务=拼音&语&文"
"""What stands behind the # fills in the page's form (serve/page.html)."""

_MODEL = """\
  config: {hidden_size: 128, num_layers: 4, num_heads: 4, head_dim: 32, ffn_size: 320,
           num_distance_buckets: 32, num_relation_buckets: 96, max_distance: 64, half_frequencies: false}
"""
_COMMON = """\
generate: {{method: greedy, max_new_tokens: 12, batch_size: 64}}
evaluate: {{tasks: [generate]}}
run: {{folder: {folder}, log_every: 50, seed: 1}}
"""
PINYIN = """\
# A small CPM-Bee from scratch: the reading of each character of a phrase.
model:
  family: cpm_bee
  vocab: {home}/vocab.txt
{model}data: {{train: {home}/data/pinyin_train.jsonl, eval: {home}/data/pinyin_eval.jsonl, max_length: 512}}
train: {{steps: {steps}, batch_size: 4, lr: 1e-2, warmup_steps: 50, eval_every: 200, save_every: 200}}
{common}"""
TONE = """\
# A LoRA on that base: the tone of each character. The base stays as it is.
model:
  family: cpm_bee
  base: {home}/pinyin/best
data: {{train: {home}/data/tone_train.jsonl, eval: {home}/data/tone_eval.jsonl, max_length: 512}}
tuning: {{method: lora, rank: 8, targets: [query, key, value, output, gate, up, down]}}
train: {{steps: {steps}, batch_size: 4, lr: 5e-3, warmup_steps: 20, optimizer: {{weight_decay: 0.0}}, save_every: 200}}
{common}"""

NUMBERS = """\
# A small GPT-2 from scratch on plain text, a line each: what is read aloud, and how it is written.
model:
  family: cpm1
  vocab: {home}/numbers_vocab.txt
  config: {{hidden_size: 128, num_layers: 4, num_heads: 4, head_dim: 32, ffn_size: 512, max_length: 64, dropout: 0.0,
           attention_dropout: 0.0}}
data: {{train: {home}/data/numbers_train.jsonl, eval: {home}/data/numbers_eval.jsonl, max_length: 64}}
train: {{steps: {steps}, batch_size: 16, lr: 3e-3, warmup_steps: 20, eval_every: {every}, save_every: 200,
        samples: {samples}}}  # answered at each evaluation
{common}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything goes (default: %(default)s)"
    )
    parser.add_argument("--restart", action="store_true", help="start anew; without it a second run goes on")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps: shows the way, learns little")


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    home: Path = args.folder
    _refuse_others(home)
    if args.restart and home.exists():
        _remove(home)
    phrases, numbers = _write_files(home, is_quick=args.quick)
    _say(f"{phrases.rows:,} phrases of the {CHARACTERS} commonest characters, {HELD_OUT} of them held out.")
    words = [f"{home}/data/pinyin_train.jsonl", f"{home}/data/tone_train.jsonl"]
    _command("tokenizer", "build", *words, "--out", f"{home}/vocab.txt", "--overwrite")
    _command("check", f"{home}/pinyin.yaml")
    scores = {name: _learn(home, name) for name in ("pinyin", "tone")}
    for name in ("pinyin", "tone"):
        _ask(home, name)
    _say(f"\n{len(numbers.lines):,} lines of plain text, and the beginnings of {HELD_OUT} others to go on with.")
    _command("tokenizer", "train", f"{home}/data/numbers_train.jsonl", "--out", f"{home}/numbers_vocab.txt",
             "--size", str(PIECES), "--coverage", "1", "--overwrite")  # fmt: skip
    scores["numbers"] = _learn(home, "numbers")
    _ask(home, "numbers")
    _command("report", *(f"{home}/{name}" for name in RUNS), "--output", f"{home}/report.html", "--overwrite")
    _show(scores, phrases, numbers)
    _show_texts(home)
    _show_end(home, time.perf_counter() - start)
    return 0


def _learn(home: Path, name: str) -> tuple[float, float]:
    """Train by a recipe; returns the score before and after."""
    before = _score(home, name, "base")
    _command("train", f"{home}/{name}.yaml")
    return before, _score(home, name)


def _ask(home: Path, name: str) -> None:
    _command("generate", f"{home}/{name}.yaml", "--input", f"{home}/data/{name}_questions.jsonl")


def _refuse_others(home: Path) -> None:
    """See that a folder is empty, or a demo's.

    Raises: ConfigError.
    """
    recipes = [f"{name}.yaml" for name in RUNS]
    others = [path.name for path in home.iterdir() if path.name not in (*recipes, "data")] if home.is_dir() else []
    if others and not (home / recipes[0]).is_file():
        raise ConfigError(f"--folder {home}: holds other files than a demo's ({others[0]}); name a new folder")


def _remove(home: Path) -> None:
    """Only what a demo has made."""
    for name in (*RUNS, "data"):
        shutil.rmtree(home / name, ignore_errors=True)


def _write_files(home: Path, *, is_quick: bool) -> tuple[PhraseData, NumberData]:
    from hanlin.cli._demo_data import write_numbers, write_phrases

    folder = home / "data"
    phrases = write_phrases(folder, characters=CHARACTERS, eval_rows=HELD_OUT, seed=SEED)
    numbers = write_numbers(folder, rows=LINES, eval_rows=HELD_OUT, seed=SEED)
    samples = json.dumps([{"prompt": prompt} for prompt in [*numbers.held_out][:SHOWN]], ensure_ascii=False)
    for name, text, steps in (("pinyin", PINYIN, 1500), ("tone", TONE, 400), ("numbers", NUMBERS, 600)):
        common = _COMMON.format(folder=f"{home}/{name}")
        made = [
            text.format(home=home, model=_MODEL, steps=one, every=one // 3, samples=samples, common=common)
            for one in (steps, steps // 10)
        ]
        _write_recipe(home / f"{name}.yaml", made, is_quick=is_quick)
        _write_questions(folder, name)
    return phrases, numbers


def _write_recipe(path: Path, made: Sequence[str], *, is_quick: bool) -> None:
    """made: the recipe, and the quick one.

    Raises: ConfigError for one that is there and was changed.
    """
    if path.is_file() and path.read_text(encoding="utf-8") not in made:
        raise ConfigError(f"{path}: was changed since a demo wrote it; move it away, or name another --folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made[is_quick], encoding="utf-8")


def _write_questions(folder: Path, name: str) -> None:
    """The first held-out records, without their answers."""
    lines = (folder / f"{name}_eval.jsonl").read_text(encoding="utf-8").splitlines()[:SHOWN]
    blank = [_without_answer(json.loads(line)) for line in lines]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in blank)
    (folder / f"{name}_questions.jsonl").write_text(text, encoding="utf-8")


def _without_answer(record: dict[str, Any]) -> dict[str, Any]:
    if "<ans>" in record:
        return {**record, "<ans>": dict.fromkeys(record["<ans>"], "")}
    return {"prompt": record["prompt"]}


def _command(*words: str) -> None:
    """Show a command and run it in this process.

    Raises: SystemExit when it fails.
    """
    from hanlin.cli.main import main

    _say(f"\n$ hanlin {' '.join(words)}", style="bold cyan")
    code = main(words)
    if code:
        raise SystemExit(code)


def _score(home: Path, name: str, weights: str | None = None) -> float:
    scores = home / f"{name}{'_' + weights if weights else ''}.json"
    chosen = ["--weights", weights] if weights else []
    _command("evaluate", f"{home}/{name}.yaml", *chosen, "--json", str(scores), "--overwrite")
    return _exact_match(scores)


def _exact_match(path: Path) -> float:
    return json.loads(path.read_text(encoding="utf-8"))["generate"]["exact_match"]


def _show(scores: dict[str, tuple[float, float]], phrases: PhraseData, numbers: NumberData) -> None:
    from rich.table import Table

    from hanlin.core.terminal import screen
    from hanlin.evaluation.ngrams import CharacterModel

    table = Table("task", "tuning", "before", "after", title=f"exact match on {HELD_OUT} held-out records")
    for name, tuning in zip(RUNS, ("full, from scratch", "LoRA on that base", "pretrained on text"), strict=True):
        table.add_row(name, tuning, *(f"{value:.1%}" for value in scores[name]))
    console = screen()
    console.print("", table)
    console.print(f"Looking up each character's commonest reading would score {phrases.lookup_accuracy:.1%} (pinyin).")
    counted = CharacterModel(numbers.lines, order=5)
    right = sum(counted.goes_on(prompt, 12) == answer for prompt, answer in numbers.held_out.items())
    console.print(f"Going on by a count of runs of up to 5 characters would score {right / HELD_OUT:.1%} (numbers).\n")


def _show_texts(home: Path) -> None:
    from hanlin.core.terminal import screen

    console = screen()
    console.print("What the GPT-2 wrote along the way:")
    for line in (home / "numbers/samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        console.print(f"  step {row['step']:>4}: {row['prompt']}{row['answer']}", highlight=False)


def _show_end(home: Path, seconds: float) -> None:
    _say(f"\n{seconds / 60:.1f} minutes. Curves: {home}/report.html and {home}/report.png")
    _say(f"Ask it in a browser: hanlin serve {home}/pinyin, and then {_ASKED_IN_BROWSER}")
    _say(
        "Now with your own JSON lines: change data.train and data.eval in "
        f"{home}/pinyin.yaml (docs/data.md says what a record looks like), then run the commands above."
    )


def _say(text: str, style: str | None = None) -> None:
    from hanlin.core.terminal import screen

    screen().print(text, style=style, highlight=False)
