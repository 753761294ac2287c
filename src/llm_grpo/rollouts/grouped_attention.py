"""Grouped-query attention on a CPU without a copy of the keys and values for every query head.

transformers 5.17 repeats them before SDPA wherever there is an attention mask, because a GPU's kernels want it so.
A CPU's kernel takes the groups as they are and gives the same numbers; while an answer is generated the copying is most
of what attention costs. docs/rollouts.md has the numbers.
"""

from __future__ import annotations

from functools import wraps

import torch
from transformers.integrations import sdpa_attention


def attend_in_groups() -> None:
    """For every model of this process, wherever no gradient is wanted (backward there is none of the kernel's)."""
    theirs = sdpa_attention.use_gqa_in_sdpa
    if hasattr(theirs, "__wrapped__"):
        return  # done before

    @wraps(theirs)
    def grouped(mask: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> bool:
        return theirs(mask, key, value) or (key.device.type == "cpu" and not torch.is_grad_enabled())

    sdpa_attention.use_gqa_in_sdpa = grouped
