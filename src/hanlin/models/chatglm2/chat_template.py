"""The templates of templates.py in the language of transformers' chat templates (Jinja): the same ids.

A message's content is encoded on its own here, while there the whole dialogue is one text that the special tokens part.
With sentencepiece, text after a special token begins with a "▁" of its own, so a space does the same before a content.
GLM-4's byte strings have none: a content that begins with white space may get other ids there.
What a template has no place for is refused (`raise_exception`) as here, not dropped.
"""

from __future__ import annotations

from .templates import GLM4_FUNCTION, GLM4_SYSTEM

__all__ = ["chat_template"]

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

# Questions and answers in turn. $BEFORE, $AFTER: what stands around a question; $ANSWER: what an answer begins with.
_TURNS = """\
{%- if tools -%}{{ raise_exception('this model has no form for tools') }}{%- endif -%}
{{ '[gMASK]<sop>' }}
{%- for message in messages -%}
{%- if message.role != ('user', 'assistant')[loop.index0 % 2] -%}
{{ raise_exception('questions (user) and answers (assistant) are expected in turn, found ' ~ message.role) }}
{%- elif message.role == 'user' -%}
{{ $BEFORE ~ text(message.content) ~ $AFTER }}
{%- elif loop.last -%}
{{ $ANSWER ~ ' ' ~ text(message.content) ~ '</s>' }}
{%- else -%}
{{ $ANSWER ~ text(message.content) ~ '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ $ANSWER }}{%- endif -%}
"""

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


def chat_template(generation: str) -> str:
    """The template that a model of this generation was made with, for `tokenizer_config.json`."""
    if generation in _SYSTEM:
        gap, end = ("", "<|endoftext|>") if generation == "glm4" else (" ", "</s>")
        function = "(" + _quoted(GLM4_FUNCTION).replace("{name}", "' ~ function.name ~ '") + ")"
        function = function.replace("{text}", "' ~ (function | tojson(indent=4)) ~ '")
        text = _TEXT + _ROLES.replace("$SYSTEM\n", _SYSTEM[generation])
        values = {"GAP": _quoted(gap), "END": _quoted(end), "LISTED": _quoted(GLM4_SYSTEM), "FUNCTION": function}
    else:
        numbered = generation == "chatglm2"
        before = "('[Round ' ~ ((loop.index0 / 2) | int + 1) ~ ']\\n\\n问：')" if numbered else "''"
        values = {"BEFORE": before, "AFTER": r"'\n\n'" if numbered else "''", "ANSWER": "'答：'" if numbered else "''"}
        text = _TEXT + _TURNS
    for name, value in values.items():
        text = text.replace(f"${name}", value)
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'").replace("\n", "\\n") + "'"
