"""A headless Chromium, driven over a pipe by its DevTools protocol, that says what went wrong in a page."""

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
# No sandbox: root has none, and the pages are ours. The rest keeps Chromium off the network.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--disable-default-apps", "--remote-debugging-pipe", "--hide-scrollbars")  # fmt: skip


def executable() -> str:
    """Chromium by CHROMIUM, on the PATH, or by `make browser`; without any the test fails."""
    ours = str(install_chromium.PLACE) if install_chromium.PLACE.exists() else None
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), ours)
    if found is None or not os.access(found, os.X_OK):
        pytest.fail(
            f"no Chromium ({found or ', '.join(NAMES)}): make browser puts one into .venv; or install one (Debian: "
            "apt-get install chromium), or name it: CHROMIUM=PATH"
        )
    return found


class Page:
    """One page. `complaints` are uncaught errors, console errors and breaches of its policy; `asked` are addresses."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._last = write, read, b"", 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
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

    def _next(self, patience: float = 120.0) -> dict[str, Any]:
        """The next answer or event; events are noted."""
        until = time.monotonic() + patience
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(until - time.monotonic(), 0))
            assert ready, f"Chromium says nothing for {patience:.0f} s"
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        given = told.get("params", {})
        match told.get("method"):
            case "Runtime.exceptionThrown":
                details = given["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if given["type"] in ("error", "assert"):
                self.complaints.append(str(given["args"]))
            case "Log.entryAdded" if given["entry"]["level"] == "error":
                self.complaints.append(given["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(given["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
        return told

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._next()

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int = 0) -> None:
        """A key, as from a keyboard; `code` is that of keys which write nothing."""
        text = {} if len(key) > 1 and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def media(self, **features: str) -> None:
        """Such as media="print" or colours="dark"."""
        chosen = [{"name": "prefers-color-scheme", "value": features.get("colours", "light")}]
        self.call("Emulation.setEmulatedMedia", media=features.get("media", ""), features=chosen)

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, whose settings lie in the folder `profile`."""
    found = executable()
    to_read, write = os.pipe()
    read, to_write = os.pipe()

    environment = {**os.environ, "HOME": str(profile)}
    if found == str(install_chromium.PLACE):
        environment["LD_LIBRARY_PATH"] = str(install_chromium.PLACE.parent / "lib")
    # Chromium reads commands from descriptor 3 and answers on 4.
    call = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash",
            found, *FLAGS, f"--user-data-dir={profile}"]  # fmt: skip
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
            process.wait(20)  # it ends with its pipe
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
