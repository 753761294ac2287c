"""What training takes of memory and disk, from the config and the model's shape alone."""

from __future__ import annotations

from llm_grpo.config.schema import Config
from llm_grpo.planning.shapes import Shape, lora_parameters, model_parameters, model_shape, projection_sizes

# Bytes an optimizer keeps for each value it trains: Adam's two moments in float32 or in 8 bit, Lion's one, plain SGD's
# none. Another one is counted as Adam.
OPTIMIZER_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_bnb_8bit": 2, "lion_32bit": 4, "paged_lion_32bit": 4,
                   "lion_8bit": 1, "paged_lion_8bit": 1, "sgd": 0}  # fmt: skip
ADAM_BYTES = 8
TRAINED_BYTES = 4  # what is trained is held in float32, a LoRA or all weights, and so is its gradient


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


def completions_bytes(config: Config, count: int) -> int:
    """Disk that `count` completions take at most as they are kept, compressed. An assumption on the safe side: two
    thirds of a byte a token, and a hundred bytes for what stands beside it. The demo's 6,400 took 22 bytes each."""
    return count * (100 + config.answer_tokens("train") * 2 // 3)


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
