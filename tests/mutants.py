"""Break one line after another, and see whether the nearest unit tests notice: `make mutants` (some minutes).

The lines are those in which a wrong sign, bound or factor still trains and still answers. None of the tests needs files
of the originals. A mutation whose line has changed is an error: look at it, and write the mutation anew.

python tests/mutants.py [WORD]    only mutations whose file or line holds the word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TARGET = 95  # per cent


class Mutation(NamedTuple):
    """In `file` of the package the only `line` (or part of one) becomes `mutant`; `tests` have to fail."""

    file: str
    line: str
    mutant: str
    tests: str


STEP = "tests/train/test_step.py"
RATES = "tests/train/test_rates.py tests/train/test_schedules.py"
SCALE = "tests/train/test_scale.py tests/train/test_step.py"
LOOP = "tests/train/test_loop.py"
BEE = "tests/models/test_cpm_bee_masks.py tests/models/test_cpm_bee_model.py"
ATTENTION = "tests/layers"
BUCKETS = "tests/layers/test_relative_position.py"
BEAM = "tests/generate/test_beam.py tests/generate/test_engine.py"

MUTATIONS = [
    Mutation("train/step.py", "min(1.0, self.settings.clip", "max(1.0, self.settings.clip", STEP),
    Mutation(
        "train/step.py",
        "factor *= min(1.0, self.settings.clip / (norm + 1e-6))",
        "factor *= self.settings.clip / (norm + 1e-6)",
        STEP,
    ),
    Mutation("train/step.py", "factor = 1 / self.scale.value", "factor = 1.0", STEP),
    Mutation(
        "train/step.py", "self.parallel_model.grad_norm() / self.scale.value", "self.parallel_model.grad_norm()", STEP
    ),
    Mutation("train/step.py", "self.updates + 1, self.total_steps", "self.updates, self.total_steps", STEP),
    Mutation("train/step.py", "math.isfinite(loss) and math.isfinite(norm)", "math.isfinite(loss)", STEP),
    Mutation("train/step.py", "math.isfinite(loss) and math.isfinite(norm)", "math.isfinite(norm)", STEP),
    Mutation(
        "train/step.py",
        "self.skipped_in_row >= self.settings.max_skipped",
        "self.skipped_in_row > self.settings.max_skipped",
        STEP,
    ),
    Mutation("train/step.py", "            self.skipped_in_row = 0\n", "            pass\n", STEP),
    Mutation("train/step.py", "part.loss_tokens * len(parts) *", "part.loss_tokens *", STEP),
    Mutation("train/step.py", 'self.settings.loss_mean == "batch"', 'self.settings.loss_mean != "batch"', STEP),
    Mutation("train/step.py", "return total / tokens", "return total", STEP),
    Mutation("train/schedules.py", "number = min(step - 1, bounds.end)", "number = step - 1", RATES),
    Mutation("train/schedules.py", "2 * bounds.warmup > bounds.steps", "bounds.warmup > bounds.steps", RATES),
    Mutation("train/schedules.py", "max(endless_rate(bounds, number), 0.0)", "endless_rate(bounds, number + 1)", RATES),
    Mutation(
        "train/schedules.py", "number = step - 1 if settings.first_step_at_zero else step", "number = step", RATES
    ),
    Mutation(
        "train/schedules.py", "end = settings.decay_steps or last + 1", "end = settings.decay_steps or last", RATES
    ),
    Mutation("train/schedules.py", "number = min(number, max(end, settings.warmup_steps))", "pass", RATES),
    Mutation("train/schedules.py", "return peak * number / warmup**1.5", "return peak * number / warmup", RATES),
    Mutation("train/schedules.py", "peak * EXPONENTIAL_BASE**since", "peak * EXPONENTIAL_BASE**number", RATES),
    Mutation("train/schedules.py", "reached = min(number, curve.steps - curve.warmup)", "reached = number", RATES),
    Mutation("train/schedules.py", "return max(rate, curve.least)", "return rate", RATES),
    Mutation("train/scale.py", "self.spent + 1 < self.hysteresis", "self.spent < self.hysteresis", SCALE),
    Mutation("train/scale.py", "max(self.value / 2, self.least)", "self.value / 2", SCALE),
    Mutation("train/scale.py", "self.good_steps + 1 == self.patience", "self.good_steps == self.patience", SCALE),
    Mutation(
        "train/optimizers/adamw.py",
        "or self.parameters[name].ndim >= 2]\n        others",
        "or self.parameters[name].ndim >= 1]\n        others",
        RATES,
    ),
    Mutation(
        "train/optimizers/adamw.py",
        "self._update(group, rate, 0.0, eps)",
        "self._update(group, rate, self.settings.weight_decay, eps)",
        RATES,
    ),
    Mutation("train/optimizers/adamw.py", "eps / math.sqrt(1 - beta ** (count + 1))", "eps", RATES),
    Mutation("train/loop.py", "progress.worse >= settings.patience", "progress.worse > settings.patience", LOOP),
    Mutation("train/loop.py", "step % every == 0", "step % every == 1", LOOP),
    Mutation("train/run_checkpoints.py", "loss < self.best_loss", "loss <= self.best_loss", LOOP),
    Mutation("train/run_checkpoints.py", "best_step=self.step, worse=0", "best_step=self.step", LOOP),
    Mutation(
        "models/cpm_bee/model.py",
        "(queries.sample_ids == 0)[:, :, None] | same_span(queries.sample_ids, keys.sample_ids)",
        "same_span(queries.sample_ids, keys.sample_ids)",
        BEE,
    ),
    Mutation(
        "models/cpm_bee/model.py", "by_sample = (queries.sample_ids == 0)", "by_sample = (queries.sample_ids >= 0)", BEE
    ),
    Mutation(
        "models/cpm_bee/model.py",
        "keys.positions[:, None, :] <= queries.positions[:, :, None]",
        "keys.positions[:, None, :] < queries.positions[:, :, None]",
        BEE,
    ),
    Mutation("models/cpm_bee/model.py", "(~queries.is_context[:, :, None] & is_earlier)", "is_earlier", BEE),
    Mutation(
        "models/cpm_bee/model.py",
        "& by_sample & same_span(queries.spans, keys.spans) & exists",
        "& by_sample & exists",
        BEE,
    ),
    Mutation("models/cpm_bee/model.py", "& same_span(queries.spans, keys.spans)\n    starts", "\n    starts", BEE),
    Mutation(
        "models/cpm_bee/model.py",
        "queries.segments * queries.num_segments + offsets",
        "queries.segments * queries.num_segments",
        BEE,
    ),
    Mutation("models/cpm_bee/model.py", ".long(), OTHER_SAMPLE)", ".long(), SAME_SEGMENT)", BEE),
    Mutation("models/cpm_bee/model.py", "self.num_buckets + relation - 1", "self.num_buckets + relation", BEE),
    Mutation(
        "models/cpm_bee/model.py",
        "keys.positions[:, None, :] - queries.positions[:, :, None]",
        "queries.positions[:, :, None] - keys.positions[:, None, :]",
        BEE,
    ),
    Mutation("models/cpm_bee/model.py", 'exists=known["num_segments"] != 0', 'exists=known["num_segments"] >= 0', BEE),
    Mutation(
        "models/cpm_bee/model.py", "positions < given.lengths[:, None]", "positions <= given.lengths[:, None]", BEE
    ),
    Mutation("layers/relative_position.py", "+ half * (offset > 0)", "+ half * (offset >= 0)", BUCKETS),
    Mutation("layers/relative_position.py", ".clamp(max=half - 1)", ".clamp(max=half)", BUCKETS),
    Mutation("layers/relative_position.py", "math.log(max_distance / exact)", "math.log(max_distance)", BUCKETS),
    Mutation("layers/attention.py", ".tril(keys - queries)", ".tril()", ATTENTION),
    Mutation("layers/attention.py", "hidden = ~visible & ~empty[..., None]", "hidden = ~visible", ATTENTION),
    Mutation(
        "layers/attention.py", "part.repeat_interleave(repeats, dim=1)", "part.repeat(1, repeats, 1, 1)", ATTENTION
    ),
    Mutation("layers/attention.py", "(length, 0), value=open_value", "(0, length), value=open_value", ATTENTION),
    Mutation(
        "generate/beam.py",
        "beam.score / _scored_length(search, beam, rules) ** rules.length_exponent",
        "beam.score",
        BEAM,
    ),
    Mutation("generate/beam.py", "new.score <= found[worst].score", "new.score > found[worst].score", BEAM),
    Mutation("generate/beam.py", "len(search.found) < rules.beams", "len(search.found) <= rules.beams", BEAM),
    Mutation("generate/beam.py", "place < rules.beams or not", "not", BEAM),
    Mutation("generate/beam.py", "len(beam.tokens) - beam.cursor.is_done", "len(beam.tokens)", BEAM),
    Mutation(
        "generate/beam.py", "len(beams[0].tokens) < rules.max_tokens", "len(beams[0].tokens) <= rules.max_tokens", BEAM
    ),
    Mutation(
        "generate/beam.py", "key=lambda candidate: -candidate.score", "key=lambda candidate: candidate.score", BEAM
    ),
    Mutation("generate/engine.py", "lengths = [max(lengths)] * len(lengths)", "pass", BEAM),
    Mutation("generate/engine.py", "row.beam.fed[-window:]", "row.beam.fed", BEAM),
]


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [one for one in MUTATIONS if word in one.file or word in one.line]
    survivors = [one for one in chosen if not _is_killed(one)]
    for one in survivors:
        print(f"survived: {one.file}: {one.line.strip()} -> {one.mutant.strip()}")
    share = 100 * (len(chosen) - len(survivors)) / len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations noticed: {share:.0f} % (target {TARGET} %)")
    return share < TARGET


def _is_killed(one: Mutation) -> bool:
    """Whether a test fails with a copy of the package in which the line is the mutant."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "hanlin"
        shutil.copytree(ROOT / "src" / "hanlin", package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / one.file
        text = file.read_text("utf-8")
        if text.count(one.line) != 1:
            raise SystemExit(f"{one.file}: {one.line!r} stands there {text.count(one.line)} times; write it anew")
        file.write_text(text.replace(one.line, one.mutant), "utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        places = [str(ROOT / test) for test in one.tests.split()]
        environment = {**os.environ, "PYTHONPATH": folder}
        done = subprocess.run(
            [*command, *places], cwd=ROOT, env=environment, capture_output=True, check=False, timeout=600
        )
    print("." if done.returncode == 1 else "S", end="", flush=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return done.returncode == 1


if __name__ == "__main__":
    raise SystemExit(main())
