"""The log-probabilities of what transformers samples, from the policy itself, while it samples.

TRL keeps none there; with them every run logs the same gap between who generates and who learns (drift.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList


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
