"""A Qwen2 of a published shape with random weights and the shipped tokenizer: what speed and memory need of a model.

python benchmarks/random_model.py 3b FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny_qwen2"
# hidden, inner, layers, heads, key-value heads, vocabulary: those of Qwen2.5, from its published config.json files
SHAPES = {
    "3b": (2048, 11008, 36, 16, 2, 151_936),
    "1.5b": (1536, 8960, 28, 12, 2, 151_936),
    "0.5b": (896, 4864, 24, 14, 2, 151_936),
}


def make_model(shape: str, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, pairs, vocabulary = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=pairs, max_position_embeddings=32_768, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fill_vocabulary(folder / "tokenizer.json", vocabulary)


def fill_vocabulary(file: Path, size: int) -> None:
    """Every id that a random model may draw has a text: fillers for those the shipped tokenizer does not know."""
    data = json.loads(file.read_text(encoding="utf-8"))
    known = data["model"]["vocab"]
    first = max([*known.values(), *(token["id"] for token in data["added_tokens"])]) + 1
    known.update({f"<{number}>": number for number in range(first, size)})
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]))
