"""What a model's config.json says of its size: layers, widths, weights, positions. Read and counted, never loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError

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
        "model_type": "qwen2",
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
        "model_type": "qwen2",
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
        "model_type": "llama",
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
# Other names for the usual ones, as transformers maps them (attribute_map): GPT-2's, and Qwen's for its experts.
USUAL_NAMES = {"n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_hidden_layers",
               "n_head": "num_attention_heads", "n_positions": "max_position_embeddings",
               "num_experts": "num_local_experts"}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama's layer of seven projections without biases and two norms.

    tied, head_dim: what transformers 5.17 takes where config.json does not say. experts: the key of their width,
    where a mixture of experts stands in place of the layer's MLP.
    """

    tied: bool = False
    head_dim: int | None = None
    qkv_bias: bool = False  # always; elsewhere attention_bias says so, and then o_proj has one too
    norms: int = 2  # of the hidden size, in a layer
    head_norms: bool = False  # one for the query heads and one for the key heads
    fused: bool = False  # qkv_proj and gate_up_proj
    experts: str | None = None


# By model_type. Of any other nothing is said, because counted as Llama is it would come out wrong.
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "granite": Family(),
    "smollm3": Family(tied=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_dim=128, head_norms=True),
    "gemma": Family(tied=True, head_dim=256),
    "gemma2": Family(tied=True, head_dim=256, norms=4),
    "gemma3_text": Family(tied=True, head_dim=256, norms=4, head_norms=True),
    "phi3": Family(fused=True),
    "gpt2": Family(tied=True),
    "mixtral": Family(experts="intermediate_size"),
    "qwen2_moe": Family(qkv_bias=True, experts="moe_intermediate_size"),
    "qwen3_moe": Family(head_norms=True, experts="moe_intermediate_size"),
}


def family_of(shape: Shape) -> Family:
    return FAMILIES.get(str(shape.get("model_type")), Family())


def model_shape(name: str) -> Shape | None:
    """The shape of a local model folder, or a known one; None where neither is at hand or its layers are not known."""
    shape = read_shape(name)
    if shape is None or shape.get("model_type") not in FAMILIES:
        return None
    experts = family_of(shape).experts
    needed = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    needed += ["max_position_embeddings"] if shape["model_type"] == "gpt2" else ["num_key_value_heads"]
    needed += ["num_local_experts", experts] if experts else []
    needed += ["shared_expert_intermediate_size"] if shape["model_type"] == "qwen2_moe" else []
    whole = all(isinstance(shape.get(key), int) and shape[key] > 0 for key in needed)
    alike = not shape.get("mlp_only_layers") and shape.get("decoder_sparse_step", 1) == 1  # every layer has experts
    return shape if whole and alike else None


def read_shape(name: str, revision: str | None = None) -> Shape | None:
    """The config.json of a local folder or the Hub's cache, or what is known of a Hub name, under the usual names."""
    file = Path(name) / "config.json"
    if not file.is_file() and not Path(name).exists() and name.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        file = Path(cached) if isinstance(cached, str) else file
    raw = _read(file) if file.is_file() else KNOWN_SHAPES.get(name)
    if raw is None:
        return None
    shape = {USUAL_NAMES.get(key, key): value for key, value in raw.items()}
    if "n_embd" in raw and not shape.get("intermediate_size"):
        shape["intermediate_size"] = 4 * raw["n_embd"]
    return shape


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of UnicodeDecodeError too
        raise UserError(f"{file}: not a model's configuration, not JSON ({error}).") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: not a model's configuration, it holds a {type(raw).__name__}.")
    return raw


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
    """The linear layers of one layer of the model; experts are none (transformers holds them as one tensor)."""
    hidden, inner, family = shape["hidden_size"], shape["intermediate_size"], family_of(shape)
    if shape.get("model_type") == "gpt2":
        return {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden),
                "mlp.c_fc": (hidden, inner), "mlp.c_proj": (inner, hidden)}  # fmt: skip
    heads, pairs = _head_widths(shape)
    if family.fused:
        return {"qkv_proj": (hidden, heads + 2 * pairs), "o_proj": (heads, hidden),
                "gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}  # fmt: skip
    attention = {"q_proj": (hidden, heads), "k_proj": (hidden, pairs), "v_proj": (hidden, pairs),
                 "o_proj": (heads, hidden)}  # fmt: skip
    if family.experts and "shared_expert_intermediate_size" not in shape:
        return attention
    gate = {}
    if family.experts:
        inner, gate = shape["shared_expert_intermediate_size"], {"shared_expert_gate": (hidden, 1)}
    return attention | {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)} | gate


def _head_widths(shape: Shape) -> tuple[int, int]:
    """Width of all query heads together, and of all key (or value) heads."""
    if shape.get("model_type") == "gpt2":
        return shape["hidden_size"], shape["hidden_size"]
    head = _head_dim(shape)
    return shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head


def _head_dim(shape: Shape) -> int:
    return shape.get("head_dim") or family_of(shape).head_dim or shape["hidden_size"] // shape["num_attention_heads"]


def cache_values(shape: Shape) -> int:
    """Values of the key-value cache for one token of one sequence."""
    return 2 * shape["num_hidden_layers"] * _head_widths(shape)[1]


def attention_values(shape: Shape) -> int:
    """Products that a token makes with another one's key, and as many with its value, in all layers."""
    return shape["num_hidden_layers"] * _head_widths(shape)[0]


def layer_values(shape: Shape, rank: int) -> tuple[int, int]:
    """(kept, passing) values a token in one dense layer: what autograd keeps of its forward pass for the backward pass,
    and gradients that are there for a moment besides.

    Kept: norms and residuals, queries and the attention's result, keys and values repeated for all heads, four times
    the inner width (gate, up, what the activation makes of it, their product), and a LoRA's rank for each projection.
    """
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    heads, adapted = _head_widths(shape)[0], rank * len(projection_sizes(shape))
    return 6 * hidden + 4 * heads + 4 * inner + adapted, 2 * hidden + 3 * inner


def model_parameters(shape: Shape) -> int:
    """All weights: embeddings, projections with their biases, experts with their router, norms."""
    hidden, family, is_gpt2 = shape["hidden_size"], family_of(shape), shape.get("model_type") == "gpt2"
    sizes = projection_sizes(shape)
    tied = shape.get("tie_word_embeddings")
    embeddings = shape["vocab_size"] * hidden * (1 if (family.tied if tied is None else tied) else 2)
    norm = 2 * hidden if is_gpt2 else hidden  # LayerNorm has a bias, RMSNorm has none
    layer = sum(rows * columns for rows, columns in sizes.values()) + family.norms * norm
    layer += sum(columns for name, (_, columns) in sizes.items() if is_gpt2 or _has_bias(name, shape))
    layer += 2 * _head_dim(shape) if family.head_norms else 0
    if family.experts:  # gate, up and down projection of each, and its row in the router
        layer += shape["num_local_experts"] * (3 * shape[family.experts] + 1) * hidden
    positions_learned = shape["max_position_embeddings"] * hidden if is_gpt2 else 0
    return embeddings + positions_learned + norm + shape["num_hidden_layers"] * layer


def _has_bias(projection: str, shape: Shape) -> bool:
    if projection in ("q_proj", "k_proj", "v_proj"):
        return family_of(shape).qkv_bias or bool(shape.get("attention_bias"))
    of_mlp = projection in ("gate_proj", "up_proj", "down_proj")
    return bool(shape.get("mlp_bias" if of_mlp else "attention_bias")) and projection != "shared_expert_gate"
