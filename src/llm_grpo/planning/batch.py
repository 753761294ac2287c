"""How prompts become updates: the batch arithmetic of TRL, done before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_grpo.config.schema import Config


@dataclass(frozen=True)
class Batch:
    """How prompts become updates, in all processes together (a process for each GPU)."""

    prompts_per_generation: int
    num_generations: int
    completions_per_generation: int
    completions_per_update: int
    updates_per_generation: float
    max_tokens_per_update: int
    prompts_per_update: float
    updates: int | None  # None: an epoch count over data that is not at hand
    prompts_seen: int | None


def explain_batch(config: Config, train_examples: int | None = None, processes: int = 1) -> Batch:
    """The batch arithmetic of TRL 1.15: a generation batch holds per_device_train_batch_size x steps_per_generation
    completions (steps_per_generation defaults to gradient_accumulation_steps), is used num_iterations times, and
    an update takes per_device_train_batch_size x gradient_accumulation_steps of them. Several processes have as many
    each; with processes=1 it is what one card has to hold."""
    grpo = config.grpo
    micro, accumulation = grpo["per_device_train_batch_size"] * processes, grpo["gradient_accumulation_steps"]
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
