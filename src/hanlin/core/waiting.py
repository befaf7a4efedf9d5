"""Where a thread stands that waits for other ranks: the collective, and our line that led to it. Without torch."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

_SOURCE = f"{Path(__file__).parents[1]}/"
_WRAPPERS = ("wrapper", "decorate_context", "_fn", "wait")


def describe_wait(frames: Sequence[traceback.FrameSummary]) -> str:
    """Such as `all_reduce, called in parallel/gradients.py:112 (_known_to_any)`; empty: no part of torch.distributed.

    frames: from the outermost call to the innermost.
    """
    of_torch = [number for number, frame in enumerate(frames) if "/torch/distributed/" in frame.filename]
    if not of_torch:
        return ""
    called = [frames[number].name for number in of_torch if frames[number].name not in _WRAPPERS]
    ours = [frame for frame in frames[: of_torch[-1]] if frame.filename.startswith(_SOURCE)]
    if not ours:
        return called[-1] if called else ""
    place = f"{ours[-1].filename.removeprefix(_SOURCE)}:{ours[-1].lineno} ({ours[-1].name})"
    return f"{called[-1] if called else 'torch.distributed'}, called in {place}"


def describe_main_thread() -> str:
    """What the main thread waits for, or else the line of ours that it is in; for another thread to ask.

    On an accelerator the backward pass has threads of its own; one of them may be the one that waits.
    """
    main, frames = threading.main_thread().ident, sys._current_frames()
    stacks = [traceback.extract_stack(frame) for _, frame in sorted(frames.items(), key=lambda item: item[0] != main)]
    told = next((text for stack in stacks if (text := describe_wait(stack))), "")
    if told:
        return told
    here = next((frame for frame in reversed(stacks[0]) if frame.filename.startswith(_SOURCE)), stacks[0][-1])
    return f"{here.filename}:{here.lineno} ({here.name})"
