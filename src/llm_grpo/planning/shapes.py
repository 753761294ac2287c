"""What a model's config.json says of its size: layers, widths, weights, positions. Read and counted, never loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Shape = Mapping[str, Any]  # a config.json under the names that most architectures use
Sizes = dict[str, tuple[int, int]]  # (in, out) of each projection of one layer, by name

# Of the models our configs name, from the config.json of each on the Hub, so that a plan needs no network.
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-3B-Instruct": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "max_position_embeddings": 32768,
    },
    "Qwen/Qwen2.5-1.5B-Instruct": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "max_position_embeddings": 32768,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "distilbert/distilgpt2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 6,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
}
# GPT-2's own names, as transformers maps them (GPT2Config.attribute_map).
USUAL_NAMES = {"n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_hidden_layers",
               "n_head": "num_attention_heads", "n_positions": "max_position_embeddings"}  # fmt: skip


def model_shape(name: str) -> Shape | None:
    """The shape of a local model folder, or a known one; None where neither is at hand or its layers are not known."""
    shape = read_shape(name)
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    known = shape is not None and all(shape.get(key) for key in needed)
    return shape if known and (shape.get("model_type") in SIZES or "num_key_value_heads" in shape) else None


def read_shape(name: str) -> Shape | None:
    """The config.json of a local folder or the Hub's cache, or what is known of a Hub name, under the usual names."""
    file = Path(name) / "config.json"
    if not file.is_file() and not Path(name).exists() and name.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        file = Path(cached) if isinstance(cached, str) else file
    raw = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else KNOWN_SHAPES.get(name)
    if raw is None:
        return None
    shape = {USUAL_NAMES.get(key, key): value for key, value in raw.items()}
    if "n_embd" in raw and not shape.get("intermediate_size"):
        shape["intermediate_size"] = 4 * raw["n_embd"]
    return shape


def positions(shape: Shape) -> int | None:
    """Tokens the model has positions for; None where it says none, or stretches them (a factor in its RoPE scaling)."""
    stretched = (shape.get("rope_scaling") or {}).get("factor") or (shape.get("rope_parameters") or {}).get("factor")
    return None if stretched else shape.get("max_position_embeddings")


def lora_parameters(shape: Shape, rank: int, targets: list[str] | None) -> int:
    """Trainable values of a LoRA of that rank: rank x (in + out) per projection and layer. targets: by last name."""
    wanted = [
        size for name, size in projection_sizes(shape).items() if not targets or name.rpartition(".")[2] in targets
    ]
    return rank * shape["num_hidden_layers"] * sum(map(sum, wanted))


def projection_sizes(shape: Shape) -> Sizes:
    return SIZES.get(str(shape.get("model_type")), _llama_sizes)(shape)


def _llama_sizes(shape: Shape) -> Sizes:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    heads, pairs = _head_widths(shape)
    return {"q_proj": (hidden, heads), "k_proj": (hidden, pairs), "v_proj": (hidden, pairs), "o_proj": (heads, hidden),
            "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}  # fmt: skip


def _gpt2_sizes(shape: Shape) -> Sizes:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    return {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden),
            "mlp.c_fc": (hidden, inner), "mlp.c_proj": (inner, hidden)}  # fmt: skip


# By model_type; any other that names key-value heads is counted as Llama is.
SIZES: dict[str, Callable[[Shape], Sizes]] = {"gpt2": _gpt2_sizes}


def _head_widths(shape: Shape) -> tuple[int, int]:
    """Width of all query heads together, and of all key (or value) heads."""
    head = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    return shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head


def model_parameters(shape: Shape) -> int:
    """All weights: embeddings, projections with their biases, norms."""
    hidden, layers, is_gpt2 = shape["hidden_size"], shape["num_hidden_layers"], shape.get("model_type") == "gpt2"
    sizes = projection_sizes(shape)
    projections = sum(rows * columns for rows, columns in sizes.values())
    if is_gpt2:  # learned positions, tied embeddings, a bias with every projection and norm
        embeddings = (shape["vocab_size"] + shape["max_position_embeddings"]) * hidden
        biases, norms = sum(columns for _, columns in sizes.values()), 2 * hidden * (2 * layers + 1)
    else:
        embeddings = shape["vocab_size"] * hidden * (1 if shape.get("tie_word_embeddings") else 2)
        has_bias = shape.get("attention_bias") or shape.get("model_type") == "qwen2"
        biases = _head_widths(shape)[0] + 2 * _head_widths(shape)[1] if has_bias else 0
        norms = hidden * (2 * layers + 1)
    return embeddings + norms + layers * (projections + biases)
