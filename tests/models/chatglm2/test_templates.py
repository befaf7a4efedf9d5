import json

import pytest

from hanlin.core.errors import ConfigError, DataError
from hanlin.models.chatglm2.record import ChatGlm2Options, template_of
from hanlin.models.chatglm2.templates import (
    Dialogue,
    Message,
    RoleTemplate,
    TextTemplate,
    drop_oldest,
    make_template,
    read_history,
    split_metadata,
)


def text(form: str, question: str, history: list | None = None, **fields: object) -> str:
    template = make_template(form, "chatglm2")
    assert isinstance(template, TextTemplate)
    return template.text(Dialogue((*read_history(history), Message("user", question)), fields))


def test_rounds_are_numbered():
    expected = "[Round 1]\n\n问：甲\n\n答：乙\n\n[Round 2]\n\n问：丙\n\n答："
    assert text("auto", "丙", [["甲", "乙"]]) == expected


def test_a_text_of_ones_own_may_name_any_column():
    assert text("{{{title}}}: {question}?", "丙", title="题") == "{题}: 丙?"


def test_what_the_system_says_is_refused_or_stands_before_the_first_question():
    messages = (Message("system", "简"), Message("user", "甲"), Message("assistant", "乙"), Message("user", "丙"))
    with pytest.raises(DataError, match=r"role 'system' has no place.*data\.options\.system: first_question"):
        make_template("rounds", "chatglm2").text(Dialogue(messages))
    joined = make_template("rounds", "chatglm2", "写：", joins_system=True)
    expected = "写：[Round 1]\n\n问：简\n甲\n\n答：乙\n\n[Round 2]\n\n问：丙\n\n答："
    assert joined.text(Dialogue(messages)) == expected
    assert joined.text(Dialogue((Message("system", " "), messages[1]))) == joined.text(Dialogue(messages[1:2]))
    for odd in ((Message("system", "简", tools=[{}]), messages[1]), (messages[1], messages[0])):
        with pytest.raises(DataError, match=r"tools|'system'"):
            joined.text(Dialogue(odd))


@pytest.mark.parametrize("options", [{"compatible": True}, {"template": "roles"}])
def test_a_place_for_the_system_is_refused_where_it_has_no_effect(options):
    with pytest.raises(ConfigError, match=r"first_question: .* (remove it|leave one of them out)"):
        template_of(ChatGlm2Options(system="first_question", **options), "chatglm3")


def test_braces_in_a_record_are_text():
    assert text("{question}", "{question} {0} {x.y}") == "{question} {0} {x.y}"


@pytest.mark.parametrize("form", ["rouns", "{question", "{question.__class__}", "{}", "a {0[1]}"])
def test_a_form_that_cannot_work_is_refused_at_once(form):
    with pytest.raises(ConfigError, match="template"):
        make_template(form, "chatglm2")


def test_a_column_that_a_record_lacks_is_named():
    with pytest.raises(DataError, match=r"\{titel\}.*title"):
        text("{titel}", "丙", title="题")


def test_each_generation_has_its_own_template():
    assert isinstance(make_template("auto", "chatglm3"), RoleTemplate)
    assert make_template("auto", "codegeex2") == make_template("plain", "chatglm2")
    with pytest.raises(ConfigError, match="system message"):
        make_template("roles", "chatglm3", "写广告：")


def test_roles_end_an_answer_and_are_encoded_apart(tokenizer):
    roles = tokenizer.with_roles()
    dialogue = Dialogue((Message("system", "简单", tools=[{"name": "a"}]), Message("user", "你好")))
    [ids] = roles.encode_parts([RoleTemplate().prompt(roles, dialogue)])
    newline = roles.encode("\n")
    tools = '简单\n[\n    {\n        "name": "a"\n    }\n]'
    system = [roles.role("system"), *newline, *roles.encode(tools)]
    assert ids == [*roles.prefix, *system, roles.role("user"), *newline, *roles.encode("你好"), roles.role("assistant")]
    assert RoleTemplate().ends(roles) == (roles.role("user"), roles.role("observation"))


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("你好", "expected a list"),
        ([["甲"]], "item 1: expected a .* pair, found 1 items"),
        ([["甲", "乙"], ["丙", None]], "item 2: expected its answer to be a string, found null"),
        ([3], "item 1: expected a .* pair, found a number"),
        ([{"role": "bot", "content": "甲"}], "item 1: role is 'bot'"),
        ([{"role": "user"}], "item 1: expected content"),
    ],
)
def test_a_malformed_history_is_named(history, message):
    with pytest.raises(DataError, match=message):
        read_history(history)


def test_rounds_take_questions_and_answers_in_turn():
    assert text("rounds", "丙", [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"}]) == text(
        "rounds", "丙", [["甲", "乙"]]
    )
    with pytest.raises(DataError, match="has no answer"):
        text("rounds", "丙", [{"role": "user", "content": "甲"}])
    with pytest.raises(DataError, match="has no place in this template"):
        text("rounds", "丙", [{"role": "system", "content": "甲"}, {"role": "user", "content": "乙"}])


def test_the_oldest_round_goes_first_and_a_system_message_stays():
    system, user, bot = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
    assert drop_oldest([["1", "2"], ["3", "4"]]) == [["3", "4"]]
    assert drop_oldest([["1", "2"]]) == []
    assert drop_oldest([]) is None
    assert drop_oldest([system, user, bot, user, bot]) == [system, user, bot]
    assert drop_oldest([system, user, bot]) == [system]
    assert drop_oldest([system]) is None


def test_a_tool_call_names_its_tool() -> None:
    metadata, content = split_metadata("get_weather\n ```python\ntool_call(city='北京', days=[1, 2])\n```")
    assert metadata == "get_weather"
    assert content == "```python\ntool_call(city='北京', days=[1, 2])\n```"


FUNCTION = {"type": "function", "function": {"name": "get_weather", "parameters": {"city": "北京"}}}


def test_glm4_lists_tools_in_its_own_words_before_the_system_message():
    messages = read_history([{"role": "system", "content": "简单", "tools": [FUNCTION]}])
    (_, _, listed), (role, _, content) = RoleTemplate(is_glm4=True)._spoken(messages[0])
    assert listed.startswith("你是一个名为 ChatGLM 的人工智能助手。")
    text = json.dumps(FUNCTION["function"], indent=4, ensure_ascii=False)
    assert listed.endswith(
        f"\n\n# 可用工具\n\n## get_weather\n\n{text}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
    )
    assert (role, content) == ("system", "简单")
    assert make_template("auto", "glm4") == RoleTemplate(is_glm4=True)
    with pytest.raises(DataError, match="python"):
        RoleTemplate(is_glm4=True)._spoken(Message("system", "", tools=[{"type": "python"}]))


@pytest.mark.parametrize("tools", [[FUNCTION], json.dumps([FUNCTION], ensure_ascii=False)])
def test_tools_may_be_json_in_a_string(tools):
    [message] = read_history([{"role": "system", "content": "", "tools": tools}])
    assert message.tools == [FUNCTION]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}, 'nothing reads "tool_calls"'),
        ({"role": "user", "content": "甲", "loss": True}, 'nothing reads "loss"'),
        ({"role": "user", "content": "甲", "tools": [FUNCTION]}, "tools stand in a system message"),
        ({"role": "system", "content": "甲", "tools": "{no json"}, "a string that is no JSON"),
        ({"role": "system", "content": "甲", "tools": 3}, "expected a list of descriptions, found a number"),
    ],
)
def test_what_nothing_reads_of_a_message_is_refused(message, says):
    with pytest.raises(DataError, match=says):
        read_history([message])


def test_keys_without_a_value_are_not_refused():
    assert read_history([{"role": "user", "content": "甲", "tool_calls": None, "tools": []}]) == (
        Message("user", "甲"),
    )


def test_metadata_has_no_place_in_rounds():
    history = [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙", "metadata": "f"}]
    with pytest.raises(DataError, match="have a place in the template roles"):
        text("rounds", "丙", history)
