"""Recipe -> run: every part is built here, in the order of the flow, and nowhere else; torch comes with the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.core.config import dump_recipe
from hanlin.core.errors import ConfigError
from hanlin.core.settings import PromptSettings, Recipe, TuningSettings
from hanlin.models.family import Family, LoadTokenizer, TakesPrompts, load_family, make_options

if TYPE_CHECKING:
    import torch

    from hanlin.data.loader import Loader
    from hanlin.data.prepare import Prepared
    from hanlin.data.windows import Windows
    from hanlin.evaluate.run import Metrics
    from hanlin.generate.engine import Engine
    from hanlin.parallel.place import Worker

__all__ = ["Parts", "Run", "assemble", "describe_parts", "load_data", "load_engine", "make_samples", "model_config"]

log = logging.getLogger(__name__)

Part = Literal["train", "valid", "test"]
"""Of the data: what is trained on, watched during training, and scored at the end."""


@dataclass(frozen=True)
class Parts:
    """What training, evaluation and generation share; no weights yet."""

    recipe: Recipe
    family: Family
    config: Any
    tokenizer: Any
    samples: Any


@dataclass(frozen=True)
class Run:
    """A recipe that is ready to be trained or scored."""

    parts: Parts
    resume: bool

    def train(self) -> int:
        """Train to the end of the recipe, or until a signal; return the exit code."""
        return _train(self.parts, self.resume)

    def evaluate(self) -> Metrics:
        """Score the recipe's weights on its evaluation files; all results go to `evaluation/` of the run folder."""
        return _evaluate(self.parts)


def assemble(recipe: Recipe, resume: bool = True) -> Run:
    """The run of a checked recipe; resume: go on from its newest checkpoint if there is one."""
    return Run(describe_parts(recipe), resume)


def describe_parts(recipe: Recipe) -> Parts:
    """Family, configuration, tokenizer and samples of a recipe.

    Raises: ConfigError, CheckpointError.
    """
    family = load_family(recipe.model.family)
    tokenizer = family.tokenizer(_vocab_path(recipe))
    config = model_config(recipe, family, tokenizer.vocab_size)
    return Parts(recipe, family, config, tokenizer, make_samples(recipe, family, tokenizer, config))


def make_samples(recipe: Recipe, family: Family, tokenizer: Any, config: Any) -> Any:
    """The family's samples; with soft prompts in their rows if the recipe tunes, or its adapter holds, such.

    Raises: ConfigError.
    """
    samples = family.samples(tokenizer, config, make_options(family, recipe.data.options))
    prompts = _soft_prompts(recipe, family)
    if prompts is None:
        return samples
    if not isinstance(samples, TakesPrompts):
        raise ConfigError(f"tuning.method: the rows of {family.name} have no place for soft prompts; choose lora")
    return samples.with_prompts(prompts)


def _soft_prompts(recipe: Recipe, family: Family) -> PromptSettings | None:
    """What is known of the soft prompts: the recipe's word, else that of the adapter."""
    if recipe.tuning.method == "prompt":
        return recipe.tuning.prompt
    if recipe.model.adapter is None:
        return None
    from hanlin.checkpoint.delta import read_adapter_settings

    settings = read_adapter_settings(recipe.model.adapter, family)
    return settings.prompt if settings.method == "prompt" else None


def model_config(recipe: Recipe, family: Family, tokens: int) -> Any:
    """The base's configuration or the named size, with the recipe's single values over it.

    A fresh model without a stated vocab_size gets one row per token of the tokenizer.
    """
    changes = recipe.model.config
    if recipe.model.base is not None:
        from hanlin.formats.convert import read_config

        return read_config(recipe.model.base, family, changes)
    start = family.config() if recipe.model.size is None else family.sizes[recipe.model.size]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return replace(start, **{"vocab_size": tokens, **values})


def load_data(recipe: Recipe, parts: Parts, part: Part) -> Prepared | Windows | None:
    """Tokenised records, from the cache where they lie there, or windows of corpora; None where there are none.

    Raises: ConfigError, DataError.
    """
    if recipe.data.split is not None:
        return _windows(recipe, parts, part)
    from hanlin.data.prepare import prepare

    data, is_training = recipe.data, part == "train"
    files = data.train if is_training else data.eval
    if not files:
        return None
    return prepare(
        files,
        parts.samples,
        data,
        tokenizer=parts.tokenizer,
        share=data.train_share if is_training else data.eval_share,
        limit=data.train_limit if is_training else None,
    )


def _windows(recipe: Recipe, parts: Parts, part: Part) -> Windows | None:
    from hanlin.data.megatron_index import split_shares
    from hanlin.data.windows import Wanted, open_windows

    data, train = recipe.data, recipe.train
    is_own = part != "train" and bool(data.eval)  # files that are held out as a whole
    split, name = ("1", "train") if is_own else (data.split or "", part)
    if not split_shares(split)[name]:
        return None
    wanted = Wanted(
        split,
        name,
        data.max_length,
        recipe.run.seed,
        count=train.steps * train.batch_rows if part == "train" and train.steps else None,
        limit=None if part == "train" else data.eval_windows,
        weights=() if is_own else data.weights,
    )
    corpora = [_corpus(path, parts) for path in (data.eval if is_own else data.train)]
    return open_windows(corpora, parts.samples, wanted, parts.tokenizer.vocab_size, data.cache)


def _corpus(path: Path, parts: Parts) -> Path:
    """The prefix of indexed data; texts are made such in the cache, unless they lie there from an earlier run."""
    from hanlin.data.indexing import Encoding, end_id, index_in_cache
    from hanlin.data.windows import is_corpus

    if is_corpus(path):
        return path
    load = LoadTokenizer(parts.family.name, _vocab_path(parts.recipe))
    return index_in_cache(path, Encoding(load, end=end_id(parts.tokenizer)), parts.recipe.data.cache)


def load_engine(recipe: Recipe, parts: Parts | None = None) -> Engine:
    """The recipe's model, ready to write answers.

    Raises: ConfigError, CheckpointError.
    """
    from hanlin.core.ranks import pick_device, set_threads
    from hanlin.generate.engine import Engine

    parts = parts or describe_parts(recipe)
    set_threads(recipe.run.threads)
    device = pick_device(recipe.run.device)
    model = _model(parts).to(device)
    max_length = getattr(parts.config, "max_length", None)
    manner = parts.family.beam_manner
    return Engine(model, parts.samples, device, recipe.train.precision, max_length=max_length, beam_manner=manner)


# --- the model ---


def _model(parts: Parts) -> torch.nn.Module:
    """The base with the recipe's adapter, frozen, in the precision of the recipe."""
    from hanlin.parallel.place import DTYPES

    model = _base_model(parts, DTYPES[parts.recipe.train.precision])
    adapter = parts.recipe.model.adapter
    if adapter is not None:
        from hanlin.checkpoint.delta import load_adapter
        from hanlin.tuning.apply import apply_tuning

        apply_tuning(model, _adapter_settings(parts, adapter), parts.family)
        load_adapter(model, adapter, parts.family)
    return model.requires_grad_(False).eval()


def _adapter_settings(parts: Parts, adapter: Path) -> TuningSettings:
    """Those that the adapter states; how soft prompts are masked, an original's file leaves to the recipe."""
    from hanlin.checkpoint.delta import read_adapter_settings

    tuning = parts.recipe.tuning
    return tuning if tuning.method == "prompt" else read_adapter_settings(adapter, parts.family)


def _base_model(parts: Parts, dtype: torch.dtype) -> torch.nn.Module:
    """The weights that the recipe starts from: a checkpoint's, or fresh ones from its seed."""
    import torch

    from hanlin.formats.convert import load_into

    with torch.device("meta"):
        model = parts.family.model()(parts.config)
    if parts.recipe.model.base is not None:
        load_into(model, parts.recipe.model.base, parts.family, dtype=dtype)
        return model
    model = model.to_empty(device="cpu")
    model.init_weights(torch.Generator().manual_seed(parts.recipe.run.seed))
    return model.to(dtype)


def _tuned_model(parts: Parts) -> torch.nn.Module:
    """The model with what the tuning method trains; the rest is frozen."""
    import torch

    from hanlin.parallel.place import DTYPES
    from hanlin.tuning.apply import apply_tuning

    recipe = parts.recipe
    model = _base_model(parts, torch.float32 if recipe.tuning.trains_base else DTYPES[recipe.train.precision])
    generator = torch.Generator().manual_seed(recipe.run.seed + 1)
    apply_tuning(model, recipe.tuning, parts.family, generator)
    if recipe.tuning.method == "prompt":
        _begin_prompts(model, parts)
    if recipe.model.adapter is not None:
        from hanlin.checkpoint.delta import load_adapter

        load_adapter(model, recipe.model.adapter, parts.family)
    return model


def _begin_prompts(model: torch.nn.Module, parts: Parts) -> None:
    """Give soft prompts the first values that the recipe asks for; they are random numbers already."""
    from hanlin.checkpoint.soft_prompt import find_prompts, set_prompts
    from hanlin.tuning.soft_prompt import begin_with_tokens, first_tokens

    prompt, base = parts.recipe.tuning.prompt, parts.recipe.model.base
    if prompt.init == "vocabulary":
        begin_with_tokens(model, first_tokens(prompt, parts.tokenizer))
    elif prompt.init == "checkpoint" and base is not None and (found := find_prompts(base, parts.family)) is not None:
        set_prompts(model, found, base)


def _vocab_path(recipe: Recipe) -> Path:
    path = recipe.model.vocab or recipe.model.base
    if path is None:
        raise ConfigError("model.vocab: name the vocabulary file (there is no model.base folder to take it from)")
    return path


# --- training ---


def _train(parts: Parts, resume: bool) -> int:
    from hanlin.checkpoint.state import Checkpointer, recipe_identity
    from hanlin.core.ranks import pick_device, seed_everything, set_threads, start_log
    from hanlin.evaluate.run import weights_fingerprint
    from hanlin.parallel.place import place
    from hanlin.train.keeper import Keeper
    from hanlin.train.loop import count_steps, train
    from hanlin.train.optim import AdamW
    from hanlin.train.step import Step, mean_loss
    from hanlin.train.watch import Watch

    recipe, folder = parts.recipe, parts.recipe.run.folder
    _open_folder(recipe, resume)
    console = start_log(folder)
    threads = set_threads(recipe.run.threads)
    seed_everything(recipe.run.seed)
    device = pick_device(recipe.run.device)
    loader, held_out = _loader(parts, "train", console), _loader(parts, "valid", console)
    if loader is None:
        raise ConfigError("data.split: its first number is 0, so there is nothing to train on")
    worker = place(
        _tuned_model(parts),
        device,
        recipe.train.precision,
        checkpoint_activations=recipe.parallel.checkpoint_activations != "none",
    )
    optimiser = AdamW(worker.parameters, recipe.train)
    step = Step(worker, optimiser, recipe.train, count_steps(recipe.train, loader), loader.where)
    _log_start(parts, worker, step.total_steps, device, threads)
    identity = recipe_identity(recipe)
    if not recipe.tuning.trains_base:
        # The frozen base is not in a checkpoint; it must be the one that the checkpoint was trained on.
        identity["model.base weights"] = weights_fingerprint(worker.model)
    checkpointer = Checkpointer(folder / "checkpoints", recipe.train.keep, identity)
    outcome = train(
        step,
        loader,
        settings=recipe.train,
        keeper=Keeper(folder, step, loader, checkpointer, lambda target: _export(parts, worker.model, target)),
        watch=Watch(folder, log_every=recipe.run.log_every, console=console, trackers=recipe.run.trackers),
        evaluate=None if held_out is None else lambda: {"loss": mean_loss(worker, held_out.once())},
    )
    return outcome.exit_code


def _open_folder(recipe: Recipe, resume: bool) -> None:
    """Make the run folder and write the recipe into it; a restart puts earlier checkpoints aside."""
    from hanlin.data.files import replaced_file

    folder = recipe.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    if not resume and checkpoints.exists():
        number = next(n for n in range(1, 10_000) if not (folder / f"checkpoints.{n}").exists())
        checkpoints.rename(folder / f"checkpoints.{number}")
    with replaced_file(folder / "config.yaml") as stream:
        stream.write(dump_recipe(recipe).encode())


def _loader(parts: Parts, part: Part, console: Any) -> Loader | None:
    from hanlin.data.loader import Loader
    from hanlin.data.report import render_report

    recipe, is_training = parts.recipe, part == "train"
    prepared = load_data(recipe, parts, part)
    if prepared is None:
        return None
    console.print(render_report(prepared.report, f"data.{'train' if is_training else 'eval'}"))
    has_windows = recipe.data.split is not None
    # The windows of a given number of steps are in random order already; it is the original's.
    is_ordered = has_windows and recipe.train.steps is not None
    return Loader(
        prepared,
        parts.samples,
        max_length=recipe.data.max_length,
        batch_rows=recipe.train.batch_rows if is_training else recipe.train.micro_rows or recipe.train.batch_rows,
        seed=recipe.run.seed,
        shuffle=is_training and not is_ordered and recipe.data.shuffle,
        pack=recipe.data.pack and not has_windows,
        in_context=recipe.data.in_context if is_training else (1.0,),
    )


def _log_start(parts: Parts, worker: Worker, steps: int, device: torch.device, threads: int) -> None:
    recipe = parts.recipe
    trained = sum(weight.numel() for weight in worker.parameters.values())
    total = sum(weight.numel() for weight in worker.model.parameters())
    log.info(
        "run family=%s tuning=%s trained=%s of %s parameters precision=%s device=%s threads=%d",
        parts.family.name, recipe.tuning.method, f"{trained:,}", f"{total:,}", recipe.train.precision, device, threads,
    )  # fmt: skip
    log.info(
        "steps=%d rows_per_step=%d max_tokens_per_step=%s folder=%s",
        steps, recipe.train.batch_rows, f"{recipe.train.batch_rows * recipe.data.max_length:,}", recipe.run.folder,
    )  # fmt: skip


def _export(parts: Parts, model: torch.nn.Module, target: Path) -> None:
    """Write a base folder or, when the base is frozen, an adapter folder; the one in the other if both are trained."""
    from hanlin.checkpoint.delta import ADAPTER_FOLDER, save_adapter
    from hanlin.formats.convert import base_parameters, save_base
    from hanlin.formats.files import published

    tuning = parts.recipe.tuning
    if not tuning.trains_base:
        save_adapter(model, tuning, target, overwrite=True)
        return
    with published(target, overwrite=True) as beside:
        save_base(beside, parts.family, parts.config, base_parameters(model), parts.tokenizer)
        if tuning.method != "full":
            save_adapter(model, tuning, beside / ADAPTER_FOLDER)


# --- evaluation ---


def _evaluate(parts: Parts) -> Metrics:
    from hanlin.core.ranks import start_log
    from hanlin.evaluate.run import evaluate

    recipe = parts.recipe
    start_log()
    records = _records(parts)
    engine = load_engine(recipe, parts)
    folder = recipe.run.folder / "evaluation"
    return evaluate(
        engine,
        records,
        recipe.evaluate.tasks,
        recipe.generate,
        folder,
        seed=recipe.run.seed,
        metrics=recipe.evaluate.metrics,
    )


def _records(parts: Parts) -> list[Any]:
    """The records to score, in the order of the files."""
    from hanlin.data.expand import open_part

    recipe = parts.recipe
    share = 1.0 if recipe.evaluate.data else recipe.data.eval_share
    paths = recipe.evaluate.data or recipe.data.eval
    sources = [open_part(path, recipe.data, parts.samples, share=share) for path in paths]
    records = [source[number] for source in sources for number in range(len(source))]
    return records[: recipe.evaluate.limit]
