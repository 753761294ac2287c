"""What a config will do, told before it is done: the batch explained, tokens, share of the data, memory, disk.

All of it is arithmetic on the config, the number of training examples and the model's shape; nothing is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_grpo.config.schema import Config, LoraSection
from llm_grpo.errors import UserError
from llm_grpo.planning.shapes import (
    Shape,
    lora_parameters,
    model_parameters,
    model_shape,
    positions,
    projection_sizes,
    read_shape,
)

# Bytes an optimizer keeps for each value it trains: Adam's two moments in float32 or in 8 bit, Lion's one, plain SGD's
# none. Another one is counted as Adam.
OPTIMIZER_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_bnb_8bit": 2, "lion_32bit": 4, "paged_lion_32bit": 4,
                   "lion_8bit": 1, "paged_lion_8bit": 1, "sgd": 0}  # fmt: skip
ADAM_BYTES = 8
TRAINED_BYTES = 4  # what is trained is held in float32, a LoRA or all weights, and so is its gradient


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


def check_window(config: Config) -> None:
    """Raise UserError where model.max_seq_length is over the positions of the model, as far as its config.json is at
    hand. A learned table ends there (GPT-2: 1024), and beyond what it was trained on no model can be trusted."""
    shape, window = read_shape(config.model.name), config.model.max_seq_length
    limit = positions(shape) if shape else None
    if limit is not None and window > limit:
        raise UserError(
            f"model.max_seq_length: {window} tokens, but {config.model.name} has positions for {limit}. "
            f"Set model.max_seq_length={limit} or less; grpo.max_completion_length has to leave room for the prompt."
        )


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


def checkpoint_bytes(config: Config) -> int | None:
    """Disk for all checkpoints that are kept at a time and the two adapters; None where the model's shape is unknown.

    A checkpoint holds the float32 adapter and two optimiser moments per value.
    """
    shape = model_shape(config.model.name)
    if shape is None:
        return None
    values = trained_parameters(config, shape)
    kept = config.grpo.get("save_total_limit") or max(1, config.grpo["max_steps"] // config.grpo["save_steps"])
    checkpoint = values * (TRAINED_BYTES + optimizer_bytes(config))
    return checkpoint * (kept + 1) + 2 * TRAINED_BYTES * values  # one more while the oldest is still there


def optimizer_bytes(config: Config) -> int:
    """Bytes of optimiser state per trained value."""
    return OPTIMIZER_BYTES.get(str(config.grpo["optim"]), ADAM_BYTES)


def trained_parameters(config: Config, shape: Shape) -> int:
    """How many values are trained: those of the LoRA, or all of the model's."""
    if config.lora is None:
        return model_parameters(shape)
    return lora_parameters(shape, config.lora.r, config.lora.target_modules)


def training_bytes(config: Config, shape: Shape) -> int:
    """GPU memory for weights, gradients and optimiser state; activations and the rollout engine's cache come on top.

    The frozen base of a LoRA counts 2 bytes a value, or half a byte in 4-bit (its projections; embeddings stay in 16
    bit). A KL term (beta) needs the starting weights again where all of them are trained; a LoRA has them in its base.
    """
    per_value = 2 * TRAINED_BYTES + optimizer_bytes(config)
    trained = trained_parameters(config, shape) * per_value
    if config.lora is None:
        return trained + (TRAINED_BYTES * model_parameters(shape) if config.grpo["beta"] else 0)
    projections = shape["num_hidden_layers"] * sum(rows * columns for rows, columns in projection_sizes(shape).values())
    spared = projections * 3 // 2 if config.model.load_in_4bit else 0
    return trained + 2 * model_parameters(shape) - spared


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
    rows.append(("memory to train", _memory(config)))
    rows.append(("disk for checkpoints", _disk(config)))
    return rows


def _prompts(count: float) -> str:
    return f"{count:,g} prompt{'' if count == 1 else 's'}"


UNKNOWN_SHAPE = "not known: the model's config.json is not at hand, or of a kind that is not counted here"


def _memory(config: Config) -> str:
    """What is trained and what that takes; where all weights are, what a LoRA would take instead."""
    shape = model_shape(config.model.name)
    if shape is None:
        return UNKNOWN_SHAPE
    values, of = trained_parameters(config, shape), model_parameters(shape)
    per_value = f"{TRAINED_BYTES} (weight) + {TRAINED_BYTES} (gradient) + {optimizer_bytes(config)} (optimiser) bytes"
    said = f"{training_bytes(config, shape) / 1e9:.2f} GB: {values / 1e6:,.1f} M of {of / 1e6:,.1f} M values trained"
    said += f", {per_value} each; activations and generation on top"
    if config.lora is None:
        lora = LoraSection()
        instead = training_bytes(config.model_copy(update={"lora": lora}), shape)
        said += f"; a LoRA of rank {lora.r} would take {instead / 1e9:.2f} GB"
    return said


def _disk(config: Config) -> str:
    size = checkpoint_bytes(config)
    return f"at most {size / 1e9:.2f} GB" if size else UNKNOWN_SHAPE
