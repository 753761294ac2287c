"""85,000 questions and answers, from a file to what TRL trains on: seconds and peak memory, against `datasets`.

    python benchmarks/table_load.py                  # JSONL and CSV, three rounds each
    python benchmarks/table_load.py --rows 5000      # to try it

Ours: the task `jsonl` or `csv` (each row checked, duplicates by pair_id found, three splits drawn), prompts made, those
that are too long left out, and the table for the trainer. The peer: datasets.load_dataset and one `map` that makes the
same prompt and gold; it checks nothing and draws no splits. Each is a process of its own, in changing order, with an
empty cache; time is the process's own CPU time from the end of the imports, memory the highest resident set (VmHWM).
Linux only; the JSON goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
WORDS = "Mia Tom has boxes with pens and gives some to her friend who then buys more of them at the shop today".split()
FIELDS = ("question", "answer", "generated_at", "pair_id")
TWICE = 17  # pair ids that stand twice


def make(folder: Path, rows: int) -> None:
    """qa.jsonl and qa.csv with the same rows of about 600 characters, the last TWICE with ids of the first."""
    rng = random.Random(0)
    table = []
    for number in range(rows):
        a, b = rng.randint(1, 9999), rng.randint(1, 9999)
        told = " ".join(rng.choices(WORDS, k=40))
        table.append(
            {
                "question": f"Story {number}: {told}. How much is {a} + {b}?",
                "answer": "We add the two numbers of the story.\n" * 4 + f"{a}+{b}={a + b}\n#### {a + b}",
                "generated_at": "2026-11-21T00:00:00Z",
                "pair_id": f"pair-{number if number < rows - TWICE else number - rows + TWICE}",
            }
        )
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    with (folder / "qa.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(table)


def ours(kind: str, file: Path) -> dict[str, Any]:
    """Every phase of src/train.py between the config and the trainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from llm_grpo.config.loading import load_config
    from llm_grpo.problems import prepare
    from llm_grpo.tasks import build_task

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "tiny_qwen2")
    config = load_config(ROOT / "configs" / "qa_llama1b.yaml", [f"task.name={kind}", f"task.args.path={file}"], {})
    seconds, start = {}, time.process_time()
    task = build_task(kind, config.task.args)
    task.load("train")
    seconds["load"] = time.process_time() - start
    data = {split: prepare(task, split, config, tokenizer) for split in ("train", "validation", "test")}
    seconds["prepare"] = time.process_time() - start - seconds["load"]
    Dataset.from_dict({"problem": list(range(len(data["train"].problems)))})  # all that the trainer makes of them
    seconds["table"] = time.process_time() - start - seconds["load"] - seconds["prepare"]
    bad = data["train"].bad_rows
    assert len(bad) == TWICE and "already" in bad[0].reason, bad[:2]
    return {"seconds": seconds, "rows": sum(len(part.problems) for part in data.values())}


def peer(kind: str, file: Path) -> dict[str, Any]:
    """What a notebook does."""
    import datasets

    from llm_grpo.prompts import SYSTEM_PROMPTS

    system, start = SYSTEM_PROMPTS["hash"], time.process_time()
    reader = {"jsonl": "json", "csv": "csv"}[kind]
    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(reader, data_files=str(file), split="train", cache_dir=cache)
        loaded = time.process_time() - start
        rows = rows.map(
            lambda row: {
                "prompt": [{"role": "system", "content": system}, {"role": "user", "content": row["question"]}],
                "answer": row["answer"].split("####")[-1].strip(),
            }
        )
        return {"seconds": {"load": loaded, "map": time.process_time() - start - loaded}, "rows": len(rows)}


def measured(who: str, kind: str, file: Path) -> dict[str, Any]:
    """One of the two in a process of its own."""
    words = [sys.executable, __file__, "--one", who, "--kind", kind, "--file", str(file)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def one(who: str, kind: str, file: Path) -> None:
    found = {"ours": ours, "peer": peer}[who](kind, file)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found["peak_mb"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024
    print(json.dumps(found))


def compare(kind: str, file: Path, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(rounds):
        for who in list(runs)[:: 1 if number % 2 else -1]:
            runs[who].append(measured(who, kind, file))
    median = {who: statistics.median(sum(run["seconds"].values()) for run in found) for who, found in runs.items()}
    memory = {who: statistics.median(run["peak_mb"] for run in found) for who, found in runs.items()}
    ratios = {
        "seconds": round(median["ours"] / median["peer"], 2),
        "peak_mb": round(memory["ours"] / memory["peer"], 2),
    }
    return {"median_seconds": median, "median_peak_mb": memory, "ours_over_peer": ratios, "runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=85_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/table_load-DATE.json")
    for hidden in ("--one", "--kind", "--file"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.kind, Path(args.file))
        return 0
    now = datetime.now(timezone.utc)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.rows)
        results = {kind: compare(kind, Path(folder) / f"qa.{kind}", args.rounds) for kind in ("jsonl", "csv")}
    result = {
        "what": f"{args.rows} rows from a file to the trainer's table, CPU seconds and peak memory, ours and datasets",
        "command": f"python benchmarks/table_load.py --rows {args.rows} --rounds {args.rounds}",
        "date": now.isoformat(timespec="seconds"),
        "commit": commit,
        "cpus": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in ("datasets", "transformers", "tokenizers", "pyarrow")},
        **results,
    }
    path = args.output or ROOT / "benchmarks" / "results" / f"table_load-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for kind, found in results.items():
        print(kind, found["median_seconds"], found["median_peak_mb"], found["ours_over_peer"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
