"""When memory runs out in the middle of a run: the cause and the knob, instead of a traceback of somebody's library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llm_grpo.errors import UserError

# What torch's CPU allocator says in a plain RuntimeError; on a GPU it has an exception of its own.
CPU_ALLOCATOR = "can't allocate memory"


def is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_ALLOCATOR in str(error)


@contextmanager
def crash_told() -> Iterator[None]:
    """Raises UserError where an engine ran out of memory; other errors pass. vLLM runs in this process, so there is no
    worker that could be killed apart: a kill ends the run itself, and --resume goes on from the last checkpoint."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or ["no memory left"])[0]
        raise UserError(
            f"Generation ran out of memory ({said}). Lower model.gpu_memory_utilization and go on with --resume; "
            "or, in a new run, grpo.max_completion_length or the completions per generation "
            "(grpo.per_device_train_batch_size, grpo.steps_per_generation)."
        ) from error
