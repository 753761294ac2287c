"""What the compute of a run goes into: rows generated, rows learnt from, padding, and groups that taught nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Spending:
    """Counts of the updates between two lines of metrics.jsonl, of one process."""

    def __init__(self) -> None:
        self.groups = self.informative_groups = self.rollouts = 0
        self.tokens_generated = self.tokens_updated = self.positions = self.real = 0
        self.wasted_seconds = self.generation = self.rewards = self.update = 0.0

    @classmethod
    def of_all(cls, counts: Sequence[dict[str, Any]]) -> Spending:
        """Of several processes, from the `vars` of each: counts add up, seconds pass in all at once."""
        together = cls()
        for name in vars(together):
            shared = len(counts) if name in (*PHASES, "wasted_seconds") else 1
            setattr(together, name, sum(count[name] for count in counts) / shared)
        return together

    def took(self, phase: str, seconds: float) -> None:
        """phase: one of PHASES."""
        setattr(self, phase, getattr(self, phase) + seconds)

    def generated(self, tokens: Tensor, informative: Tensor, group: int, seconds: float) -> None:
        """A generation batch: tokens [rows], whether the rewards of a row's group differ [rows], seconds it took."""
        self.rollouts += len(tokens)
        self.groups += len(tokens) // group
        self.informative_groups += int(informative.sum()) // group
        self.tokens_generated += int(tokens.sum())
        self.wasted_seconds += seconds * _share(int(tokens[~informative].sum()), int(tokens.sum()))

    def updated(self, parts: list[dict[str, Any]], seconds: float) -> None:
        """A micro-step: what went through the model, and how long it took with the backward pass."""
        wasted = real = 0
        for part in parts:
            lengths = part["prompt_mask"].sum(dim=1) + part["completion_mask"].sum(dim=1)
            self.tokens_updated += int(part["completion_mask"].sum())
            self.positions += part["prompt_ids"].numel() + part["completion_ids"].numel()
            real += int(lengths.sum())
            wasted += int(lengths[~part["informative"]].sum())
        self.real += real
        self.took("update", seconds)
        self.wasted_seconds += seconds * _share(wasted, real)

    def metrics(self, step_seconds: list[float]) -> dict[str, float]:
        """Of the updates whose seconds are given; tokens and seconds are per update. The phases add up to the step:
        `other` is what stands between them (log-probabilities asked for, completions written to disk)."""
        updates = max(len(step_seconds), 1)
        seconds = {phase: getattr(self, phase) for phase in PHASES}
        seconds["other"] = max(sum(step_seconds) - sum(seconds.values()), 0.0)
        found = {f"seconds/{phase}": value / updates for phase, value in seconds.items()} | {
            "tokens_generated": self.tokens_generated / updates,
            "tokens_updated": self.tokens_updated / updates,
            "tokens_per_second": _share(self.tokens_generated, sum(step_seconds)),
            "padding_share": 1 - _share(self.real, self.positions),
            "wasted_share": _share(self.wasted_seconds, sum(step_seconds)),
        }
        if self.groups:
            found["informative_share"] = self.informative_groups / self.groups
        if self.informative_groups:
            found["rollouts_per_informative_group"] = self.rollouts / self.informative_groups
        return found


def of_run(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The same of a whole run, from the lines of its metrics.jsonl: tokens in all, shares over all its updates."""
    rows = [row for row in rows if row.get("tokens_generated") is not None]
    steps = [row["step"] for row in rows]
    updates = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    weighted = {name: [n * (row.get(name) or 0.0) for n, row in zip(updates, rows, strict=True)] for name in SHARES}
    found: dict[str, float | None] = {
        name: sum(n * row[name] for n, row in zip(updates, rows, strict=True))
        for name in ("tokens_generated", "tokens_updated")
    }
    found |= {name: _share(sum(values), sum(updates)) for name, values in weighted.items()}
    ratios = [row["rollouts_per_informative_group"] * row["informative_share"] for row in rows
              if row.get("rollouts_per_informative_group")]  # fmt: skip
    share = found["informative_share"]
    return found | {"rollouts_per_informative_group": ratios[0] / share if ratios and share else None}


PHASES = ("generation", "rewards", "update")
SHARES = ("informative_share", "padding_share", "wasted_share")


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
