"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # as root it will not start without; it sees our own page alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
PATIENCE_S = 90.0  # it shares two cores


def find() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []
        """Errors of scripts, and what the content security policy has blocked."""
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            told = json.loads(self._connection.recv(PATIENCE_S))
            if told.get("id") == self._number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result
            self._note(told)

    def _note(self, event: dict[str, Any]) -> None:
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(event["params"]["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(str(event["params"]["entry"]))
            case "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def look(self, width: int, height: int, scheme: str = "light", *, phone: bool = False) -> None:
        """How large the window is, and which colours its user likes."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression holds."""
        ends = time.monotonic() + PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < ends, f"it never came that {expression}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({selector!r}).textContent"))

    def fill(self, selector: str, text: str) -> None:
        element = f"document.querySelector({selector!r})"
        self.value(f"{element}.value = {json.dumps(text)}")
        self.value(f"{element}.dispatchEvent(new Event('input', {{bubbles: true}}))")
        self.value(f"{element}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def click(self, selector: str) -> None:
        clicked = "new MouseEvent('click', {bubbles: true, cancelable: true})"
        self.value(f"document.querySelector({selector!r}).dispatchEvent({clicked})")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def browsing(home: Path) -> Iterator[Page]:
    """A tab of a fresh Chromium whose profile is in `home`."""
    program = find()
    assert program is not None
    command = [program, *OPTIONS, f"--user-data-dir={home}", "about:blank"]
    log = home / "log"
    home.mkdir(exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        with connect(_address(process, log), max_size=2**26) as browser:
            told = _ask(browser, 1, "Target.getTargets")
            [tab] = [each for each in told["targetInfos"] if each["type"] == "page"]
        port = _address(process, log).split("/")[2]
        with connect(f"ws://{port}/devtools/page/{tab['targetId']}", max_size=2**26) as page:
            yield Page(page)
    finally:
        process.terminate()
        process.wait(20)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    ends = time.monotonic() + PATIENCE_S
    while not (match := re.search(r"DevTools listening on (ws://\S+)", log.read_text())):
        assert process.poll() is None, f"Chromium ended: {log.read_text()[-500:]}"
        assert time.monotonic() < ends, "Chromium does not listen"
        time.sleep(0.1)
    return match[1]


def _ask(connection: ClientConnection, number: int, method: str) -> dict[str, Any]:
    connection.send(json.dumps({"id": number, "method": method}))
    while (told := json.loads(connection.recv(PATIENCE_S))).get("id") != number:
        pass
    result: dict[str, Any] = told["result"]
    return result
