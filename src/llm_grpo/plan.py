"""What a config will do, told before it is done: the batch explained, tokens, share of the data, disk.

All of it is arithmetic on the config, the number of training examples and the model's shape; nothing is loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_grpo.config import Config

# Shapes of the models our configs name, from the config.json of each on the Hub, so that a plan needs no network.
KNOWN_SHAPES: dict[str, dict[str, int]] = {
    "Qwen/Qwen2.5-3B-Instruct": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
}
BYTES_PER_OPTIMIZER_VALUE = {"adamw_8bit": 1, "paged_adamw_8bit": 1, "adamw_bnb_8bit": 1}


@dataclass(frozen=True)
class Batch:
    """How prompts become updates. Counts are for one process (one GPU)."""

    prompts_per_generation: int
    num_generations: int
    completions_per_generation: int
    completions_per_update: int
    updates_per_generation: float
    max_tokens_per_update: int
    prompts_per_update: float
    updates: int | None  # None: an epoch count over data that is not at hand
    prompts_seen: int | None


def explain_batch(config: Config, train_examples: int | None = None) -> Batch:
    """The batch arithmetic of TRL 1.15: a generation batch holds per_device_train_batch_size x steps_per_generation
    completions (steps_per_generation defaults to gradient_accumulation_steps), is used num_iterations times, and
    an update takes per_device_train_batch_size x gradient_accumulation_steps of them."""
    grpo = config.grpo
    micro, accumulation = grpo["per_device_train_batch_size"], grpo["gradient_accumulation_steps"]
    if grpo.get("generation_batch_size"):
        rounds = grpo["generation_batch_size"] // micro
    else:
        rounds = grpo.get("steps_per_generation") or accumulation
    per_generation = micro * rounds
    updates_per_generation = rounds * grpo["num_iterations"] / accumulation
    prompts = per_generation // grpo["num_generations"]
    updates = grpo["max_steps"] if grpo["max_steps"] > 0 else None
    if updates is None and train_examples:
        updates = math.ceil(grpo.get("num_train_epochs", 3) * train_examples * updates_per_generation / prompts)
    return Batch(
        prompts_per_generation=prompts,
        num_generations=grpo["num_generations"],
        completions_per_generation=per_generation,
        completions_per_update=micro * accumulation,
        updates_per_generation=updates_per_generation,
        max_tokens_per_update=micro * accumulation * config.model.max_seq_length,
        prompts_per_update=prompts / updates_per_generation,
        updates=updates,
        prompts_seen=None if updates is None else round(updates * prompts / updates_per_generation),
    )


def lora_parameters(shape: dict[str, Any], rank: int, targets: list[str] | None) -> int:
    """Trainable values of a LoRA of that rank on a Llama-like decoder: rank x (in + out) per projection and layer."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    heads, pairs = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    sizes = {"q_proj": hidden + heads, "k_proj": hidden + pairs, "v_proj": hidden + pairs, "o_proj": heads + hidden,
             "gate_proj": hidden + inner, "up_proj": hidden + inner, "down_proj": inner + hidden}  # fmt: skip
    return rank * shape["num_hidden_layers"] * sum(sizes[name] for name in targets or sizes if name in sizes)


def model_shape(name: str) -> dict[str, Any] | None:
    """The config.json of a local model folder, or a known shape; None where neither is at hand."""
    file = Path(name) / "config.json"
    if file.is_file():
        shape = json.loads(file.read_text(encoding="utf-8"))
        return shape if "num_key_value_heads" in shape and "intermediate_size" in shape else None
    return KNOWN_SHAPES.get(name)


def checkpoint_bytes(config: Config) -> int | None:
    """Disk for all checkpoints that are kept at a time and the two adapters; None where the model's shape is unknown.

    A checkpoint holds the float32 adapter and two optimiser moments per value.
    """
    shape = model_shape(config.model.name)
    if shape is None:
        return None
    values = lora_parameters(shape, config.lora.r, config.lora.target_modules)
    moments = 2 * BYTES_PER_OPTIMIZER_VALUE.get(str(config.grpo["optim"]), 4)
    kept = config.grpo.get("save_total_limit") or max(1, config.grpo["max_steps"] // config.grpo["save_steps"])
    return values * (4 + moments) * (kept + 1) + 2 * 4 * values  # one more while the oldest is still there


def explain(config: Config, train_examples: int | None) -> list[tuple[str, str]]:
    """(what, how much) rows for a person; `train_examples` is None where the data is not at hand."""
    batch = explain_batch(config, train_examples)
    prompts = batch.prompts_per_generation
    rows = [
        ("a generation batch", f"{_prompts(prompts)} x {batch.num_generations} generations"
                               f" = {batch.completions_per_generation} completions"),
        ("an update", f"{_prompts(batch.prompts_per_update)}, {batch.completions_per_update} completions, "
                      f"at most {batch.max_tokens_per_update:,} tokens"),
        ("updates per generation batch", f"{batch.updates_per_generation:g}"),
    ]  # fmt: skip
    if batch.updates is not None:
        completions = batch.prompts_seen * batch.num_generations
        rows.append(
            ("updates in all", f"{batch.updates:,}: {batch.prompts_seen:,} prompts, {completions:,} completions")
        )
    if train_examples:
        share = batch.prompts_seen / train_examples
        updates = train_examples / batch.prompts_per_update
        rows.append(("an epoch", f"{updates:,.0f} updates over {train_examples:,} training prompts"))
        rows.append(("share of the data seen", f"{share:.0%}" if share <= 1 else f"all of it, {share:.1f} times over"))
    rows.append(("disk for checkpoints", _disk(config)))
    return rows


def _prompts(count: float) -> str:
    return f"{count:,g} prompt{'' if count == 1 else 's'}"


def _disk(config: Config) -> str:
    size = checkpoint_bytes(config)
    return f"at most {size / 1e9:.2f} GB" if size else "not known: the model's config.json is not in a local folder"
