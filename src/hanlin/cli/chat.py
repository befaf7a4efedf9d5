"""Talk with a model in the terminal; it knows what was said before.

hanlin chat runs/chat                            the model that a run has trained
hanlin chat --base chatglm2-6b                   a model as it is published
hanlin chat --base chatglm2-6b --adapter prefix  with a prefix or a LoRA on top
hanlin chat --url http://127.0.0.1:8000          with a running `hanlin serve`, which has the model

"clear" forgets the dialogue, "stop" (or Ctrl-D) ends, Ctrl-C ends an answer. A question that cannot be answered (too
long, no UTF-8) is said, and the next one is asked for. Tokens are drawn (top_p 0.8, temperature
0.8) unless a run or a recipe has chosen another generate.method than the default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper

from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.cli._remote import add_server, server_of
from hanlin.cli._say import complain
from hanlin.core.errors import ConfigError, DataError
from hanlin.core.progress import idle

Answering = Callable[[list[dict[str, str]], int], Iterator[str]]
"""A dialogue and the number of its newest question -> the answer in pieces."""

HELP = "talk with a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_server(parser)


def run(args: argparse.Namespace) -> int:
    if (server := server_of(args)) is not None:
        return _talk(lambda asked, number: server.reply(asked))
    recipe = recipe_of_model(args)
    say_remark(recipe)
    from hanlin.api.generation import chatting, check_length
    from hanlin.models.family import Converses
    from hanlin.run.components import build_components

    components = build_components(recipe)
    if not isinstance(components.processor, Converses):
        raise ConfigError(f"model.family: {recipe.model.family} cannot be talked with; use `hanlin generate`")
    from hanlin.api.model import Model
    from hanlin.run.weights import load_engine

    options = chatting(recipe.generate, args.words)
    check_length(options, getattr(components.config, "max_length", None))
    engine = load_engine(recipe, components)
    engine.prepack_weights(is_alone=True)
    model = Model(components, engine)
    return _talk(
        lambda asked, number: model.reply(asked, options, recipe.run.seed + number),
        remembers=components.processor.remembers,
    )


def _talk(reply: Answering, *, remembers: bool = True) -> int:
    """Ask and answer until the end; remembers: whether what was said before is asked with a question."""
    history: list[dict[str, str]] = []
    for number, question in enumerate(_questions()):
        if question == "clear":
            history = []
            continue
        asked = [*history, {"role": "user", "content": question}]
        try:
            pieces = reply(asked, number)
        except DataError as error:
            _complain(str(error))
            continue
        answer = _say(pieces)
        if remembers:
            history = [*asked, {"role": "assistant", "content": answer}]
    return 0


def _questions() -> Iterator[str]:
    """What the user writes, until "stop" or the end of the input; what is no text is said and left out."""
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            with idle():
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
    complain(problem)


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
