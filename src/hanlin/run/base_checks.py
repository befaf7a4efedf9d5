"""What is refused, or told, of the base that a recipe names before its weights are loaded."""

from __future__ import annotations

import logging

from hanlin.core.errors import ConfigError
from hanlin.core.manifest import check_manifest
from hanlin.core.ranks import read_ranks
from hanlin.formats.format import BASE
from hanlin.formats.read_once import unread_files
from hanlin.run.components import Components

__all__ = ["hashes_here", "refuse_changed_base", "refuse_packed_experts", "say_packing"]

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


def refuse_changed_base(components: Components, *, is_alone: bool = False) -> None:
    """Whichever part of it this rank reads; of files whose hash is taken while they are loaded only the size counts.

    is_alone: other ranks, if there are any, load nothing.
    Raises: CheckpointError for a base that is not as its manifest says.
    """
    if components.source is not None:
        is_left = hashes_here(components) if is_alone else _is_hashed_while_it_loads(components)
        check_manifest(components.source.path, later=unread_files(components.source.path) if is_left else ())


def hashes_here(components: Components) -> bool:
    """Whether this process takes the hash of a base while it loads: the first one of each machine does, for all ranks
    that load there, and reads the whole base for it.
    """
    return _is_hashed_while_it_loads(components) and read_ranks().local_rank == 0


def _is_hashed_while_it_loads(components: Components) -> bool:
    """One of ours is, but for experts that are read when they are needed."""
    source, has_all = components.source, components.recipe.generate.expert_memory is None
    return source is not None and source.format == BASE and has_all
