"""What choosing prompts saves: rollouts and seconds to the same held-out accuracy, with `sampling.choose` and without.

    python benchmarks/choosing.py --seeds 0 1 2 3 4 --target 0.9
    python benchmarks/choosing.py --config MINE.yaml --seeds 0 1 --target 0.4 task.args.train_size=2000

Runs of src/train.py in pairs, both ways of one seed after each other and in changing order, with the same settings, and
validated every few steps. Each run goes to benchmarks/results/ when it ends; started again, those that are there are
left out. A pair's rollouts and seconds are those up to the first validation at the target; its end is the test split,
item by item. `--choose` are the words of the second way; exit code 1 where the rollouts' ratio is above 0.75, a run did
not get to the target, or accuracy is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.evaluation.comparison import mcnemar_p  # noqa: E402
from llm_grpo.files import read_json, read_jsonl, write_json  # noqa: E402
from llm_grpo.runs import Run  # noqa: E402

LIMIT = 0.75  # what the ratio of the rollouts may be
SIDES = ("in_order", "chosen")


def trained(config: str, seed: int, words: list[str]) -> dict:
    """One run: every validation with the rollouts and seconds up to it, and which test items were wrong at its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "src/train.py", "--config", config, f"run.output_dir={folder}", "run.name=run",
                   f"run.seed={seed}", "grpo.save_strategy=no", *words]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        run = Run(Path(folder) / "run")
        steps = list(read_jsonl(run.metrics))
        asked = [(row["step"]) for file in run.completion_files() for row in read_jsonl(file)]
        curve = [
            {
                "step": row["step"],
                "accuracy": row["strict_accuracy"],
                "rollouts": sum(step <= row["step"] for step in asked),
                "seconds": sum(step.get("step_time") or 0.0 for step in steps if step["step"] <= row["step"]),
            }
            for row in read_jsonl(run.validation)
        ]
        shares = [row["informative_share"] for row in steps if row.get("informative_share") is not None]
        items = read_json(run.after)["items"]
        wrong = [item["id"] for item in items if not item["strict"]]
        return {"curve": curve, "informative_share": sum(shares) / len(shares), "n": len(items), "wrong": wrong}


def reached(run: dict, target: float) -> dict | None:
    """The first validation at the target."""
    return next((point for point in run["curve"] if point["accuracy"] >= target), None)


def compared(runs: list[dict], target: float) -> dict:
    """Over the seeds of which both ways are there."""
    by = {(run["seed"], run["side"]): run for run in runs}
    seeds = sorted({seed for seed, _ in by if all((seed, side) in by for side in SIDES)})
    pairs = [[by[seed, side] for side in SIDES] for seed in seeds]
    points = [[reached(run, target) for run in pair] for pair in pairs]
    found: dict = {"seeds": seeds, "reached": all(all(pair) for pair in points)}
    if pairs and found["reached"]:
        for name in ("rollouts", "seconds"):
            found[f"{name}_ratio"] = sum(b[name] for _, b in points) / max(sum(a[name] for a, _ in points), 1e-9)
    gained, lost = (sum(len(set(pair[n]["wrong"]) - set(pair[1 - n]["wrong"])) for pair in pairs) for n in (0, 1))
    found |= {"gained": gained, "lost": lost, "p_value": mcnemar_p(gained, lost)}
    found["accuracy"] = {
        side: [1 - len(pair[n]["wrong"]) / pair[n]["n"] for pair in pairs] for n, side in enumerate(SIDES)
    }
    found["informative_share"] = {
        side: [pair[n]["informative_share"] for pair in pairs] for n, side in enumerate(SIDES)
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--target", type=float, default=0.9, help="strict accuracy on validation")
    parser.add_argument("--every", type=int, default=5, help="steps between validations")
    parser.add_argument("--choose", nargs="+", default=["sampling.choose=true"], metavar="section.key=value")
    parser.add_argument("--name", default=f"choosing-{datetime.now(timezone.utc):%Y-%m-%d}", help="of the results")
    parser.add_argument("overrides", nargs="*", help="of both ways")
    args = parser.parse_intermixed_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    path = ROOT / "benchmarks" / "results" / f"{args.name}.json"
    told = {"config": args.config, "overrides": args.overrides, "choose": args.choose, "every": args.every}
    kept = read_json(path) or {"runs": []}
    if kept["runs"] and kept["settings"] != told:
        raise SystemExit(f"{path} has other settings: {json.dumps(kept['settings'])}. Give another --name.")
    runs = kept["runs"]
    for number, seed in enumerate(args.seeds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            if any(run["seed"] == seed and run["side"] == side for run in runs):
                continue
            words = [
                *args.overrides,
                f"evaluation.every_steps={args.every}",
                *(args.choose if side == "chosen" else []),
            ]
            runs.append({"seed": seed, "side": side, "cpus": os.cpu_count(), **trained(args.config, seed, words)})
            result = {"what": "rollouts and seconds to a held-out accuracy, prompts chosen against in order",
                      "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "settings": told,
                      "target": args.target, **compared(runs, args.target), "runs": runs}  # fmt: skip
            write_json(path, result)
            print(f"seed {seed} {side}: {reached(runs[-1], args.target)}", flush=True)
    found = compared(runs, args.target)
    print(json.dumps({name: value for name, value in found.items() if name != "runs"}, indent=2))
    lost = found["lost"] > found["gained"] and found["p_value"] < 0.05
    return 0 if found.get("rollouts_ratio", 9) <= LIMIT and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
