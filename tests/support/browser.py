"""A headless Chromium, which its DevTools protocol drives over a pipe and which reports what went wrong in a page."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import install_chromium

NAMES = install_chromium.NAMES
# Without the sandbox, which root cannot use: the pages are ours. The other flags keep Chromium off the network.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--disable-default-apps", "--remote-debugging-pipe", "--hide-scrollbars")  # fmt: skip


def executable() -> str:
    """The Chromium of the variable CHROMIUM, of the PATH or of `make browser`; without one the test fails."""
    ours = str(install_chromium.PLACE) if install_chromium.PLACE.exists() else None
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), ours)
    if path is None or not os.access(path, os.X_OK):
        pytest.fail(
            f"no Chromium ({path or ', '.join(NAMES)}): run make browser, which puts one into .venv, install one "
            "(Debian: apt-get install chromium), or name it with CHROMIUM=PATH"
        )
    return path


class Page:
    """A page of Chromium.

    Attributes:
        complaints: uncaught errors, errors on the console and breaches of the page's policy.
        requests: addresses that the page requested.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._last = write, read, b"", 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, timeout: float = 120.0) -> dict[str, Any]:
        """The next answer or event. Events are recorded."""
        deadline = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"Chromium has not answered for {timeout:.0f} s"
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                self.complaints.append(str(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.complaints.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
        return message

    def open(self, path: Path) -> None:
        """Load a file and wait until it is complete."""
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._next()

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page; its value."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int = 0) -> None:
        """Press and release a key of the keyboard. Keys that write nothing have a `code`."""
        text = {} if len(key) > 1 and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Give the window `width` by `height` pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def media(self, **features: str) -> None:
        """Emulate media="print" or colours="dark"; without arguments a light screen."""
        chosen = [{"name": "prefers-color-scheme", "value": features.get("colours", "light")}]
        self.call("Emulation.setEmulatedMedia", media=features.get("media", ""), features=chosen)

    def picture(self) -> bytes:
        """The visible part of the page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        """The printed page."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page in a new Chromium, whose settings lie in the folder `profile`."""
    path = executable()
    to_read, write = os.pipe()
    read, to_write = os.pipe()

    environment = {**os.environ, "HOME": str(profile)}
    if path == str(install_chromium.PLACE):
        environment["LD_LIBRARY_PATH"] = str(install_chromium.PLACE.parent / "lib")
    # Chromium reads commands from descriptor 3 and answers on 4.
    call = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash",
            path, *FLAGS, f"--user-data-dir={profile}"]  # fmt: skip
    with open(profile.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            call, pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, start_new_session=True,
        )  # fmt: skip
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(write, read)
    finally:
        os.close(write)
        os.close(read)
        try:
            process.wait(20)  # Chromium ends when its pipe closes
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
