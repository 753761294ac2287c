"""What this machine computes with: a GPU or none, the precision, its name for a run's records, the memory used."""

from __future__ import annotations

import resource
import sys
from typing import Any


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def compute_dtype() -> tuple[str, str]:
    """(name of the precision, reason). Whoever trains, generates or proves takes this one, so that they agree."""
    import torch

    if not has_gpu():
        return "float32", "a CPU, where 16-bit training loses precision and gains little"
    if torch.cuda.is_bf16_supported():
        return "bfloat16", "the GPU supports it"
    return "float16", "the GPU has no bfloat16"


def hardware() -> dict[str, Any]:
    """What the run's environment.json says of the machine."""
    import torch

    if not has_gpu():
        return {"gpu": None, "torch_threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(0)
    memory = round(properties.total_memory / 1e9, 1)
    return {"gpu": properties.name, "gpu_memory_gb": memory, "cuda": torch.version.cuda}


def peak_memory_gb() -> float:
    """The most memory used so far, in GB: of the GPU where there is one, else of this process."""
    import torch

    if has_gpu():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on a Mac, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
