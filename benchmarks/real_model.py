"""What a real pretrained model learns on two CPU cores: configs/smollm2.yaml's as it is, after SFT, after SFT and GRPO,
and after GRPO alone, on the same held-out problems, which chose nothing.

    python benchmarks/real_model.py --seeds 0 1      # or each in a process with OMP_NUM_THREADS=1, both at once
    python benchmarks/real_model.py grpo.max_steps=3 sft.steps=3 evaluation.limit=16 --seeds 0 --folder outputs/try

Two runs a seed, one after the other, each a process that is ended after --minutes. The result of all that lie in the
folder is written after each of them. Called again, it goes on where it stopped: what is finished stays, what has a
checkpoint is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo import command, runs  # noqa: E402
from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.config.schema import Config  # noqa: E402
from llm_grpo.evaluation.comparison import compare  # noqa: E402
from llm_grpo.evaluation.scoring import without_items  # noqa: E402
from llm_grpo.files import read_json, write_json  # noqa: E402
from llm_grpo.planning.plan import explain  # noqa: E402
from llm_grpo.runs import Run  # noqa: E402
from llm_grpo.tasks import build_task  # noqa: E402

CONFIG = ROOT / "configs" / "smollm2.yaml"
RUNS = {"both": (), "grpo": ("sft=null",)}  # the run of both phases holds SFT alone too
CURVES = ("accuracy", "reward", "entropy", "informative_share", "completions/mean_length")  # a value a step
PHASES = ("generation", "rewards", "update", "validation")
GOAL = "GRPO adds 5 points to what it starts from, p < .05"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default 0 1)")
    until = "for a run, which is then stopped with a checkpoint (default %(default)s)"
    parser.add_argument("--minutes", type=float, default=150, help=until)
    where = "where the runs lie (default outputs/real_model)"
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "real_model", help=where)
    tried = "for every run; the result then goes to FOLDER/result.json, not to benchmarks/results/"
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=tried)
    args = parser.parse_intermixed_args()
    file = ROOT / "benchmarks" / "results" / f"real_model-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    if args.overrides:  # a try: no result of the project
        file = args.folder / "result.json"
    for seed in args.seeds:
        for name in RUNS:
            words = [*args.overrides, *RUNS[name], f"run.seed={seed}", f"run.name={name}-{seed}"]
            if not train([*words, f"run.output_dir={args.folder.resolve()}"], args.minutes):
                print(f"{name}-{seed} did not begin; see above.", file=sys.stderr)
                return 1
            result = result_of(args.folder.resolve(), args.overrides)
            write_json(file, result)
            print_result(result)
    print(file)
    return 0


def train(overrides: list[str], minutes: float) -> bool:
    """A run from its start or its last checkpoint, unless it is finished; ended when its time is over. Whether there is
    a run."""
    run = runs.of(load_config(CONFIG, overrides, environment={}))
    if run.summary.is_file():
        return True
    planned = planned_for(load_config(CONFIG, overrides, environment={}))
    go_on = ["--resume"] if run.last_checkpoint() else ["--overwrite"]
    words = [sys.executable, str(ROOT / "src/train.py"), "--config", str(CONFIG), *go_on, *overrides]
    print(f"{run.folder.name}: {go_on[0]}", flush=True)
    start = time.time()
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        print(f"{run.folder.name}: stopped after {minutes:g} minutes", flush=True)
        process.terminate()
        process.wait()
    if not run.config_file.is_file():
        return False
    sessions = read_json(run.folder / "sessions.json") or []
    spent = {"minutes": round((time.time() - start) / 60, 1), "exit_code": process.returncode, "plan": planned}
    write_json(run.folder / "sessions.json", [*sessions, spent])
    return True


def planned_for(config: Config) -> dict[str, str]:
    """What the plan says before a run: its time is tried, on the machine as it is then."""
    return dict(explain(config, len(build_task(config.task.name, config.task.args).load("train").examples)))


def result_of(folder: Path, overrides: list[str]) -> dict:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = {"cpus": os.cpu_count(), "platform": f"{platform.system()} {platform.machine()}"}
    there = {int(file.parent.name.rpartition("-")[2]) for name in RUNS for file in folder.glob(f"{name}-*/config.yaml")}
    found = {seed: seed_of(folder, seed) for seed in sorted(there)}
    result = {"what": __doc__.partition("\n\n")[0], "date": now, **machine, "overrides": overrides, "seeds": found}
    return json.loads(json.dumps(result).replace(f"{ROOT}/", ""))  # no folder of this machine


def seed_of(folder: Path, seed: int) -> dict:
    """The four models of a seed, as far as they are there, each paired with what it started from."""
    both, grpo = (Run(folder / f"{name}-{seed}") for name in RUNS)
    reports = {"base": both.before, "sft": both.after_sft, "sft_grpo": both.after, "grpo": grpo.after}
    known = {name: report for name, path in reports.items() if (report := read_json(path))}
    pairs = [("base", "sft"), ("sft", "sft_grpo"), ("base", "grpo"), ("grpo", "sft_grpo"), ("base", "sft_grpo")]
    paired = {f"{a} -> {b}": _numbers(compare(known[a], known[b])) for a, b in pairs if {a, b} <= known.keys()}
    for start, end in (("sft", "sft_grpo"), ("base", "grpo")):
        if counts := paired.get(f"{start} -> {end}"):
            gain = known[end]["strict_accuracy"] - known[start]["strict_accuracy"]
            counts["met"] = {GOAL: gain >= 0.05 and counts["p_value"] < 0.05}
    runs_of_seed = {run.folder.name: run_of(run) for run in (both, grpo) if run.config_file.is_file()}
    return {"models": {n: without_items(r) for n, r in known.items()}, "paired": paired, "runs": runs_of_seed}


def _numbers(counts: dict) -> dict:
    return {name: value for name, value in counts.items() if not name.endswith("_items")}


def run_of(run: Run) -> dict:
    """What a run took, against what its plan had said; its curves."""
    rows, config = list(runs.read_jsonl(run.metrics)), run.config()
    told = read_json(run.environment) or {}
    curve = [(row["step"], row["strict_accuracy"], row["format_rate"]) for row in runs.read_jsonl(run.validation)]
    means = {name: _mean(rows, name) for name in ("tokens_per_second", "completion_tokens", "frac_reward_zero_std")}
    return {
        "sessions": read_json(run.folder / "sessions.json"),
        "starts": [
            {"started": one["started"], "commit": one["commit"], "resumed": one["choices"].get("--resume")}
            for one in ([*told.get("earlier_sessions", []), told] if told else [])
        ],
        "steps": len(rows),
        "summary": {k: (read_json(run.summary) or {}).get(k) for k in ("train_seconds", "evaluated", "spent")},
        "seconds": {phase: round(sum(row.get(f"seconds/{phase}", 0) for row in rows)) for phase in PHASES},
        "means": means,
        "memory_peak_gb": max((row.get("memory_peak_gb", 0) for row in rows), default=None),
        "validation": curve,
        "curves": {name: [row.get(name) for row in rows] for name in CURVES},
        "sft": [(row["step"], row["loss"], row["time"]) for row in runs.read_jsonl(run.sft_metrics)],
        "config": config.as_dict(),
    }


def _mean(rows: list[dict], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return round(sum(values) / len(values), 3) if values else None


def print_result(result: dict) -> None:
    for seed, found in result["seeds"].items():
        for name, report in found["models"].items():
            shares = f"strict {report['strict_accuracy']:.3f}  lenient {report['lenient_accuracy']:.3f}"
            if drawn := report.get("sampled"):
                shares += f"  avg@{drawn['k']} {drawn['strict']['avg_at_k']:.3f}"
            print(f"seed {seed}  {name:<9} {shares}")
        for name, counts in found["paired"].items():
            met = "".join(f"  {'yes' if kept else 'NO'}: {goal}" for goal, kept in counts.get("met", {}).items())
            changed = f"gained {counts['gained']}, lost {counts['lost']}, p {counts['p_value']:.0e}"
            if drawn := counts.get("sampled"):
                low, high = drawn["change_ci95"]
                changed += f"  avg@{drawn['k']} {drawn['change']:+.3f} [{low:+.3f}, {high:+.3f}]"
            print(f"seed {seed}  {name:<17} {changed}{met}")


if __name__ == "__main__":
    command.run(main)
