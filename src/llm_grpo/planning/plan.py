"""What a config will do, told before it is done: the batch explained, tokens, share of the data, memory, disk.

All of it is arithmetic on the config, the number of training examples and the model's shape; nothing is loaded.
"""

from __future__ import annotations

from llm_grpo import processes
from llm_grpo.config.schema import Config, ModelSection
from llm_grpo.errors import UserError
from llm_grpo.planning.batch import explain_batch
from llm_grpo.planning.card import UNKNOWN_SHAPE, memory_rows
from llm_grpo.planning.duration import time_rows
from llm_grpo.planning.memory import checkpoint_bytes, completions_bytes, on_gpu
from llm_grpo.planning.shapes import positions, read_shape
from llm_grpo.planning.skipping import skip_choice


def check_window(model: ModelSection) -> None:
    """Raise UserError where model.max_seq_length is over the positions of the model, as far as its config.json is at
    hand. A learned table ends there (GPT-2: 1024), and beyond what it was trained on no model can be trusted."""
    shape, window = read_shape(model.name, model.revision), model.max_seq_length
    limit = positions(shape) if shape else None
    if limit is not None and window > limit:
        raise UserError(
            f"model.max_seq_length: {window} tokens, but {model.name} has positions for {limit}. "
            f"Set model.max_seq_length={limit} or less; grpo.max_completion_length has to leave room for the prompt."
        )


def explain(config: Config, train_examples: int | None) -> list[tuple[str, str]]:
    """(what, how much) rows for a person; `train_examples` is None where the data is not at hand. Under a launcher
    (torchrun src/train.py --dry-run) of all its processes, but for memory and time, which are each card's."""
    batch = explain_batch(config, train_examples, count := processes.count())
    prompts, by = batch.prompts_per_generation, f", by {count} processes" if count > 1 else ""
    rows = [
        ("a generation batch", f"{_prompts(prompts)} x {batch.num_generations} generations"
                               f" = {batch.completions_per_generation} completions{by}{_idle(config)}"),
        ("an update", f"{_prompts(batch.prompts_per_update)}, {batch.completions_per_update} completions, "
                      f"at most {batch.max_tokens_per_update:,} tokens"),
        ("updates per generation batch", f"{batch.updates_per_generation:g}"),
    ]  # fmt: skip
    if config.sft:
        together = config.sft.batch_size * count
        solutions = config.sft.steps * together
        shown = f", {solutions / train_examples:.1f} times the training examples" if train_examples else ""
        told = f"{config.sft.steps} updates of {together} solutions{shown}; its time is not counted below"
        rows.insert(0, ("SFT before it", told))
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
    rows.append(("rows that teach nothing", skip_choice(config)[1]))
    rows += memory_rows(config, gpu := on_gpu(config), cards=count)
    rows += time_rows(config, gpu, batch.updates)
    rows.append(("disk for checkpoints", _disk(config)))
    if batch.updates is not None:
        size = completions_bytes(config, batch.prompts_seen * batch.num_generations)
        rows.append(("disk for completions", f"about {size / 1e9:.2f} GB at most, compressed"))
    return rows


def _idle(config: Config) -> str:
    """What to know where vLLM is given too few sequences at once to be busy."""
    batch = explain_batch(config)
    if config.rollouts.engine not in ("unsloth", "vllm", "server") or batch.completions_per_generation >= 32:
        return ""
    return " (few for vLLM: 806 tokens/s with 8 at once, 4,076 with 48, unsloth issue 5123; configs/grpo_64.yaml)"


def _prompts(count: float) -> str:
    return f"{count:,g} prompt{'' if count == 1 else 's'}"


def _disk(config: Config) -> str:
    size = checkpoint_bytes(config)
    return f"at most {size / 1e9:.2f} GB" if size else UNKNOWN_SHAPE
