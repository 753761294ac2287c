"""Signals: the first ends after the step, the second in it, and a step that hangs is left with what was before it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

# A training of steps that take 0.2 s, or never end, as GentleStop sees it.
TRAINING = """
import sys, time
sys.path.insert(0, {src!r})
from types import SimpleNamespace
from rich.console import Console
from llm_grpo.training import stopping
stopping.AFTER_SIGNAL_S, stopping.AT_ONCE_S = 1.5, 1.0
stop, control = stopping.GentleStop(Console(quiet=True)), SimpleNamespace(should_training_stop=False, should_save=False)
try:
    with stop.listening(lambda: print("rescued", flush=True)):
        print("started", flush=True)
        for step in range(100):
            stop.on_step_begin(None, None, control)
            {step}
            stop.on_pre_optimizer_step(None, None, control)
            stop.on_step_end(None, None, control)
            stop.kept()
            if control.should_training_stop:
                print("step ended", flush=True)
                break
except KeyboardInterrupt:
    print("in the step", flush=True)
print("saved", flush=True)
sys.exit(stop.exit_code)
"""
SHORT = "time.sleep(0.2)"
SWALLOWS = """
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
"""
BUSY_IN_C = "__import__('ctypes').CDLL(None).pause(); __import__('ctypes').CDLL(None).sleep(60); time.sleep(60)"

ROWS = [  # a step, the signals, what is printed after "started", the exit code
    ("ends by SIGTERM", SHORT, [signal.SIGTERM], "step ended saved", 143),
    ("swallows, twice", SWALLOWS, [signal.SIGINT, signal.SIGINT], "rescued", 130),
    ("swallows, once", SWALLOWS, [signal.SIGINT], "rescued", 130),
    ("swallows, SIGTERM", SWALLOWS, [signal.SIGTERM], "rescued", 143),
    ("busy in C, SIGTERM", BUSY_IN_C, [signal.SIGTERM], "rescued", 143),
]


@pytest.mark.parametrize(("step", "signals", "said", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_step_ends(step: str, signals: list[int], said: str, code: int) -> None:
    script = TRAINING.format(src=str(ROOT / "src"), step=step)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "started\n"
    for number in signals:
        time.sleep(0.3)
        process.send_signal(number)
    printed = process.communicate(timeout=20)[0]
    assert " ".join(printed.split()) == said and process.returncode == code
