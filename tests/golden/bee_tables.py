"""The original's rows share a table of (token, sub); our prompts have one each: the same entries, in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from hanlin.core.batch import Prompt
from hanlin.models.cpm_bee.prompts import Entry


def shared_entries(prompts: Sequence[Prompt]) -> list[Entry]:
    """Of the original's table of a batch."""
    return list(dict.fromkeys(entry for prompt in prompts for entry in prompt.state.slots.entries))


def shared_ids(prompt: Prompt, entries: Sequence[Entry]) -> dict[int, int]:
    """Ids of the logits: a prompt's own -> those of the shared table."""
    first = prompt.state.slots.vocab_size
    return {first + own: first + entries.index(entry) for own, entry in enumerate(prompt.state.slots.entries)}


def strings_of(prompt: Prompt) -> dict[Entry, str]:
    """What each (token, sub) that an answer may quote stands for."""
    slots = prompt.state.slots
    return {
        slots.entries[id - slots.vocab_size] if id >= slots.vocab_size else (id, 0): text
        for id, text in prompt.state.by_id.items()
    }
