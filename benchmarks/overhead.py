"""What a training step of ours costs: against a bare Unsloth + TRL script with the same settings.

    python benchmarks/overhead.py --pairs 2 --steps 100

Pairs of processes, ours and bare in turn and in changing order, with the same settings, seed and data. `--steps 100` is
the whole demo: groups whose answers all earn the same are few at its start and many at its end, and ours leaves
them out of updates. The ratio is of the means over all steps, with a bootstrap interval over steps; a pair is written
to benchmarks/results/ as it comes; exit code 1 where the ratio is above 0.85.
Also with `--cold-starts`: seconds of each verb (`--help`, and a wrong key).
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
LIMIT = 0.85  # what the ratio may be
PEER = "benchmarks/bare_grpo.py: unsloth's FastLanguageModel in TRL's GRPOTrainer, none of our code"
WARM_UP = 2  # steps left out: the first pays for allocation and caches


def overrides(folder: Path, steps: int) -> list[str]:
    return [f"run.output_dir={folder}", f"grpo.max_steps={steps}", "evaluation.every_steps=0", "evaluation.limit=8",
            "grpo.save_strategy=no"]  # fmt: skip


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


def fastest(pairs: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Of each side, the fastest run of each step: whatever else the machine does only adds time."""
    return {side: [min(times) for times in zip(*(pair[side] for pair in pairs), strict=True)] for side in SIDES}


def interval(steps: list[tuple[float, float]], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of the means, over steps (ours, bare)."""
    rng = random.Random(0)
    drawn = (rng.choices(steps, k=len(steps)) for _ in range(draws))
    ratios = sorted(sum(ours for ours, _ in some) / sum(bare for _, bare in some) for some in drawn)
    return ratios[int(0.025 * draws)], ratios[int(0.975 * draws) - 1]


def measured(pairs: list[dict[str, list[float]]], steps: int) -> dict:
    best = fastest(pairs)
    middles = [statistics.median(pair["ours"]) / statistics.median(pair["bare"]) for pair in pairs]
    quarters = [slice(n * len(best["ours"]) // 4, (n + 1) * len(best["ours"]) // 4) for n in range(4)]
    return {
        "what": "seconds per training step of configs/demo.yaml, ours against the peer",
        "peer": PEER,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cpus": os.cpu_count(),
        "steps": steps,
        "ratio": sum(best["ours"]) / sum(best["bare"]),
        "ci95": interval(list(zip(best["ours"], best["bare"], strict=True))),
        "ratio_by_quarter_of_the_run": [sum(best["ours"][q]) / sum(best["bare"][q]) for q in quarters],
        "ratio_of_medians_by_pair": middles,
        "pairs": pairs,
    }


def cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    avx512 = any("avx512f" in line for line in lines)
    return f"{names[0] if names else platform.processor()}, {'with' if avx512 else 'without'} AVX-512"


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
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cold-starts", action="store_true")
    args = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / f"overhead-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs: list[dict[str, list[float]]] = []
    for number in range(args.pairs):
        with tempfile.TemporaryDirectory() as folder:
            order = (ours, bare) if number % 2 == 0 else (bare, ours)
            pairs.append({run.__name__: run(Path(folder), args.steps)[WARM_UP:] for run in order})
        result = measured(pairs, args.steps)
        path.write_text(json.dumps(result, indent=2) + "\n")
        means = {side: statistics.mean(pairs[-1][side]) for side in SIDES}
        print(f"pair {number + 1}: ours {means['ours']:.3f} s, bare {means['bare']:.3f} s a step", flush=True)
    if args.cold_starts:
        path.write_text(json.dumps(result | {"cold_starts_s": cold_starts()}, indent=2) + "\n")
    low, high = result["ci95"]
    print(f"ratio {result['ratio']:.3f}, 95 % interval {low:.3f} to {high:.3f}; {path.relative_to(ROOT)}")
    return 0 if result["ratio"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
