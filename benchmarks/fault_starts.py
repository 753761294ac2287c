"""How benchmarks/faults.py starts a run: as a person does, or in a fork of a process that has imported everything."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hub_server import HubServer

from llm_grpo.runs import Run

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4
SMALL = (
    "grpo={max_steps: 4, save_steps: 1, per_device_train_batch_size: 8, num_generations: 4, learning_rate: 1e-3,"
    " max_completion_length: 12, save_total_limit: 2}",
    "lora.r=8",
    "task.args={train_size: 24, validation_size: 8, test_size: 8}",
    "evaluation={limit: 8, validation_limit: 8, every_steps: 2}",
    "rewards=[{name: xmlcount_reward_func}, {name: 'examples/custom_reward.py:close_to_gold', per_completion: true}]",
)
POLL_S = 0.002  # between two looks
DISK_MB = 96
WARM = ["llm_grpo.loaders.unsloth", "llm_grpo.training.optimising", "llm_grpo.evaluation.scoring",
        "llm_grpo.report.page", "llm_grpo.export", "llm_grpo.export.proof", "llm_grpo.export.push",
        "matplotlib.pyplot", "train", "merge"]  # fmt: skip


class Bench:
    """Where it all happens. `hub`: where runs are pushed to; `no_disk`: why there is no disk that could become full."""

    def __init__(self, folder: Path, hub: HubServer, cold: float) -> None:
        self.cold = cold
        self.folder, self.hub, self.disk = folder, hub, folder / "the disk ü"
        self.disk.mkdir(parents=True, exist_ok=True)
        if not self.disk.is_mount():
            words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "faults", str(self.disk)]
            done = subprocess.run(words, capture_output=True, text=True) if shutil.which(words[0]) else None
        self.no_disk = "" if self.disk.is_mount() else done.stderr.strip() if done else "there is no `mount`"
        found = os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "benchmarks"))
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": hub.token,
                       "HF_HOME": str(folder / "hf"), "PYTHONPATH": found}  # fmt: skip
        for name in [name for name in os.environ if "OFFLINE" in name]:  # nobody but our Hub is asked
            del os.environ[name]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(WARM)

    def start(self, run: Run, log: Path, cold: bool = False, weak: bool = False) -> Process:
        """What a person would start next: train.py (--resume where there is a checkpoint), then merge.py --push."""
        if run.summary.is_file():
            words = ["src/merge.py", "--run", str(run.folder), "--push", f"user/{run.folder.name}", "--proof-limit=8"]
        else:
            words = ["src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={run.folder.parent}"]
            words += [f"run.name={run.folder.name}", *SMALL, "--resume" if run.last_checkpoint() else "--overwrite"]
        said = log.stat().st_size if log.exists() else 0
        if cold:
            with log.open("ab") as file:
                words = [sys.executable, *words]
                process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
            return Process(process.pid, lambda wait_s: _waited(process, wait_s), log, said)
        forked = self.context.Process(target=_forked, args=(words, log, weak))
        forked.start()

        def wait(wait_s: float) -> int | None:
            forked.join(wait_s)
            return forked.exitcode

        while forked.is_alive() and (log.stat().st_size if log.exists() else 0) == said:
            time.sleep(POLL_S)
        return Process(forked.pid, wait, log, said)


class Process:
    """A start. wait(seconds) -> its exit code, or None: not ended yet."""

    def __init__(self, pid: int, wait: Callable[[float], int | None], log: Path, said: int) -> None:
        self.pid, self.wait, self.log, self._said = pid, wait, log, said

    def printed(self) -> str:
        return self.log.read_bytes()[self._said :].decode("utf-8", "replace")


def _waited(process: subprocess.Popen[bytes], wait_s: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(wait_s)
    return None


def _forked(words: list[str], log: Path, weak: bool) -> None:
    """In the fork: what `python WORDS` does once everything is imported."""
    from llm_grpo import command

    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the bench
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if weak:  # root without its capabilities obeys the permissions of a folder
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    os.chdir(ROOT)
    sys.argv = words
    command.quiet_libraries()
    main = importlib.import_module(Path(words[0]).stem).main
    os.write(1, f"--- {' '.join(words)}\n".encode())
    command.run(main)
