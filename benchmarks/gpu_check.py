"""What a GPU owner runs with one command and no network: is every engine right, how fast is a step, what does it hold?

    python benchmarks/gpu_check.py                     (0.5B, then 3B: Qwen2.5's shapes, random weights; 24 GB)
    python benchmarks/gpu_check.py --seconds 900       (as far as that goes; the same command goes on from there)
    python benchmarks/gpu_check.py --shape tiny --steps 3        (what a CPU can run of it)

The parts run in order of value, each in a process of its own with a limit of its own: one that fails or hangs costs no
other, and after two minutes it is known whether the path works at all. This process holds no weights and loads no
torch, so that the card is the part's alone. What a part said is in OUTPUTS/PART.log and .out.
- contract-*: an engine against transformers, the trainer's update against float64 (benchmarks/gpu_contract.py);
- train-*: src/train.py with configs/grpo.yaml to a merged model: seconds per phase of a step, tokens/s, memory against
  what is planned;
- bare-*: the peers with the same settings: Unsloth + TRL by hand, and TRL's own colocate mode (16 bit: it merges into
  the base, which is wrong in 4-bit);
- merge-*: what was trained, merged and proved against its adapter by src/merge.py.
OUTPUTS/results.jsonl gets a line per part as it ends, the dated JSON in benchmarks/results/ is written anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.gpu_parts import WARM_UP, Part, parts  # noqa: E402
from benchmarks.random_model import SHAPES  # noqa: E402
from llm_grpo.environment import environment  # noqa: E402
from llm_grpo.files import append_jsonl, read_jsonl  # noqa: E402

LEAST_S = 45  # with less left no part is begun


@contextmanager
def memory_watched(gpu: str | None) -> Iterator[dict[str, float]]:
    """While this lasts, the most memory in use on the GPU, as nvidia-smi sees it, in GB."""
    found: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            used = float(nvidia_smi("memory.used") or 0) * 2**20 / 1e9
            found["peak_gpu_gb"] = round(max(used, found.get("peak_gpu_gb", 0)), 2)

    thread = threading.Thread(target=watch, daemon=True)
    if gpu:
        thread.start()
    yield found
    over.set()


def nvidia_smi(what: str) -> str | None:
    """One fact of the first card; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return (subprocess.run(query, capture_output=True, text=True).stdout.splitlines() or [None])[0]


def measure(part: Part, limit_s: float, args: argparse.Namespace) -> dict[str, Any]:
    """The part's numbers, or why there are none."""
    start = time.perf_counter()
    if args.gpu is None and part.needs_gpu:
        return {"skipped": "needs an NVIDIA GPU"}
    with memory_watched(args.gpu) as memory:
        try:
            result = part.run(part.name, limit_s)
        except subprocess.TimeoutExpired:
            result = {"timed_out": f"not done in {limit_s:.0f} s"}
        except subprocess.CalledProcessError as error:
            files = [args.outputs / f"{part.name}{end}" for end in (".out", ".log")]
            texts = [file.read_text(errors="replace") for file in files if file.is_file()]
            said = [line for text in texts for line in text.splitlines() if line.strip(" │╭╰╮╯─")]
            result = {"failed": f"exit code {error.returncode}: {' | '.join(said[-3:])[-600:]}"}  # below 0: a signal
        except (OSError, ValueError, KeyError, IndexError, statistics.StatisticsError) as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
    return {**result, **memory, "seconds": round(time.perf_counter() - start, 1)}


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of a step, ours over the peer's, where both were measured on one shape."""
    pairs = {
        "unsloth engine over bare Unsloth, 4bit": ("train-unsloth-4bit", "bare-unsloth-4bit"),
        "unsloth engine over bare Unsloth, 16bit": ("train-unsloth-16bit", "bare-unsloth-16bit"),
        "vllm engine over TRL colocate, 16bit": ("train-vllm-16bit", "bare-trl-16bit"),
        "vllm engine over transformers engine, 16bit": ("train-vllm-16bit", "train-transformers-16bit"),
    }
    times = {name: result["seconds_per_step"] for name, result in results.items() if "seconds_per_step" in result}
    return {
        f"{what}, {shape}": round(times[f"{a}-{shape}"] / times[f"{b}-{shape}"], 3)
        for what, (a, b) in pairs.items()
        for shape in [*SHAPES, "tiny"]
        if f"{a}-{shape}" in times and f"{b}-{shape}" in times
    }


def is_proven(result: dict[str, Any] | None) -> bool:
    return result is not None and not {"failed", "timed_out", "skipped"} & set(result) and result.get("passed", True)


def summary(known: list[Part], results: dict[str, dict[str, Any]]) -> Table:
    """What is proven, what failed and why, what is left."""
    found = Table(title="what is proven, and what is left")
    columns = ("seconds_per_step", "seconds_generation", "seconds_update", "generated_tokens_per_second",
               "logprob_gap_mean", "peak_gpu_gb")  # fmt: skip
    for column in ("part", "", *columns):
        found.add_column(column)
    for part in known:
        result = results.get(part.name)
        told = result or {"skipped": "left"}
        state = told.get("failed") or told.get("timed_out") or told.get("skipped")
        state = f"proven: {part.proves}" if is_proven(result) else (state or "does not agree")[-60:]
        shown = [told.get(column) for column in columns]
        found.add_row(part.name, state, *("" if v is None else f"{v:.4g}" for v in shown))
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "tiny"], help="one for all parts (default: 0.5b, then 3b)")
    parser.add_argument("--steps", type=int, default=6, help=f"the first {WARM_UP} are left out (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="be done by then; the same line goes on")
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="parts whose names begin so, once more")
    parser.add_argument(
        "--outputs", type=Path, default=ROOT / "outputs" / "gpu_check", help="models, runs, logs, results"
    )
    parser.add_argument("--no-result", action="store_true", help="print, and write nothing to benchmarks/results/")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="section.key=value", help="for the train- parts")
    return parser


def main() -> int:
    args, console, start = arguments().parse_args(), Console(), time.monotonic()
    console = console if console.is_terminal else Console(width=180)
    if args.steps <= WARM_UP:
        raise SystemExit(f"--steps {args.steps}: the first {WARM_UP} are left out; give more.")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "offline"}
    args.gpu, args.outputs = nvidia_smi("name"), args.outputs.resolve()
    args.outputs.mkdir(parents=True, exist_ok=True)
    log, known = args.outputs / "results.jsonl", parts(args)
    results = {row.pop("part"): row for row in read_jsonl(log)}
    for part in known:
        asked = any(part.name.startswith(name) for name in args.only)
        if not (asked if args.only else {"timed_out", "skipped"} & set(results.get(part.name, ["skipped"]))):
            continue
        left = args.seconds - (time.monotonic() - start)
        if left < LEAST_S:
            break
        console.print(f"{part.name} ...", highlight=False)
        results[part.name] = measure(part, min(part.limit_s, left), args)
        append_jsonl(log, [{"part": part.name, **results[part.name]}])
        console.print(f"  {json.dumps(results[part.name])}", highlight=False, soft_wrap=True)
        if not args.no_result:
            report(args, known, results)
    console.print(summary(known, results))
    return 0


def report(args: argparse.Namespace, known: list[Part], results: dict[str, dict[str, Any]]) -> None:
    hardware = {"gpu": args.gpu, "driver": nvidia_smi("driver_version"), "memory_mib": nvidia_smi("memory.total")}
    data = {"what": "benchmarks/gpu_check.py", "shape": args.shape or "0.5b, 3b", "steps": args.steps,
            **environment({}, hardware), "ratios": ratios(results), "parts": results,
            "left": [part.name for part in known if part.name not in results]}  # fmt: skip
    device, shape = "gpu" if args.gpu else "cpu", args.shape or "0.5b-3b"
    path = RESULTS / f"gpu_check-{device}-{shape}-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    path.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
