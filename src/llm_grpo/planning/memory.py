"""What training takes of memory and disk, from the config and the model's shape alone.

Everything is counted at its longest: each prompt with its answer fills the window. How far the plan is from what a run
takes is measured by benchmarks/memory_plan.py (docs/memory.md).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from llm_grpo.config.schema import Config
from llm_grpo.planning.batch import explain_batch
from llm_grpo.planning.shapes import (
    Shape,
    cache_values,
    family_of,
    layer_values,
    lora_parameters,
    model_parameters,
    model_shape,
    projection_sizes,
)
from llm_grpo.planning.skipping import skip_choice

# Bytes an optimizer keeps for each value it trains: Adam's two moments in float32 or in 8 bit, Lion's one, plain SGD's
# none. Another one is counted as Adam; a paged one leaves the card only where it has to, and is counted too.
OPTIMIZER_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_bnb_8bit": 2, "lion_32bit": 4, "paged_lion_32bit": 4,
                   "lion_8bit": 1, "paged_lion_8bit": 1, "sgd": 0}  # fmt: skip
ADAM_BYTES = 8
TRAINED_BYTES = 4  # what is trained is held in float32, a LoRA or all weights, and so is its gradient
# bitsandbytes' NF4 as Unsloth asks for it: half a byte, a scale of a byte for 64 values, a float32 for 256 scales.
FOUR_BIT_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# Of an update whose rows are sorted by length (training/skipping.py). Fewer at once are padded less and have overhead
# of their own: an update of the demo with 64 rows took 0.95 of the time in one part, 0.73 in parts of 32, 0.75 of 16,
# 0.82 of 8 (docs/correctness.md), and 16 take the least memory that costs nothing. A GPU takes a whole micro-batch,
# which Unsloth packs.
ROWS_AT_ONCE_ON_A_CPU = 16
# Rows of logits at a time: unsloth_zoo 2026.10.9, fused_losses/fused_linear.py, which TRL's head goes through too.
LOGITS_AT_LEAST, LOGIT_ROWS = 512 * 151_936, (512, 4096)
# Assumed, in GB: libraries and their workspaces (a CUDA context; Python with torch, measured on a CPU), and what vLLM
# has besides weights and cache (CUDA graphs, a forward pass, buffers for a LoRA).
LIBRARIES_GB, VLLM_GB = {"gpu": 1.0, "cpu": 0.9}, 1.5


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for. None: not known for this kind of model."""

    base: float  # frozen weights
    trained: float  # what is trained, and what the optimiser keeps of it
    gradients: float
    activations: float | None  # of one part of an update
    logits: float
    generation: float  # by transformers: cache and logits
    copy: float  # weights that vLLM has for itself
    cache: float  # vLLM's, for every sequence of a generation batch
    lent: bool  # vLLM's cache is away while the update is done (rollouts.standby)
    engine: float  # the rest of vLLM
    libraries: float
    gpu: bool

    @property
    def at_most(self) -> float | None:
        """The larger of what an update and what a generation takes."""
        if self.activations is None:
            return None
        update = self.gradients + self.activations + self.logits
        both = self.base + self.trained + self.copy + self.engine + self.libraries
        if self.lent:
            return both + max(update, self.cache)
        return both + self.cache + max(update, self.generation)

    @property
    def allocated(self) -> float | None:
        """What a run sees of it (memory_peak_gb): torch's own on a card, the whole process on a CPU."""
        return self.at_most and self.at_most - (self.libraries if self.gpu else 0)


def sharded(plan: Memory, shape: Shape, cards: int) -> float | None:
    """Bytes on each of so many cards where FSDP2 or ZeRO-3 shares out weights, gradients and moments. Two layers are
    whole at a time: the one that computes, and the next."""
    if plan.at_most is None:
        return None
    shared = plan.base + plan.trained + plan.gradients
    return plan.at_most - shared + shared / cards + 2 * plan.base / shape["num_hidden_layers"]


def on_gpu(config: Config) -> bool:
    """Whether a plan is for a card: the config cannot do without, or the machine has one. Asked without torch."""
    needs = config.rollouts.engine == "unsloth" or config.model.load_in_4bit is True
    return needs or shutil.which("nvidia-smi") is not None


def in_four_bit(config: Config, gpu: bool) -> bool:
    """Whether the base is loaded in 4-bit; `auto` as rollouts.choose_four_bit takes it where bitsandbytes is there."""
    wish = config.model.load_in_4bit
    return gpu and config.lora is not None if wish == "auto" else bool(wish)


def engine_of(config: Config, gpu: bool) -> str:
    """The engine that is planned for: what `auto` takes where everything is installed."""
    if config.rollouts.engine != "auto":
        return config.rollouts.engine
    return "unsloth" if gpu and config.lora else "transformers"


def memory_of(config: Config, shape: Shape, gpu: bool, card: float | None = None) -> Memory:
    """The plan of a run. card: bytes of it; vLLM then takes its share of that, whatever its sequences need."""
    size, engine, batch = 2 if gpu else 4, engine_of(config, gpu), explain_batch(config)
    window, grpo, whole = config.model.max_seq_length, config.grpo, model_parameters(shape)
    values, base = trained_parameters(config, shape), weight_bytes(config, shape, gpu)
    copy, cache = (size * whole if engine == "vllm" else 0), batch.completions_per_generation * window
    cache *= cache_values(shape) * size
    generated = max(batch.completions_per_generation, _evaluated(config))
    by_vllm, share = engine in ("unsloth", "vllm"), config.model.gpu_memory_utilization  # of a server nothing is here
    each = window * cache_values(shape) * size + 12 * shape["vocab_size"]
    lent = engine == "unsloth" and config.rollouts.standby
    if by_vllm and card and not lent:
        cache = max(share * card - (copy or base) - VLLM_GB * 1e9, 0)
    if by_vllm and not gpu:
        cache = 2**30  # adapter_sync.open_vllm
    return Memory(
        base=base,
        trained=values * (TRAINED_BYTES + optimizer_bytes(grpo["optim"])),
        gradients=values * TRAINED_BYTES,
        activations=_activations(config, shape, gpu),
        logits=_logits(config, shape, gpu),
        generation=generated * each if engine == "transformers" else 0,
        copy=copy,
        cache=cache if by_vllm else 0,
        lent=lent,
        engine=VLLM_GB * 1e9 if by_vllm else 0,
        libraries=LIBRARIES_GB["gpu" if gpu else "cpu"] * 1e9,
        gpu=gpu,
    )


def rows_at_once(config: Config, gpu: bool) -> int:
    """How many rows go through the model together in an update."""
    micro = config.grpo["per_device_train_batch_size"]
    return micro if gpu or not skip_choice(config)[0] else min(micro, ROWS_AT_ONCE_ON_A_CPU)


def _activations(config: Config, shape: Shape, gpu: bool) -> float | None:
    """What the backward pass needs of the layers: with checkpointing each layer's input (on a card Unsloth lends it to
    the host but for two) and one layer whole, else all of them whole."""
    if family_of(shape).experts:
        return None
    tokens, layers = rows_at_once(config, gpu) * config.model.max_seq_length, shape["num_hidden_layers"]
    kept, passing = layer_values(shape, config.lora.r if config.lora else 0)
    if config.grpo["gradient_checkpointing"]:
        held = (2 if gpu else layers) * shape["hidden_size"] + kept + passing
    else:
        held = layers * kept + passing
    # Where all weights are trained autocast keeps a 16-bit copy of them through a pass.
    return tokens * (2 if gpu else 4) * held + (2 * model_parameters(shape) if gpu and config.lora is None else 0)


def _logits(config: Config, shape: Shape, gpu: bool) -> float:
    """Those of a chunk of rows with their gradient, and the last hidden states with theirs."""
    rows = rows_at_once(config, gpu)
    tokens, vocabulary, hidden = rows * config.grpo["max_completion_length"], shape["vocab_size"], shape["hidden_size"]
    least, most = LOGIT_ROWS
    chunk = max(_power_of_two(tokens * hidden / vocabulary), _power_of_two(LOGITS_AT_LEAST / vocabulary), least)
    chunk = min(chunk, most, tokens)
    states = 3 * rows * config.model.max_seq_length * hidden * (2 if gpu else 4)
    return chunk * vocabulary * (6 if gpu else 8) + states  # float32 with a gradient in 16 bit, or in float32


def _power_of_two(value: float) -> int:
    """The largest that is not above."""
    return 1 << max(int(value).bit_length() - 1, 0)


def _evaluated(config: Config) -> int:
    """Problems that are answered at once where transformers evaluates."""
    section = config.evaluation
    most = max(section.limit or section.batch_size, section.validation_limit if section.every_steps else 0)
    return min(section.batch_size, most)


def weight_bytes(config: Config, shape: Shape, gpu: bool = True) -> float:
    """The frozen base of a LoRA; of a run that trains all weights, the starting ones that a KL term needs again.

    In 4-bit are its projections; embeddings, output layer, norms and the experts of a mixture (transformers holds them
    as one tensor, which bitsandbytes leaves alone) stay in 16-bit.
    """
    if config.lora is None:
        return TRAINED_BYTES * model_parameters(shape) if config.grpo["beta"] else 0
    size, whole = 2 if gpu else 4, model_parameters(shape)
    if not in_four_bit(config, gpu):
        return size * whole
    projections = shape["num_hidden_layers"] * sum(rows * columns for rows, columns in projection_sizes(shape).values())
    return size * (whole - projections) + int(FOUR_BIT_BYTES * projections)


def checkpoint_bytes(config: Config) -> int | None:
    """Disk for all checkpoints that are kept at a time and the two adapters; None where the model's shape is unknown.

    A checkpoint holds the float32 adapter and two optimiser moments per value.
    """
    shape = model_shape(config.model.name)
    if shape is None:
        return None
    values = trained_parameters(config, shape)
    kept = config.grpo.get("save_total_limit") or max(1, config.grpo["max_steps"] // config.grpo["save_steps"])
    checkpoint = values * (TRAINED_BYTES + optimizer_bytes(config.grpo["optim"]))
    return checkpoint * (kept + 1) + 2 * TRAINED_BYTES * values  # one more while the oldest is still there


def completions_bytes(config: Config, count: int) -> int:
    """Disk that `count` completions take as they are kept, compressed, where all are as long as they may be.

    Measured on 2026-11-26: 258 bytes for 127 tokens of SmolLM2-135M at temperature 1 in files of 8 rows, 213 in files
    of 64; 52 for 12 tokens of the small model (benchmarks/long_run.py).
    """
    return count * (50 + config.answer_tokens("train") * 5 // 3)


def optimizer_bytes(optim: str) -> int:
    """Bytes of optimiser state per trained value."""
    return OPTIMIZER_BYTES.get(optim, ADAM_BYTES)


def trained_parameters(config: Config, shape: Shape) -> int:
    """How many values are trained: those of the LoRA, or all of the model's."""
    if config.lora is None:
        return model_parameters(shape)
    return lora_parameters(shape, config.lora.r, config.lora.target_modules)
