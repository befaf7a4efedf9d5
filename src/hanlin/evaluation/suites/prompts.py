"""What a model is asked of a question: a text that goes on, or a dialogue in the family's own template."""

from __future__ import annotations

from typing import Literal

from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.evaluation.continuations import Context

from .questions import Subject, SuiteQuestion

__all__ = ["CONCLUDES", "PromptStyle", "prompt_of", "told_options"]

PromptStyle = Literal["text", "chat", "reasoned"]
"""text: as the suite's authors write it; chat: the same as a user's message; reasoned: the model first writes what it
thinks, then is asked for the option, as ChatGLM2's own program for C-Eval does.
"""

CONCLUDES = "\n综上所述，ABCD中正确的选项是："


def prompt_of(subject: Subject, question: SuiteQuestion, shots: int, style: PromptStyle, *, continues: bool) -> Context:
    """The question behind the suite's introduction and the first examples.

    continues: whether the model goes on with texts, or answers.
    """
    goes_on = continues and style == "text"
    examples = [one for one in subject.examples if one.gold is not None][:shots]
    asked = [_asked(one, goes_on=goes_on) for one in (*examples, question)]
    told = [told_options(one, goes_on=goes_on)[one.gold] for one in examples if one.gold is not None]
    if style == "text":
        return (
            subject.head + "".join(f"{one}{answer}\n\n" for one, answer in zip(asked, told, strict=False)) + asked[-1]
        )
    asked[0] = subject.head + asked[0]
    turns = [
        (ChatMessage("user", one), ChatMessage("assistant", answer)) for one, answer in zip(asked, told, strict=False)
    ]
    return Conversation((*(message for turn in turns for message in turn), ChatMessage("user", asked[-1])))


def told_options(question: SuiteQuestion, *, goes_on: bool) -> dict[str, str]:
    """What is told for each option."""
    return dict(question.options if goes_on or question.answers is None else question.answers)


def _asked(question: SuiteQuestion, *, goes_on: bool) -> str:
    return question.text if goes_on or question.asked is None else question.asked
