"""One GRPO update in float64, written from the papers: advantages, the loss of a token, how the losses are added up.

GRPO arXiv:2402.03300, Dr. GRPO arXiv:2503.20783, DAPO arXiv:2503.14476, GSPO arXiv:2507.18071, GDPO arXiv:2601.05242.
What the papers leave open is read off TRL 1.15 and said beside the line. Axes: N completions (a prompt's completions
follow each other), C tokens of the longest completion, K rewards. Nothing here knows a model or a trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STD_FLOOR = 1e-4  # TRL adds it to every standard deviation; the papers divide by the bare one
LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo")


@dataclass(frozen=True)
class Settings:
    """What of GRPOConfig decides about an update."""

    loss_type: str
    level: str  # whose probability ratio is clipped: "token" (GRPO) or "sequence" (GSPO)
    beta: float
    weigh_kl: bool  # times the ratio: TRL 1.15 does so unless use_bias_correction_kl=False
    epsilon_low: float
    epsilon_high: float
    scale_rewards: str
    aggregation: str
    weights: tuple[float, ...]  # of the K rewards
    group: int  # completions per prompt
    temperature: float
    max_completion_length: int
    micro_batches: int  # the generation batch is learnt from in so many parts
    accumulation: int  # and so many parts make an update


@dataclass(frozen=True)
class Sampled:
    """What an update learns from, float64: `mask` [N, C] is 1 on tokens that count, `old` and `reference` are [N, C]
    log-probabilities (None: on-policy, no KL), `correction` [N, C] or [N, 1] the engine's importance weights."""

    mask: Tensor
    advantages: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    correction: Tensor | None = None


def advantages(rewards: Tensor, settings: Settings) -> Tensor:
    """Group-relative advantages [N] of rewards [N, K], where NaN is "cannot be judged".

    sum_then_normalize: GRPO with outcome rewards (scale none: Dr. GRPO; batch: one deviation for all groups).
    normalize_then_sum: GDPO; each reward is normalised in its group, their weighted sum over the whole batch.
    """
    weights = torch.tensor(settings.weights, dtype=rewards.dtype, device=rewards.device)
    unjudged = rewards.isnan().all(dim=1)
    if settings.aggregation == "normalize_then_sum":
        columns = [torch.cat([normalised(g) for g in column.split(settings.group)]) for column in rewards.T]
        total = (torch.stack(columns, dim=1) * weights).nansum(dim=1)
        return normalised(total.masked_fill(unjudged, math.nan)).nan_to_num(nan=0.0)
    total = (rewards * weights).nansum(dim=1).masked_fill(unjudged, math.nan)
    everyone = deviation(total)
    parts = []
    for group in total.split(settings.group):
        divisor = {"group": deviation(group), "batch": everyone, "none": None}[settings.scale_rewards]
        centred = group - group.nanmean()
        parts.append(centred if divisor is None else centred / (divisor + STD_FLOOR))
    return torch.cat(parts).nan_to_num(nan=0.0)  # a completion nobody could judge teaches nothing


def sensitivity(rewards: Tensor, settings: Settings) -> Tensor:
    """[N] how far each advantage moves when the rewards are rounded another way in float32; the largest of four draws.

    Where all rewards of a group are equal, a trainer in float32 divides its rounding error by nothing but STD_FLOOR.
    """
    draws, exact = torch.Generator().manual_seed(0), advantages(rewards, settings)
    noise = [2**-24 * (2 * torch.rand(rewards.shape, generator=draws) - 1).to(rewards) for _ in range(4)]
    return torch.stack([advantages(rewards * (1 + n), settings) - exact for n in noise]).abs().amax(dim=0)


def normalised(values: Tensor) -> Tensor:
    return (values - values.nanmean()) / (deviation(values) + STD_FLOOR)


def deviation(values: Tensor) -> Tensor:
    """Standard deviation with Bessel's correction (TRL's choice; the papers only say "std"), NaN left out."""
    return values[~values.isnan()].std()


def log_ratio(logps: Tensor, sampled: Sampled, level: str) -> Tensor:
    """log(pi / pi_old): per token [N, C], or its mean over the sequence [N, 1] (GSPO: the ratio of the sequences'
    likelihoods to the power of 1 / length)."""
    difference = logps - (logps.detach() if sampled.old is None else sampled.old)
    if level == "token":
        return difference
    lengths = sampled.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (difference * sampled.mask).sum(dim=1, keepdim=True) / lengths


def objective(ratio: Tensor, advantage: Tensor, settings: Settings) -> Tensor:
    """min(r A, clip(r) A): GRPO's clipped surrogate; with two different bounds DAPO's clip-higher."""
    clipped = ratio.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    return torch.minimum(ratio * advantage, clipped * advantage)


def kl(logps: Tensor, reference: Tensor) -> Tensor:
    """The unbiased, never negative estimate of KL(pi || pi_ref) from one sample, as GRPO adds it to the loss."""
    return (reference - logps).exp() - (reference - logps) - 1


def token_losses(logps: Tensor, sampled: Sampled, settings: Settings) -> Tensor:
    """The loss of each token [N, C]; under GSPO every token carries its sequence's objective.

    With `weigh_kl` the KL is weighted by the ratio, as DeepSeek-V3.2 (arXiv:2512.02556) does, so that its estimate is
    unbiased off-policy. The ratio is not detached: on-policy it changes the gradient too.
    """
    ratio = log_ratio(logps, sampled, settings.level).exp()
    gain = objective(ratio, sampled.advantages[:, None], settings)
    if sampled.correction is not None:
        gain = gain * sampled.correction
    if sampled.reference is None:
        return -gain * torch.ones_like(logps)
    penalty = kl(logps, sampled.reference) * (ratio if settings.weigh_kl else 1.0)
    return settings.beta * penalty - gain


def aggregate(losses: Tensor, mask: Tensor, settings: Settings) -> Tensor:
    """The losses [N, C] of a generation batch as one number, an update's share of it.

    grpo: mean over tokens, then over completions (GRPO; a completion that is masked out still counts as one).
    dapo: mean over all tokens of the generation batch (DAPO's token-level loss). bnpo: mean over the tokens of each
    micro-batch (TRL's). dr_grpo: sum over N * max_completion_length (Dr. GRPO: a constant, so that length has no pull).
    """
    sums, lengths = (losses * mask).sum(dim=1), mask.sum(dim=1)
    if settings.loss_type == "grpo":
        return (sums / lengths.clamp(min=1)).mean()
    if settings.loss_type == "dr_grpo":
        return sums.sum() / (len(sums) * settings.max_completion_length)
    if settings.loss_type == "dapo":
        return sums.sum() / lengths.sum().clamp(min=1)
    parts = zip(sums.chunk(settings.micro_batches), lengths.chunk(settings.micro_batches), strict=True)
    return torch.stack([part.sum() / length.sum().clamp(min=1) for part, length in parts]).mean()


def loss(logps: Tensor, sampled: Sampled, settings: Settings) -> Tensor:
    """What a trainer has to go down on, summed over the micro-batches of a generation batch.

    An update takes `accumulation` micro-batches, so a generation batch is worth micro_batches / accumulation updates.
    """
    updates = settings.micro_batches / settings.accumulation
    return updates * aggregate(token_losses(logps, sampled, settings), sampled.mask, settings)


def correction(gap: Tensor, mask: Tensor, mode: str, low: float | None, high: float | None) -> Tensor:
    """Importance weights for an engine that samples by other probabilities than the trainer's.

    `gap` [N, C]: trainer minus engine, in log-probability. `mode`: {token|sequence}_{truncate|mask}, as TRL names them:
    truncate clamps a weight to [low, high], mask drops what is outside.
    """
    gap = gap.nan_to_num(nan=0.0) * mask
    weight = (gap.sum(dim=1, keepdim=True) if mode.startswith("sequence") else gap).exp()
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if mode.endswith("truncate"):
        return weight.clamp(low, high)
    return weight * ((weight >= low) & (weight <= high))
