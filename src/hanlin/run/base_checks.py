"""What is refused, or told, of the base that a recipe names before its weights are loaded."""

from __future__ import annotations

import logging

from hanlin.core.errors import ConfigError
from hanlin.core.manifest import check_manifest
from hanlin.core.ranks import read_ranks
from hanlin.formats.format import BASE
from hanlin.formats.read_once import unread_files
from hanlin.run.components import Components

__all__ = ["hashes_while_it_loads", "refuse_changed_base", "refuse_packed_experts", "say_packing"]

log = logging.getLogger(__name__)


def refuse_packed_experts(components: Components) -> None:
    """Raises: ConfigError for experts that are read when they are needed, which nothing packs."""
    if components.recipe.model.quantise is not None and components.recipe.generate.expert_memory is not None:
        raise ConfigError("model.quantise: not with generate.expert_memory, whose experts stay as they are; remove one")


def say_packing(components: Components) -> None:
    """Tell that an adapter was trained on a base that was held otherwise than here."""
    adapter, here = components.adapter, components.recipe.model.quantise
    if adapter is not None and adapter.quantise not in (None, here):
        log.warning(
            "model.adapter was trained on a base held as %s, here it is held %s; model.quantise=%s holds it so",
            adapter.quantise,
            f"as {here}" if here else "as it lies on disk",
            adapter.quantise,
        )


def refuse_changed_base(components: Components) -> None:
    """Whichever part of it this rank reads; of files whose hash is taken while they are loaded only the size counts.

    Raises: CheckpointError for a base that is not as its manifest says.
    """
    if components.source is not None:
        later = unread_files(components.source.path) if hashes_while_it_loads(components) else ()
        check_manifest(components.source.path, later=later)


def hashes_while_it_loads(components: Components) -> bool:
    """A process that is alone reads the whole of a base of ours: but for experts that are read when they are needed."""
    source, has_all = components.source, components.recipe.generate.expert_memory is None
    return source is not None and source.format == BASE and has_all and read_ranks().world == 1
