"""The page at /, in a real Chromium."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from browser import Browser, ScriptedServer
from decision_cases import LABELS, label_engine

from hanlin.data.forms.messages import FORM
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.serve import page
from hanlin.serve.limits import Limits

Start = Callable[..., Any]
EngineOf = Callable[[str], Engine]
ESCAPE, TAB, ENTER, SHIFT, RELEASE = "\ue00c", "\ue004", "\ue007", "\ue008", "\ue000"
RECORD = {"题": "床前明月光", "<ans>": {"甲": "", "乙": ""}}
HOSTILE = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>&lt;b&gt;"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    chromium.set()
    chromium.complaints()
    yield chromium
    first, *others = chromium.driver.window_handles
    for other in others:
        chromium.driver.switch_to.window(other)
        chromium.driver.close()
    chromium.driver.switch_to.window(first)
    assert chromium.complaints() == []


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def test_nothing_comes_from_outside_and_nothing_else_runs() -> None:
    text = page._text()
    assert not re.search(r"(?:src|href|action)=[\"']?(?!data:)[a-z]", text.split("<script>")[0])
    assert not re.search(r"\son\w+=", text.split("<script>")[0])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|setTimeout\(['\"]", text
    )
    policy = page._policy(text)
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_the_page_needs_no_key_and_brings_its_policy(serve: Start) -> None:
    url, _ = serve(key="secret")
    with urllib.request.urlopen(url) as response:
        assert response.read().decode() == page._text()
        assert response.headers["content-security-policy"] == page._policy(page._text())
        assert response.headers["x-content-type-options"] == "nosniff"


# --- with real models ---


def test_a_question_is_answered_and_still_there_after_a_reload(serve: Start, engine: Engine, browser: Browser) -> None:
    url, _ = serve()
    browser.open(url)
    assert browser.texts("#modes button") == ["对话", "续写", "判断"]
    browser.say("床前明月光")
    [found] = browser.answered()
    asked = {"messages": [{"role": "user", "content": "床前明月光"}]}
    [record] = engine.generate([engine.processor.record_of(FORM.read(asked))], GreedySettings(max_new_tokens=16), 0)
    assert found == engine.processor.answer_of(record)
    assert re.fullmatch(r"\d+ 个 token，[\d.]+ token/秒，首个 [\d.]+ 秒", browser.text("#speed"))
    browser.reload()
    assert browser.texts(".body") == ["床前明月光", found]
    browser.press("续写")
    browser.say("床")
    assert browser.answered()
    browser.press("床前明月光", "#list")
    assert browser.texts(".body") == ["床前明月光", found]


def test_a_record_is_filled_in_and_options_have_bars(serve: Start, engine_of: EngineOf, browser: Browser) -> None:
    engine = engine_of("cpm_bee")
    url, _ = serve(engine=engine)
    browser.open(url)
    browser.press("填空")
    browser.keys("题", TAB, "床前明月光")
    for name in ("甲", "乙"):
        browser.press("+ 空")
        browser.all("#fields input")[-1].send_keys(name)
    browser.press("发送")
    browser.wait(lambda: browser.texts(".assistant dt") == ["甲", "乙"])
    [filled] = engine.generate([RECORD], GreedySettings(max_new_tokens=16), 0)
    assert browser.texts(".assistant dd") == [text or "＿＿" for text in filled["<ans>"].values()]
    browser.open(f"{url}#{quote('题')}=床")
    assert [one.get_property("value") for one in browser.all(".field input, .field textarea")] == ["题", "床"]
    for text in "明月":
        browser.press("+ 选项")
        browser.all("#fields textarea")[-1].send_keys(text)
    browser.press("发送")
    shares = browser.wait(lambda: browser.texts(".bar span:last-child"))
    assert browser.texts(".bar span:first-child") == ["明", "月"]
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.2)
    browser.press("JSON")
    nested = {"题": {"深": "床"}, "<ans>": ""}
    browser.one("#text").clear()
    browser.one("#text").send_keys(json.dumps(nested, ensure_ascii=False))
    browser.press("发送")
    browser.wait(lambda: "深床" in browser.text(".user:nth-of-type(3)"))
    for wrong, told in (('{"1": "床", "<ans>": ""}', "纯数字"), ("[1]", "不是 JSON 对象")):
        browser.one("#text").clear()
        browser.one("#text").send_keys(wrong)
        browser.press("发送")
        assert told in browser.text("#hint"), browser.one("#text").get_property("value")


def test_the_request_that_is_shown_gives_the_same_answer(serve: Start, engine_of: EngineOf, browser: Browser) -> None:
    url, _ = serve(engine=engine_of("cpm_bee"))
    text = "it's «\\\"» true"
    browser.open(f"{url}#{urlencode({'引': text, '题': '床前明月光', '甲': '', '乙': ''})}")
    browser.one("#of_repetition_penalty").send_keys("1.2")
    browser.press("发送")
    found = browser.wait(lambda: browser.texts(".assistant dd"))
    browser.press("Python")
    with redirect_stdout(io.StringIO()) as told:
        exec(compile(browser.text("#request"), "shown", "exec"), {})
    shown = eval(told.getvalue())["<ans>"]
    assert [text or "＿＿" for text in shown.values()] == found
    browser.press("curl")
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-c", browser.text("#request")], capture_output=True, check=True)
        assert json.loads(done.stdout)["choices"][0]["message"]["record"]["<ans>"] == shown


def test_a_key_is_asked_for_until_it_is_right(serve: Start, browser: Browser) -> None:
    url, _ = serve(key="secret")
    browser.open(url)
    for key in ("wrong", "secret"):
        browser.wait(lambda: browser.all("#gate[open]"))
        browser.keys(key, ENTER)
    browser.wait(lambda: browser.all("#modes button"))
    browser.say("床")
    browser.answered()
    assert "secret" not in browser.text("#request") + browser.js("return JSON.stringify(localStorage)")
    browser.js("sessionStorage.clear()")
    browser.driver.refresh()
    browser.wait(lambda: browser.all("#gate[open]"))
    browser.keys(ESCAPE)
    assert browser.wait(lambda: browser.text("#log .wrong")) == "没有密钥，服务器不回答"


def test_what_the_server_has_no_room_for_is_said(serve: Start, browser: Browser) -> None:
    url, _ = serve(Limits(rows=1, cache_tokens=8))
    browser.open(url)
    browser.say("床")
    assert "more than this server holds" in browser.wait(lambda: browser.text(".assistant .wrong"))


# --- with answers that a test has written ---


def test_stop_retry_edit_and_copy(scripted: ScriptedServer, browser: Browser) -> None:
    browser.open(scripted.start())
    browser.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.say("slow")
    browser.wait(lambda: "慢慢慢" in browser.text(".assistant .body"))
    browser.press("停止")
    assert scripted.ended.wait(60)
    [begun] = browser.answered()
    assert set(begun) == {"慢"}
    assert "已停止" in browser.text(".assistant footer")
    browser.press("编辑")
    browser.one("#text").clear()
    browser.one("#text").send_keys("一", SHIFT, ENTER, RELEASE, "二", ENTER)
    assert browser.answered() == ["前一\n二"]
    scripted.answers.append("又")
    browser.press("重试")
    browser.wait(lambda: browser.answered() == ["前又"])
    browser.say("三")
    assert browser.answered(2) == ["前又", "前三"]
    assert [one["content"] for one in scripted.bodies[-1]["messages"]] == ["一\n二", "前又", "三"]
    browser.press("重试", ".assistant:nth-of-type(2)")
    browser.wait(lambda: browser.answered() == ["前一\n二"])
    assert len(browser.texts("#list li")) == 2
    browser.all("#list li button")[2].click()
    assert browser.answered(2) == ["前又", "前三"]
    browser.press("复制", ".assistant:last-child")
    read = "navigator.clipboard.readText().then(arguments[0], error => arguments[0](String(error)))"
    assert browser.driver.execute_async_script(read) == "前三"
    assert browser.text("#status") == "已复制"


def test_an_adapter_is_chosen_by_its_name(scripted: ScriptedServer, browser: Browser) -> None:
    browser.open(scripted.start())
    assert browser.texts("#model option") == ["m", "a"]
    browser.say("甲")
    browser.answered()
    browser.one("#model").send_keys("a")
    browser.say("乙")
    browser.answered(2)
    assert [body["model"] for body in scripted.bodies] == ["m", "a"]


@pytest.mark.parametrize(
    ("asked", "told", "kept"),
    [
        ("400", "refused: 400", ""),
        ("429", "服务器忙，请稍后重试 (refused: 429)", ""),
        ("500", "refused: 500", ""),
        ("cut", "连接中断", "前"),
        ("broken", "the model stopped", "前"),
    ],
)
def test_errors_are_told_and_lose_nothing(
    scripted: ScriptedServer, browser: Browser, asked: str, told: str, kept: str
) -> None:
    browser.open(scripted.start())
    browser.say(asked)
    assert browser.answered() == [kept]
    assert browser.text(".assistant .wrong") == told
    assert told in browser.text("#status")
    browser.say("后")
    browser.answered(2)
    told_again = [asked, kept, "后"] if kept else ["后"]
    assert [one["content"] for one in scripted.bodies[-1]["messages"]] == told_again


def test_a_server_that_is_gone_is_said_and_may_come_back(scripted: ScriptedServer, browser: Browser) -> None:
    url = scripted.start()
    browser.open(url)
    scripted.stop()
    browser.say("在吗")
    browser.answered()
    assert browser.text(".assistant .wrong") == "连不上服务器；它还在运行吗？"
    again = ScriptedServer()
    again._config.port = int(url.rsplit(":")[-1])
    again.start()
    browser.press("重试")
    assert browser.wait(lambda: browser.answered() == ["前在吗"])
    again.stop()


def test_texts_are_texts_whoever_wrote_them(scripted: ScriptedServer, browser: Browser) -> None:
    scripted.answers.append(f"{HOSTILE}\n```html\n{HOSTILE}\n```")
    browser.open(scripted.start())
    browser.one("#gear").click() if not browser.one("#panel").is_displayed() else None
    browser.one("#system").send_keys(HOSTILE)
    browser.say(HOSTILE)
    browser.answered()
    browser.reload()
    assert browser.texts(".body")[0] == HOSTILE
    assert browser.text(".assistant pre").strip() == HOSTILE
    assert browser.text("#list button") == HOSTILE[:40]
    assert (
        HOSTILE
        in json.loads(re.findall(r"-d '(.*)'$", browser.text("#request").replace("'\\''", "'"))[0])["messages"][0][
            "content"
        ]
    )
    assert browser.all("main img, main script, aside img") == []
    assert browser.js("return window.hit ?? null") is None


def test_two_tabs_keep_what_both_wrote(scripted: ScriptedServer, browser: Browser) -> None:
    url = scripted.start()
    browser.open(url)
    first = browser.driver.current_window_handle
    browser.say("甲")
    browser.answered()
    browser.driver.switch_to.new_window("tab")
    browser.set()
    browser.driver.get(url)
    browser.wait(lambda: browser.all("#modes button"))
    assert browser.texts(".body") == []
    browser.say("乙")
    browser.answered()
    assert browser.texts("#list li button:first-child") == ["乙", "甲"]
    browser.press("甲", "#list")
    browser.say("slow")
    browser.wait(lambda: "慢" in browser.text(".assistant:last-child .body"))
    second = browser.driver.current_window_handle
    browser.driver.switch_to.window(first)
    browser.say("丙")
    browser.wait(lambda: browser.texts(".body")[-1] == "前丙")
    browser.driver.switch_to.window(second)
    browser.press("停止")
    browser.wait(lambda: len(browser.texts("#list li")) == 3)
    kept = browser.js("return Object.values(localStorage).filter(one => one.startsWith('{\"id'))")
    turns = [[turn["content"] for turn in json.loads(one)["turns"]] for one in kept]
    assert ["乙", "前乙"] in turns
    assert sorted("丙" in one for one in turns) == [False, False, True]
    assert sum(one[:3] == ["甲", "前甲", "slow"] for one in turns) == 2


def test_a_dialogue_is_deleted_only_when_that_is_meant(scripted: ScriptedServer, browser: Browser) -> None:
    browser.open(scripted.start())
    browser.say("甲")
    browser.answered()
    for meant in (False, True):
        browser.press("删除: 甲")
        alert = browser.driver.switch_to.alert
        alert.accept() if meant else alert.dismiss()
        assert browser.texts("#list li button:first-child") == ([] if meant else ["甲"])
    assert browser.texts(".body") == []


def test_the_keyboard_is_enough(scripted: ScriptedServer, browser: Browser) -> None:
    browser.open(scripted.start())
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true})"
    browser.keys("slow")
    browser.js(f"document.activeElement.dispatchEvent({composing})")
    assert scripted.bodies == []
    browser.keys(ENTER)
    browser.wait(lambda: "慢" in browser.text(".assistant .body"))
    browser.keys(ESCAPE)
    browser.answered()
    browser.js("document.body.focus(); document.activeElement.blur()")
    reached = []
    for _ in range(40):
        browser.keys(TAB)
        one = browser.driver.switch_to.active_element
        is_seen = browser.js("return getComputedStyle(arguments[0]).outlineStyle", one) != "none"
        assert is_seen or one.tag_name == "body" or one.get_property("id") == "text", one.accessible_name
        reached.append(one.accessible_name)
    expected = {
        "新对话",
        "历史对话",
        "模型",
        "续写",
        "参数",
        "复制",
        "编辑",
        "重试",
        "输入消息…",
        "发送",
        "temperature",
        "系统提示",
    }
    assert expected <= set(reached)
    nameless = [
        one for one in browser.all("button, input, textarea, select") if one.is_displayed() and not one.accessible_name
    ]
    assert nameless == []


def test_a_narrow_window_shows_everything(scripted: ScriptedServer, browser: Browser) -> None:
    browser.set(size=(360, 640))
    browser.open(scripted.start())
    browser.say("长" * 300)
    browser.answered()
    assert browser.js("return document.documentElement.scrollWidth") <= 360
    for opener, drawer in (("#menu", "#side"), ("#gear", "#panel")):
        assert not browser.one(drawer).is_displayed()
        browser.one(opener).click()
        assert browser.one(drawer).is_displayed()
        assert browser.one(opener).get_attribute("aria-expanded") == "true"
        browser.keys(ESCAPE)
        assert not browser.one(drawer).is_displayed()
    shown = "[...document.querySelectorAll('main button, #text')].filter(one => one.offsetParent)"
    boxes = browser.js(f"return {shown}.map(one => one.getBoundingClientRect().toJSON())")
    assert [box for box in boxes if box["left"] < 0 or box["right"] > 360] == []


def test_it_speaks_the_browsers_language_and_is_dark_where_that_is_wished(
    scripted: ScriptedServer, browser: Browser
) -> None:
    url = scripted.start()
    found = {}
    for scheme in ("light", "dark"):
        browser.set("en-US", scheme=scheme)
        browser.open(url)
        assert browser.text("#go") == "Send"
        assert browser.js("return document.documentElement.lang") == "en"
        colours = browser.js(
            "const found = getComputedStyle(document.body); return [found.backgroundColor, found.color]"
        )
        found[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert found["light"][0] > 600 > 200 > found["light"][1]
    assert found["dark"][0] < 200 < 600 < found["dark"][1]
    words = re.search(r"const WORDS = \{(.*?)\n\};", page._text(), re.DOTALL)
    assert words
    pairs = re.findall(r"(\w+): \[(\".*?\"), (\".*?\")\]", words[1])
    assert len(pairs) == words[1].count("[")
    used = set(re.findall(r"(?:say\(|button\(|add\(|input\(\"\w+\", |data-text=|data-label=)\"(\w+)\"", page._text()))
    assert used <= {name for name, _, _ in pairs}


def test_a_question_about_a_text_has_bars(serve: Start, engine_of: EngineOf, browser: Browser) -> None:
    url, _ = serve(engine=engine_of("cpm_bee"))
    browser.open(url)
    browser.press("判断")
    question, lines = browser.all("#fields textarea")
    question.send_keys("明月")
    lines.send_keys("明月光\n霜")
    for number, kind in enumerate(("choice", "score"), start=1):
        browser.js("arguments[0].value = arguments[1]", browser.one("#fields select"), kind)
        browser.js("arguments[0].dispatchEvent(new Event('change'))", browser.one("#fields select"))
        browser.one("#text").send_keys("床前")
        asked = json.loads(browser.text("#request").partition("-d '")[2].rstrip("'"))
        browser.press("发送")
        browser.answered(number)
        body = json.dumps(asked).encode()
        asked = urllib.request.Request(f"{url}/v1/decisions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked) as response:
            [found] = json.load(response)["answers"]
        assert found["type"] == kind
        shares = [f"{100 * one['probability']:.1f}%" for one in found["probabilities"]]
        assert browser.texts(f".assistant:nth-of-type({2 * number}) .bar span:last-child") == shares
        assert browser.texts(f".assistant:nth-of-type({2 * number}) .bar span:first-child") == ["明月光", "霜"]


def test_the_labels_of_a_head_are_offered(serve: Start, browser: Browser) -> None:
    url, _ = serve(engine=label_engine())
    browser.open(url)
    assert browser.texts("#modes button") == ["判断"]
    assert browser.all("#fields textarea")[1].get_property("value").split() == list(LABELS)
    browser.say("床前")
    browser.answered()
    assert browser.texts(".bar span:first-child") == list(LABELS)
