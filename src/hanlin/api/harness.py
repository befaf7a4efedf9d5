"""A model of ours in the hands of lm-evaluation-harness: `lm_eval --model hanlin`.

Importing this module registers it, which `hanlin lm_eval` does before it hands over to the harness's own command line;
0.4.13 finds no models of other packages by itself. A program gives `HanlinLM(path)` to `lm_eval.simple_evaluate`.
What a request means to families that read no bare texts is in evaluation/continuations.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval import utils  # pyright: ignore[reportMissingImports]  # optional
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]  # optional
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]  # optional

from hanlin.api.dialogue import conversation_of
from hanlin.api.generation import requested
from hanlin.api.loading import load
from hanlin.core.errors import ConfigError
from hanlin.data.processor import ContinuesTexts
from hanlin.evaluation.continuations import (
    Context,
    Continuation,
    LearnedIds,
    TextReader,
    head_ids,
    learned_ids,
    score_continuations,
    score_ids,
)
from hanlin.evaluation.continued_texts import OpenText, continue_texts
from hanlin.generate.engine import Engine, show_progress
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.recipe.reading import nearest
from hanlin.recipe.settings import GenerateSettings

__all__ = ["HanlinLM"]

_DIALOGUE = "hanlin:messages:"
"""Begins the text of a dialogue: the model's template may need more than a text, such as tokens that no text has."""
_LENGTH = 256
"""Tokens of an answer where a task does not say, as the harness's own models have it."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@register_model("hanlin")
class HanlinLM(LM):
    def __init__(  # noqa: PLR0913 what is loaded, from where, and how
        self,
        path: str,
        weights: str | None = None,
        adapter: str | None = None,
        vocab: str | None = None,
        family: str | None = None,
        precision: Any = None,
        batch_size: str | int | None = None,
        device: str | None = None,
        max_batch_size: Any = None,
        **others: Any,
    ) -> None:
        """path: weights in any known layout, a run folder, or a recipe, as `hanlin.load` takes it, and the next five.

        batch_size: None or "auto": the recipe's `generate.batch_size`; max_batch_size: of other models' "auto".
        Raises: HanlinError.
        """
        super().__init__()
        if others:
            name = next(iter(others))
            known = ("path", "weights", "adapter", "vocab", "family", "precision")
            raise ConfigError(f"model_args: there is no {name!r}{nearest(name, known)}")
        how = {"weights": weights, "adapter": adapter, "vocab": vocab, "family": family, "precision": precision}
        self.model = load(path, device=device, **how)
        is_auto = batch_size is None or str(batch_size).startswith("auto")
        self.batch_size = self.model.recipe.generate.batch_size if is_auto else int(str(batch_size))

    @property
    def _engine(self) -> Engine:
        return self.model._engine

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [(_context(context), continuation) for context, continuation in _arguments(requests)]
        with self._computing():
            found = self._in_order(score_continuations(self._engine, pairs, self.batch_size), len(pairs), disable_tqdm)
        results = [(one.log_likelihood, one.is_greedy) for one in found]
        self._keep("loglikelihood", requests, results)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [text for (text,) in _arguments(requests)]
        processor = self._engine.processor
        with self._computing():
            if isinstance(processor, ContinuesTexts):
                results = self._rolled(processor, texts, disable_tqdm)
            else:
                found = score_continuations(self._engine, [("", text) for text in texts], self.batch_size)
                results = [one.log_likelihood for one in self._in_order(found, len(texts), disable_tqdm)]
        self._keep("loglikelihood_rolling", requests, results)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        asked = [_open_text(_context(context), how) for context, how in _arguments(requests)]
        with self._computing():
            written = continue_texts(self._engine, asked, self.batch_size, self.model.recipe.run.seed)
            results = self._in_order(written, len(asked), disable_tqdm)
        self._keep("generate_until", requests, results)
        return results

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The dialogue as a text that `_context` reads."""
        if not add_generation_prompt:
            raise ConfigError("the task begins the model's answer (gen_prefix), which no template of ours does")
        conversation_of(chat_history)
        return _DIALOGUE + json.dumps(chat_history, ensure_ascii=False)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The name of the template in the results; it is the family's own, or that of the recipe."""
        if isinstance(chat_template, str):
            raise ConfigError("--apply_chat_template: takes no name here; the setting data.options.template chooses it")
        return f"hanlin {self.model.family} {sorted(self.model.recipe.data.options.items())}"

    @property
    def tokenizer_name(self) -> str:
        return f"hanlin-{self.model.family}-{self._engine.processor.tokenizer.fingerprint}"  # type: ignore[attr-defined]

    def _computing(self) -> Any:
        return self.model._computing(self.model.recipe.generate)

    def _in_order(self, found: Iterable[tuple[int, Any]], total: int, is_quiet: bool) -> list[Any]:
        by_number = dict(found if is_quiet else show_progress(found, "lm_eval", total))
        return [by_number[number] for number in range(total)]

    def _rolled(self, processor: TextReader, texts: Sequence[str], is_quiet: bool) -> list[float]:
        """Each text in windows of as much as the model reads; what begins every row is read, and not told."""
        windows = [list(_windows(processor, text, self._engine.max_length)) for text in texts]
        flat = [window for own in windows for window in own]
        found: list[Continuation] = self._in_order(score_ids(self._engine, flat, self.batch_size), len(flat), is_quiet)
        ends = iter(found)
        return [sum(next(ends).log_likelihood for _ in own) for own in windows]

    def _keep(self, kind: str, requests: Sequence[Any], results: Sequence[Any]) -> None:
        """For the harness's cache of answers."""
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)


def _arguments(requests: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]


def _context(text: str) -> Context:
    return conversation_of(json.loads(text.removeprefix(_DIALOGUE))) if text.startswith(_DIALOGUE) else text


def _windows(processor: TextReader, text: str, max_length: int | None) -> Iterable[LearnedIds]:
    """Raises: DataError."""
    head, ids = head_ids(processor), list(processor.text_ids(text))
    has_head = ids[: len(head)] == head
    fixed = head[:-1] if has_head else []
    rest = ids[len(head) :] if has_head else ids
    most = len(rest) + 1 if max_length is None else max_length - len(fixed) - has_head
    cut = utils.get_rolling_token_windows(rest, prefix_token=head[-1], max_seq_len=most, context_len=1)
    for before, learned in map(utils.make_disjoint_window, cut):
        begin = [] if before[0] == head[-1] or not has_head else [head[-1]]
        yield learned_ids(processor, [*fixed, *begin, *before], learned, max_length)


def _open_text(context: Context, how: Mapping[str, Any]) -> OpenText:
    """What a task asks of an answer (`generation_kwargs`).

    Raises: ConfigError for what nothing here reads.
    """
    said = {name: value for name, value in how.items() if name not in ("until", "do_sample", *_LENGTHS)}
    if unread := said.keys() - set(_SETTINGS):
        raise ConfigError(f"generation_kwargs: {', '.join(sorted(unread))} is not known here; remove it")
    stops = how.get("until") or ()
    length = next((int(how[name]) for name in _LENGTHS if how.get(name) is not None), _LENGTH)
    return OpenText(context, _settings(said, length, draws=how.get("do_sample")), _texts(stops))


def _settings(said: Mapping[str, Any], length: int, draws: bool | None) -> GenerateSettings:
    """Greedy search, unless the task draws: a temperature above 0 does, where the task does not say otherwise."""
    given = {name: value for name, value in said.items() if value is not None}
    if not (given.get("temperature", 0) if draws is None else draws):
        given["temperature"] = 0
    elif "temperature" not in given:
        given["temperature"] = 1.0
    return requested(GreedySettings(), {"max_new_tokens": length, **given}, 1)


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
