"""The templates of templates.py in the language of transformers' chat templates (Jinja): the same ids.

A message's content is encoded on its own here, while there the whole dialogue is one text that the special tokens part.
With sentencepiece, text after a special token begins with a "▁" of its own, so a space does the same before a content.
GLM-4's byte strings have none: a content that begins with white space may get other ids there.
What a template has no place for is refused (`raise_exception`) as here, not dropped. A template of one's own that names
columns of a record cannot be written so: a dialogue of messages has none.
"""

from __future__ import annotations

from hanlin.core.errors import CheckpointError

from .templates import GAP, GLM4_FUNCTION, GLM4_SYSTEM, SYSTEM_GAP, RoleTemplate, Template, TextTemplate

__all__ = ["chat_template", "is_ours", "round_pieces"]

# Of a content that may be a list of parts, its text.
_TEXT = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content -%}
{%- if part.type != 'text' -%}
{{ raise_exception('only text can be read, found a part of type ' ~ part.type) }}
{%- endif -%}
{{ part.text }}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
"""

# Questions and answers in turn. $ROUND: of a question and its number, all that stands before the answer.
_TURNS = """\
{%- macro asked(question, round) -%}{{ $ROUND }}{%- endmacro -%}
{%- if tools -%}{{ raise_exception('this model has no form for tools') }}{%- endif -%}
$SYSTEM
{{ $BEGIN }}
{%- for message in turns -%}
{%- if message.role != ('user', 'assistant')[loop.index0 % 2] -%}
{{ raise_exception('questions (user) and answers (assistant) are expected in turn, found ' ~ message.role) }}
{%- elif message.role == 'user' -%}
{{ asked((system if loop.first else '') ~ text(message.content), (loop.index0 / 2) | int + 1) }}
{%- elif loop.last -%}
{{ $GAP ~ text(message.content) ~ $END }}
{%- else -%}
{{ text(message.content) ~ $NEXT }}
{%- endif -%}
{%- endfor -%}
"""

# What the system says, where it is part of the first question, and where it has no place.
_JOINED = """\
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- set system = text(messages[0].content) if has_system else '' -%}
{%- set system = system ~ $SYSTEM_GAP if system | trim else '' -%}
"""
_NOT_JOINED = "{%- set turns, system = messages, '' -%}\n"

_ROLES = """\
{%- macro said(role, metadata, content) -%}
{{ '<|' ~ role ~ '|>' ~ metadata ~ '\\n' }}{%- if content -%}{{ $GAP ~ content }}{%- endif -%}
{%- endmacro -%}
$SYSTEM
{{ '[gMASK]<sop>' }}
{%- if tools and (not messages or messages[0].role != 'system') -%}{{ system('', tools) }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role not in ('system', 'user', 'assistant', 'observation', 'tool') -%}
{{ raise_exception('unknown role ' ~ message.role) }}
{%- elif message.tool_calls -%}
{{ raise_exception('a call of a tool is written with "metadata", its name, and "content", its arguments') }}
{%- elif message.role == 'system' -%}
{{ system(text(message.content), message.tools or (tools if loop.first else none)) }}
{%- else -%}
{%- set role = 'observation' if message.role == 'tool' else message.role -%}
{{ said(role, message.metadata or '', text(message.content)) }}
{%- if role == 'assistant' and loop.last -%}{{ $END }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""

_SYSTEM = {
    "chatglm3": """\
{%- macro system(content, tools) -%}
{{ said('system', '', content ~ ('\\n' ~ tools | tojson(indent=4) if tools else '')) }}
{%- endmacro -%}
""",
    "glm4": """\
{%- macro system(content, tools) -%}
{%- if tools -%}
{{ '<|system|>\\n' ~ $LISTED }}
{%- for tool in tools -%}
{%- set function = tool.function if tool.type == 'function' else tool -%}
{{ $FUNCTION }}
{%- endfor -%}
{%- endif -%}
{%- if content or not tools -%}{{ said('system', '', content) }}{%- endif -%}
{%- endmacro -%}
""",
}


def chat_template(template: Template, generation: str) -> str:
    """A template of a model of this generation, for `tokenizer_config.json`.

    Raises: CheckpointError for one that names columns of a record.
    """
    is_glm4 = generation == "glm4"  # without sentencepiece
    values = {"GAP": "" if is_glm4 else " ", "END": "<|endoftext|>" if is_glm4 else "</s>"}
    if isinstance(template, RoleTemplate):
        function = "(" + _quoted(GLM4_FUNCTION).replace("{name}", "' ~ function.name ~ '") + ")"
        function = function.replace("{text}", "' ~ (function | tojson(indent=4)) ~ '")
        text = (_TEXT + _ROLES).replace("$SYSTEM\n", _SYSTEM["glm4" if template.is_glm4 else "chatglm3"])
        values["LISTED"], own = GLM4_SYSTEM, {"FUNCTION": function}
    else:
        assert isinstance(template, TextTemplate), template
        text = (_TEXT + _TURNS).replace("$SYSTEM\n", _JOINED if template.joins_system else _NOT_JOINED)
        own = {"ROUND": " ~ ".join(_round(template))}
        values |= {"NEXT": GAP, "SYSTEM_GAP": SYSTEM_GAP, "BEGIN": f"[gMASK]<sop>{template.before}"}
    for name, value in (*((name, _quoted(value)) for name, value in values.items()), *own.items()):
        text = text.replace(f"${name}", value)
    return text


def is_ours(text: str) -> bool:
    """Whether a chat template is one of `chat_template`."""
    return text.startswith(_TEXT)


def _round(template: TextTemplate) -> list[str]:
    """Texts and columns of a round as Jinja's expressions."""
    parts = []
    for literal, column in round_pieces(template):
        parts += [_quoted(literal)] if literal else []
        parts += [column] if column else []
    return parts


def round_pieces(template: TextTemplate) -> list[tuple[str, str | None]]:
    """The texts of a round, each with `question` or `round` behind it.

    Raises: CheckpointError for another column.
    """
    if other := template.columns - {"question", "round"}:
        raise CheckpointError(
            f"the template {template.form!r} names {{{min(other)}}}, a column of a record, and a dialogue of messages "
            "has none; write the questions into the messages, and convert with data.options.template=plain"
        )
    return template.pieces


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
