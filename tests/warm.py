"""Scripts started in a process that has imported the libraries already: a start costs a fork in place of 10 to 20 s.

    done = Warm("torch", "transformers").run(["src/infer.py", "--help"])      # as subprocess.run(..., text=True)

What runs is a process of its own, with its own memory, exit code, files and end; the modules named are there before it
begins, none of ours. What a library reads of the environment while it is imported is what it was then, so whoever
changes it starts a script cold.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

ROOT = Path(__file__).parent.parent


class Warm:
    """A server of its own for these modules, imported in this environment; it ends with the process that made it."""

    def __init__(self, *modules: str, **environment: str) -> None:
        self.socket, theirs = socket.socketpair()
        words = [sys.executable, __file__, str(theirs.fileno()), *modules]
        self.server = subprocess.Popen(
            words,
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        theirs.close()

    def run(
        self, words: Sequence[str], stdin: str = "", timeout_s: float = 540, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Raises subprocess.TimeoutExpired."""
        with ExitStack() as stack:
            request, *streams = (stack.enter_context(TemporaryFile("w+", encoding="utf-8")) for _ in range(4))
            ours, theirs = map(stack.enter_context, socket.socketpair())
            request.write(json.dumps([list(words), {**os.environ, **environment}, str(cwd)]))
            streams[0].write(stdin)
            for file in (request, streams[0]):
                file.seek(0)
            socket.send_fds(self.socket, [b"?"], [file.fileno() for file in (request, theirs, *streams)])
            theirs.close()
            ours.settimeout(timeout_s)
            answers = stack.enter_context(ours.makefile())
            number = int(answers.readline())
            try:
                code = int(answers.readline())
            except TimeoutError:
                os.kill(number, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout_s) from None
            for file in streams:
                file.seek(0)
            return subprocess.CompletedProcess(words, code, streams[1].read(), streams[2].read())


def serve(requests: socket.socket, modules: Sequence[str]) -> None:
    """Until nobody can ask any more."""
    importlib.import_module("llm_grpo.command").quiet_libraries()
    for name in modules:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "llm_grpo"]:
        del sys.modules[name]  # what is tested is read anew
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        said, fds, _, _ = socket.recv_fds(requests, 1, 5)
        if not said:
            return
        if os.fork() == 0:
            requests.close()
            keep(fds)
        for fd in fds:
            os.close(fd)


def keep(fds: Sequence[int]) -> None:
    """Start the script, say its number, wait for it, say its exit code. Returns in the script's process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, answer, *streams = fds
    with os.fdopen(request) as file:
        words, environment, cwd = json.load(file)
    if number := os.fork():
        os.write(answer, f"{number}\n".encode())
        _, status = os.waitpid(number, 0)
        code = os.waitstatus_to_exitcode(status)
        os.write(answer, f"{code}\n".encode())
        os._exit(0)
    os.close(answer)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
