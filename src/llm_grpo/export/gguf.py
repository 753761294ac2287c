"""A merged folder as GGUF, by llama.cpp's own converter: a thin call of a program that is not part of this project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from llm_grpo.errors import UserError

SCRIPT = "convert_hf_to_gguf.py"
FOLDER_VARIABLE = "UNSLOTH_LLAMA_CPP_PATH"  # Unsloth's, so that one checkout serves both

# The converter knows pre-tokenizers by a hash of token ids, and so refuses a vocabulary it has not seen. transformers
# gives every folder of type qwen2 Qwen's own pre-tokenizer, whatever its vocabulary: there the name is known.
STARTER = """
import json, runpy, sys
from pathlib import Path
script, model = sys.argv[1:3]
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))
if json.loads((Path(model) / "config.json").read_text()).get("model_type") == "qwen2":
    try:
        from conversion.base import TextModel
    except ImportError:
        TextModel = None
    if hasattr(TextModel, "get_vocab_base_pre"):
        by_hash = TextModel.get_vocab_base_pre
        def by_hash_or_type(self, tokenizer):
            try:
                return by_hash(self, tokenizer)
            except NotImplementedError:
                return "qwen2"
        TextModel.get_vocab_base_pre = by_hash_or_type
runpy.run_path(script, run_name="__main__")
"""


def find_converter(merged: Path) -> Path:
    """llama.cpp's converter: in $UNSLOTH_LLAMA_CPP_PATH, on the PATH, or where Unsloth puts it. Raises UserError."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".unsloth" / "llama.cpp")
    on_path = shutil.which(SCRIPT)
    for candidate in (folder / SCRIPT, Path(on_path) if on_path else None):
        if candidate is not None and candidate.is_file():
            return candidate
    raise UserError(
        f"--method gguf needs llama.cpp's {SCRIPT}, which is not here. Merge without it, and then, where it can be had:"
        "\n  git clone --depth 1 https://github.com/ggml-org/llama.cpp"
        "\n  pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt"
        f"\n  python llama.cpp/{SCRIPT} {merged} --outfile {merged.with_name(merged.name + '.gguf')} --outtype auto"
        f"\nOr set {FOLDER_VARIABLE} to the folder of a checkout."
    )


def convert(converter: Path, merged: Path, output: Path) -> Path:
    """Write the GGUF file; it takes its name when it is whole. Raises UserError with what the converter said."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}")
    words = [sys.executable, "-c", STARTER, str(converter), str(merged), "--outfile", str(draft), "--outtype", "auto"]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode or not draft.is_file():
            said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            hint = " llama.cpp knows tokenizers by a hash of their output; one trained by yourself is not among them."
            hint = hint if "pre-tokenizer" in said else ""
            raise UserError(f"llama.cpp's converter refused {merged}.{hint} It said:\n  {said}")
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    return output
