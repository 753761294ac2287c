"""A card that is not there: CUDA's device names mean the CPU, `torch.cuda` answers as an H100 would, Triton interprets.

To be imported before Unsloth. tests/rehearsal/gpu_classes.py runs Unsloth's own GPU classes over it.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

assert os.environ.get("UNSLOTH_ALLOW_CPU") == "1" and os.environ.get("TRITON_INTERPRET") == "1", (
    "start this by tests/test_gpu_classes.py"
)

import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

CPU, GIB = torch.device("cpu"), 2**30
H100 = SimpleNamespace(
    name="H100 (none)", total_memory=80 * GIB, major=9, minor=0, multi_processor_count=132, warp_size=32,
    L2_cache_size=50 * 2**20, max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
    shared_memory_per_multiprocessor=228 * 1024, shared_memory_per_block=48 * 1024,
    shared_memory_per_block_optin=227 * 1024, gcnArchName="", is_integrated=0, is_multi_gpu_board=0,
)  # fmt: skip
STREAM = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda s: None, wait_event=lambda e: None)
ANSWERS = {
    "get_device_properties": H100,
    "get_device_capability": (9, 0),
    "get_device_name": H100.name,
    "mem_get_info": (70 * GIB, 80 * GIB),
    "current_device": 0,
    "current_stream": STREAM,
    "is_bf16_supported": True,
    "memory_reserved": 0,
    "memory_allocated": 0,
    "synchronize": None,
    "empty_cache": None,
}


def here(device: Any) -> Any:
    """The CPU, where a device is CUDA's: by name, by number, or as torch.device."""
    is_number = isinstance(device, int) and not isinstance(device, bool)
    is_cuda = str(device).startswith("cuda") if isinstance(device, (str, torch.device)) else is_number
    return CPU if is_cuda else device


class OnTheCPU(TorchFunctionMode):
    """Every call of torch that names a CUDA device means the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if function is torch.device:
            return CPU
        if name == "cuda":
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = here(kwargs["device"])
        if name == "to":
            args = (args[0], *(here(arg) if index == 0 else arg for index, arg in enumerate(args[1:])))
        return function(*args, **kwargs)


class Buffers(list):
    """A list of one entry per card, asked by the number of a card, which is None on a CPU."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index or 0)

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index or 0, value)


class OneCard(int):
    """The number of cards; lists that are made by it know what a CPU's number is."""

    def __rmul__(self, other: Any) -> Any:
        return Buffers(other) if isinstance(other, list) else int(self) * other


for name, answer in ANSWERS.items():
    setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
OnTheCPU().__enter__()
