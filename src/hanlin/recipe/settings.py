"""The settings of a recipe: plain, typed, frozen. `recipe.reading` reads them from YAML and checks them.

The comment above a field is what users read of it (docs/settings.md, `hanlin help train.lr`): its effect and unit, and
the reason of its default. No torch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from hanlin.core.errors import HanlinError
from hanlin.core.hub import locate
from hanlin.recipe.section import Settings
from hanlin.recipe.tuning import TUNING_METHODS, TuningMethod
from hanlin.recipe.union import OneOf

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


class ModelSettings(Settings):
    # The kind of model: a family of hanlin's, or the path of a Python file that defines `family`.
    family: str
    # Weights to start from: a base folder, an original checkpoint file or folder. None: fresh weights. As adapter and
    # vocab may, it may be the name of a model (THUDM/chatglm2-6b): its folder in a local cache.
    base: Path | None = None
    # What a tuning method trained, on top of the base: our adapter folder, PEFT's, or an original's file.
    adapter: Path | None = None
    # A named size of the family; only for fresh weights.
    size: str | None = None
    # Single values over the named size (or over a base without a config file).
    config: dict[str, Any] = Field(default_factory=dict)
    # How the matrices of the blocks of a frozen base, and of what answers, lie in memory: int8: a scale per row; nf4
    # (QLoRA's): 4.13 bits per weight. They are packed one by one as they are read. None: as in the files.
    quantise: Literal["nf4", "int8"] | None = None
    # Vocabulary file or folder of the tokenizer. None: the base folder's own.
    vocab: Path | None = None

    @field_validator("base", "adapter", "vocab", mode="after")
    @classmethod
    def _in_a_cache(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        try:
            return None if value is None else locate(value, whole=info.field_name != "vocab")
        except HanlinError as error:
            raise ValueError(str(error)) from None


class DataSettings(Settings):
    # Training files, folders of files, or patterns (data/*.jsonl): JSON, CSV, Parquet, Arrow (docs/data.md); read in
    # this order, one after the other.
    train: tuple[Path, ...] = ()
    # In place of train: CPM-Bee's JSON list of data sets, which are read by weight (docs/data.md).
    mixture: Path | None = None
    # Files for the evaluation during training.
    eval: tuple[Path, ...] = ()
    # The first share of the rows of each entry of train that is read.
    train_share: float = Field(default=1.0, gt=0, le=1)
    # The first share of the rows of each entry of eval that is read.
    eval_share: float = Field(default=1.0, gt=0, le=1)
    # Only the first n records of each training file. None: all.
    train_limit: int | None = Field(default=None, gt=0)
    # Pretraining: shares of train, valid and test among the documents ("949,50,1"). data.train (and data.eval, if the
    # valid part is not wanted) then name corpora: prefixes of .bin and .idx files, or texts and files of rows with a
    # text. A row is a window of max_length tokens over them. None: the files hold records.
    split: str | None = None
    # The key or column of the text in rows of corpora.
    text_key: str = "text"
    # How much is read from each of several corpora, in their order. Empty: as much as it has tokens.
    weights: tuple[NonNegative, ...] = ()
    # Windows of the valid part that an evaluation reads. None: all.
    eval_windows: int | None = Field(default=None, gt=0)
    # Keys of a record from those of a raw row: {"<ans>": "$text", "task": "..."}, or a Python file whose function
    # transform(data, num_sample, r) returns the record (docs/data.md). Empty: the rows are records.
    transform: dict[str, Any] | Path = Field(default_factory=dict)
    # Form of the rows: auto: told from their keys; records: the family's own; or one of data/forms, whatever the keys.
    format: Literal["auto", "records", "alpaca", "sharegpt", "messages", "prompt_completion", "text", "preference"] = (
        "auto"
    )
    # How the family reads records: column names, chat template, ... Each family has options of its own.
    options: dict[str, Any] = Field(default_factory=dict)
    # Tokens per row that the model sees at once.
    max_length: int = Field(default=1024, gt=0, le=2**24)
    # A record longer than max_length: stop, leave it out, shorten its longest text, or make several of it.
    overlong: Literal["error", "drop", "truncate", "split"] = "error"
    # A record that cannot be encoded: stop and list all of them, or leave it out and count.
    bad_rows: Literal["error", "drop"] = "error"
    # Put several samples into one row; they never see each other.
    pack: bool = True
    # New order in every epoch, drawn from run.seed; once: one order, which all epochs repeat (as CPM-2's program does).
    shuffle: Literal[True, False, "once"] = True
    # Probabilities of 0, 1, 2, ... other samples shown as worked examples before a sample (CPM-Bee).
    in_context: tuple[NonNegative, ...] = Field(default=(1.0,), min_length=1)
    # Tokenised data are kept here under a fingerprint of content and settings.
    cache: Path = Path("~/.cache/hanlin")

    @property
    def trained(self) -> tuple[Path, ...]:
        """The files that are trained on, or the list that names them."""
        return self.train if self.mixture is None else (self.mixture,)

    @property
    def told_length(self) -> str:
        """What max_length is, in a message."""
        return f"data.max_length is {self.max_length}"


class OptimizerSettings(Settings):
    """What the settings of all optimizers have in common."""

    # What turns gradients into changes of the weights: an optimizer of hanlin's, or a Python file named by its path.
    name: str


class ObjectiveSettings(Settings):
    """What the settings of all objectives have in common."""

    # What training makes smaller: likelihood: of what the rows say; dpo, kto: learn which of two answers is preferred;
    # distill: imitate a teacher; or a Python file named by its path.
    name: str


OBJECTIVES = OneOf("hanlin.training.objectives", key="name", exports="objective", default="likelihood")
OPTIMIZERS = OneOf("hanlin.training.optimizers", key="name", exports="optimizer", default="adamw")


class TrainSettings(Settings):
    # Optimizer steps; give this or epochs.
    steps: int | None = Field(default=None, gt=0, le=10**8)
    # Passes over the training data.
    epochs: float | None = Field(default=None, gt=0, le=10**5)
    # Rows per optimizer step, over all ranks.
    batch_size: int = Field(default=8, gt=0, le=10**7)
    # Rows per forward pass of one rank; batch_size must be a multiple. None: batch_size.
    micro_batch_size: int | None = Field(default=None, gt=0)
    # Peak learning rate (noam: see docs/recipes.md, its peak is lr / sqrt(warmup_steps)).
    lr: float = Field(default=1e-4, gt=0)
    # The curve by which the rate falls after the warm-up (docs/recipes.md has the formulas).
    schedule: Literal["noam", "linear", "cosine", "exponential", "constant"] = "cosine"
    # How the rate falls: standard: from the warm-up's end to decay_steps (CPM-Bee); floored: over decay_steps, until it
    # stops at a floor (CPM-1's pretraining); endless: likewise, without a stop (CPM-1's fine-tuning). The last two
    # count steps from 0 and know no noam.
    schedule_form: Literal["standard", "floored", "endless"] = "standard"
    # Steps in which the rate rises from 0.
    warmup_steps: int = Field(default=0, ge=0)
    # The same as a share of decay_steps (floored and endless only); None: warmup_steps.
    warmup_share: Fraction | None = None
    # Below it the rate does not fall after warming up (floored only).
    min_lr: float = Field(default=0.0, ge=0)
    # Step at which linear and cosine reach their end. None: just after the last step.
    decay_steps: int | None = Field(default=None, gt=0)
    # True: the first step has the rate of step 0, which is 0 (as BMTrain does it).
    first_step_at_zero: bool = False
    # The optimizer: its name, or a section with its own settings.
    optimizer: Annotated[OptimizerSettings, OPTIMIZERS] = Field(default_factory=OPTIMIZERS.make_default)
    # The objective: its name, or a section with its own settings.
    objective: Annotated[ObjectiveSettings, OBJECTIVES] = Field(default_factory=OBJECTIVES.make_default)
    # Largest norm of all gradients together; None: no clipping.
    clip: float | None = Field(default=1.0, gt=0)
    # Denominator of the loss: token: all loss tokens of the step; batch: mean of the means of each forward pass
    # (as the original CPM-Bee does it).
    loss_mean: Literal["token", "batch"] = "token"
    # Arithmetic of the forward and backward pass, and of answers. Trained weights have weight_dtype.
    # auto: bf16 where the device has it, fp16 on other CUDA and NPU devices, fp32 elsewhere; a run keeps what it was.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # Number format of trained weights and their gradients, where the base is trained. bf16: half the memory, in the
    # arithmetic of bf16 only; each step rounds them up or down by chance, since to the nearest most changes would be
    # lost.
    weight_dtype: Literal["fp32", "bf16"] = "fp32"
    # blocks: the repeated blocks are compiled by torch.compile, once for all lengths, which takes minutes before the
    # first step and a C++ compiler, on a GPU Triton; what cannot be compiled runs as before, as the log says.
    compile: Literal["none", "blocks"] = "none"
    # fp16: the first loss scale.
    loss_scale: float = Field(default=65536.0, gt=0)
    # fp16: good steps after which the loss scale doubles. None: it never changes.
    loss_scale_steps: int | None = Field(default=512, gt=0)
    # fp16: overflows until the loss scale halves, counted anew when it has doubled (Megatron and DeepSpeed: 2).
    loss_scale_hysteresis: int = Field(default=1, gt=0)
    # True: these overflows are counted anew after every good step (Megatron's and DeepSpeed's consecutive_hysteresis).
    loss_scale_consecutive: bool = False
    # fp16: the loss scale does not fall below it.
    loss_scale_min: float = Field(default=1.0, gt=0)
    # Steps between evaluations of data.eval; None: at the end only.
    eval_every: int | None = Field(default=None, gt=0)
    # Records that the model answers at each evaluation by the settings of `generate`, to see how its texts grow; the
    # answers go to samples.jsonl of the run folder.
    samples: tuple[dict[str, Any], ...] = ()
    # Evaluations without a better loss after which training ends; None: never.
    patience: int | None = Field(default=None, gt=0)
    # Steps between tables of the largest, least, spread and mean of every trained weight and its gradient, in the log
    # and in parameters.jsonl; None: none.
    inspect_every: int | None = Field(default=None, gt=0)
    # Steps between checkpoints; None: at the end only.
    save_every: int | None = Field(default=None, gt=0)
    # Go on training while a checkpoint is written; needs memory of the CPU for a copy of it.
    save_in_background: bool = False
    # Number format of the weights in best/ and last/, where the base is trained; checkpoints, which a run goes on from,
    # stay in weight_dtype. None: weight_dtype.
    save_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    # Checkpoints kept, besides the best one.
    keep: int = Field(default=2, gt=0)
    # Skipped steps (non-finite loss or gradient) in a row after which training stops.
    max_skipped: int = Field(default=10, gt=0)


class ParallelSettings(Settings):
    # Ranks among which the rows of a batch are divided; data x tensor x pipe is the number of processes. None: those
    # that tensor and pipe leave.
    data: int | None = Field(default=None, gt=0)
    # Ranks that divide every matrix, by heads and by vocabulary; it must divide the number of heads.
    tensor: int = Field(default=1, gt=0)
    # Ranks that divide the blocks, one run of them each.
    pipe: int = Field(default=1, gt=0)
    # Neighbouring data ranks that divide a mixture's experts among them; it must divide the number of data ranks.
    expert: int = Field(default=1, gt=0)
    # What a data rank holds only its share of. none: nothing; gradients: gradients and optimizer, and the weights
    # between steps (ZeRO-2); parameters: the weights within a step too (ZeRO-3). With expert > 1 the experts are
    # divided by that alone.
    shard: Literal["none", "gradients", "parameters"] = "none"
    # Gather shared weights in fp32 where train.precision is bf16 or fp16. Norms and biases then are not rounded, as
    # matrices are anyway; it takes twice the bytes on the wire, and one more copy of each matrix.
    gather_fp32: bool = False
    # Neighbouring data ranks that hold one copy together (those of a machine: hybrid sharding). None: all of them.
    shard_ranks: int | None = Field(default=None, gt=0)
    # gpipe: all forward passes, then all backward ones; 1f1b: in turns, which holds fewer activations; interleaved: in
    # turns, with several runs of blocks per rank and a shorter bubble.
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    # Runs of blocks per rank of an interleaved pipeline.
    stages_per_rank: int = Field(default=2, gt=1)
    # Parts of a data rank's rows that go through one after the other, in place of train.micro_batch_size.
    micro_batches: int | None = Field(default=None, gt=0)
    # Divide what stands between the matrices along the text as well (tensor > 1): fewer activations.
    sequence_parallel: bool = False
    # Keep weights, gradients and optimizer in the CPU's memory (shard: parameters).
    offload: bool = False
    # Compute again in the backward pass instead of keeping: full: all but a block's input; offload: likewise, and the
    # inputs are kept in the CPU's memory; selective: all but the results of matrix products.
    checkpoint_activations: Literal["none", "full", "offload", "selective"] = "none"

    @property
    def num_stages(self) -> int:
        """Runs of blocks over all ranks of the pipeline; 1: there is none."""
        return self.pipe * (self.stages_per_rank if self.schedule == "interleaved" and self.pipe > 1 else 1)


class GenerateSettings(Settings):
    """What the settings of all methods have in common; those of each are in its file of generate/methods/."""

    # How the next token is chosen: a method of hanlin's, or a Python file named by its path.
    method: str
    # Tokens of all answers of a record together.
    max_new_tokens: int = Field(default=100, gt=0, le=2**24)
    # Logits of used tokens are divided (or multiplied, below 0) by this.
    repetition_penalty: float = Field(default=1.0, ge=1)
    # Only the last n tokens count as used. None: all.
    repetition_window: int | None = Field(default=None, gt=0)
    # Taken off the logits of tokens that the answer has already.
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    # Taken off the logits of a token for each time that the answer has it already.
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    # GiB of memory for a mixture's experts: those used last stay, the others are read from disk when a token comes to
    # them; also in `evaluate`. None: all are in memory.
    expert_memory: float | None = Field(default=None, gt=0)
    # Records answered at once.
    batch_size: int = Field(default=8, gt=0, le=10**6)


GENERATE_METHODS = OneOf("hanlin.generate.methods", key="method", exports="method", default="beam")


class EvaluateSettings(Settings):
    # generate: write the answer and compare; likelihood: take the option of the record with the best mean log
    # likelihood per token; loss: mean loss per token; rank: order competing titles by their score (CPM-2's Sogou-Log);
    # classify: what a head for labels says (model.config.labels); preference: whether the chosen answer of a preference
    # row is likelier than the rejected one.
    tasks: tuple[Literal["generate", "likelihood", "loss", "rank", "classify", "preference"], ...] = ("loss",)
    # Files to score; none: data.eval.
    data: tuple[Path, ...] = ()
    # Further scores of the task generate, from 0 to 100: BLEU-4 over characters, ROUGE-1, -2 and -L over jieba's words,
    # both as the original ChatGLM2 counts them; corpus_original: Dist-3 and -4, BLEU-4, F1, ROUGE as CPM-2 counts them;
    # characters: these in their standard forms; equation: whether equations have the same value, in both forms.
    metrics: tuple[Literal["bleu4", "rouge", "corpus_original", "characters", "equation"], ...] = ()
    # Only the first n records.
    limit: int | None = Field(default=None, gt=0)


class RunSettings(Settings):
    # Everything a run writes goes here.
    folder: Path
    # All random numbers of the run come from this; numpy's generators take no larger ones.
    seed: int = Field(default=1234, ge=0, lt=2**32)
    # Where the model runs: cpu, cuda, npu, ... auto: the accelerator that torch finds, else cpu.
    device: str = "auto"
    # Kernels of attention: varlen (flash attention of samples one behind the other, without masks), flash, efficient,
    # cudnn or math (plain products, also where the kernel named does not take a call). auto: varlen where it takes the
    # call, flex (a bias pair by pair) where a bias would be large, else torch's choice, on CUDA without cuDNN, which
    # plans anew for every shape. flex: auto, with flex for every bias.
    attention: Literal["auto", "varlen", "flex", "flash", "efficient", "cudnn", "math"] = "auto"
    # CPU threads; None: torch's choice. The process dies without a word where the system refuses it so many.
    threads: int | None = Field(default=None, gt=0, le=1024)
    # Steps between lines in the log.
    log_every: int = Field(default=10, gt=0)
    # Further places that get the metrics (each needs its package).
    trackers: tuple[Literal["tensorboard", "wandb", "swanlab"], ...] = ()


class Recipe(Settings):
    """One YAML file."""

    # The family, the weights to start from, and the vocabulary.
    model: ModelSettings
    # Where a run writes, what it computes on, and the seed.
    run: RunSettings
    # The files, and how rows are made of them.
    data: DataSettings = DataSettings()
    # What of the model is trained, and how.
    tuning: Annotated[TuningMethod, TUNING_METHODS] = Field(default_factory=TUNING_METHODS.make_default)
    # Length, batch, rate and optimizer of the training, and how often it evaluates and saves.
    train: TrainSettings = Field(default_factory=TrainSettings)
    # How the model and the batch are divided among processes.
    parallel: ParallelSettings = ParallelSettings()
    # How answers are written.
    generate: Annotated[GenerateSettings, GENERATE_METHODS] = Field(default_factory=GENERATE_METHODS.make_default)
    # What is scored, and how.
    evaluate: EvaluateSettings = EvaluateSettings()
