"""A config on a card of so many GB: what it takes, part by part, what the card holds, and the values that fit it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import product

from llm_grpo.config.schema import Config, LoraSection
from llm_grpo.errors import UserError
from llm_grpo.planning.batch import explain_batch
from llm_grpo.planning.memory import (
    TRAINED_BYTES,
    VLLM_GB,
    Memory,
    engine_of,
    in_four_bit,
    memory_of,
    optimizer_bytes,
    rows_at_once,
    sharded,
    trained_parameters,
)
from llm_grpo.planning.shapes import Shape, cache_values, model_parameters, model_shape

UNKNOWN_SHAPE = "not known: the model's config.json is not at hand, or of a kind that is not counted here"
USABLE = 0.95  # of a card; the rest goes into gaps between what is allocated
MOST_ROWS = 16  # of an update at once; Unsloth packs them, and more gain little


def card_bytes(text: str) -> float:
    """`24GB`, `24` or `79.6 GB` in bytes. Raises UserError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB?)?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--fit {text}: the memory of a card in GB, such as 24GB.")
    return float(found[1]) * 1e9


def memory_rows(config: Config, gpu: bool, card: float | None = None, cards: int = 1) -> list[tuple[str, str]]:
    """(what, how much) for a person, every sequence at its longest, on one card. card: bytes of it, where one is meant;
    cards: how many train."""
    shape = model_shape(config.model.name)
    if shape is None:
        return [("memory", UNKNOWN_SHAPE)]
    plan = memory_of(config, shape, gpu)
    rows = [
        ("memory: frozen weights", _weights(config, plan)),
        ("memory: what is trained", _trained(config, shape, plan, gpu)),
        ("memory: an update", _update(config, plan, gpu)),
        ("memory: generation", _generation(config, shape, plan, gpu)),
        ("memory in all, at most", f"{_gb(plan.at_most)}, {_gb(plan.libraries)} of it assumed for libraries, "
                                   f"on a {'GPU' if gpu else 'CPU'}"),
    ]  # fmt: skip
    if cards > 1:
        each = _gb(sharded(plan, shape, cards))
        rows.append(("memory, shared out", f"{each} on each of {cards} by FSDP2 or ZeRO-3; without, all of it on each"))
    return rows + ([(f"on {card / 1e9:g} GB", largest(config, shape, card))] if card else [])


def _gb(size: float | None) -> str:
    return "not known" if size is None else f"{size / 1e9:.2f} GB"


def _weights(config: Config, plan: Memory) -> str:
    if config.lora is None:
        return f"{_gb(plan.base)}{' (where a KL term starts from)' if plan.base else ', all are trained'}"
    four_bit = in_four_bit(config, plan.gpu)
    return f"{_gb(plan.base)}{', projections in 4-bit, the rest in 16-bit' if four_bit else ''}"


def _trained(config: Config, shape: Shape, plan: Memory, gpu: bool) -> str:
    """What is trained and what that takes; where all weights are, what a LoRA would take instead."""
    values, of = trained_parameters(config, shape), model_parameters(shape)
    moments = optimizer_bytes(config.grpo["optim"])
    each = f"{TRAINED_BYTES} (weight) + {TRAINED_BYTES} (gradient) + {moments} (optimiser)"
    said = f"{_gb(plan.trained + plan.gradients)}: {values / 1e6:,.1f} M of {of / 1e6:,.1f} M values, {each} bytes each"
    if config.lora is None:
        other = memory_of(config.model_copy(update={"lora": LoraSection()}), shape, gpu)
        said += f"; a LoRA of rank {LoraSection().r} would take {_gb(other.base + other.trained + other.gradients)}"
    return said


def _update(config: Config, plan: Memory, gpu: bool) -> str:
    rows = rows_at_once(config, gpu)
    how = "no checkpointing"
    if config.grpo["gradient_checkpointing"]:
        how = "checkpoints lent to the host" if gpu else "checkpointing"
    return (f"{rows} x {config.model.max_seq_length:,} tokens at once: activations {_gb(plan.activations)} ({how}), "
            f"logits, in chunks, {_gb(plan.logits)}")  # fmt: skip


def _generation(config: Config, shape: Shape, plan: Memory, gpu: bool) -> str:
    count, window = explain_batch(config).completions_per_generation, config.model.max_seq_length
    each = f"{cache_values(shape) * (2 if gpu else 4):,} bytes a token"
    if config.rollouts.engine == "server":
        there = memory_of(with_engine(config, "vllm"), shape, gpu)
        weights = _gb(plan.base if in_four_bit(config, gpu) else there.copy)
        needs = f"{weights} for weights, {_gb(there.cache)} for {count} sequences of {window:,} tokens, {each}"
        return f"by the server at {config.rollouts.url}, nothing of it here; it needs {needs}"
    if not plan.engine:
        return f"by transformers: {_gb(plan.generation)} for cache and logits, {each}"
    weights = f"a copy of the weights, {_gb(plan.copy)}" if plan.copy else "the same weights"
    lent = ", lent to the update meanwhile" if plan.lent else ""
    return f"vLLM over {weights}: cache {_gb(plan.cache)} for {count} sequences of {window:,} tokens, {each}{lent}"


def largest(config: Config, shape: Shape, card: float) -> str:
    """Whether it fits, and how many sequences of the window, or how long ones of the generation batch, fit at once."""
    plan, used = memory_of(config, shape, gpu=True), memory_of(config, shape, gpu=True, card=card)
    if used.at_most is None:
        return "not known: the activations of a mixture of experts are not counted here"
    over = used.at_most - card
    said = "it fits" if over <= 0 else f"does not fit, {_gb(over)} too much: src/doctor.py --fit {card / 1e9:g}GB"
    if config.rollouts.engine == "server":
        return said
    each = cache_values(shape) * 2
    room = used.cache if plan.engine else card - (plan.at_most - plan.generation)
    if plan.lent:
        room = card * USABLE - (plan.at_most - max(plan.cache, plan.gradients + plan.activations + plan.logits))
    count, window = explain_batch(config).completions_per_generation, config.model.max_seq_length
    many, long = max(int(room / (each * window)), 0), max(int(room / (each * count)), 0)
    return f"{said}; the cache has room for {many:,} sequences of {window:,} tokens at once, or {count} of {long:,}"


def fit(config: Config, card: float) -> list[str]:
    """The values that fit a card of so many bytes, as overrides. The same prompts, groups and completions an update:
    what changes is how many go through the model at once, vLLM's share, and where that is not enough the precision of
    weights and moments, and how many sequences are drawn, or answered in an evaluation, at a time. Raises UserError."""
    shape = model_shape(config.model.name)
    if shape is None:
        raise UserError(f"--fit: {config.model.name}: {UNKNOWN_SHAPE}.")
    if memory_of(config, shape, gpu=True).at_most is None:
        raise UserError("--fit: the activations of a mixture of experts are not counted here.")
    for words, values, whole in _choices(config):
        plan = memory_of(values, shape, gpu=True)
        missing = plan.at_most - USABLE * card
        least = cache_values(shape) * 2 * values.model.max_seq_length * values.grpo["num_generations"]
        spare = plan.cache - (0 if whole else min(least, plan.cache))
        if missing > (0 if plan.lent else spare):
            continue
        if plan.engine and not plan.lent:
            cache = plan.cache - missing * (1 if missing > 0 else 0.5)  # of what is left over vLLM gets half
            share = (cache + VLLM_GB * 1e9 + (plan.copy or plan.base)) / card
            words.append(f"model.gpu_memory_utilization={math.floor(share * 100) / 100:g}")
        return words
    raise UserError(
        f"--fit: {config.model.name} with {config.model.max_seq_length} tokens does not fit {card / 1e9:g} GB, one row "
        "at a time. Lower model.max_seq_length with grpo.max_completion_length, or lora.r, or take a smaller model."
    )


def _choices(config: Config) -> Iterator[tuple[list[str], Config, bool]]:
    """(overrides, the config with them, whether the cache is to hold every sequence at once), best first."""
    grpo, batch = config.grpo, explain_batch(config)
    together = batch.completions_per_update
    now = in_four_bit(config, gpu=True)
    four_bit = dict.fromkeys([now, config.lora is not None])
    optim = dict.fromkeys([grpo["optim"], "adamw_8bit"]) if grpo["optim"].startswith("adamw") else [grpo["optim"]]
    drawn = math.gcd(together, batch.completions_per_generation)  # both are made of whole micro-batches
    micros = [rows for rows in range(min(drawn, MOST_ROWS), 0, -1) if drawn % rows == 0]
    answered = dict.fromkeys([config.evaluation.batch_size])
    if engine_of(config, gpu=True) == "transformers":
        answered |= dict.fromkeys([min(config.evaluation.batch_size, batch.completions_per_generation)])
    for whole, four, moments, answers, rows in product([True, False], four_bit, optim, answered, micros):
        new = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": together // rows}
        if grpo.get("steps_per_generation"):
            new["steps_per_generation"] = batch.completions_per_generation // rows
        new |= {"optim": moments} if moments != grpo["optim"] else {}
        words = [f"grpo.{name}={value}" for name, value in new.items()]
        words += [f"model.load_in_4bit={str(four).lower()}"] if four != now else []
        words += [f"evaluation.batch_size={answers}"] if answers != config.evaluation.batch_size else []
        model = config.model.model_copy(update={"load_in_4bit": four})
        evaluation = config.evaluation.model_copy(update={"batch_size": answers})
        values = {"grpo": grpo | new, "model": model, "evaluation": evaluation}
        yield words, with_engine(config.model_copy(update=values), engine_of(config, gpu=True)), whole


def with_engine(config: Config, engine: str) -> Config:
    return config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"engine": engine})})
