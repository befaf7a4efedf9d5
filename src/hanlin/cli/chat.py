"""Talk with a model in the terminal; it knows what was said before.

hanlin chat runs/chat                            the model that a run has trained
hanlin chat --base chatglm2-6b                   a model as it is published
hanlin chat --base chatglm2-6b --adapter prefix  with a prefix or a LoRA on top

"clear" forgets the dialogue, "stop" (or Ctrl-D) ends, Ctrl-C ends an answer. A question that cannot be answered (too
long, no UTF-8) is said, and the next one is asked for. Tokens are drawn (top_p 0.8, temperature
0.8) unless a run or a recipe has chosen another generate.method than the default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import GenerateSettings

HELP = "talk with a model"

History = list[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    recipe = recipe_of_model(args)
    say_remark(recipe)
    from hanlin.generate.dialogue_cache import DialogueCache
    from hanlin.models.family import Converses
    from hanlin.run.weights import load_engine

    engine, options = load_engine(recipe), _chatting(recipe.generate, args.words)
    if not isinstance(engine.processor, Converses):
        raise ConfigError(f"model.family: {recipe.model.family} cannot be talked with; use `hanlin generate`")
    history: History = []
    memory = DialogueCache()
    for number, question in enumerate(_questions()):
        if question == "clear":
            history = []
            continue
        try:
            history, record = _fitting(engine, question, history, options)
        except DataError as error:
            _complain(str(error))
            continue
        answer = _say(engine.stream(record, options, seed=recipe.run.seed + number, memory=memory))
        history = [*history, (question, answer)]
    return 0


def _chatting(options: GenerateSettings, words: Sequence[str]) -> GenerateSettings:
    """The settings chosen, over those with which the original chats."""
    from hanlin.api.generation import chosen_settings
    from hanlin.recipe.settings import GENERATE_METHODS

    chosen = chosen_settings(options, words)
    draws = {"method": "sample", "top_p": 0.8, "temperature": 0.8} if "method" not in chosen else {}
    return GENERATE_METHODS.make({**draws, "max_new_tokens": 1024, **chosen})


def _questions() -> Iterator[str]:
    """What the user writes, until "stop" or the end of the input; what is no text is said and left out."""
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if line == "stop":
            return
        if problem := _not_text(line):
            _complain(problem)
        elif line:
            yield line


def _not_text(line: str) -> str:
    """What is wrong with a line that is no text: a terminal's backspace may leave half of a character."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        code = ord(line[error.start])
        found = f"the byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
        return f"half a character or bytes that are no UTF-8 ({found} at column {error.start + 1}); write it again"
    return "a NUL byte; write it again" if "\0" in line else ""


def _complain(problem: str) -> None:
    print(f"hanlin: {problem}", file=sys.stderr, flush=True)


def _fitting(engine: Engine, question: str, history: History, options: GenerateSettings) -> tuple[History, Any]:
    """The history without the oldest rounds that leave no room for an answer, and the record that asks.

    Raises: DataError when the question alone leaves none.
    """
    while True:
        record = engine.processor.ask(question, history)  # pyright: ignore[reportAttributeAccessIssue]  # run() has asked
        try:
            engine.prompt(record, options)
        except DataError:
            if not history:
                raise
            history = history[1:]
            continue
        return history, record


def _say(pieces: Iterator[str]) -> str:
    """Print an answer as it is written; return it, or what there is of it when Ctrl-C ends it."""
    answer = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            answer += piece
    except KeyboardInterrupt:
        pass
    print()
    return answer
