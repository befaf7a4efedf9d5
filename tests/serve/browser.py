"""A real Chromium for the tests of the page, and a server whose answers a test writes beforehand."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hanlin.serve.page import show_page

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


class Browser:
    """One tab of a Chromium, asked as a person sees it."""

    def __init__(self, folder: Path) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (hanlin[dev])")
        programs = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
        if None in programs:
            pytest.skip("no chromium with its chromedriver here (Debian: chromium, chromium-driver)")
        options = webdriver.ChromeOptions()
        options.binary_location = str(programs[0])
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(str(programs[1])))
        self._agent = self.driver.execute_script("return navigator.userAgent")
        self.set("zh-CN")

    def set(self, language: str = "zh-CN", size: tuple[int, int] = (1280, 800), scheme: str = "light") -> None:
        self.cdp("Emulation.setUserAgentOverride", userAgent=self._agent, acceptLanguage=language)
        self.cdp("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def cdp(self, command: str, **values: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, values)

    def open(self, url: str) -> None:
        """The page as in a browser that was never there; what it kept for the others is gone."""
        self.driver.get("about:blank")
        origin = "/".join(url.split("/")[:3]).partition("#")[0]
        self.cdp("Storage.clearDataForOrigin", origin=origin, storageTypes="local_storage")
        self.driver.get(url)
        self.wait(lambda: self.all("#modes button, #gate[open], #log .wrong"))

    def reload(self) -> None:
        self.driver.refresh()
        self.wait(lambda: self.all("#modes button"))

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def text(self, css: str) -> str:
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def texts(self, css: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", css)

    def press(self, name: str, within: str = "body") -> None:
        """Click the last visible button of that name."""
        script = """return [...document.querySelectorAll(arguments[0])].filter(
            one => one.offsetParent && [one.innerText, one.ariaLabel].includes(arguments[1])).at(-1)"""
        self.wait(lambda: self.js(script, f"{within} button", name)).click()

    def keys(self, *keys: str) -> None:
        """Type into what has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def say(self, text: str) -> None:
        self.one("#text").send_keys(text)
        self.press("发送")

    def wait(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.text("#log")
            time.sleep(0.02)
        return found

    def answered(self, count: int = 1) -> list[str]:
        """The answers of a dialogue once there are so many, and none is being written."""
        done = ".assistant:not([aria-busy=true]) .body"
        return self.wait(lambda: (found := self.texts(done)) and len(found) == count and found)

    def complaints(self) -> list[str]:
        """What the console has to say, but for requests that were answered with an error on purpose."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        return [text for text in found if "Failed to load resource" not in text]


class ScriptedServer:
    """The real page, and answers as their question says: "slow" never ends, "429" is that status, "cut" breaks off,
    "broken" has an error in its stream; all else is answered by the next of `answers`, or by itself.
    """

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.bodies: list[Any] = []
        self.ended = threading.Event()
        routes = [
            Route("/", show_page),
            Route("/v1/models", self._models),
            *(Route(f"/v1/{path}", self._answer, methods=["POST"]) for path in ("chat/completions", "completions")),
        ]
        self._config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="critical")
        self._server = uvicorn.Server(self._config)

    def start(self) -> str:
        threading.Thread(target=self._server.run, daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        while self._server.started and self._server.servers and self._server.servers[0].is_serving():
            time.sleep(0.01)

    async def _models(self, request: Request) -> Response:
        accepts = ["messages", "system", "prompt", "record"]
        settings = {"method": "greedy", "max_new_tokens": 99}
        blanks = {"answer": "<ans>", "options": "options", "option": "<option_{}>"}
        card = {"accepts": accepts, "blanks": blanks, "settings": settings}
        return JSONResponse({"data": [{"id": name, **card} for name in ("m", "m:a", "a")]})

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if asked.isdigit():
            told = {"error": {"message": f"refused: {asked}", "type": "t", "param": None, "code": None}}
            return JSONResponse(told, int(asked))
        return StreamingResponse(self._events(asked), media_type="text/event-stream")

    async def _events(self, asked: str) -> AsyncIterator[str]:
        def event(text: str) -> str:
            return f"data: {json.dumps({'choices': [{'index': 0, 'text': text, 'delta': {'content': text}}]})}\n\n"

        yield ": waiting\n\n"
        try:
            while asked == "slow":
                yield event("慢")
                await asyncio.sleep(0.02)
        finally:
            if asked == "slow":
                self.ended.set()
        yield event("前")
        if asked == "cut":
            await asyncio.sleep(0.1)
            raise ConnectionError
        if asked == "broken":
            yield 'data: {"error": {"message": "the model stopped"}}\n\n'
        for piece in self.answers.pop(0) if self.answers else asked:
            yield event(piece)
        yield 'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n'
