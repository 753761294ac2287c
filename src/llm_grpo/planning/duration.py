"""About how long a step takes: its work, counted from the config and the model's shape, over a machine's speed.

Everything is counted at its longest, as in memory.py, and no row is taken to teach nothing. Of the machine at hand the
speed is tried (a product of matrices, a read of memory); of cards it is their makers'. How far that is from what runs
take is measured by benchmarks/memory_plan.py (docs/memory.md).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llm_grpo.config.schema import Config
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.planning.batch import explain_batch
from llm_grpo.planning.memory import engine_of, in_four_bit, weight_bytes
from llm_grpo.planning.shapes import (
    Shape,
    attention_values,
    cache_values,
    family_of,
    model_parameters,
    model_shape,
    projection_sizes,
)
from llm_grpo.planning.skipping import skip_choice


@dataclass(frozen=True)
class Work:
    """Of one step. A forward pass has two operations for each weight and token, a backward pass two for the gradient
    of what went in, and two for that of the weight where it is trained; checkpointing goes forward once more."""

    update: float  # floating-point operations
    prompts: float  # those of reading the prompts, each once
    answers: float  # those of writing the answers
    read: float  # bytes: the weights for each token of the longest answer, and the cache of every sequence
    calls: float  # layers times tokens of the longest answer: what a machine takes for each besides


@dataclass(frozen=True)
class Speed:
    """What a machine reaches. call: seconds for a layer of a token's forward pass before anything is computed."""

    flops: float
    bytes: float
    call: float

    def update(self, work: Work) -> float:
        return work.update / self.flops

    def generation(self, work: Work) -> float:
        computed = max(work.answers / self.flops, work.read / self.bytes)
        return work.prompts / self.flops + computed + work.calls * self.call


# (16-bit FLOP/s of dense products, bytes/s) by the data sheets, and what of it a run is assumed to reach.
CARDS = {"T4": (65e12, 0.32e12), "L4": (121e12, 0.3e12), "RTX 4090": (165e12, 1.01e12), "A100": (312e12, 2.04e12),
         "H100": (989e12, 3.35e12)}  # fmt: skip
REACHED = (0.4, 0.6)
REACHED_HERE = 0.6  # of a product's FLOP/s by an update: 0.67 of 35 M parameters on a CPU, less of a smaller model
# Assumed of vLLM with a LoRA: 806 tokens/s with 8 sequences at once and 4,076 with 48 (unsloth issue 5123) are 10 and
# 12 ms a token, where reading the weights takes one or two. Measured of transformers on a CPU: 4 to 7 ms.
CALL = {"unsloth": 2.5e-4, "vllm": 2.5e-4, "server": 2.5e-4, "transformers": 5e-3}


def time_rows(config: Config, gpu: bool, updates: int | None) -> list[tuple[str, str]]:
    """(what, how much) for a person; [] where the model's shape is not known."""
    shape = model_shape(config.model.name)
    if shape is None or family_of(shape).experts:
        return []
    work, call = work_of(config, shape, gpu), CALL[engine_of(config, gpu)]
    if gpu and not (shutil.which("nvidia-smi") and has_gpu()):  # torch takes seconds to open, and is not asked in vain
        speeds = {name: Speed(REACHED[0] * flops, REACHED[1] * read, call) for name, (flops, read) in CARDS.items()}
        said = "; ".join(f"{name}: {_said(speed, work, updates)}" for name, speed in speeds.items())
        reached = " and ".join(f"{share:.0%}" for share in REACHED)
        return [("time, about", f"{said} (assumed: {reached} of their makers' FLOP/s and bytes/s)")]
    flops, read = tried(gpu)
    speed = Speed(REACHED_HERE * flops, read, call)
    parts = f"generation {_for(speed.generation(work))}, update {_for(speed.update(work))}"
    machine = f"{speed.flops / 1e12:.2g} TFLOP/s and {speed.bytes / 1e9:.0f} GB/s, tried just now"
    return [("time, about", f"{_said(speed, work, updates)}; {parts} ({machine})")]


def _said(speed: Speed, work: Work, updates: int | None) -> str:
    step = speed.generation(work) + speed.update(work)
    return f"{_for(step)} a step" + (f", {_for(updates * step)} in all" if updates else "")


def _for(seconds: float) -> str:
    """Two digits, which is more than the plan knows."""
    size, unit = next((s, u) for s, u in ((1, "s"), (60, "min"), (3600, "h")) if seconds < 100 * s or u == "h")
    return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"


def work_of(config: Config, shape: Shape, gpu: bool) -> Work:
    """The work of a step: an update, and its share of a generation batch."""
    batch, window, most = explain_batch(config), config.model.max_seq_length, config.grpo["max_completion_length"]
    layers, prompt = shape["num_hidden_layers"], max(window - most, 0)
    weights = layers * sum(rows * columns for rows, columns in projection_sizes(shape).values())
    head = shape["hidden_size"] * shape["vocab_size"]
    seen = 2 * attention_values(shape) * window  # products with keys and values, of the last token; half on average
    passes = (2 if config.lora else 3) + bool(config.grpo["gradient_checkpointing"])
    rows, groups = batch.completions_per_update, batch.prompts_per_update
    shared = skip_choice(config)[0] and not gpu  # training/sharing.py
    tokens = rows * most + (groups if shared else rows) * prompt
    share, sequences = 1 / batch.updates_per_generation, batch.completions_per_generation
    size = 2 if gpu else 4
    held = weight_bytes(config, shape, gpu) if in_four_bit(config, gpu) else size * model_parameters(shape)
    return Work(
        update=2 * passes * (tokens * (weights + seen / 2) + rows * most * head),
        prompts=2 * share * batch.prompts_per_generation * prompt * (weights + seen / 2),
        answers=2 * share * sequences * most * (weights + head + seen),
        read=share * most * (held + size * sequences * window * cache_values(shape)),
        calls=share * most * layers,
    )


@cache
def tried(gpu: bool) -> tuple[float, float]:
    """(FLOP/s of a product of matrices, bytes/s of reading one) of this machine, in about half a second."""
    if gpu:
        import torch

        dtype, done = getattr(torch, compute_dtype()[0]), torch.cuda.synchronize
        square, matrix = (torch.ones(size, size, dtype=dtype, device="cuda") for size in (8192, 16_384))
    else:
        import numpy as np

        square, matrix = (np.ones((size, size), dtype="float32") for size in (1536, 8192))
        done = None
    vector = matrix[0]
    product, reading = (_seconds(work, done) for work in (lambda: square @ square, lambda: matrix @ vector))
    return 2 * len(square) ** 3 / product, matrix.nbytes / reading


def _seconds(work: Callable[[], object], done: Callable[[], None] | None) -> float:
    """The best of three, after one that warms up."""
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        work()
        if done:
            done()
        best = min(best, time.perf_counter() - start)
    return best
