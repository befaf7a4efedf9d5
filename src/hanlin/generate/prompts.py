"""A record -> its prompt, if the answer has room behind it; no torch here, so that a recipe can be checked by it."""

from __future__ import annotations

from typing import Any

from hanlin.core.batch import Prompt
from hanlin.core.errors import DataError, PromptTooLongError
from hanlin.data.forms.content import ChatMessage, Content, Conversation, MultipleChoice
from hanlin.data.processor import ContinuesTexts, TakesChoices, TakesForms, tried
from hanlin.models.family import Converses, FillsBlanks, PredictsLabels, Processor
from hanlin.recipe.settings import GenerateSettings

__all__ = ["accepted_questions", "make_prompt"]

_SAYS = ChatMessage("system", "好")
_ASKS = ChatMessage("user", "好")
_QUESTIONS = {"messages": Conversation((_ASKS,)), "system": Conversation((_SAYS, _ASKS))}


def make_prompt(processor: Processor, record: Any, options: GenerateSettings, max_length: int | None) -> Prompt:
    """Encode a record and see that it leaves room for the answer.

    max_length: the most tokens of both together that the model can read; None: no limit.
    Raises: PromptTooLongError; DataError for a record that cannot be asked.
    """
    prompt = processor.prompt(record)
    if max_length is not None and prompt.length + options.max_new_tokens > max_length:
        raise PromptTooLongError(
            f"its prompt has {prompt.length} tokens and up to {options.max_new_tokens} may follow, but the "
            f"model reads at most {max_length}; shorten the record or lower generate.max_new_tokens"
        )
    return prompt


def accepted_questions(processor: Processor) -> list[str]:
    """What a family makes prompts of, found by trying; what suits it best comes first.

    messages: a dialogue; system: words that stand before it; prompt: a text to go on with; record: its own records;
    decision: questions with fixed answers (evaluation/decisions).
    """
    found = [name for name, content in _QUESTIONS.items() if _is_accepted(processor, content)]
    is_talker = isinstance(processor, Converses) and processor.remembers
    best = "record" if isinstance(processor, FillsBlanks) else "messages" if is_talker else "prompt"
    if isinstance(processor, PredictsLabels):
        best = "decision"
    goes_on = ["prompt"] if isinstance(processor, ContinuesTexts) else []
    decides = ["decision"] if _decides(processor) else []
    return sorted([*found, *goes_on, "record", *decides], key=lambda name: name != best)


def _decides(processor: Processor) -> bool:
    if not isinstance(processor, TakesChoices):
        return False
    if isinstance(processor, PredictsLabels):
        return processor.label_kind != "number"
    return not isinstance(tried(processor.choice_record, MultipleChoice("好", "好", ("是", "否"))), DataError)


def _is_accepted(processor: Processor, content: Content) -> bool:
    if not isinstance(processor, TakesForms):
        return False
    maker: Any = processor
    try:
        maker.prompt(maker.record_of(content))
    except DataError:
        return False
    return True
