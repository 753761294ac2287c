"""A long run stays flat: memory, open files and seconds a step over a thousand tiny steps; and what it writes.

    python benchmarks/long_run.py --steps 1000

src/train.py on the shipped model with small batches, watched from outside through /proc (Linux). Compared are the
second tenth of the run and the last; the JSON goes to benchmarks/results/; exit code 1 where memory grew by more than
5 %, a step became 20 % slower, or files stayed open.
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

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.runs import Run, read_jsonl  # noqa: E402

TINY = [
    "grpo.per_device_train_batch_size=8", "grpo.num_generations=4", "grpo.max_completion_length=12", "lora.r=8",
    "grpo.save_steps=100", "evaluation={limit: 8, validation_limit: 8, every_steps: 100, batch_size: 16}",
]  # fmt: skip


def watched(run: Run, steps: int) -> list[tuple[int, float, int]]:
    """(step, resident megabytes, open files) every half second of the training."""
    words = ["src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={run.folder.parent}",
             f"grpo.max_steps={steps}", *TINY]  # fmt: skip
    seen = []
    with (run.folder.parent / "printed").open("w") as printed:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=printed, stderr=printed)
        while process.poll() is None:
            time.sleep(0.5)
            step = run.metrics.read_bytes().count(b"\n") if run.metrics.is_file() else 0
            if 0 < step < steps:
                seen.append((step, resident_mb(process.pid), len(list(Path(f"/proc/{process.pid}/fd").iterdir()))))
    if process.returncode:
        raise SystemExit((run.folder.parent / "printed").read_text())
    return seen


def resident_mb(pid: int) -> float:
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line[:12])
    return int(fields["VmRSS"].split()[0]) / 1000


def tenths(values: list[tuple[int, float]], steps: int) -> dict[str, float]:
    """The medians of the second tenth (the first warms up) and of the last."""
    parts = {"early": (0.1, 0.2), "late": (0.9, 1.0)}
    return {
        name: statistics.median(value for step, value in values if low * steps < step <= high * steps)
        for name, (low, high) in parts.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "demo")
        seen = watched(run, args.steps)
        rows = list(read_jsonl(run.metrics))
        packed = sum(path.stat().st_size for path in run.completion_files())
        rows_kept = [row for path in run.completion_files() for row in read_jsonl(path)]
        written = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in rows_kept)
        state = (run.last_checkpoint().folder / "trainer_state.json").stat().st_size
    found = {
        "memory_mb": tenths([(step, memory) for step, memory, _ in seen], args.steps),
        "open_files": tenths([(step, float(files)) for step, _, files in seen], args.steps),
        "seconds_a_step": tenths([(row["step"], row["step_time"]) for row in rows], args.steps),
    }
    now = datetime.now(timezone.utc)
    result = {
        "what": "configs/demo.yaml with tiny batches: the second tenth of the steps against the last",
        "date": now.isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "steps": len(rows),
        **found,
        "completions": {"rows": len(rows_kept), "bytes": written, "bytes_compressed": packed},
        "trainer_state_bytes": state,
        "overrides": TINY,
    }
    path = ROOT / "benchmarks" / "results" / f"long_run-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    memory, files, seconds = found.values()
    flat = memory["late"] <= 1.05 * memory["early"] and files["late"] <= files["early"] + 1
    return 0 if flat and seconds["late"] <= 1.2 * seconds["early"] and len(rows) == args.steps else 1


if __name__ == "__main__":
    sys.exit(main())
