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


def _of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutation]:
    """Mutations of one file: line -> mutant."""
    return [Mutation(file, line, mutant, tests) for line, mutant in changes]


STEP = "tests/training/test_step.py"
RATES = "tests/training/test_rates.py tests/training/test_schedules.py"
SCALE = "tests/training/test_scale.py tests/training/test_step.py"
LOOP = "tests/training/test_loop.py"
BEE = "tests/models/test_cpm_bee_masks.py tests/models/test_cpm_bee_model.py"
ATTENTION = "tests/layers"
BUCKETS = "tests/layers/test_relative_position.py"
BEAM = "tests/generate/test_beam.py tests/generate/test_engine.py"

MUTATIONS = [
    *_of(
        "training/step.py",
        STEP,
        ("min(1.0, self.settings.clip", "max(1.0, self.settings.clip"),
        ("factor *= min(1.0, self.settings.clip / (norm + 1e-6))", "factor *= self.settings.clip / (norm + 1e-6)"),
        ("factor = 1 / self.scale.value", "factor = 1.0"),
        ("self.parallel_model.grad_norm() / self.scale.value", "self.parallel_model.grad_norm()"),
        ("self.updates + 1, self.total_steps", "self.updates, self.total_steps"),
        ("math.isfinite(loss) and math.isfinite(norm)", "math.isfinite(loss)"),
        ("math.isfinite(loss) and math.isfinite(norm)", "math.isfinite(norm)"),
        ("self.skipped_in_row >= self.settings.max_skipped", "self.skipped_in_row > self.settings.max_skipped"),
        ("            self.skipped_in_row = 0\n", "            pass\n"),
        ("part.loss_tokens * len(parts) *", "part.loss_tokens *"),
        ('self.settings.loss_mean == "batch"', 'self.settings.loss_mean != "batch"'),
        ("return total / tokens", "return total"),
    ),
    *_of(
        "training/schedules.py",
        RATES,
        ("number = min(step - 1, bounds.end)", "number = step - 1"),
        ("2 * bounds.warmup > bounds.steps", "bounds.warmup > bounds.steps"),
        ("max(endless_rate(bounds, number), 0.0)", "endless_rate(bounds, number + 1)"),
        ("number = step - 1 if settings.first_step_at_zero else step", "number = step"),
        ("end = settings.decay_steps or last + 1", "end = settings.decay_steps or last"),
        ("number = min(number, max(end, settings.warmup_steps))", "pass"),
        ("return peak * number / warmup**1.5", "return peak * number / warmup"),
        ("peak * EXPONENTIAL_BASE**since", "peak * EXPONENTIAL_BASE**number"),
        ("reached = min(number, curve.steps - curve.warmup)", "reached = number"),
        ("return max(rate, curve.least)", "return rate"),
    ),
    *_of(
        "training/scale.py",
        SCALE,
        ("self.spent + 1 < self.hysteresis", "self.spent < self.hysteresis"),
        ("max(self.value / 2, self.least)", "self.value / 2"),
        ("self.good_steps + 1 == self.patience", "self.good_steps == self.patience"),
    ),
    *_of(
        "training/optimizers/adamw.py",
        RATES,
        ("or self.parameters[name].ndim >= 2]\n        others", "or self.parameters[name].ndim >= 1]\n        others"),
        ("self._update(group, rate, 0.0, eps)", "self._update(group, rate, self.settings.weight_decay, eps)"),
        ("eps / math.sqrt(1 - beta ** (count + 1))", "eps"),
    ),
    *_of(
        "training/loop.py",
        LOOP,
        ("progress.worse >= settings.patience", "progress.worse > settings.patience"),
        ("step % every == 0", "step % every == 1"),
    ),
    *_of(
        "training/run_checkpoints.py",
        LOOP,
        ("loss < self.best_loss", "loss <= self.best_loss"),
        ("best_step=self.step, worse=0", "best_step=self.step"),
    ),
    *_of(
        "models/cpm_bee/model.py",
        BEE,
        (
            "(queries.sample_ids == 0)[:, :, None] | same_span(queries.sample_ids, keys.sample_ids)",
            "same_span(queries.sample_ids, keys.sample_ids)",
        ),
        ("by_sample = (queries.sample_ids == 0)", "by_sample = (queries.sample_ids >= 0)"),
        (
            "keys.positions[:, None, :] <= queries.positions[:, :, None]",
            "keys.positions[:, None, :] < queries.positions[:, :, None]",
        ),
        ("(~queries.is_context[:, :, None] & is_earlier)", "is_earlier"),
        ("& by_sample & same_span(queries.spans, keys.spans) & exists", "& by_sample & exists"),
        ("& same_span(queries.spans, keys.spans)\n    starts", "\n    starts"),
        ("queries.segments * queries.num_segments + offsets", "queries.segments * queries.num_segments"),
        (".long(), OTHER_SAMPLE)", ".long(), SAME_SEGMENT)"),
        ("self.num_buckets + relation - 1", "self.num_buckets + relation"),
        (
            "keys.positions[:, None, :] - queries.positions[:, :, None]",
            "queries.positions[:, :, None] - keys.positions[:, None, :]",
        ),
        ('exists=known["num_segments"] != 0', 'exists=known["num_segments"] >= 0'),
        ("positions < given.lengths[:, None]", "positions <= given.lengths[:, None]"),
    ),
    *_of(
        "layers/relative_position.py",
        BUCKETS,
        ("+ half * (offset > 0)", "+ half * (offset >= 0)"),
        (".clamp(max=half - 1)", ".clamp(max=half)"),
        ("math.log(max_distance / exact)", "math.log(max_distance)"),
    ),
    *_of(
        "layers/attention.py",
        ATTENTION,
        (".tril(keys - queries)", ".tril()"),
        ("hidden = ~visible & ~empty[..., None]", "hidden = ~visible"),
        ("part.repeat_interleave(repeats, dim=1)", "part.repeat(1, repeats, 1, 1)"),
        ("(length, 0), value=open_value", "(0, length), value=open_value"),
    ),
    *_of(
        "generate/beam.py",
        BEAM,
        ("beam.score / _scored_length(search, beam, rules) ** rules.length_exponent", "beam.score"),
        ("new.score <= found[worst].score", "new.score > found[worst].score"),
        ("len(search.found) < rules.beams", "len(search.found) <= rules.beams"),
        ("place < rules.beams or not", "not"),
        ("len(beam.tokens) - beam.cursor.is_done", "len(beam.tokens)"),
        ("len(beams[0].tokens) < rules.max_tokens", "len(beams[0].tokens) <= rules.max_tokens"),
        ("key=lambda candidate: -candidate.score", "key=lambda candidate: candidate.score"),
    ),
    *_of(
        "generate/engine.py",
        BEAM,
        ("lengths = [max(lengths)] * len(lengths)", "pass"),
        ("row.beam.fed[-window:]", "row.beam.fed"),
    ),
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
