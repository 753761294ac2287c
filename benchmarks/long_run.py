"""A long run stays flat: memory, open files and seconds a step over a thousand tiny steps; and what it writes.

    python benchmarks/long_run.py --steps 1000

src/train.py on the shipped model with small batches and a reward in a worker of its own, watched from outside through
/proc (Linux). Compared are the second tenth and the last of the steps that one process did; the JSON goes to
benchmarks/results/; exit code 1 where memory grew by more than 5 %, a step takes 20 % more of the processor's time (the
clock's is told too, and says little on a machine that is shared), or files stayed open.
Everything is in --folder; stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.files import append_jsonl, read_jsonl  # noqa: E402
from llm_grpo.runs import Run  # noqa: E402

TINY = [
    "grpo.per_device_train_batch_size=8", "grpo.num_generations=4", "grpo.max_completion_length=12", "lora.r=8",
    "grpo.save_steps=50", "evaluation={limit: 8, validation_limit: 8, every_steps: 100, batch_size: 16}",
    "rewards=[{name: correctness_reward_func}, {name: xmlcount_reward_func},"
    " {name: 'examples/custom_reward.py:close_to_gold', per_completion: true}]",
]  # fmt: skip


def watch(run: Run, steps: int, seen: Path) -> None:
    """Train to the end; a line of `seen` every second: which process, its step, memory, open files, threads."""
    words = ["src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={run.folder.parent}",
             f"grpo.max_steps={steps}", *TINY, "--resume" if run.last_checkpoint() else "--overwrite"]  # fmt: skip
    with (run.folder.parent / "printed").open("a") as printed:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=printed, stderr=printed)
        begun = logged(run)
        while process.poll() is None:
            time.sleep(1)
            if begun < (step := logged(run)) < steps:
                append_jsonl(seen, [{"process": process.pid, "step": step, **measured(process.pid)}])
    if process.returncode:
        raise SystemExit((run.folder.parent / "printed").read_text())


def logged(run: Run) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.is_file() else 0


def measured(pid: int) -> dict[str, float]:
    place = Path(f"/proc/{pid}")
    times = (place / "stat").read_text().rpartition(")")[2].split()
    children = (place / "task" / str(pid) / "children").read_text().split()
    return {
        "memory_mb": resident_mb(place),
        "workers_mb": sum(resident_mb(Path("/proc") / child) for child in children),
        "open_files": len(list((place / "fd").iterdir())),
        "threads": len(list((place / "task").iterdir())),
        "cpu_seconds": (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
    }


def resident_mb(place: Path) -> float:
    fields = dict(line.split(":") for line in (place / "status").read_text().splitlines() if ":" in line[:12])
    return int(fields["VmRSS"].split()[0]) / 1000


PARTS = {"early": (0.1, 0.2), "late": (0.9, 1.0)}  # the second tenth of the steps (the first warms up), and the last


def tenth(rows: list[dict[str, float]], part: str) -> list[dict[str, float]]:
    first, last = rows[0]["step"], rows[-1]["step"]
    low, high = PARTS[part]
    return [row for row in rows if low <= (row["step"] - first) / (last - first) <= high]


def tenths(rows: list[dict[str, float]], name: str) -> dict[str, float]:
    """The medians of both parts."""
    return {part: round(statistics.median(row[name] for row in tenth(rows, part)), 3) for part in PARTS}


def cpu_a_step(rows: list[dict[str, float]]) -> dict[str, float]:
    ends = {part: (of[0], of[-1]) for part in PARTS if (of := tenth(rows, part))}
    return {
        part: round((end["cpu_seconds"] - start["cpu_seconds"]) / (end["step"] - start["step"]), 3)
        for part, (start, end) in ends.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "long_run")
    parser.add_argument("--fresh", action="store_true", help="begin again")
    parser.add_argument("--shared", action="store_true", help="the machine has other work: say so in the result")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    run, seen = Run(args.folder / "demo"), args.folder / "seen.jsonl"
    if not run.summary.is_file():
        watch(run, args.steps, seen)
    samples, steps = list(read_jsonl(seen)), list(read_jsonl(run.metrics))
    longest = Counter(row["process"] for row in samples).most_common(1)[0][0]
    samples = [row for row in samples if row["process"] == longest]
    within = [row for row in steps if samples[0]["step"] <= row["step"] <= samples[-1]["step"]]
    packed = sum(path.stat().st_size for path in run.completion_files())
    rows_kept = [row for path in run.completion_files() for row in read_jsonl(path)]
    now = datetime.now(timezone.utc)
    result = {
        "what": "configs/demo.yaml with tiny batches: the second tenth of the steps of a process against its last",
        "date": now.isoformat(timespec="seconds"),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "machine": "shared with other work: its seconds say little" if args.shared else "idle but for this",
        "steps": len(steps),
        "steps_in_one_process": samples[-1]["step"] - samples[0]["step"],
        **{name: tenths(samples, name) for name in ("memory_mb", "workers_mb", "open_files", "threads")},
        "cpu_seconds_a_step": cpu_a_step(samples),
        "seconds_a_step": tenths(within, "step_time"),
        "completions": {
            "rows": len(rows_kept),
            "tokens": sum(row["tokens"] for row in rows_kept),
            "bytes": sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in rows_kept),
            "bytes_compressed": packed,
        },
        "trainer_state_bytes": (run.last_checkpoint().folder / "trainer_state.json").stat().st_size,
        "overrides": TINY,
    }
    grown = [
        name
        for name, most, spare in (("memory_mb", 1.05, 0), ("workers_mb", 1.05, 0), ("open_files", 1, 1),
                                  ("threads", 1, 1), ("cpu_seconds_a_step", 1.2, 0))
        if result[name]["late"] > most * result[name]["early"] + spare
    ]  # fmt: skip
    result["not_flat"] = grown
    path = ROOT / "benchmarks" / "results" / f"long_run-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if grown or len(steps) != args.steps else 0


if __name__ == "__main__":
    sys.exit(main())
