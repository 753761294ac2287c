"""A doctor beside the run: reads every line of metrics.jsonl once and says what goes wrong, and from which step on.

It keeps the first lines and the last ones and no more, so that a run of any length takes the same memory, and reading
the same lines again (after a resume) finds the same. What each finding means for its reader: docs/diagnoses.md.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf, isfinite
from statistics import fmean, median
from typing import Any, NamedTuple

from llm_grpo.diagnosis.drift import METRIC, Drift

HALF, NO_SIGNAL = 0.5, 0.9  # shares of the groups that taught nothing
CUT = 0.3  # of the completions ran into the token limit
COLLAPSED = 0.2  # of the first entropy is left
KNOWN = 0.9  # right: nothing is wrong with being sure, short or done then
ALONE, UNRELATED = 0.95, 0.3  # share of the variance of one reward; correlation of what is earned with being right
NICER, FLAT = 0.2, 0.03  # rise of the format rate; of the accuracy, within the noise of a window
LONGER = 1.5  # times the first length
APART, PAID = 0.05, 0.02  # validation below its best, twice in a row; rise of the reward since then, as a share of it
SPIKE, SPIKES, FEWEST = 10.0, 3, 10  # times the median gradient norm; so many of them, among at least so many steps
STANDSTILL = 3  # lines in a row without a learning rate
KINDS = {"solved": "all right", "unsolved": "all wrong", "blind": "right and wrong alike"}  # groups of equal rewards

Seen = tuple[int, str] | None  # (first step, what is the matter with its numbers), or nothing is
Look = Callable[["Doctor"], Seen]


@dataclass(frozen=True)
class Finding:
    """name: what run.halt_on calls it; step: at which it was found; since: the first step that it is true of; said: a
    sentence with its numbers; change: the values of the config to change."""

    name: str
    step: int
    since: int
    said: str
    change: str


class Check(NamedTuple):
    """shows: of a row of completions/; the completions where it is highest are the evidence."""

    look: Look
    change: str
    shows: Callable[[Mapping[str, Any]], Any]


class Doctor:
    """window: the lines that a mean is taken over (training.watching knows how many groups they hold)."""

    def __init__(self, window: int) -> None:
        self.window, self.told, self.drift = window, set[str](), Drift()
        self.row: Mapping[str, Any] = {}
        self.first: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.points: dict[str, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=max(window, 2 * FEWEST)))

    def read(self, row: Mapping[str, Any]) -> list[Finding]:
        """A line of the log; what was found by it. Each finding is told once."""
        self.row = row
        if "validation/strict_accuracy" in row:
            self.row = {**row, "reward at validation": self.mean("reward")}
        for name, value in self.row.items():
            if isinstance(value, (int, float)) and isfinite(value):
                self.points[name].append((row["step"], value))
                if len(self.first[name]) < self.window:
                    self.first[name].append((row["step"], value))
        found = []
        for name, check in CHECKS.items():
            if name not in self.told and (seen := check.look(self)):
                self.told.add(name)
                said = f"{name.replace('_', ' ').capitalize()}, from step {seen[0]} on: {seen[1]}."
                found.append(Finding(name, row["step"], seen[0], said, check.change))
        return found

    def mean(self, name: str) -> float | None:
        """Over the last window, or as much of it as there is."""
        return _mean(list(self.points.get(name, ()))[-self.window :])

    def crossed(self, name: str, beyond: Callable[[float], bool]) -> tuple[int, float] | None:
        """(first step of the window whose own value is beyond a bound, mean), where the mean of a whole window is."""
        window = list(self.points.get(name, ()))[-self.window :]
        if len(window) < self.window or not beyond(mean := _mean(window)):
            return None
        return next((step for step, value in window if beyond(value)), window[0][0]), mean  # a mean is rounded

    def changed(self, name: str, beyond: Callable[[float, float], bool]) -> tuple[int, float, float] | None:
        """(first step, mean of the first window, mean of the last) where `beyond(then, value)`; they have no line in
        common."""
        then = _mean(self.first.get(name, ()))
        found = self.crossed(name, lambda value: beyond(then, value))
        apart = found and self.first[name][-1][0] < self.points[name][-self.window][0]
        return (found[0], then, found[1]) if apart else None


def _mean(points: Sequence[tuple[int, float]]) -> float | None:
    return fmean(value for _, value in points) if points else None


def _silent(bound: float, kind: str = "") -> Look:
    """Groups that earned the same, most of them of one kind. Where next to none teach, that alone is told."""

    def look(doctor: Doctor) -> Seen:
        found = doctor.crossed("informative_share", lambda share: share <= 1 - bound)
        shares = {each: doctor.mean(f"groups/{each}") or 0.0 for each in KINDS}
        if not found or kind and ("no_signal" in doctor.told or max(shares, key=shares.get) != kind):
            return None
        parts = ", ".join(f"{KINDS[each]} in {share:.0%}" for each, share in shares.items() if share)
        return found[
            0
        ], f"in {1 - found[1]:.0%} of the groups all answers earned the same ({parts}): they teach nothing"

    return look


def _truncated(doctor: Doctor) -> Seen:
    found = doctor.crossed("truncated_share", lambda share: share >= CUT)
    return found and (found[0], f"{found[1]:.0%} of the answers ran into the token limit")


def _in_vain(metric: str, beyond: Callable[[float, float], bool], said: str, gain: float = FLAT) -> Look:
    """A change since the first window while the accuracy, which had room to, has not risen by `gain`."""

    def look(doctor: Doctor) -> Seen:
        found, now, then = (
            doctor.changed(metric, beyond),
            doctor.mean("accuracy"),
            _mean(doctor.first.get("accuracy", ())),
        )
        if not found or now is None or now >= KNOWN or now - then >= gain:
            return None
        return found[0], f"{said.format(*found[1:])}, accuracy from {then:.0%} to {now:.0%}"

    return look


def _one_reward(doctor: Doctor) -> Seen:
    related = doctor.mean("reward_accuracy_correlation") or 0.0
    for name in [name for name in doctor.points if name.startswith("variance_share/")]:
        if (found := doctor.crossed(name, lambda share: share >= ALONE)) and related < UNRELATED:
            which = f"{name.partition('/')[2]} makes {found[1]:.0%} of the difference between answers to a prompt"
            return found[0], f"{which}, and to be right hardly pays (correlation {related:.2f})"
    return None


def _parting(doctor: Doctor) -> Seen:
    checks, rewards = doctor.points["validation/strict_accuracy"], dict(doctor.points["reward at validation"])
    step, best = max(checks, key=lambda check: (check[1], check[0]), default=(0, 0.0))
    after = [value for later, value in checks if later > step]
    if len(after) < 2 or max(after[-2:]) > best - APART or step not in rewards:
        return None
    was, now = rewards[step], doctor.mean("reward")
    said = (
        f"validation fell from {best:.0%} to {after[-1]:.0%}, the reward in training rose from {was:.3g} to {now:.3g}"
    )
    return (step, said) if now - was > PAID * abs(was) else None


def _gradient_spikes(doctor: Doctor) -> Seen:
    newest = doctor.row.get("grad_norm", 0.0)
    if newest is None or not isfinite(newest):
        return doctor.row["step"], f"the gradient norm is {newest}"
    norms = [(step, value) for step, value in doctor.points["grad_norm"] if value > 0]  # 0: a batch that taught nothing
    usual = median(value for _, value in norms) if len(norms) >= FEWEST else inf
    spikes = [step for step, value in norms if value > SPIKE * usual]
    if len(spikes) < SPIKES:
        return None
    return spikes[0], f"{len(spikes)} gradient norms above {SPIKE:.0f} times the usual {usual:.3g}"


def _no_learning_rate(doctor: Doctor) -> Seen:
    """Not the first step of a warm-up nor the end of a schedule, which are one line each."""
    still = list(takewhile(lambda point: point[1] == 0, reversed(doctor.points["learning_rate"])))
    return (still[-1][0], f"it is 0 in {len(still)} lines of the log in a row") if len(still) >= STANDSTILL else None


def _drift(doctor: Doctor) -> Seen:
    said = doctor.drift(doctor.row[METRIC]) if METRIC in doctor.row else None
    return (doctor.row["step"], said.rstrip(".")) if said else None


def _same(row: Mapping[str, Any]) -> float:
    """Highest where the whole group earned the same; its advantages may be rounding noise."""
    return -abs(row["advantage"])


_FORMAT = _in_vain("format_rate", lambda then, now: now >= then + NICER, "format from {:.0%} to {:.0%}")
_ENTROPY = _in_vain("entropy", lambda then, now: now <= COLLAPSED * then, "entropy from {:.3g} to {:.3g} nats", 1.0)
_LENGTH = _in_vain(
    "completions/mean_length", lambda then, now: now >= LONGER * then, "answers from {:.0f} to {:.0f} tokens"
)

CHECKS = {
    "no_signal": Check(_silent(NO_SIGNAL), "easier or harder problems (task), more grpo.num_generations", _same),
    "solved": Check(_silent(HALF, "solved"), "harder problems (task), fewer grpo.max_steps, or run.halt_on: [solved]",
                    lambda row: (row["strict"], _same(row))),
    "unsolved": Check(_silent(HALF, "unsolved"), "more grpo.num_generations, easier problems (task), or a reward for a "
                      "part of the way", lambda row: (not row["strict"], _same(row))),
    "blind": Check(_silent(HALF, "blind"), "rewards: one has to pay right answers more than wrong ones", _same),
    "truncated": Check(_truncated, "a larger grpo.max_completion_length", lambda row: row["truncated"]),
    "entropy_collapse": Check(_ENTROPY, "grpo.epsilon_high: 0.28 (DAPO, arXiv:2503.14476), or a "
                              "lower grpo.learning_rate", lambda row: not row["strict"]),
    "one_reward": Check(_one_reward, "rewards: its weight, and one that some right answers earn",
                        lambda row: row["advantage"]),
    "format_only": Check(_FORMAT, "rewards: more weight for right answers than for their form",
                         lambda row: row["formatted"] and not row["strict"]),
    "length_inflation": Check(_LENGTH, "a lower grpo.max_completion_length, grpo.loss_type: dapo, "
                              "and no reward that grows with length", lambda row: row["tokens"]),
    "parting": Check(_parting, "rewards (src/reward_funcs.py attack), grpo.beta above 0, "
                     "or evaluation.patience: 3", lambda row: (not row["strict"], row["advantage"])),
    "gradient_spikes": Check(_gradient_spikes, "a lower grpo.learning_rate or grpo.max_grad_norm",
                             lambda row: abs(row["advantage"])),
    "drift": Check(_drift, "rollouts.engine: transformers shows whether it is the engine",
                   lambda row: row["tokens"]),
    "no_learning_rate": Check(_no_learning_rate, "grpo.learning_rate, grpo.lr_scheduler_type, "
                              "grpo.warmup_steps", lambda row: 0),
}  # fmt: skip
