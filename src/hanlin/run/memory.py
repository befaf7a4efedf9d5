"""Which settings need less memory: for training, and for answers."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hanlin.core.memory import telling_memory
from hanlin.recipe.settings import Recipe


def training_memory(recipe: Recipe) -> AbstractContextManager[None]:
    """Tell a lack of memory in training. Raises: OutOfMemoryError, DeviceError."""
    rows = recipe.train.micro_batch_size or recipe.train.batch_size
    return telling_memory(
        recipe.run.device,
        f"lower train.micro_batch_size (now {rows} rows) or data.max_length (now {recipe.data.max_length} tokens), "
        "or set parallel.checkpoint_activations: full; `hanlin plan` says what each needs",
    )


def answering_memory(recipe: Recipe) -> AbstractContextManager[None]:
    """Tell a lack of memory in generation and evaluation. Raises: OutOfMemoryError, DeviceError."""
    options = recipe.generate
    return telling_memory(
        recipe.run.device,
        f"lower generate.batch_size (now {options.batch_size} records) or generate.max_new_tokens (now "
        f"{options.max_new_tokens}), or set train.precision: bf16",
    )
