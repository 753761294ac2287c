"""Rows that teach nothing are left out of an update; the others go through it in parts trimmed to their own longest.

Where all rewards of a group are equal its advantages are zero, and so is the gradient of its rows: forward and backward
would be spent on nothing. Loss and gradient stay what they were, up to the order in which floats are added. All of it
happens when TRL hands over a micro-batch (`_prepare_inputs`, in stock TRL and in Unsloth's rewriting alike), so TRL's
`_buffered_inputs` hold every row of the generation batch, as it made them, with one column more: `informative`.

What stays as it was, and how:

- the number of micro-steps and so of backward passes, optimiser steps and collectives on every process: a micro-step
  without rows is handed one blank row of one token, masked out, whose gradient is zero (Adam's moments and weight decay
  move on);
- the update a row belongs to: rows move only among the micro-steps that lie in one update and one generation batch;
- the normaliser: every loss of TRL is linear in the size of an advantage, so what a mean over fewer rows would change
  is multiplied into the advantages of the rows that are left (`_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]  # TRL's tensors by name: [rows, ...], or scalars that hold for all of them

# By the normaliser of TRL 1.15 (`_compute_loss`; unsloth_zoo 2026.10.9 has the same in `grpo_compute_loss`).
MEAN_OVER_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")  # of the micro-batch
MEAN_OVER_ITS_TOKENS = ("bnpo",)  # the tokens of the micro-batch
# The others (dapo, cispo, vespo) divide by num_items_in_batch, which was counted before anything is dropped.


def differing(rewards: Tensor, weights: Tensor, group: int, aggregation: str) -> Tensor:
    """[groups] whether a group's rewards differ, so that it teaches something. rewards [N, K], NaN: not judged.

    By the rewards, not by advantages of zero: where float32 cannot hold the mean of eight equal rewards, TRL's
    advantages are rounding noise. normalize_then_sum normalises each reward by itself, so one that differs is enough.
    """
    weighted = rewards.double() * weights.double()
    if aggregation == "sum_then_normalize":
        unjudged = rewards.isnan().all(dim=1, keepdim=True)
        weighted = weighted.nansum(dim=1, keepdim=True).masked_fill(unjudged, math.nan)
    grouped = weighted.float().view(-1, group, weighted.shape[1])
    return (grouped.nan_to_num(nan=-math.inf).amax(1) > grouped.nan_to_num(nan=math.inf).amin(1)).any(dim=1)


def teaching(batch: Batch) -> Tensor:
    """[rows] whose gradient is not zero: of a group that differs, with an advantage, and with a token that counts.

    A row nobody could judge, or right at its group's mean, has an advantage of exactly zero.
    """
    return batch["informative"] & (batch["advantages"] != 0) & batch["completion_mask"].any(dim=1)


def parts_of(
    window: list[Batch], place: int, loss_type: str, rows_at_once: int, pad: int, gather: Callable[[Tensor], Tensor]
) -> list[Batch]:
    """What micro-step number `place` of a window learns from: one part or more, each for a forward and a backward.

    window: the micro-batches of one update and one generation batch, as TRL made them, with a column `informative`.
    The parts of a window hold its teaching rows by length, `rows_at_once` at most. `gather` is the accelerator's: all
    processes get as many parts with as many rows, because TRL gathers what it logs of them.
    """
    joined = {name: _joined([batch[name] for batch in window]) for name in window[0]}
    joined |= {"_weight": torch.cat([_weights(batch, loss_type) for batch in window])}
    lengths = joined["prompt_mask"].sum(dim=1) + joined["completion_mask"].sum(dim=1)
    kept = teaching(joined).nonzero().flatten()
    kept = kept[lengths[kept].argsort(stable=True)]
    if "group" in joined:  # the answers to a prompt stay together (training/sharing.py), groups go by their longest
        group = joined["group"]
        longest = lengths.new_zeros(int(group.max()) + 1).scatter_reduce(0, group[kept], lengths[kept], "amax")
        kept = kept[(longest[group[kept]] * len(longest) + group[kept]).argsort(stable=True)]
    rows = int(gather(kept.new_tensor([len(kept)])).max())
    blank = len(lengths)  # the index of a row that is put behind the others
    kept = torch.cat([kept.new_full((rows - len(kept),), blank), kept])
    parts = kept.tensor_split(math.ceil(rows / rows_at_once)) if rows else ()
    joined = {name: _with_blank(name, value, pad) for name, value in joined.items()}
    return [_part(joined, part, loss_type) for part in parts[place :: len(window)] or [kept.new_tensor([blank])]]


def split(part: Batch, rows_at_once: int, loss_type: str) -> list[Batch]:
    """A part as several of at most that many rows. `share` is what the loss of each counts in the sum of them, which is
    the loss of the whole, for what is summed over tokens besides advantages too (the KL term)."""
    count = len(part["advantages"])
    if count <= rows_at_once:
        return [part]
    pieces = math.ceil(count / rows_at_once)
    ends = [count * number // pieces for number in range(pieces + 1)]
    small = [{name: value[start:end] if _has_rows(value) else value for name, value in part.items()}
             for start, end in zip(ends, ends[1:], strict=False)]  # fmt: skip
    whole, before = _weights(part, loss_type)[0], part.get("share", 1.0)
    return [piece | {"share": before * _weights(piece, loss_type)[0] / whole} for piece in small]


def _weights(batch: Batch, loss_type: str) -> Tensor:
    """[rows] the share of its micro-batch's loss that a row had, as one over it: rows, tokens, or 1 for all."""
    mask = batch["completion_mask"]
    whole = (
        len(mask)
        if loss_type in MEAN_OVER_ROWS
        else mask.sum().clamp(min=1)
        if loss_type in MEAN_OVER_ITS_TOKENS
        else 1
    )
    return torch.ones(len(mask), device=mask.device) * whole


def _part(joined: Batch, rows: Tensor, loss_type: str) -> Batch:
    """Some rows, without the columns that are padding in all of them, and with the normaliser of the whole."""
    # Unsloth leaves a column of its own on the CPU (max_left_pad).
    part = {name: value[rows.to(value.device)] if _has_rows(value) else value for name, value in joined.items()}
    weight = part.pop("_weight")
    part["advantages"] = part["advantages"] * _weights(part, loss_type) / weight
    longest = part["completion_mask"].shape[1]
    left = int(part["prompt_mask"].any(dim=0).int().argmax())
    right = longest - max(1, int(part["completion_mask"].any(dim=0).sum()))
    return {name: _trimmed(name, value, longest, left, right) for name, value in part.items()}


def _trimmed(name: str, value: Any, longest: int, left: int, right: int) -> Any:
    """Unsloth's log-probabilities are [rows, M + longest], M the longest left padding; both are cut at the end. A blank
    row alone has a shorter prompt than any that was asked: its M is 0."""
    if name in ("prompt_ids", "prompt_mask"):
        return value[:, left:]
    if not _has_rows(value) or value.ndim < 2 or value.shape[1] < longest:
        return value
    return value[:, : max(value.shape[1] - left, longest) - right]


def _with_blank(name: str, value: Any, pad: int) -> Any:
    """One row more: a prompt of one token and nothing that counts. Unsloth tells padding by its id, TRL by the mask."""
    if not _has_rows(value):
        return value
    blank = torch.full_like(value[:1], {"prompt_ids": pad, "completion_ids": pad, "_weight": 1}.get(name, 0))
    if name == "prompt_mask":
        blank[:, -1] = 1
    if name == "prompt_ids":
        blank[:, -1] = value[0, -1]
    return torch.cat([value, blank])


def _joined(values: list[Any]) -> Any:
    return torch.cat(values) if _has_rows(values[0]) else values[0]


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
