"""How far who generates is from who learns: the gap between the log-probabilities that both give to sampled tokens.

With vLLM the numbers are TRL's (`sampling/sampling_logp_difference`). Where transformers generates from the policy
itself TRL keeps no log-probabilities; they are collected here while it samples, so that every run logs the same gap.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

METRIC = "sampling/sampling_logp_difference/mean"  # TRL's name for it: nats per token
SMALL = 0.02  # 16-bit arithmetic in two engines stays below this
GROWN = 5.0  # times the gap of the first steps
CAUSES = (
    "the engine does not hold the trainer's base (another precision or quantisation, another revision), the adapter is "
    "not synced, grpo.top_p or top_k below their neutral values (the engine then renormalises), or lora.dropout above 0"
)


class SampledLogprobs(LogitsProcessor):
    """Watches `generate` and keeps log p(token) of each sampled token, at the temperature that is trained with."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._columns: list[torch.Tensor] = []  # one (batch,) a step
        self._last: torch.Tensor | None = None  # (batch, vocabulary) of the newest step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._last is not None:  # what was drawn from the step before stands at the end of input_ids now
            self._columns.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1))
        self._last = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def of(self, completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """logprobs[completion][token] for the token ids that came out of that one call of `generate`."""
        columns = list(self._columns)
        if self._last is not None:
            ends = [ids[len(columns)] if len(ids) > len(columns) else 0 for ids in completions]
            columns.append(self._last.gather(1, torch.tensor(ends, device=self._last.device)[:, None]).squeeze(1))
        rows = torch.stack(columns, dim=1).tolist() if columns else [[] for _ in completions]
        return [row[: len(ids)] for row, ids in zip(rows, completions, strict=True)]


@contextmanager
def sampled_logprobs(model: Any, temperature: float) -> Iterator[SampledLogprobs]:
    """While this lasts, `model.generate` also collects the log-probabilities of what it draws."""
    collector, before = SampledLogprobs(temperature), vars(model).get("generate")
    model.generate = functools.partial(model.generate, logits_processor=LogitsProcessorList([collector]))
    try:
        yield collector
    finally:
        del model.generate  # the class's own again, or what somebody had put there
        if before is not None:
            model.generate = before


def gap(trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean |difference| in nats over the tokens of the mask; all three are (batch, tokens)."""
    return float((trained.detach() - sampled).abs()[mask.bool()].mean())


class Drift:
    """Reads the gap of each logged step and says once, with the likely causes, when it is too large or has grown."""

    def __init__(self, first_steps: int = 5) -> None:
        self.first_steps, self.seen, self.warned = first_steps, [], False

    def __call__(self, value: float) -> str | None:
        """What to tell the user after this step; None where there is nothing new. NaN is told like a large gap."""
        value = inf if value != value else value
        self.seen.append(value)
        usual = sorted(self.seen[: self.first_steps])[len(self.seen[: self.first_steps]) // 2]
        grown = len(self.seen) > self.first_steps and value > GROWN * usual
        if self.warned or value <= SMALL or not (grown or value > GROWN * SMALL):
            return None
        self.warned = True
        was = f", after {usual:.3g} in the first steps" if grown else ""
        return (
            f"The engine and the trainer disagree on sampled tokens by {value:.3g} nats on average{was}. "
            f"Likely causes: {CAUSES}."
        )
