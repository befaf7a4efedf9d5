"""Recipe -> run: every part is built here, in the order of the flow, and nowhere else; torch comes with the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.checkpoint.saved import CHECKPOINTS, checkpoint_folders
from hanlin.core.collectives import call_on_main, entered_on_main, main_first
from hanlin.core.device import pick_device, set_threads
from hanlin.core.errors import ConfigError
from hanlin.core.files import remove_leftovers
from hanlin.core.locks import held
from hanlin.core.logging import start_log
from hanlin.core.progress import counted
from hanlin.core.ranks import group_of_one, read_ranks
from hanlin.core.seeds import seed_everything
from hanlin.data.prepare import hash_tokenizer
from hanlin.formats.fingerprint import Fingerprint
from hanlin.models.family import LoadTokenizer
from hanlin.recipe.settings import Recipe
from hanlin.run.components import Components, blaming, build_components, vocab_path
from hanlin.run.folder import Start, open_run_folder, train_settings, with_run_precision
from hanlin.run.memory import answering_memory, training_memory
from hanlin.run.precision import known_peak, saying, with_precision
from hanlin.run.short_runs import short_run
from hanlin.run.starts import note_start
from hanlin.run.teacher import TEACHER, teacher_components
from hanlin.training.optimizer import build_optimizer

if TYPE_CHECKING:
    import torch

    from hanlin.checkpoint.state import Checkpointer
    from hanlin.data.loader import Loader
    from hanlin.data.pretraining.windows import CorpusWindows
    from hanlin.data.report import DataReport
    from hanlin.data.sample_source import SampleSource
    from hanlin.evaluation.results import EvaluatedFiles
    from hanlin.evaluation.run import Metrics
    from hanlin.parallel.mesh import Degrees
    from hanlin.parallel.parallel_model import ParallelModel
    from hanlin.training.loop import Outcome, WriteSamples
    from hanlin.training.needed_flops import NeededFlops
    from hanlin.training.objective import Objective
    from hanlin.training.run_logger import RunLogger

log = logging.getLogger(__name__)

DataPart = Literal["train", "valid", "test"]
"""Of the data: what is trained on, watched during training, and scored at the end."""


@dataclass(frozen=True)
class Run:
    """A recipe that is ready to be trained or scored."""

    components: Components
    start: Start = "resume"

    def train(self) -> Outcome:
        """Train to the end of the recipe, or until a signal.

        Raises: ConfigError when another process has the run folder; what training raises.
        """
        recipe = self.components.recipe
        alone = entered_on_main(_alone_in(recipe.run.folder, CHECKPOINTS))
        with alone, training_memory(recipe), _group_for_offload(recipe):
            # The main rank looks for all, before it makes the folder ready.
            precision = call_on_main(lambda: with_run_precision(recipe, self.start).train.precision)
            components = replace(self.components, recipe=saying(recipe, precision))
            return _train(with_precision(components), self.start)

    def evaluate(self) -> Metrics:
        """Score the recipe's weights on its evaluation files; all results go to `evaluation/` of the run folder.

        On several processes all must call it, and all get the scores.
        """
        recipe = self.components.recipe
        with entered_on_main(_alone_in(recipe.run.folder / "evaluation")), answering_memory(recipe):
            return _evaluate(with_precision(self.components))


@contextmanager
def _alone_in(folder: Path, parts: str = "**/") -> Iterator[None]:
    """Hold a folder for this process, and remove what killed ones have left in it and in its `parts` (a pattern).

    Raises: ConfigError when another process has it.
    """
    with held(folder):
        for inner in (folder, *folder.glob(parts)):
            remove_leftovers(inner)
        yield


def assemble(recipe: Recipe, start: Start = "resume") -> Run:
    """The run of a checked recipe; start: how training begins where its folder holds a run."""
    return Run(build_components(recipe), start)


def load_data(recipe: Recipe, components: Components, part: DataPart) -> SampleSource | None:
    """Tokenised records, from the cache where they lie there, or windows of corpora; None where there are none.

    Raises: ConfigError, DataError.
    """
    if recipe.data.split is not None:
        return _windows(recipe, components, part)
    from hanlin.data.mixture import open_mixture

    data, is_training = recipe.data, part == "train"
    if is_training and data.mixture is not None:
        return open_mixture(data, components.processor, tokenizer=components.tokenizer)
    files = data.train if is_training else data.eval
    if not files:
        return None
    return _preparing(recipe)(
        files,
        components.processor,
        data,
        tokenizer=components.tokenizer,
        share=data.train_share if is_training else data.eval_share,
        limit=data.train_limit if is_training else None,
    )


def _preparing(recipe: Recipe) -> Callable[..., SampleSource]:
    """What makes samples of the rows that the objective learns from."""
    from hanlin.data.pairs import prepare_pairs
    from hanlin.data.prepare import prepare
    from hanlin.training.objective import find_objective

    answers = find_objective(recipe.train.objective).answers
    return partial(prepare_pairs, sides=answers) if answers else prepare


def _windows(recipe: Recipe, components: Components, part: DataPart) -> CorpusWindows | None:
    from hanlin.data.pretraining.windows import CorpusPart, WindowRequest, open_windows

    data, train = recipe.data, recipe.train
    found = CorpusPart.of(data, part)
    if found is None:
        return None
    wanted = WindowRequest(
        found.split,
        found.part,
        data.max_length,
        recipe.run.seed,
        count=train.steps * train.batch_size if part == "train" and train.steps else None,
        limit=data.eval_windows if part == "valid" else None,
        weights=found.weights,
    )
    corpora = [_corpus(path, components) for path in found.files]
    return open_windows(corpora, components.processor, wanted, components.tokenizer.vocab_size, data.cache)


def _corpus(path: Path, components: Components) -> Path:
    """The prefix of indexed data; texts are made such in the cache, unless they lie there from an earlier run."""
    from hanlin.data.pretraining.indexing import Encoding, end_id, index_in_cache
    from hanlin.data.pretraining.windows import is_corpus

    if is_corpus(path):
        return path
    load = LoadTokenizer(components.recipe.model.family, vocab_path(components.recipe))
    encoding = Encoding(load, key=components.recipe.data.text_key, end=end_id(components.tokenizer))
    return index_in_cache(path, encoding, components.recipe.data.cache)


# --- training ---


def _train(components: Components, start: Start) -> Outcome:
    from hanlin.parallel.mesh import Degrees
    from hanlin.run.export import export
    from hanlin.run.weights import parallelize_tuned
    from hanlin.training.loop import count_steps, train
    from hanlin.training.run_checkpoints import RunCheckpoints
    from hanlin.training.step import Step

    recipe, folder, ranks = components.recipe, components.recipe.run.folder, read_ranks()
    degrees = Degrees.of(recipe.parallel, ranks.world)
    changed, console = call_on_main(lambda: open_run_folder(recipe, start)), start_log(folder)
    if changed:
        log.warning("settings that are others than at the last start: %s", "; ".join(changed))
    threads, device = set_threads(recipe.run.threads), pick_device(recipe.run.device)
    loader, held_out, reports = _loaders(components, console, degrees, ranks.rank)
    # Ranks that compute the same rows drop the same; others must not.
    seed_everything(recipe.run.seed + degrees.seed_offset(ranks.rank))
    # It must be the one that the checkpoint was trained on: a frozen one is not in it, of another one it tells the run.
    base = Fingerprint() if recipe.model.base or not recipe.tuning.trains_base else None
    parallel_model = parallelize_tuned(components, device, ranks.world, base)
    factors, seed = recipe.tuning.rate_factors, recipe.run.seed
    optimizer = build_optimizer(parallel_model.parameters, recipe.train.optimizer, factors, seed)
    teacher, teacher_identity = _teacher(components, device)
    objective = _begin_objective(recipe, parallel_model, loader, held_out, teacher)
    (peak, needed), total = _flops(components, device), count_steps(recipe.train, loader)
    step = Step(parallel_model, optimizer, recipe.train, total, loader.where, objective, needed)
    _log_start(components, parallel_model, step.total_steps, device, threads)
    note_start(folder, device, threads, reports)
    _log_short(recipe, step.total_steps)
    identity = None if base is None else base.value(parallel_model.mesh.gather("all", base.digests))
    return train(
        step,
        loader,
        settings=recipe.train,
        checkpoints=RunCheckpoints(
            folder,
            step,
            loader,
            _checkpointer(components, {"model.base": identity, TEACHER: teacher_identity}, start),
            lambda target: export(components, parallel_model, target),
        ),
        logger=_run_logger(recipe, console, peak, writes=ranks.is_main),
        evaluate=None if held_out is None else _evaluating(objective, parallel_model, held_out, recipe),
        write_samples=_write_samples(components, parallel_model),
    )


def _flops(components: Components, device: torch.device) -> tuple[float | None, NeededFlops | None]:
    """FLOP/s that all devices have at most, and what the model needs of them; neither where that is not known."""
    from hanlin.run.weights import empty_tuned_model
    from hanlin.training.needed_flops import needed_flops

    peak = known_peak(components.recipe, device, read_ranks().world)
    return peak, None if peak is None else needed_flops(empty_tuned_model(components))


def _teacher(components: Components, device: torch.device) -> tuple[ParallelModel | None, str | None]:
    """The model that the objective imitates, if it does, and the fingerprint of its weights.

    Raises: ConfigError, CheckpointError.
    """
    from hanlin.run.weights import parallelize_frozen

    found = teacher_components(components)
    if found is None:
        return None, None
    weights = Fingerprint()
    with blaming(TEACHER):
        teacher = parallelize_frozen(found, device, weights)
    log.info(
        "teacher=%s parameters=%s precision=%s quantise=%s %.3g GB on this rank",
        found.recipe.model.adapter or found.recipe.model.base, f"{teacher.count_parameters()[1]:,}",
        found.recipe.train.precision, found.recipe.model.quantise or "none", teacher.num_bytes / 1e9,
    )  # fmt: skip
    return teacher, weights.value(teacher.mesh.gather("all", weights.digests))


def _begin_objective(
    recipe: Recipe,
    parallel_model: ParallelModel,
    loader: Loader,
    held_out: Loader | None,
    teacher: ParallelModel | None,
) -> Objective:
    """The objective, of a model that is as the run began, or as a checkpoint will fill it."""
    from hanlin.training.objective import RunStart, build_objective

    folder, objective = recipe.run.folder, build_objective(recipe.train.objective)
    loaders = {"train": loader} if held_out is None else {"train": loader, "valid": held_out}
    goes_on = bool(checkpoint_folders(folder / CHECKPOINTS))
    objective.begin(parallel_model, loaders, RunStart(folder, goes_on, recipe.train.micro_batch_size, teacher))
    return objective


def _evaluating(
    objective: Objective, parallel_model: ParallelModel, held_out: Loader, recipe: Recipe
) -> Callable[[], dict[str, float]]:
    from hanlin.data.ahead import Ahead

    def evaluate() -> dict[str, float]:
        with closing(Ahead(held_out.once())) as batches:
            # Without a bar, since a run has a line on the terminal.
            shown = counted(batches, "Evaluating", held_out.steps_per_epoch(), has_bar=False)
            return objective.evaluate(parallel_model, shown, recipe.train.micro_batch_size)

    return evaluate


def _group_for_offload(recipe: Recipe) -> AbstractContextManager[None]:
    """What keeps its weights in the CPU's memory shards them, also in a process that is alone."""
    is_needed = recipe.parallel.offload and read_ranks().world == 1
    return group_of_one(pick_device(recipe.run.device)) if is_needed else nullcontext()


def _loaders(
    components: Components, console: Any, degrees: Degrees, rank: int
) -> tuple[Loader, Loader | None, dict[str, DataReport]]:
    """Of what is trained on, and of what is watched, if anything is; and the reports on both, which are shown.

    Raises: ConfigError, DataError.
    """
    from hanlin.data.report import render_report

    loaders, reports = {}, {}
    with main_first():
        for part in ("train", "valid"):
            source, name = load_data(components.recipe, components, part), "train" if part == "train" else "eval"
            if source is not None:
                reports[name] = source.report
                console.print(render_report(reports[name], f"data.{name}"))
                shares = {"rank": degrees.data_rank(rank), "world": degrees.data}
                loaders[name] = make_loader(components, source, is_training=part == "train", **shares)
    if "train" not in loaders:
        raise ConfigError("data.split: its first number is 0, so there is nothing to train on")
    return loaders["train"], loaders.get("eval"), reports


def _checkpointer(components: Components, weights: Mapping[str, str | None], start: Start) -> Checkpointer:
    """weights: by the setting that names them their fingerprint, None where there are none."""
    from hanlin.checkpoint.state import Checkpointer, recipe_identity

    recipe = components.recipe
    identity = recipe_identity(recipe) | {"model.vocab content": hash_tokenizer(components.tokenizer)}
    identity |= {f"{key} weights": value for key, value in weights.items() if value is not None}
    if recipe.model.base is not None:  # the recipe does not say what its config.json does
        identity["model.base config"] = asdict(components.config)
    return Checkpointer(
        recipe.run.folder / CHECKPOINTS,
        recipe.train.keep,
        identity,
        settings=train_settings(recipe),
        may_change=start == "change",
        in_background=recipe.train.save_in_background,
    )


def _run_logger(recipe: Recipe, console: Any, peak_flops: float | None, *, writes: bool) -> RunLogger:
    from hanlin.training.run_logger import RunLogger

    run = recipe.run
    return RunLogger(
        run.folder,
        log_every=run.log_every,
        console=console,
        trackers=run.trackers,
        writes=writes,
        peak_flops=peak_flops,
    )


def _write_samples(components: Components, parallel_model: ParallelModel) -> WriteSamples | None:
    from hanlin.evaluation.sample_texts import SampleTexts
    from hanlin.run.weights import training_engine

    recipe, is_main = components.recipe, parallel_model.mesh.is_main
    if not recipe.train.samples:
        return None
    return SampleTexts(
        training_engine(components, parallel_model),
        recipe.train.samples,
        recipe.generate,
        seed=recipe.run.seed,
        folder=recipe.run.folder if is_main else None,
    ).write


def make_loader(
    components: Components, source: SampleSource, *, is_training: bool, rank: int = 0, world: int = 1
) -> Loader:
    """Batches of `load_data`'s samples; rank, world: of those that divide the rows of a batch."""
    from hanlin.data.loader import Loader

    recipe = components.recipe
    has_windows = recipe.data.split is not None
    # The windows of a given number of steps are in random order already; it is the original's.
    is_ordered = has_windows and recipe.train.steps is not None
    return Loader(
        source,
        components.processor,
        max_length=recipe.data.max_length,
        batch_size=recipe.train.batch_size,
        seed=recipe.run.seed,
        shuffle=is_training and not is_ordered and recipe.data.shuffle,
        pack=recipe.data.pack and not has_windows,
        in_context=recipe.data.in_context if is_training else (1.0,),
        rank=rank,
        world=world,
    )


def _log_start(
    components: Components, parallel_model: ParallelModel, steps: int, device: torch.device, threads: int
) -> None:
    recipe = components.recipe
    trained, total = parallel_model.count_parameters()
    _log_remark(components)
    log.info(
        "run family=%s tuning=%s trained=%s of %s parameters precision=%s device=%s threads=%d",
        components.family.name, recipe.tuning.method, f"{trained:,}", f"{total:,}", recipe.train.precision, device,
        threads,
    )  # fmt: skip
    if recipe.model.quantise is not None:
        log.info(
            "base held as %s: %.3g GB of weights on this rank", recipe.model.quantise, parallel_model.num_bytes / 1e9
        )
    log.info(
        "steps=%d rows_per_step=%d max_tokens_per_step=%s folder=%s",
        steps, recipe.train.batch_size, f"{recipe.train.batch_size * recipe.data.max_length:,}", recipe.run.folder,
    )  # fmt: skip


def _log_short(recipe: Recipe, steps: int) -> None:
    if remark := short_run(recipe.train, steps):
        log.warning(remark)


def _log_remark(components: Components) -> None:
    """Say what was told of the base from clues in its folder."""
    if components.source is not None and (remark := components.source.remark):
        log.info("model.base=%s %s", components.recipe.model.base, remark)


# --- evaluation ---


def _evaluate(components: Components) -> Metrics:
    from hanlin.evaluation.run import evaluate
    from hanlin.run.weights import load_engine

    recipe = components.recipe
    start_log()
    _log_remark(components)
    if recipe.data.split is not None:
        return _evaluate_windows(components)
    records = _records(components)
    engine = load_engine(recipe, components)
    folder = recipe.run.folder / "evaluation"
    return evaluate(
        engine,
        records,
        recipe.evaluate.tasks,
        recipe.generate,
        folder,
        seed=recipe.run.seed,
        metrics=recipe.evaluate.metrics,
        network=components.identity(),
        files=_evaluated_files(recipe, recipe.evaluate.data or recipe.data.eval),
    )


def _evaluated_files(recipe: Recipe, data: Sequence[Path]) -> EvaluatedFiles:
    from hanlin.evaluation.results import EvaluatedFiles

    weights = [path for path in (recipe.model.base, recipe.model.adapter) if path is not None]
    return EvaluatedFiles(tuple(map(str, weights)), tuple(map(str, data)))


def _evaluate_windows(components: Components) -> Metrics:
    """Perplexity on the test part or, where there is none, the valid part."""
    from hanlin.evaluation.windows import evaluate_windows
    from hanlin.run.weights import load_engine

    recipe = components.recipe
    with main_first():
        windows = _windows(recipe, components, "test") or _windows(recipe, components, "valid")
    if windows is None:
        raise ConfigError("data.split: leaves nothing for valid and test; give it three numbers: 949,50,1")
    return evaluate_windows(
        load_engine(recipe, components),
        windows,
        components.tokenizer,
        batch_size=recipe.generate.batch_size,
        folder=recipe.run.folder / "evaluation",
        network=components.identity(),
        files=_evaluated_files(recipe, recipe.data.trained),
    )


def _records(components: Components) -> list[Any]:
    """The records to score, in the order of the files, without those that data.bad_rows drops.

    Raises: ConfigError, DataError that lists the rows that cannot be scored.
    """
    from hanlin.data.bad_rows import usable_records
    from hanlin.data.expand import open_part
    from hanlin.evaluation.scorable import ScoredBy

    recipe = components.recipe
    by = ScoredBy.of(recipe, components.processor, components.config)
    by.check_tasks()
    share = 1.0 if recipe.evaluate.data else recipe.data.eval_share
    paths = recipe.evaluate.data or recipe.data.eval
    sources = [
        by.opened(lambda side, path=path: open_part(path, recipe.data, components.processor, share=share, side=side))
        for path in paths
    ]
    usable = usable_records(sources, by.check, recipe.data.bad_rows, limit=recipe.evaluate.limit)
    if usable.bad:
        shown = "; ".join(f"{where}: {reason}" for where, reason in usable.bad[:3])
        log.warning("rows left out=%d of %d, such as %s", len(usable.bad), usable.num_tried, shown)
    return usable.records
