"""A headless Chromium, driven over its DevTools protocol: as much of a person as a test of a page needs."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--window-size=900,900", "--remote-debugging-port=0",
)  # fmt: skip


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Browser:
    """One tab at a URL. `with Browser(url) as tab: tab.run("document.title")`."""

    def __init__(self, url: str) -> None:
        from websockets.sync.client import connect

        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        words = [find_chromium(), *FLAGS, f"--user-data-dir={self.profile.name}", url]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = Path(self.profile.name) / "DevToolsActivePort"
        port = wait_for(lambda: told.is_file() and told.read_text().split("\n")[0])
        tab = wait_for(lambda: next((t for t in self._tabs(port) if t["type"] == "page"), None))
        self.socket, self.sent = connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None), 0

    @staticmethod
    def _tabs(port: str) -> list[dict[str, Any]]:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return json.load(direct.open(f"http://127.0.0.1:{port}/json/list", timeout=10))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=60))).get("id") != self.sent:
            pass
        return answer["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        return self.run("document.body.innerText") or ""

    def type(self, text: str) -> None:
        """Write into what has the focus, and press Enter."""
        self.call("Input.insertText", text=text)
        time.sleep(0.5)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def wait_for(condition: Any, timeout_s: float = 60) -> Any:
    """The first true value of condition(). Raises TimeoutError."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{timeout_s} s")
