"""One worker as the trainer sees it: started without tokens, asked, waited for, and ended for good."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from llm_grpo.errors import UserError
from llm_grpo.rewards.worker import Batch, Ready, Reply

if TYPE_CHECKING:
    from llm_grpo.config.schema import RewardSpec

START_S = 120  # to load the reward's file: a cold `import transformers` takes a while
SEND_S = 30  # to take a batch in: an idle worker does so at once, one that a left-over thread holds up never does
LAST_WORDS_S = 1.0  # to say where it hangs
GONE = "gone"
OUTPUT_BYTES = 1 << 16  # of what a reward prints in one batch
SECRET = re.compile(r"(^|_)(API_?)?(TOKENS?|KEYS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH)(_|$)", re.I)
PLACE = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.M)  # faulthandler's, the innermost first


def withheld(spec: RewardSpec) -> set[str]:
    """The environment variables that this reward is not given: by their names they are secrets."""
    return {name for name in os.environ if SECRET.search(name) and name not in spec.environment}


class Worker:
    """A process with a reward in it. `rows`: those it was given and has not answered yet."""

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec

    def start(self) -> None:
        """The process begins; `ready` waits until it has loaded its reward."""
        self.rows: list[int] = []
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
        fcntl.fcntl(self.output, fcntl.F_SETFL, os.O_APPEND)  # it is emptied while the worker writes
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
        end, path = theirs.fileno(), [os.path.abspath(place) for place in sys.path]  # noqa: PTH100  ("" is the cwd)
        run = f"from llm_grpo.rewards.worker import main; main({end}, {os.getpid()})"
        hidden = withheld(self.spec)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", f"import sys; sys.path[:] = {path!r}; {run}"],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                pass_fds=[end],
                start_new_session=True,  # Ctrl-C is the trainer's; and one signal ends all that the reward has started
                env={k: v for k, v in os.environ.items() if k not in hidden} | {"CUDA_VISIBLE_DEVICES": ""},
            )
        self.link = Connection(ours.detach())
        self._ended = weakref.finalize(self, _end, self.process, os.getpid())
        self.link.send((self.spec.name, self.spec.args, self.spec.memory_gb))

    def ready(self) -> Ready:
        """Raises UserError where the reward cannot be loaded, in its own words."""
        end = time.monotonic() + START_S
        while (found := self._heard(wait_s=0.05)) is None and time.monotonic() < end:
            pass
        if not isinstance(found, Ready):
            how = self.end()
            said = f"ended its process while it was loaded ({how})" if how else f"was not loaded within {START_S} s"
            raise UserError(f"reward '{self.spec.name}' {said}{place_in(self.printed(), self.spec.name)}.")
        if found.fault:
            self.end()
            raise UserError(found.fault)
        return found

    def give(self, batch: Batch) -> None:
        """Ask for scores. That it cannot take them, `outcome` finds out."""
        self.rows, self.since = batch.rows, time.monotonic()
        with contextlib.suppress(OSError):
            self.link.send(batch)

    def outcome(self) -> Reply | str | None:
        """Its reply, or why it will never come (the process is ended then), or None: not yet."""
        heard, rows = self._heard(), len(self.rows)
        if isinstance(heard, Reply):
            return heard
        if heard == GONE:
            return f" ended its process ({self.end() or 'it closed its files'})"
        if time.monotonic() > self.since + rows * self.spec.timeout_s:
            self.end()
            each = f" ({rows} completions, timeout_s {self.spec.timeout_s:g})" if rows > 1 else " (timeout_s)"
            return f" took longer than {rows * self.spec.timeout_s:g} s{each}"
        return None

    def _heard(self, wait_s: float = 0.0) -> Ready | Reply | str | None:
        """What it says next; None: nothing yet; GONE: nothing any more."""
        dead = self.process.poll() is not None  # asked first: what it said before it died is read
        try:
            if self.link.poll(wait_s):
                return self.link.recv()
        except (EOFError, OSError):
            dead = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LAST_WORDS_S)  # its files close a moment before its exit code is there
        return GONE if dead else None

    def end(self, last_words: bool = True) -> str:
        """End it and all it has started. Returns how it had ended by itself; "" where it had not."""
        code = self.process.poll()
        if code is None and last_words:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes down where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LAST_WORDS_S)
        self._ended()
        self.link.close()
        return (
            "" if code is None else f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
        )

    def printed(self) -> str:
        """What it printed since it was asked last, cut where it is endless."""
        size = os.fstat(self.output.fileno()).st_size
        text = os.pread(self.output.fileno(), OUTPUT_BYTES, 0).decode("utf-8", "replace")
        os.ftruncate(self.output.fileno(), 0)
        return f"{text}\n... {size - OUTPUT_BYTES:,} bytes more\n" if size > OUTPUT_BYTES else text


def place_in(printed: str, name: str) -> str:
    """ " at own.py:12 in f", from faulthandler's last words: the innermost frame in the reward's file, or anywhere."""
    frames = PLACE.findall(printed.rpartition("Current thread")[2])
    own = [frame for frame in frames if Path(frame[0]).name == Path(name.rpartition(":")[0]).name]
    return " at {}:{} in {}".format(*(own or frames)[0]) if frames else ""


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the trainer (a data loader's) that comes to its end
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
