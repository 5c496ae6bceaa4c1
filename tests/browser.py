"""A headless browser for tests of pages: opens files, clicks, types, and looks at what came of it.

It talks the DevTools protocol through a pipe, so that no package is needed, only the browser itself
(``apt-get install chromium``). Mouse, finger and keys are those of the browser, not events that a script
makes up: what covers an element covers it here too.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_KEYS = {
    "Enter": ("\r", 13),
    " ": (" ", 32),
    "Tab": ("", 9),
    "Escape": ("", 27),
    "Home": ("", 36),
    "End": ("", 35),
}
_KEYS |= {
    f"Arrow{name}": ("", code) for name, code in (("Left", 37), ("Up", 38), ("Right", 39), ("Down", 40))
}


def find_browser() -> str:
    """Return the path of a browser; skip the test if there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    return browser


class Browser:
    """A browser with one tab, as a context manager.

    Args:
        folder: an empty folder for its profile.
    """

    def __init__(self, folder: Path) -> None:
        arguments = [find_browser(), "--headless", "--disable-gpu", "--remote-debugging-pipe"]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        arguments += [f"--user-data-dir={folder}", "about:blank"]
        told, self._write = os.pipe()
        self._read, said = os.pipe()
        # The browser reads from 3 and writes to 4; above those, so that neither overwrites the other.
        told, said = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (told, said))
        quiet = os.open(os.devnull, os.O_RDWR)
        actions = [
            (os.POSIX_SPAWN_DUP2, old, new) for old, new in ((told, 3), (said, 4), (quiet, 2), (quiet, 1))
        ]
        self._process = os.posix_spawn(
            arguments[0], arguments, {**os.environ}, file_actions=actions, setpgroup=0
        )
        for each in (told, said, quiet):
            os.close(each)
        self._number, self._buffer, self._session = 0, b"", None
        self.errors: list[str] = []
        (tab,) = [each for each in self.send("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=tab["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        first, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(first)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def open(
        self,
        path: Path,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        touch: bool = False,
        query: str = "",
    ) -> None:
        """Open a file in a window of this size, with a query (``"?q=word"``), and wait until it is loaded."""
        self.errors.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if touch else 1,
            mobile=touch,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.as_uri() + query)
        while (
            self.run("location.href") != path.as_uri() + query
            or self.run("document.readyState") != "complete"
        ):
            time.sleep(0.02)
        self.settle()

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, as JSON holds it."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until the page is laid out and drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        text: str = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view and return its middle, in the window."""
        return tuple(  # type: ignore[return-value]
            self.run(
                f"""(() => {{
                    const element = document.querySelector({json.dumps(selector)});
                    element.scrollIntoView({{block: "center"}});
                    const box = element.getBoundingClientRect();
                    return [box.left + box.width / 2, box.top + box.height / 2];
                }})()"""
            )
        )

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def click(self, where: str | tuple[float, float]) -> None:
        """Click an element, or a place in the window."""
        x, y = self.middle(where) if isinstance(where, str) else where
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def tap(self, where: str | tuple[float, float]) -> None:
        """Touch an element, or a place in the window, with a finger."""
        x, y = self.middle(where) if isinstance(where, str) else where
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def press(self, *keys: str) -> None:
        """Press keys one after another, such as ``"Tab"`` or ``"ArrowDown"``."""
        for key in keys:
            text, code = _KEYS[key]
            pressed = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self.send("Input.dispatchKeyEvent", **down, **pressed)
            self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)
        self.settle()

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save what the window shows, or the whole page, as a PNG."""
        answer = self.send(
            "Page.captureScreenshot",
            captureBeyondViewport=whole,
            **(
                {
                    "clip": {
                        "x": 0,
                        "y": 0,
                        "scale": 1,
                        **self.run("({width: innerWidth, height: document.documentElement.scrollHeight})"),
                    }
                }
                if whole
                else {}
            ),
        )
        path.write_bytes(base64.b64decode(answer["data"]))
