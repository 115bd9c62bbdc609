"""Headless Chromium driven over its own protocol: contexts that share nothing, real clicks and keys, screenshots."""

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.browser import ensure_browser
from tests.waiting import eventually

PATIENCE_S = 60
SIZE: dict[str, Any] = {"width": 900, "height": 1000}


class Tab:
    """One page in a context of its own, as another person's browser would be."""

    def __init__(self, browser: "Chromium", url: str) -> None:
        self._browser = browser
        self.faults: list[str] = []
        context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send("Target.createTarget", url="about:blank", browserContextId=context, **SIZE)["targetId"]
        self.session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.tabs[self.session] = self
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.go(url)

    def send(self, method: str, **params: Any) -> Any:
        return self._browser.send(method, self.session, **params)

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What a person sees of it: nothing if it is hidden or not there."""
        found = f"document.querySelector({json.dumps(selector)})"
        return str(self.evaluate(f"{found}?.getClientRects().length ? {found}.innerText : ''"))

    def until(self, selector: str, wanted: str) -> str:
        """The element's text once it has `wanted` in it."""

        def has() -> bool:
            return wanted.casefold() in self.text(selector).casefold()

        try:
            eventually(has, PATIENCE_S, f"{selector} has {wanted!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text('body')}\n{self.faults}") from None
        return self.text(selector)

    def click(self, selector: str) -> None:
        """As a mouse does, so what is hidden or covered cannot be clicked."""
        place = f"""(() => {{
          const found = document.querySelector({json.dumps(selector)});
          found?.scrollIntoView({{block: "center"}});
          const box = found?.getBoundingClientRect();
          if (!box?.width || found.disabled) return null;
          const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
          return found.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
        }})()"""
        found: list[Any] = []

        def can_be() -> bool:
            found[:] = [self.evaluate(place)]
            return found[0] is not None

        eventually(can_be, PATIENCE_S, f"{selector} can be clicked")
        x, y = found[0]
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.send("Input.insertText", text=text)

    def enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def picture(self, path: Path) -> None:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


class Chromium:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.tabs: dict[str, Tab] = {}

    def send(self, method: str, session: str | None = None, **params: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        """What a page's author would see in red."""
        tab = self.tabs.get(event.get("sessionId", ""))
        if tab is None:
            return
        params = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            tab.faults.append(str(params["exceptionDetails"].get("exception", params)))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            tab.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def tab(self, url: str) -> Tab:
        return Tab(self, url)


@contextmanager
def chromium(folder: Path) -> Generator[Chromium]:
    """A browser that speaks to nobody but the pages' own servers."""
    command = [
        ensure_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
        f"--user-data-dir={folder / 'profile'}", f"--crash-dumps-dir={folder}", "--remote-debugging-port=0",
        "about:blank",
    ]  # fmt: skip
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "HOME": str(folder)}, stdout=log, stderr=log)
    try:
        told = folder / "profile" / "DevToolsActivePort"
        eventually(lambda: told.exists() and told.read_text().count("\n") >= 1, PATIENCE_S, "the browser is up")
        port, path = told.read_text().split("\n")[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_size=None) as socket:
            yield Chromium(socket)
    finally:
        process.terminate()
        process.wait(30)
