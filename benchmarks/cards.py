"""What several cards do, with one command: is every launch right, and how long is a step on one card and on all?

    python benchmarks/cards.py                     (all cards of this machine; about a quarter of an hour for two)
    python benchmarks/cards.py --shape 3b --steps 6
    python benchmarks/cards.py --cards 2           (no card: two processes on the CPU, without the parts that need one)

On the shipped model (proof): torchrun over all cards; a vLLM server on the last card and the trainers on the others,
all of the policy in each, cut by FSDP2, and by DeepSpeed where it is installed. Of each: whether it ended, whether all
answers of all steps were recorded once, and the gap between engine and trainer. On random weights of a published shape
(speed): configs/multi_gpu.yaml on one card and on all, so 8 and N x 8 answers a step; benchmarks/scaling.py says what
to expect. Logs lie in outputs/cards; the result is written to benchmarks/results/ after each part.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.gpu_check import RESULTS, nvidia_smi  # noqa: E402
from benchmarks.gpu_parts import model_of, output_of, steps_of  # noqa: E402
from benchmarks.random_model import SHAPES  # noqa: E402
from llm_grpo.diagnosis.drift import METRIC  # noqa: E402
from llm_grpo.environment import environment  # noqa: E402
from llm_grpo.runs import Run, read_jsonl  # noqa: E402

PORT, LIMIT_S, STEPS = 8765, 900, 4
DEMO = ["--config", "configs/demo.yaml", "--overwrite", f"grpo.max_steps={STEPS}", "evaluation.limit=8",
        "evaluation.every_steps=0", "logging.report_to=[]", "logging.sample_every=0"]  # fmt: skip


def torchrun(count: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "src/train.py"]


def accelerate(file: str, count: int) -> list[str]:
    words = ["--config_file", f"configs/accelerate/{file}.yaml", "--num_processes", str(count), "src/train.py"]
    return [sys.executable, "-m", "accelerate.commands.launch", *words]


def proof(launch: list[str], args: argparse.Namespace, name: str, count: int, *words: str) -> dict[str, Any]:
    """A short run of the demo's model by `count` trainers, 8 groups a step or one each."""
    each = 8 * max(1, 8 // count)  # whole groups
    batch = ["grpo.gradient_accumulation_steps=1", f"grpo.per_device_train_batch_size={each}"]
    own = [f"run.name={name}", f"run.output_dir={args.outputs}", *batch, *words]
    output_of([*launch, *DEMO, *own], args.outputs / name, LIMIT_S, args.on(count))
    run = Run(args.outputs / name)
    rows, answers = list(read_jsonl(run.metrics)), [len(list(read_jsonl(file))) for file in run.completion_files()]
    whole = len(rows) == STEPS and answers == [each * count] * STEPS and run.summary.is_file()
    return {"passed": whole, "answers": answers, "gap": [round(row[METRIC], 6) for row in rows if METRIC in row],
            "losses": [round(row["loss"], 5) for row in rows]}  # fmt: skip


def speed(args: argparse.Namespace, name: str, count: int) -> dict[str, Any]:
    model, short = model_of(args, args.shape), ["model.max_seq_length=512", "grpo.max_completion_length=256"]
    words = ["--config", "configs/multi_gpu.yaml", "--overwrite", f"run.name={name}", f"run.output_dir={args.outputs}",
             f"model.name={model}", f"model.merge_base={model}", f"grpo.max_steps={args.steps}", *short,
             "task={name: word_problems, args: {train_size: 512, validation_size: 8, test_size: 8}}",
             "grpo.optim=adamw_torch_fused",  # 8-bit AdamW made NaN of random 0.5b weights (2026-11-27)
             "rewards=[{name: 'benchmarks/bare_grpo.py:drawn'}]", "evaluation.limit=8", "evaluation.every_steps=0",
             "logging.report_to=[]", "logging.sample_every=0"]  # fmt: skip
    output_of([*torchrun(count), *words], args.outputs / name, LIMIT_S, args.on(count))
    return {**steps_of(Run(args.outputs / name)), "answers_a_step": 8 * count}


@contextmanager
def server(args: argparse.Namespace) -> Iterator[list[str]]:
    """A vLLM server on the last card; the words that make a training use it."""
    words = [sys.executable, "src/serve.py", "--rollouts", "--config", "configs/demo.yaml", "--port", str(PORT)]
    last = {"CUDA_VISIBLE_DEVICES": args.devices[args.cards - 1]} if args.gpu else {}
    with (args.outputs / "server.log").open("w") as said:
        process = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said, env={**os.environ, **last})
    try:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2):
                break
            time.sleep(1)
        yield ["rollouts.engine=server", f"rollouts.url=http://127.0.0.1:{PORT}"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def measure(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part, what it found), one after the other."""
    engine = "unsloth" if args.gpu else "transformers"

    def tried(make: Any, *given: Any) -> dict[str, Any]:
        try:
            return make(*given)
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            return {"failed": f"{type(error).__name__}: {str(error)[-300:]}"}

    yield "torchrun", tried(proof, torchrun(args.cards), args, "torchrun", args.cards, f"rollouts.engine={engine}")
    trainers = args.cards - 1 if args.gpu else args.cards
    with server(args) as words:
        yield "server", tried(proof, torchrun(trainers), args, "server", trainers, *words)
        for file in ("fsdp2", "zero3") if args.gpu else ():
            if file == "zero3" and importlib.util.find_spec("deepspeed") is None:
                yield file, {"skipped": "deepspeed is not installed"}
            else:
                yield file, tried(proof, accelerate(file, trainers), args, file, trainers, *words)
    for count in dict.fromkeys((1, args.cards)) if args.gpu else ():
        yield f"speed-{count}", tried(speed, args, f"speed-{count}", count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cards = int(nvidia_smi("count") or 0)
    parser.add_argument("--cards", type=int, default=cards, help="how many (default: all, %(default)s)")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b", help="for the speed (default %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="for the speed; two are left out (default %(default)s)")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "cards")
    args = parser.parse_args()
    if args.cards < 2:
        raise SystemExit(f"{args.cards} card(s): this needs two (--cards 2 on a CPU).")
    args.gpu, args.outputs = nvidia_smi("name"), args.outputs.resolve()
    args.outputs.mkdir(parents=True, exist_ok=True)
    args.devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(cards)))).split(",")
    args.on = lambda count: {"CUDA_VISIBLE_DEVICES": ",".join(args.devices[:count])} if args.gpu else {}
    found = {"what": "benchmarks/cards.py", "cards": args.cards, "shape": args.shape,
             **environment({}, {"gpu": args.gpu}), "parts": {}}  # fmt: skip
    file = RESULTS / f"cards-{'gpu' if args.gpu else 'cpu'}-{found['started'][:10]}.json"
    for name, result in measure(args):
        found["parts"][name] = result
        print(f"{name}: {json.dumps(result)}", flush=True)
        file.write_text(json.dumps(found, indent=2) + "\n")
    print(file)
    return 0 if all(part.get("passed", True) and "failed" not in part for part in found["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
