"""Does a system learn? Its shipped config on a small base of its architecture: before, after, paired, on held-out data.

    python benchmarks/learning.py word_problems --seeds 0 1
    python benchmarks/learning.py word_problems --base outputs/base     (keeps the base, and uses it again)

The base is made by warm_start.py on the train split and is imperfect on purpose. Then src/train.py runs as a user would
start it, once per seed, and its summaries go to benchmarks/results/learning_NAME-DATE.json. What was chosen
(overrides) was chosen on the validation split; the test split is only scored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this script is run without installing anything
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
from benchmarks.learning_distilgpt2 import SYSTEM as DISTILGPT2
from benchmarks.learning_lead_qualification import SYSTEM as LEAD_QUALIFICATION
from benchmarks.learning_one_shot import SYSTEM as ONE_SHOT
from benchmarks.learning_qa import LORA, WHOLE
from benchmarks.learning_word_problems import SYSTEM as WORD_PROBLEMS
from benchmarks.warm_start import ROOT, System, make_base
from llm_grpo import runs
from llm_grpo.runs import Run

WATCHED = ("reward", "strict_accuracy", "format_rate", "mean_tokens")  # of the validation split, during training
RESULTS = ROOT / "benchmarks" / "results"
SYSTEMS: dict[str, System] = {
    "distilgpt2": DISTILGPT2,
    "lead_qualification": LEAD_QUALIFICATION,
    "one_shot": ONE_SHOT,
    "word_problems": WORD_PROBLEMS,
    "qa_llama1b": LORA,
    "qa_llama1b_all_weights": WHOLE,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SYSTEMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of GRPO; the base is the same for all")
    parser.add_argument("--base", type=Path, metavar="DIR", help="make the base here, or use the one that is here")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: benchmarks/results/learning_NAME-DATE.json"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.name, SYSTEMS[args.name], args.seeds, args.base or Path(folder) / "base", Path(folder))
    path = args.output or RESULTS / f"learning_{args.name}-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in result["runs"]:
        print(said(row))
    print(path)
    return 0


def measure(name: str, system: System, seeds: list[int], base: Path, outputs: Path) -> dict[str, Any]:
    """The base, and one run per seed: everything that goes into the JSON."""
    facts, chosen = base / "how.json", list(system.overrides)
    if system.data:
        base.mkdir(parents=True, exist_ok=True)
        system = replace(system, overrides=(*system.overrides, *system.data(base)))
    if not facts.is_file():
        made = make_base(system, base)
        facts.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return {
        "what": f"{system.config} on a small {system.architecture} made for it, one run per seed",
        "command": f"python benchmarks/learning.py {name} --seeds {' '.join(map(str, seeds))}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "overrides": chosen,
        "base": json.loads(facts.read_text(encoding="utf-8")),
        "runs": [run(system, base, seed, outputs) for seed in seeds],
    }


def run(system: System, base: Path, seed: int, outputs: Path) -> dict[str, Any]:
    """One training run: its summary, commit and versions. cpu_seconds is all of it: GRPO, loading, evaluations, merge;
    train_seconds is the clock over GRPO alone, validation left out."""
    name = f"seed-{seed}"
    words = ["--config", system.config, f"model.name={base}", f"run.seed={seed}", f"run.name={name}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "src/train.py", *words, f"run.output_dir={outputs}", *system.overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((outputs / name / "summary.json").read_text(encoding="utf-8"))
    facts = json.loads((outputs / name / "environment.json").read_text(encoding="utf-8"))
    for items in ("gained_items", "lost_items"):
        summary["paired"].pop(items)
    for side in ("before", "after"):
        summary[side].get("metrics", {}).pop("confusion", None)  # a picture's worth of numbers
    summary["model"] = f"a small {system.architecture}, see base"
    curve = runs.read_jsonl(Run(outputs / name).validation)
    summary["validation"] = [{key: row[key] for key in ("step", "n", *WATCHED)} for row in curve]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **summary,
        "cpu_seconds": round(spent, 1),
        "threads": facts.get("torch_threads"),
        "commit": facts["commit"],
        "versions": facts["versions"],
    }


def said(row: dict[str, Any]) -> str:
    before, after, paired = row["before"], row["after"], row["paired"]
    strict = f"{before['strict_accuracy']:.3f} -> {after['strict_accuracy']:.3f}"
    changed = f"gained {paired['gained']}, lost {paired['lost']}, p {paired['p_value']:.0e}"
    return f"seed {row['seed']}: strict {strict} ({changed}), {row['steps']} steps, {row['train_seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
