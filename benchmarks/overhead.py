"""What our wiring costs: a training step of ours against a bare Unsloth + TRL script with the same settings.

    python benchmarks/overhead.py --pairs 8 --steps 12

Pairs of processes, ours and bare in turn and in changing order, with the same settings, seed and data. The ratio
comes with a bootstrap interval over pairs; the JSON goes to benchmarks/results/; exit code 1 where its upper end is
above 1.05.
Also: the cold start of each verb (`--help`, and a wrong key).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.config.schema import Config  # noqa: E402
from llm_grpo.problems import system_prompt  # noqa: E402
from llm_grpo.prompts import with_system  # noqa: E402
from llm_grpo.runs import read_jsonl  # noqa: E402
from llm_grpo.tasks import build_task  # noqa: E402

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as our scripts set it; the bare script gets the same
SIDES = ("ours", "bare")
LIMIT = 1.05  # what the upper end of the interval may be
WARM_UP = 2  # steps left out: the first pays for allocation and caches


def overrides(folder: Path, steps: int) -> list[str]:
    rewards = "rewards=[{name: correctness_reward_func}, {name: strict_format_reward_func}]"
    return [f"run.output_dir={folder}", f"grpo.max_steps={steps}", "evaluation.every_steps=0", "evaluation.limit=8",
            "grpo.save_strategy=no",
            rewards]  # fmt: skip


def ours(folder: Path, steps: int) -> list[float]:
    """Seconds between the ends of our steps, from the timestamps of metrics.jsonl."""
    words = ["src/train.py", "--config", "configs/demo.yaml", "--overwrite", *overrides(folder, steps)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    times = [row["time"] for row in read_jsonl(folder / "demo" / "metrics.jsonl")]
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def bare(folder: Path, steps: int) -> list[float]:
    config = load_config(ROOT / "configs" / "demo.yaml", overrides(folder, steps), environment={})
    file = folder / "settings.json"
    file.write_text(json.dumps(settings(config, folder)))
    done = subprocess.run(
        [sys.executable, "benchmarks/bare_grpo.py", str(file)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def settings(config: Config, folder: Path) -> dict:
    """What the bare script is given: values and plain rows, nothing of ours."""
    task = build_task(config.task.name, config.task.args)
    rows = [
        {"prompt": with_system(e.prompt, system_prompt(config, task)), "answer": e.answer}
        for e in task.load("train").examples
    ]
    return {
        "peer": "unsloth",
        "model": config.model.name,
        "load": {"load_in_4bit": False, "dtype": "float32"},
        "use_cpu": True,
        "max_seq_length": config.model.max_seq_length,
        "lora": {"r": config.lora.r, "lora_alpha": config.lora.alpha, "lora_dropout": config.lora.dropout,
                 "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
        "grpo": config.grpo,
        "seed": config.run.seed,
        "output_dir": str(folder / "bare"),
        "rows": rows,
    }  # fmt: skip


def best_ratio(pairs: list[dict[str, list[float]]]) -> float:
    """Median over the steps of (our fastest run of that step / the bare script's fastest run of it).

    Both sides do the same work at the same step (same seed, same data), and whatever else the machine does only adds
    time: the fastest of several runs is the one that was disturbed least.
    """
    fastest = {side: [min(times) for times in zip(*(pair[side] for pair in pairs), strict=True)] for side in SIDES}
    return statistics.median(a / b for a, b in zip(fastest["ours"], fastest["bare"], strict=True))


def interval(pairs: list[dict[str, list[float]]], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of that ratio, over pairs."""
    rng = random.Random(0)
    ratios = sorted(best_ratio(rng.choices(pairs, k=len(pairs))) for _ in range(draws))
    return ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]


def cold_starts() -> dict[str, float]:
    """Seconds from the command to its answer, the best of three."""
    scripts = sorted(path.name for path in (ROOT / "src").glob("*.py"))
    commands = {f"{name} --help": [f"src/{name}", "--help"] for name in scripts}
    commands["train.py with a wrong key"] = ["src/train.py", "--config", "configs/demo.yaml", "grpo.lerning_rate=1"]
    result = {}
    for label, words in commands.items():
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
            seconds.append(time.perf_counter() - start)
        result[label] = round(min(seconds), 3)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    pairs = []
    for number in range(args.pairs):
        with tempfile.TemporaryDirectory() as folder:
            order = (ours, bare) if number % 2 == 0 else (bare, ours)
            pair = {run.__name__: run(Path(folder), args.steps)[WARM_UP:] for run in order}
        pairs.append(pair)
        middle = {side: statistics.median(pair[side]) for side in SIDES}
        print(f"pair {number + 1}: ours {middle['ours']:.3f} s, bare {middle['bare']:.3f} s a step")
    ratio, (low, high) = best_ratio(pairs), interval(pairs)
    now = datetime.now(timezone.utc)
    result = {
        "what": "seconds per training step of configs/demo.yaml, ours against benchmarks/bare_grpo.py",
        "date": now.isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "steps": args.steps,
        "ratio": ratio,
        "ci95": [low, high],
        "pairs": pairs,
        "cold_starts_s": cold_starts(),
    }
    path = ROOT / "benchmarks" / "results" / f"overhead-{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"ratio {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}; {path.relative_to(ROOT)}")
    return 0 if high <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
