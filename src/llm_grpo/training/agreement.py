"""The gap between who generates and who learns, and the entropy of what was drawn, where the trainer logs neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_grpo.diagnosis import drift
from llm_grpo.loaders import sharded_by
from llm_grpo.rollouts.sampled import gap
from llm_grpo.verification.subject import aligned

SURPRISE = "-log p of what was drawn"
SCORED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
ROWS_SCORED = 8  # enough to tell a gap of 0.02 nats; all of a generation batch would cost a forward pass of the update


@torch.no_grad()
def agreement(trainer: Any, batch: dict[str, Any]) -> dict[str, float]:
    """By the names they are logged under. Unsloth's trainer scores inside its loss and hands nothing out, so a few rows
    are scored once more, by the scorer that both trainers have."""
    sampled, mask = batch.get("sampling_per_token_logps"), batch["completion_mask"].bool()
    if sampled is None or not mask.any():
        return {}
    found = {SURPRISE: float(-sampled[mask].nanmean())}
    rows = mask.any(dim=1).nonzero().flatten()[:ROWS_SCORED]
    by_trl = trainer.use_vllm and trainer.vllm_importance_sampling_correction
    if not by_trl and not sharded_by():  # of a model in pieces all would have to score as many rows
        few = {name: batch[name][rows] for name in SCORED}
        found[drift.METRIC] = gap(scored(trainer, few), sampled[rows], mask[rows])
    return found


def scored(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    """The trainer's log-probabilities of the completions, (rows, tokens)."""
    ids, mask = (torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], dim=1) for what in ("ids", "mask"))
    longest, size = batch["completion_ids"].shape[1], trainer.args.per_device_train_batch_size
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest, batch_size=size)[0]
    return aligned(found, batch)
