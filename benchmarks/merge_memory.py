"""Time and peak memory of merging a LoRA adapter: ours, PEFT's merge_and_unload, Unsloth's save_pretrained_merged.

    python benchmarks/merge_memory.py                 # a random base of 1.04 billion parameters, one file, three rounds
    python benchmarks/merge_memory.py --size small    # to try it

Each merge is a process of its own, from the folder of an adapter to a folder of 16-bit weights, in changing order. The
memory is the highest resident set of the process (VmHWM, with Python, torch and mapped files in it), besides what of it
was not file pages. The time is from the end of the imports to the last byte handed to the system. The results are
compared bit by bit. Linux only; the JSON goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

SIZES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 32_000},
    "small": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
              "num_key_value_heads": 2, "vocab_size": 8_000},
}  # fmt: skip
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(base: Path, adapter: Path, size: str) -> None:
    """A random bfloat16 Qwen2 in one file, and an adapter of rank 64 on all its projections, both halves random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES[size], tie_word_embeddings=True, max_position_embeddings=2048))
    model.save_pretrained(base, max_shard_size="100GB")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ROOT / "examples" / "tiny_qwen2" / file, base / file)
    model.name_or_path = str(base)
    lora = LoraConfig(r=64, lora_alpha=64, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, dtype=torch.float32) * 0.02
    adapted.save_pretrained(adapter)


def ours(base: str, adapter: str, output: str) -> float:
    from llm_grpo.export import merge

    start = time.perf_counter()
    merge(Path(adapter), Path(output), base)
    return time.perf_counter() - start


def peft(base: str, adapter: str, output: str) -> float:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = time.perf_counter()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
    model.merge_and_unload().save_pretrained(output, max_shard_size="100GB")
    AutoTokenizer.from_pretrained(base).save_pretrained(output)
    return time.perf_counter() - start


def unsloth(base: str, adapter: str, output: str) -> float:
    from unsloth import FastLanguageModel  # isort: skip
    import torch

    start = time.perf_counter()
    options = {"max_seq_length": 2048, "load_in_4bit": False, "dtype": torch.bfloat16}
    model, tokenizer = FastLanguageModel.from_pretrained(adapter, **options)
    model.save_pretrained_merged(output, tokenizer, save_method="merged_16bit")
    return time.perf_counter() - start


MERGES = {"ours": ours, "peft": peft, "unsloth": unsloth}


def measure(name: str, base: str, adapter: str, output: str) -> dict[str, float]:
    """One merge in this process, with its memory."""
    anonymous, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            anonymous[0] = max(anonymous[0], _status("RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    seconds = MERGES[name](base, adapter, output)
    done.set()
    return {"seconds": round(seconds, 2), "peak_bytes": _status("VmHWM"), "peak_anonymous_bytes": anonymous[0]}


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status. Not getrusage: its maximum is inherited from the parent process."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def in_a_process(*words: object) -> str:
    done = subprocess.run([sys.executable, __file__, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def differences(first: Path, second: Path) -> dict[str, float]:
    """Tensors that differ in any bit, and by how much at most."""
    import torch
    from safetensors import safe_open

    count, largest = 0, 0.0
    with safe_open(first / "model.safetensors", "pt") as one, safe_open(second / "model.safetensors", "pt") as other:
        names = [name for name in one.keys() if name in other.keys()]  # noqa: SIM118  (not a dict)
        for name in names:
            a, b = one.get_tensor(name), other.get_tensor(name)
            if not torch.equal(a, b):
                count, largest = count + 1, max(largest, (a.float() - b.float()).abs().max().item())
    return {"compared_tensors": len(names), "different_tensors": count, "largest_difference": largest}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the models, about three times the base (default: temporary)")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in MERGES}
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        folder = Path(place)
        base, adapter = folder / "base", folder / "adapter"
        in_a_process("make", base, adapter, args.size)
        size = (base / "model.safetensors").stat().st_size
        print(f"base {size / 1e9:.2f} GB in one file", flush=True)
        for number in range(args.rounds):
            order = list(MERGES)[number % 3 :] + list(MERGES)[: number % 3]
            for name in order:
                shutil.rmtree(folder / name, ignore_errors=True)
                os.sync()  # nobody pays for what the one before left to write
                runs[name].append(json.loads(in_a_process(name, base, adapter, folder / name).splitlines()[-1]))
                print(f"round {number + 1}, {name}: {runs[name][-1]}", flush=True)
        same = {name: differences(folder / "ours", folder / name) for name in ("peft", "unsloth")}
    medians = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in runs.items()}
    best = {key: min(medians[name][key] for name in ("peft", "unsloth")) for key in ("seconds", "peak_bytes")}
    ratios = {key: round(medians["ours"][key] / best[key], 3) for key in best}
    now = datetime.now(timezone.utc)
    result = {
        "what": "merging a LoRA of rank 64 into a random bfloat16 base in one file; the peers' better median is 1",
        "command": f"python benchmarks/merge_memory.py --size {args.size} --rounds {args.rounds}",
        "date": now.isoformat(timespec="seconds"),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load_at_the_end": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "unsloth", "unsloth_zoo")},
        "base_bytes": size,
        "ratio_to_the_better_peer": ratios,
        "medians": medians,
        "against_ours": same,
        "runs": runs,
    }
    print(json.dumps({key: result[key] for key in ("ratio_to_the_better_peer", "medians", "against_ours")}, indent=2))
    if args.size == "1b":
        path = ROOT / "benchmarks" / "results" / f"merge_memory-{now:%Y-%m-%d}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] and sys.argv[1] in MERGES:
        print(json.dumps(measure(*sys.argv[1:5])))
    else:
        sys.exit(main())
