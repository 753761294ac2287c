"""The plan of a run's memory and of a step's time against what they take: all of src/train.py on a CPU, in four sizes.

    python benchmarks/memory_plan.py              # dated JSON in benchmarks/results/
    python benchmarks/memory_plan.py 7m 30m       # some of them, put beside what the day's JSON has

Random models of Qwen2's kind (random_model.py), which never end an answer early: every sequence is as long as the plan
counts it, but for prompts that do not fill the window. Each run is a process of its own, from the config to two updates
of 16 completions; what is measured is the process's highest resident set, as metrics.jsonl has it (memory_peak_gb), and
the seconds of the second step. Times want a machine that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import random_model  # noqa: E402

from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.planning.duration import CALL, REACHED_HERE, Speed, tried, work_of  # noqa: E402
from llm_grpo.planning.memory import memory_of  # noqa: E402
from llm_grpo.planning.shapes import model_parameters, model_shape  # noqa: E402

SIZES = {  # hidden, inner, layers, heads, key-value heads, vocabulary
    "7m": (256, 1024, 6, 4, 2, 4096),
    "30m": (512, 2048, 8, 8, 2, 8192),
    "110m": (768, 3072, 12, 12, 4, 16_384),
    "250m": (1024, 4096, 14, 16, 4, 32_000),
}
RUNS = {  # by what differs from the plain one
    "lora": [],
    "no checkpointing": ["grpo.gradient_checkpointing=false"],
    "all weights": ["lora=null"],
}
WORDS = ["grpo.max_steps=2", "grpo.per_device_train_batch_size=16", "grpo.num_generations=8",
         "grpo.save_strategy=no", "grpo.max_completion_length=96", "model.max_seq_length=156",
         "rollouts.engine=transformers", "rollouts.skip=false", "evaluation.limit=2", "evaluation.validation_limit=2",
         "evaluation.every_steps=0", "lora.r=16"]  # fmt: skip


def measured(folder: Path, overrides: list[str]) -> dict[str, float]:
    words = ["--config", "configs/demo.yaml", "--overwrite", f"run.output_dir={folder}/runs"]
    of_lora = [] if "lora=null" in overrides else WORDS[-1:]
    words += [f"model.name={folder}/model", *WORDS[:-1], *of_lora, *overrides]
    done = subprocess.run([sys.executable, "src/train.py", *words], cwd=ROOT, capture_output=True, text=True)
    rows = [json.loads(line) for line in (folder / "runs" / "demo" / "metrics.jsonl").open()]
    assert len(rows) == 2, done.stderr[-2000:] + done.stdout[-2000:]
    config = load_config(ROOT / "configs" / "demo.yaml", words[3:], environment={})
    shape = model_shape(str(folder / "model"))
    plan = memory_of(config, shape, gpu=False)
    parts = {name: round(value / 1e9, 3) for name, value in vars(plan).items() if not isinstance(value, bool)}
    peak = max(row["memory_peak_gb"] for row in rows)
    planned = plan.at_most / 1e9
    flops, read = tried(False)
    work, speed = work_of(config, shape, gpu=False), Speed(REACHED_HERE * flops, read, CALL["transformers"])
    seconds = {"generation": speed.generation(work), "update": speed.update(work)}
    times = {
        name: {"planned": round(s, 2), "measured": round(rows[-1][f"seconds/{name}"], 2)} for name, s in seconds.items()
    }
    return {"parameters": model_parameters(shape), "planned_gb": round(planned, 3), "measured_gb": round(peak, 3),
            "error": round(planned / peak - 1, 3), "parts_gb": parts, "seconds": times}  # fmt: skip


def main() -> None:
    day = datetime.now(timezone.utc).date().isoformat()
    file = ROOT / "benchmarks" / "results" / f"memory_plan-{day}.json"
    results = json.loads(file.read_text())["results"] if file.is_file() else {}
    for size in sys.argv[1:] or SIZES:
        random_model.SHAPES[size] = SIZES[size]
        with tempfile.TemporaryDirectory() as folder:
            random_model.make_model(size, Path(folder) / "model")
            for name, overrides in RUNS.items():
                results[f"{size}, {name}"] = found = measured(Path(folder), overrides)
                print(size, name, json.dumps(found), flush=True)
                facts = {"date": day, "command": "python benchmarks/memory_plan.py", "settings": WORDS}
                file.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
