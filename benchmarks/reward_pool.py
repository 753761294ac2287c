"""What a reward's own process costs: a batch of 64 in the trainer's process, whole in a worker, and alone in workers.

    python benchmarks/reward_pool.py [--batches 200] [--output FILE]

The batch is what TRL hands over in a GSM8K run: 8 prompts of 8 completions, 300 tokens each, with token ids, gold and
trainer state. `nothing` pays every completion 1.0, so that its time is the way there and back; `sleeps` takes 50 ms a
completion, as a judge over the network might. Also: seconds to start a worker, and from a hang to the next score.
The JSON goes to benchmarks/results/; exit code 1 where a whole batch costs more than 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.prompts import SYSTEM_PROMPTS  # noqa: E402
from llm_grpo.rewards import build_reward  # noqa: E402

LIMIT_MS = 5.0
WARM_UP = 10  # batches
SOURCE = """
import time

def nothing(completions, **columns):
    return [1.0 for _ in completions]

def sleeps(completions, **columns):
    return [time.sleep(0.05) or 1.0 for _ in completions]

def hangs_at_hang(completions, **columns):
    return [time.sleep(600) if c[0]["content"] == "hang" else 1.0 for c in completions]
"""
WAYS: dict[str, dict[str, Any]] = {
    "in the trainer's process": {"workers": 0},
    "whole, 1 worker": {},
    "alone, 1 worker": {"per_completion": True},
    "alone, 4 workers": {"per_completion": True, "workers": 4},
}


def batch() -> dict[str, Any]:
    """64 completions of 300 tokens, 1,200 characters, to 8 prompts."""
    question = "A shop sells pens at 3 dollars and books at 12 dollars. " * 4
    prompts = [
        [{"role": "system", "content": SYSTEM_PROMPTS["xml"]}, {"role": "user", "content": f"{number}. {question}"}]
        for number in range(8)
    ]
    step = "Then each of the boxes holds 7 apples, which makes 42 in all.\n"
    return {
        "prompts": [prompt for prompt in prompts for _ in range(8)],
        "completions": [[{"role": "assistant", "content": f"{row} {step * 20}"}] for row in range(64)],
        "completion_ids": [[(row * 7919 + place * 104729) % 150_000 for place in range(300)] for row in range(64)],
        "answer": ["42"] * 64,
        "id": [f"train-{row // 8}" for row in range(64)],
        "trainer_state": SimpleNamespace(global_step=9, max_steps=2000, epoch=0.1, log_history=[{"loss": 0.1}] * 10),
        "log_metric": lambda name, value: None,
        "log_extra": lambda name, values: None,
    }


def milliseconds(reward: Any, given: dict[str, Any], batches: int) -> dict[str, float]:
    times = []
    for _ in range(batches + WARM_UP):
        start = time.perf_counter()
        reward(**given)
        times.append(1000 * (time.perf_counter() - start))
    kept = sorted(times[min(WARM_UP, batches) :])
    return {"median_ms": round(statistics.median(kept), 3), "p95_ms": round(kept[int(0.95 * (len(kept) - 1))], 3)}


def measured(file: Path, batches: int) -> dict[str, Any]:
    given, found = batch(), {}
    for name, count in (("nothing", batches), ("sleeps", 3)):
        found[name] = {}
        for way, limits in WAYS.items():
            start = time.perf_counter()
            reward = build_reward(f"{file}:{name}", **limits)
            seconds = time.perf_counter() - start
            found[name][way] = {**milliseconds(reward, given, count), "start_s": round(seconds, 3)}
    found["after a hang"] = recovered(file)
    return found


def recovered(file: Path, timeout_s: float = 0.5) -> dict[str, float]:
    """Seconds beyond the deadline until the rest of the batch is scored, by a worker that was started for it."""
    reward = build_reward(f"{file}:hangs_at_hang", per_completion=True, timeout_s=timeout_s)
    given = {"prompts": ["?"] * 3, "completions": [[{"role": "a", "content": text}] for text in ("a", "hang", "b")]}
    start = time.perf_counter()
    assert reward(**given) == [1.0, None, 1.0]
    return {"timeout_s": timeout_s, "seconds_beyond": round(time.perf_counter() - start - timeout_s, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/reward_pool-DATE.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "own.py"
        file.write_text(SOURCE, encoding="utf-8")
        found = measured(file, args.batches)
    cost = found["nothing"]["whole, 1 worker"]["median_ms"] - found["nothing"]["in the trainer's process"]["median_ms"]
    now = datetime.now(timezone.utc)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": "python benchmarks/reward_pool.py " + " ".join(sys.argv[1:]),
        "commit": commit,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "overhead_of_a_whole_batch_ms": round(cost, 3),
        "limit_ms": LIMIT_MS,
        **found,
    }
    path = args.output or ROOT / "benchmarks" / "results" / f"reward_pool-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if cost <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
