"""Does the demo learn with every seed? Runs configs/demo.yaml once per seed and writes down what came of it.

    python benchmarks/demo_seeds.py --seeds 0 1 2
    python benchmarks/demo_seeds.py --seeds 0 --engine vllm

One run after the other, each in a process of its own; the JSON (date, commit, machine) goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def run(seed: int, engine: str, outputs: Path) -> dict:
    """One demo run: its summary, and whether it meets what the README promises."""
    words = ["--config", "configs/demo.yaml", f"run.seed={seed}", f"run.name=seed-{seed}", f"run.output_dir={outputs}"]
    words += [f"rollouts.engine={engine}"]
    subprocess.run([sys.executable, "src/train.py", *words], cwd=ROOT, check=True)
    folder = outputs / f"seed-{seed}"
    summary = json.loads((folder / "summary.json").read_text())
    facts = json.loads((folder / "environment.json").read_text())
    for name in ("gained_items", "lost_items"):
        summary["paired"].pop(name)
    return {**summary, "met": promises(summary), "commit": facts["commit"], "versions": facts["versions"]}


def promises(summary: dict) -> dict[str, bool]:
    before, after, paired = summary["before"], summary["after"], summary["paired"]
    lenient = paired["lenient"]
    return {
        "at least 500 held-out problems": after["n"] >= 500,
        "strict accuracy up by 20 points": after["strict_accuracy"] - before["strict_accuracy"] >= 0.20,
        "paired p below 0.001": paired["p_value"] < 0.001,
        "lenient accuracy not significantly lower": lenient["gained"] >= lenient["lost"] or lenient["p_value"] > 0.05,
        "at most 5 minutes of training": summary["train_seconds"] <= 300,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"], help="who generates")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs there, for engines.py --run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outputs = (args.keep or Path(temporary)).resolve()
        runs = [run(seed, args.engine, outputs) for seed in args.seeds]
    now = datetime.now(timezone.utc)
    machine = {"cpus": os.cpu_count(), "platform": f"{platform.system()} {platform.machine()}"}
    result = {
        "what": "configs/demo.yaml, one run per seed",
        "engine": args.engine,
        "date": now.isoformat(timespec="seconds"),
        **machine,
        "runs": runs,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"demo_seeds{'' if args.engine == 'transformers' else f'-{args.engine}'}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in runs:
        before, after, lenient = row["before"], row["after"], row["paired"]["lenient"]
        strict = f"{before['strict_accuracy']:.3f} -> {after['strict_accuracy']:.3f} (p {row['paired']['p_value']:.0e})"
        both = f"{before['lenient_accuracy']:.3f} -> {after['lenient_accuracy']:.3f}"
        changed = f"gained {lenient['gained']}, lost {lenient['lost']}"
        print(f"seed {row['seed']}: strict {strict}, lenient {both} ({changed}), {row['train_seconds']:.0f} s")
        for promise, kept in row["met"].items():
            print(f"  {'yes' if kept else 'NO '}  {promise}")
    print(path.relative_to(ROOT))
    return 0 if all(all(row["met"].values()) for row in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
