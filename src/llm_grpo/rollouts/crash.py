"""When the engine dies in the middle of a run: the cause and the knob, instead of a traceback of somebody's library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llm_grpo.errors import UserError

LESS_MEMORY = (
    "lower grpo.max_completion_length, the completions per generation (grpo.per_device_train_batch_size x steps), or "
    "model.gpu_memory_utilization"
)


@contextmanager
def crash_told() -> Iterator[None]:
    """Raises UserError for what an engine's death or a lack of memory raises; other errors pass."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = (str(error).strip().splitlines() or ["no memory left"])[0]
        raise UserError(f"Generation ran out of memory ({said}): {LESS_MEMORY}.") from error
    except _dead_engine() as error:
        raise UserError(
            "vLLM's worker process is gone: it was killed, or the machine ran out of memory (its last words are in the "
            f"run's log). If it was memory: {LESS_MEMORY}; or generate with rollouts.engine=transformers."
        ) from error


def _dead_engine() -> tuple[type[BaseException], ...]:
    """vLLM's exception for it, where vLLM is in memory at all."""
    module = sys.modules.get("vllm.v1.engine.exceptions")
    return (module.EngineDeadError,) if module else ()
