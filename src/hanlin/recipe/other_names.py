"""Names that a user may know a setting or a value by: another trainer's, or one of before."""

from __future__ import annotations

__all__ = ["OTHER_NAMES", "OTHER_VALUES"]

OTHER_NAMES = {
    "learning_rate": "train.lr",
    "global_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "max_steps": "train.steps",
    "train_iters": "train.steps",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "warmup": "train.warmup_steps",
    "warmup_iters": "train.warmup_steps",
    "max_grad_norm": "train.clip",
    "eval_interval": "train.eval_every",
    "max_seq_length": "data.max_length",
    "lora_r": "tuning.rank",
    "pre_seq_len": "tuning.length",
    "do_sample": "generate.method",
    "lora_alpha": "tuning.alpha",
    "output_dir": "run.folder",
    "model_path": "model.base",
    "adam_beta1": "train.optimizer.betas",
    "adam_beta2": "train.optimizer.betas",
    "adam_epsilon": "train.optimizer.eps",
    "num_beams": "generate.beams",
    # What a setting was called before.
    "adamw": "train.optimizer.eps_before_correction",
    "batch_rows": "train.batch_size",
    "micro_rows": "train.micro_batch_size",
    "prefix_length": "tuning.length",
    "prefix_projection": "tuning.projection",
    "prompt": "tuning.length",
}
"""What other trainers call a setting."""

OTHER_VALUES = {
    "bmtrain": ["standard"],
    "megatron": ["floored"],
    "cpm1": ["endless"],
    "cpm2": ["once", "corpus_original"],
}
"""What values were called before they were named by what they do."""
