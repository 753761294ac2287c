"""Seconds of a step against bare Unsloth + TRL on one card, step by step in turn: whatever slows the card slows both.

    python benchmarks/gpu_turns.py --shape 3b                    (configs/grpo_64.yaml; 24 GB)
    python benchmarks/gpu_turns.py --shape 0.5b --configs configs/grpo.yaml configs/grpo_64.yaml

For each config two processes load the same model of random weights: src/train.py, and benchmarks/bare_grpo.py with
the same settings. Their reward function hands the turn on: one process at a time generates and updates, and what is
timed is from one call of it to the next, a whole step. Every second step the answers of half of the groups are worth
the same, as in real training, where such rows teach nothing: bare TRL computes them, we do not. Random weights seldom
end an answer, so all are as long as allowed; what shorter ones save is not in these numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GROUP, WARM_UP, LIMIT_S = 8, 2, 600  # answers of a prompt; updates that are not timed (compilation); wait for a turn
STATE: dict[str, Any] = {"calls": 0}


def in_turns(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """The reward of both: a number of the text's own. It returns when it is this process's turn."""
    name, at_once, last = os.environ["TURN_NAME"], int(os.environ["TURN_AT_ONCE"]), int(os.environ["TURN_CALLS"])
    told = [zlib.crc32(completion[0]["content"].encode()) / 2**32 for completion in completions]
    if len(completions) != at_once:  # a look before training
        return told
    folder, ring, now = Path(os.environ["TURN_FOLDER"]), os.environ["TURN_RING"].split(","), time.perf_counter()
    STATE["calls"] += 1
    call, turn = STATE["calls"], folder / "turn"
    if call > WARM_UP + 1:
        row = {"seconds": now - STATE["began"], "half": STATE["half"], "memory_gb": peak_gb()}
        write(folder / f"{name}.jsonl", row)
    if call > WARM_UP:
        turn.write_text(ring[(ring.index(name) + 1) % len(ring)])
        (folder / f"{name}.{'ready' if call < last else 'done'}").touch()
    if WARM_UP < call < last:
        wait(lambda: all((folder / f"{other}.ready").exists() for other in ring), 4 * LIMIT_S)
        wait(lambda: turn.read_text() == name, LIMIT_S)
    STATE["half"] = call % 2 == 0
    STATE["began"] = time.perf_counter()
    return [0.0 if STATE["half"] and row // GROUP % 2 == 0 else score for row, score in enumerate(told)]


def wait(until: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f"another process has not handed on its turn within {seconds} s")
        time.sleep(0.002)


def write(file: Path, row: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def peak_gb() -> float:
    """Of torch in this process: weights, the engine's cache, activations."""
    import torch

    return torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0


def commands(args: argparse.Namespace) -> dict[str, tuple[list[str], int]]:
    """{process: (its command, answers it draws at once)}"""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    from benchmarks.gpu_parts import bare_settings, settings
    from llm_grpo.config.loading import load_config

    found = {}
    for path in args.configs:
        ours, bare = f"ours-{path.stem}", f"bare-{path.stem}"
        precision, engine = "4bit" if args.gpu else "16bit", "unsloth" if args.gpu else "transformers"
        words = settings(args, args.shape, engine, precision, ours)
        words += [
            "rewards=[{name: 'benchmarks/gpu_turns.py:in_turns', workers: 0}]",
            "evaluation.limit=1",
            "grpo.optim=adamw_torch_fused",
        ]  # 8-bit AdamW made NaN of random 0.5b weights, ours and bare
        config = load_config(path, words, environment={})
        at_once = config.grpo["per_device_train_batch_size"] * config.grpo["gradient_accumulation_steps"]
        found[ours] = [sys.executable, "src/train.py", "--config", str(path), "--overwrite", *words], at_once
        file = args.outputs / f"{bare}.json"
        file.write_text(json.dumps(bare_settings(config, "unsloth", precision, args)))
        found[bare] = [sys.executable, __file__, "--bare", str(file)], at_once
    return found


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """{process: its timed steps}, without the last, beside which another may write its model."""
    folder, processes = args.outputs / "turns", {}
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    told = commands(args)
    (folder / "turn").write_text(next(iter(told)))
    try:
        for name, (words, at_once) in told.items():
            said = (folder / f"{name}.log").open("w")
            turns = {"TURN_NAME": name, "TURN_AT_ONCE": str(at_once), "TURN_CALLS": str(args.steps)}
            turns |= {"TURN_FOLDER": str(folder), "TURN_RING": ",".join(told)}
            processes[name] = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
                                               start_new_session=True, env={**os.environ, **turns})  # fmt: skip
            if not args.at_once:  # vLLM takes what another allocates meanwhile for its own
                wait(lambda name=name: (folder / f"{name}.ready").exists() or processes[name].poll() is not None, 900)
        while not all((folder / f"{name}.done").exists() or processes[name].poll() is not None for name in told):
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("Stopped; what was timed by then:")
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = {name: folder / f"{name}.jsonl" for name in told}
    return {
        name: [json.loads(line) for line in file.read_text().splitlines()][:-1] if file.is_file() else []
        for name, file in rows.items()
    }


def compared(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """Per config: seconds of a step, and ours over the bare's of the same turn (median, smallest, largest)."""
    result: dict[str, Any] = {}
    for path in args.configs:
        ours, bare = found[f"ours-{path.stem}"], found[f"bare-{path.stem}"]
        told: dict[str, Any] = {}
        for half, what in ((False, "every group teaches"), (True, "half of the groups teach")):
            pairs = [(a["seconds"], b["seconds"]) for a, b in zip(ours, bare, strict=False) if a["half"] is half]
            if pairs:
                ratios = [a / b for a, b in pairs]
                told[what] = {
                    "seconds_ours": [round(a, 3) for a, _ in pairs], "seconds_bare": [round(b, 3) for _, b in pairs],
                    "ratio": [round(f(ratios), 3) for f in (statistics.median, min, max)],
                }  # fmt: skip
        memory = {f"peak_gb_{name}": max((row["memory_gb"] for row in rows), default=None)
                  for name, rows in (("ours", ours), ("bare", bare))}  # fmt: skip
        result[path.stem] = {**told, **memory}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5b", help="of benchmarks/random_model.py, or tiny (default %(default)s)")
    parser.add_argument("--configs", nargs="+", type=Path, default=[Path("configs/grpo_64.yaml")])
    parser.add_argument("--steps", type=int, default=13, help=f"{WARM_UP} and the last are not timed (default 13)")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "gpu_turns")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="section.key=value", help="for both")
    parser.add_argument("--at-once", action="store_true", help="start all together; not where vLLM measures memory")
    parser.add_argument("--no-result", action="store_true", help="print, and write nothing to benchmarks/results/")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        from benchmarks import bare_grpo

        bare_grpo.drawn = in_turns
        return bare_grpo.main(args.bare) or 0
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    from benchmarks.gpu_check import RESULTS, nvidia_smi
    from llm_grpo.environment import environment

    args.gpu, args.outputs = nvidia_smi("name"), args.outputs.resolve()
    args.outputs.mkdir(parents=True, exist_ok=True)
    result = compared(measure(args), args)
    told = {"what": "benchmarks/gpu_turns.py", "shape": args.shape, **environment({}, {"gpu": args.gpu})}
    told |= {"configs": result}
    print(json.dumps(told, indent=2))
    if not args.no_result:
        day = told["started"][:10]
        file = RESULTS / f"gpu_turns-{'gpu' if args.gpu else 'cpu'}-{args.shape}-{day}.json"
        file.write_text(json.dumps(told, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
