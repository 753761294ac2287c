"""Ctrl-C and SIGTERM: the step in hand is finished and saved; one that hangs is left, and what was before it saved."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from llm_grpo import processes

# Seconds a step has after a signal. A scheduler's SIGTERM is followed by a kill, after 30 s in Kubernetes and Slurm; a
# step that takes this long and twice as long as the longest before it hangs (a reward may have minutes for a batch).
AFTER_SIGNAL_S = 15.0
AT_ONCE_S = 5.0
HALTED = 3  # the exit code of a run that run.halt_on ended


class GentleStop(TrainerCallback):
    """The first signal ends the training after the step, the second in the middle of it.

    number: of the signal that was asked with; None where none was. Both ends are kept by a second thread: where the
    training does not get there in time (a reward that never returns, or swallows what is raised in it), it saves what
    there was before the step and ends the process; a resume does that step again. why, code: of an end that the run
    itself came to (`end`), with the exit code; the rest of the job is done then.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.number: int | None = None
        self.why, self.code = "", 0
        self._at_once = False
        self._update = threading.Lock()  # held while the weights are past what can be saved: half an update is none
        self._begun, self._longest_s = math.inf, 0.0
        self._reached = threading.Event()  # the training got to its end by itself

    @property
    def exit_code(self) -> int:
        """As a shell has it for a process that a signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def end(self, control: Any, why: str, code: int = 0) -> None:
        """End the training after the step in hand, with a checkpoint of it."""
        self.why, self.code = why, max(code, self.code)
        control.should_training_stop = control.should_save = True
        self.console.print(f"The training ends here: {why}", style="bold yellow", highlight=False, soft_wrap=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._update.acquire()  # for ever, where the second thread has begun to save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._longest_s = max(self._longest_s, time.monotonic() - self._begun)
        self.heed(control)

    def asked(self) -> bool:
        """Whether a signal came, to whichever of the processes; all come here together, and agree."""
        heard = [number for number in processes.of_all(self.number) if number is not None]
        if heard:
            self.number = heard[0]
        return bool(heard)

    def heed(self, control: Any) -> None:
        """Make a wish to stop the trainer's."""
        if self.asked():
            control.should_training_stop = control.should_save = True
            self._reached.set()

    def kept(self) -> None:
        """The trainer tells that what the step left can be saved now."""
        self._update.release()
        if self._at_once:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self, rescue: Callable[[], None]) -> Iterator[None]:
        """While this lasts, signals are wishes. rescue: saves what was learned; called where the step does not end."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)  # heard even while C code runs
        guard = threading.Thread(target=self._guard, args=(ours, rescue), daemon=True)
        guard.start()
        try:
            yield
        finally:
            self._reached.set()
            if self._update.locked():  # an update that raised
                self._update.release()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            theirs.close()
            guard.join()
            ours.close()

    def _ask(self, number: int, frame: Any) -> None:
        if self.number is None:
            self.number = number
            within = f"within {self._patience_s(number):.0f} s"
            self.console.print(f"\nStopping after this step, {within}; press Ctrl-C again to stop at once.")
        elif self._update.locked():
            self._at_once = True
        else:
            raise KeyboardInterrupt

    def _patience_s(self, number: int) -> float:
        return AFTER_SIGNAL_S if number == signal.SIGTERM else max(AFTER_SIGNAL_S, 2 * self._longest_s)

    def _guard(self, signals: socket.socket, rescue: Callable[[], None]) -> None:
        heard = signals.recv(1)  # waits; empty where the training ends without a signal
        deadline = time.monotonic() + (self._patience_s(heard[0]) if heard else 0.0)
        signals.settimeout(0.2)
        while heard and not self._reached.is_set():
            with suppress(TimeoutError):
                if not signals.recv(1):
                    return
                deadline = min(deadline, time.monotonic() + AT_ONCE_S)
            if time.monotonic() > deadline and self._update.acquire(timeout=0.2):
                break
        if not heard or self._reached.is_set():
            return
        self.number = self.number or heard[0]
        try:
            rescue()
        finally:
            os._exit(self.exit_code)
