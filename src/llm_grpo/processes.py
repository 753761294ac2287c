"""Several trainer processes, as torchrun and accelerate start them: all run the same story, the first alone speaks and
writes. Of one process, the ordinary case, nothing is imported here and nothing is sent.

What is sent are plain values, over gloo whatever the device is, and every process has to come to the same call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from threading import Thread
from typing import Any, TypeVar

from llm_grpo.device import has_gpu
from llm_grpo.errors import UserError

T = TypeVar("T")
PARTING_S = 3.0


class ToldByTheFirst(UserError):
    """In the others, where the first process ends with an error and says it: they leave without a word and with 0,
    since a process that leaves with another code makes torchrun end the first, which may still be saving."""


def count() -> int:
    """How many there are. A scheduler may set WORLD_SIZE alone; a launcher sets LOCAL_RANK too."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def meet(timeout_s: float) -> None:
    """The processes find each other, before anything is said or written. timeout_s: how long one waits for the others.

    Raises UserError where several were meant and one was started.
    """
    if count() == 1:
        by_accelerate = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()  # its launcher for a CPU
        if "LOCAL_RANK" not in os.environ and (by_accelerate or int(os.environ.get("WORLD_SIZE", 1)) > 1):
            raise UserError(
                "Several processes were asked for and this one stands alone (accelerate launch starts no more without "
                "a GPU). Start them with: torchrun --nproc_per_node 2 src/train.py --config YAML"
            )
        return
    import torch.distributed as dist

    if not has_gpu():  # accelerate says "cpu:0", which torch.load takes for no place to put an optimizer's state
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu() else "gloo", timeout=timedelta(seconds=timeout_s))


def part() -> None:
    """Before the process ends, however it does: gloo's threads end before the interpreter, which they may need and else
    abort the process (exit code -6), whatever it has done (pytorch 179291). NCCL may wait here for a process that
    waits elsewhere, so this takes PARTING_S seconds at most. Of one process, nothing."""
    if count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        parting = Thread(target=dist.destroy_process_group, daemon=True)
        parting.start()
        parting.join(PARTING_S)


def of_all(value: T) -> list[T]:
    """What each process has here, by rank, in all of them."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def to_first(value: T) -> list[T]:
    """The same in the first alone; [] in the others."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count() if is_first() else []
    dist.gather_object(value, found if is_first() else None)
    return found


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; nobody goes on before it is made. Where making it fails in the
    first, the others raise ToldByTheFirst."""
    if count() == 1:
        return make()
    import torch.distributed as dist

    made: list[Any] = [None]
    try:
        if is_first():
            made = [(make(),)]
    finally:  # after an error too
        dist.broadcast_object_list(made)
    if made[0] is None:
        raise ToldByTheFirst("The first process says what is wrong.")
    return made[0][0]


def together(function: Callable[..., T]) -> Callable[..., T]:
    """The function, called in every process on what is its own. A UserError in one of them ends the call in all: the
    first raises it, whosever it is."""
    if count() == 1:
        return function

    @wraps(function, updated=())
    def called(*args: Any, **words: Any) -> T:
        fault, result = None, None
        try:
            result = function(*args, **words)
        except UserError as error:
            fault = error
        faults = [said for said in of_all(fault and str(fault)) if said]
        if faults:
            raise UserError(faults[0]) if is_first() else ToldByTheFirst(faults[0])
        return result

    return called


def shared_out(make: Callable[..., list[T]], *columns: Sequence[Any], block: int = 1) -> list[T]:
    """What `make` says of every row of the columns, the same in all processes; each does every count-th block. All of
    them where they have not met, as src/eval.py under a launcher."""
    if count() == 1:
        return make(*columns)
    import torch.distributed as dist

    if not dist.is_initialized():
        return make(*columns)
    whose = [row // block % count() for row in range(len(columns[0]))]
    own = [[value for value, who in zip(column, whose, strict=True) if who == rank()] for column in columns]
    found = [iter(rows) for rows in of_all(together(make)(*own))]
    return [next(found[who]) for who in whose]
