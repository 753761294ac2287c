"""Tokens per second of each engine that runs here, on the same prompts, in one run; and what sending an adapter costs.

    python benchmarks/engines.py --rounds 3

Two models: the shipped one, and a random Qwen2 of about 100 M parameters; 8, 64 and 256 prompts of unequal length, a
rank-64 LoRA on each, 32 sampled tokens a prompt at most. Every engine runs in a process of its own; rounds take turns,
so that what else the machine does falls on all of them; reported are medians, and ratios to transformers. With vLLM the
time of `AdapterSync.push` as well. The share of a training step that generation takes is read from a run's metrics
(--run DIR, several allowed). The JSON goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TINY = ROOT / "examples" / "tiny_qwen2"
sys.path.insert(0, str(ROOT / "src"))

ENGINES = ("transformers", "vllm")
SIZES = (8, 64, 256)
MAX_TOKENS = 32


def random_model(folder: Path) -> Path:
    """A Qwen2 of about 100 M parameters with random weights and the shipped tokenizer, in float32."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=11,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one(engine: str, model: str) -> dict[str, Any]:
    """In a process of its own: tokens/s by number of prompts, after a first run, and seconds of a sync."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm_grpo.rollouts import Sampling

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    parameters = base.num_parameters()  # without the LoRA
    policy = get_peft_model(base, LoraConfig(r=64, target_modules="all-linear"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    found, sync = opened(engine, policy, tokenizer, model)
    result: dict[str, Any] = {"parameters": parameters, "tokens_per_second": {}}
    found.generate([[{"role": "user", "content": "How many?"}]] * SIZES[0], Sampling(MAX_TOKENS))  # allocation, caches
    for size in SIZES:
        prompts = [[{"role": "user", "content": "Tom has 5 pens. " * (1 + index % 7)}] for index in range(size)]
        start = time.perf_counter()
        groups = found.generate(prompts, Sampling(MAX_TOKENS, temperature=1.0, seed=0))
        seconds = time.perf_counter() - start
        result["tokens_per_second"][str(size)] = sum(group[0].tokens for group in groups) / seconds
    if sync is not None:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            sync.push()
            times.append(time.perf_counter() - start)
        result["seconds_sync"] = statistics.median(times)
    return result


def opened(engine: str, policy: Any, tokenizer: Any, model: str) -> tuple[Any, Any]:
    """(engine over the policy, its AdapterSync where it has one)."""
    if engine == "transformers":
        from llm_grpo.rollouts.transformers import TransformersEngine

        return TransformersEngine(policy, tokenizer, batch_size=max(SIZES)), None  # all at once, as in training
    from llm_grpo.rollouts.vllm import policy_engine

    found = policy_engine(policy, tokenizer, model, 256, seed=0)
    return found, found.adapter


def measured(engine: str, model: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", engine, str(model)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{engine} on {model} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summed(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds of one model, and each engine's tokens/s as a ratio to transformers in the same round."""
    result: dict[str, Any] = {"parameters": rounds["transformers"][0]["parameters"]}
    for engine, runs in rounds.items():
        speeds = {str(size): [run["tokens_per_second"][str(size)] for run in runs] for size in SIZES}
        result[engine] = {"tokens_per_second": {size: round(statistics.median(v)) for size, v in speeds.items()}}
        if "seconds_sync" in runs[0]:
            result[engine]["seconds_sync"] = round(statistics.median(run["seconds_sync"] for run in runs), 4)
        if engine != "transformers":
            pairs = list(zip(runs, rounds["transformers"], strict=True))
            result[engine]["ratio_to_transformers"] = {
                str(n): [round(a["tokens_per_second"][str(n)] / b["tokens_per_second"][str(n)], 3) for a, b in pairs]
                for n in SIZES
            }
    return result


def generation_share(run: Path) -> dict[str, Any]:
    """Seconds of a step's phases in a finished run, medians over its steps."""
    from llm_grpo.runs import Run, read_jsonl

    rows = list(read_jsonl(Run(run).metrics))[1:]
    chosen = json.loads((run / "environment.json").read_text(encoding="utf-8"))["choices"]
    seconds = {name: statistics.median(row[name] for row in rows) for name in ("seconds/generation", "step_time")}
    return {
        "engine": chosen["rollouts.engine"].partition(":")[0],
        "steps": len(rows),
        **{name: round(value, 3) for name, value in seconds.items()},
        "share_of_generation": round(seconds["seconds/generation"] / seconds["step_time"], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--run", type=Path, nargs="*", default=[], metavar="DIR", help="finished runs to read shares of"
    )
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if args.one:
        print("\n" + json.dumps(one(*args.one)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        models = {"tiny_qwen2": TINY, "random_100m": random_model(Path(folder))}
        rounds: dict[str, dict[str, list]] = {name: {engine: [] for engine in ENGINES} for name in models}
        for number in range(args.rounds):
            for name, model in models.items():
                for engine in ENGINES if number % 2 == 0 else ENGINES[::-1]:
                    rounds[name][engine].append(measured(engine, model))
                    print(name, engine, json.dumps(rounds[name][engine][-1]), flush=True)
    report({name: summed(found) for name, found in rounds.items()}, args)
    return 0


def report(models: dict[str, Any], args: argparse.Namespace) -> None:
    from llm_grpo.environment import environment

    data = {"what": "benchmarks/engines.py", "rounds": args.rounds, "max_tokens": MAX_TOKENS, "dtype": "float32",
            **environment({}, {}), "models": models, "runs": [generation_share(run) for run in args.run]}  # fmt: skip
    path = RESULTS / f"engines-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    path.write_text(json.dumps(data, indent=2) + "\n")
    print(json.dumps({"models": models, "runs": data["runs"]}, indent=2))
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
