"""The inside of a process that holds one reward and nothing else. `process.py` starts it and speaks with it.

It is started with no GPU and no tokens, reads nothing from standard input, and prints into a file. Its main thread is
the reward's, so that signals work in it (math-verify's time limits are alarms).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import random
import resource
import signal
import sys
import time
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from llm_grpo.errors import UserError
from llm_grpo.records import RewardFunction
from llm_grpo.rewards import build_here
from llm_grpo.rewards.guarding import RewardError

LARGEST_FILE = 1 << 30  # bytes; a loop that prints must not fill the disk before its time is up
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Ready(NamedTuple):
    """The reward is loaded and its arguments are right; `fault` says why not. `crc`: of its file, 0 for ours."""

    name: str = ""
    doc: str | None = None
    crc: int = 0
    fault: str = ""


class Batch(NamedTuple):
    """Rows of a batch that the reward is given together. logs: TRL's log_extra and log_metric are at hand."""

    step: int | None
    rows: list[int]
    columns: Mapping[str, Any]  # a value per row
    shared: Mapping[str, Any]  # one value for all; `trainer_state` as a plain dict
    logs: bool

    def only(self, rows: list[int]) -> Batch:
        """Those rows of the whole batch."""
        return self._replace(rows=rows, columns={k: [v[row] for row in rows] for k, v in self.columns.items()})


class Reply(NamedTuple):
    """The scores, or None and what was said (`row` within the batch given); what the reward logged; seconds."""

    scores: list[float | None] | None
    said: str
    row: int | None
    extra: list[tuple[str, list[Any]]]
    metrics: list[tuple[str, float]]
    seconds: float


def main(descriptor: int, parent: int) -> None:
    """Load the reward, then answer batches until the trainer closes its end of the socket, or is gone."""
    os.set_inheritable(descriptor, False)
    link, me = Connection(descriptor), os.getpid()
    _die_with(parent)
    faulthandler.enable()  # a crash, and the SIGABRT of a deadline, say where in the file they struck
    name, args, memory_gb = link.recv()
    _limit(memory_gb)
    try:
        function = build_here(name, args)
    except UserError as error:
        link.send(Ready(fault=str(error)))
        return
    link.send(Ready(function.__name__, function.__doc__, _crc(name)))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            reply = _answer(function, link.recv())
            if os.getpid() != me:
                os._exit(0)  # the reward forked, and this is the child coming home: one answer is enough
            link.send(reply)
    os._exit(0)  # whatever threads the reward left behind


def _answer(function: RewardFunction, batch: Batch) -> Reply:
    columns = {**batch.columns, **batch.shared}
    extra: list[tuple[str, list[Any]]] = []
    metrics: list[tuple[str, float]] = []
    state = columns.get("trainer_state")
    if state is not None:
        columns["trainer_state"] = SimpleNamespace(**state)
        _seed(f"{state.get('global_step')} {batch.rows[0]}")
    if batch.logs:
        columns["log_extra"] = lambda column, values: extra.append((str(column), [_plain(v) for v in values]))
        columns["log_metric"] = lambda name, value: metrics.append((str(name), float(value)))
    scores, said, row = None, "", None
    start = time.perf_counter()
    try:
        scores = function(**columns)
    except RewardError as error:
        said, row = error.said, error.row
    except BaseException as error:  # a KeyboardInterrupt too: nobody but the reward can raise one here
        said = f" raised {type(error).__name__}: {str(error)[:500]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm it forgot would strike between two batches
    return Reply(scores, said, row, extra, metrics, time.perf_counter() - start)


def _plain(value: Any) -> Any:
    """What a table shows; a thing of the reward's own cannot be unpickled where its file is not loaded."""
    return value if type(value) in (str, int, float, bool, type(None)) else str(value)


def _seed(text: str) -> None:
    """A reward that draws lots draws the same for the same step and row, in whichever process and after a resume."""
    random.seed(text)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(zlib.crc32(text.encode()))


def _die_with(parent: int) -> None:
    """A killed trainer takes its workers along, also those that are in an endless loop (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _limit(memory_gb: float) -> None:
    """RLIMIT_DATA counts what is written to; RLIMIT_AS would count gigabytes that CUDA libraries merely reserve."""
    size = int(memory_gb * 1e9)
    for kind, bound in ((resource.RLIMIT_DATA, size), (resource.RLIMIT_FSIZE, LARGEST_FILE), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def _crc(name: str) -> int:
    file = name.rpartition(":")[0]
    return zlib.crc32(Path(file).expanduser().read_bytes()) if file else 0
