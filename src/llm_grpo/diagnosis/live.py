"""A doctor beside the run: reads every line of metrics.jsonl once and says what goes wrong, and from which step on.

It keeps the first lines and the last ones and no more, so that a run of any length takes the same memory, and reading
the same lines again (after a resume) finds the same. What each finding means for its reader: docs/diagnoses.md.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, median
from typing import Any

from llm_grpo.diagnosis.drift import METRIC, Drift

HALF, NO_SIGNAL = 0.5, 0.9  # shares of the groups that taught nothing
CUT = 0.3  # of the completions ran into the token limit
COLLAPSED = 0.2  # of the first entropy is left, while fewer than KNOWN are right
KNOWN = 0.9  # right: a model that is sure of itself has reason to be
ALONE, UNRELATED = 0.95, 0.3  # share of the variance of one reward; correlation of what is earned with being right
NICER, FLAT = 0.2, 0.03  # a rise of the format rate; one of the accuracy that is within the noise of a window
LONGER = 1.5  # times the first length
APART, PAID = 0.05, 0.02  # validation below its best, twice in a row; rise of the reward since then, as a share of it
SPIKE, SPIKES, FEWEST = 10.0, 3, 10  # times the median gradient norm; so many of them, among at least so many steps
STANDSTILL = 3  # lines in a row without a learning rate
KINDS = {"solved": "all right", "unsolved": "all wrong", "blind": "right and wrong alike"}  # groups of equal rewards

Seen = tuple[int, str] | None  # (first step, what is the matter with its numbers), or nothing is


@dataclass(frozen=True)
class Finding:
    """name: what run.halt_on calls it; step: at which it was found; since: the first step that it is true of."""

    name: str
    step: int
    since: int
    said: str  # a sentence with its numbers
    change: str  # the values of the config to change


@dataclass(frozen=True)
class Check:
    """shows: of a row of completions/; the completions where it is highest are the evidence."""

    title: str
    look: Callable[[Doctor], Seen]
    change: str
    shows: Callable[[Mapping[str, Any]], Any]


class Doctor:
    """window: the lines that a mean is taken over (training.watching knows how many groups they hold)."""

    def __init__(self, window: int) -> None:
        self.window, self.told, self.step = window, set[str](), 0
        self.first: dict[str, list[float]] = defaultdict(list)
        self.points: dict[str, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=max(window, 2 * FEWEST)))
        self.seen: dict[str, int] = defaultdict(int)
        self.drift, self.disagreement, self.broken = Drift(), "", ""

    def read(self, row: Mapping[str, Any]) -> list[Finding]:
        """A line of the log; what was found by it. Each finding is told once."""
        self.step = row["step"]
        for name, value in row.items():
            if isinstance(value, (int, float)) and isfinite(value):
                self._take(name, value)
        if "validation/strict_accuracy" in row and (reward := self.mean("reward")) is not None:
            self._take("reward at validation", reward)
        self.disagreement = self.drift(row[METRIC]) or "" if METRIC in row else ""
        gradient = row.get("grad_norm", 0.0)
        self.broken = "" if gradient is not None and isfinite(gradient) else f"the gradient norm is {gradient}"
        return [finding for name in CHECKS if name not in self.told and (finding := self._found(name))]

    def _take(self, name: str, value: float) -> None:
        self.points[name].append((self.step, value))
        self.seen[name] += 1
        if len(self.first[name]) < self.window:
            self.first[name].append(value)

    def _found(self, name: str) -> Finding | None:
        check, seen = CHECKS[name], CHECKS[name].look(self)
        if seen is None:
            return None
        self.told.add(name)
        return Finding(name, self.step, seen[0], f"{check.title}, from step {seen[0]} on: {seen[1]}.", check.change)

    def mean(self, name: str) -> float | None:
        """Over the last window, or as much of it as there is."""
        points = list(self.points.get(name, ()))[-self.window :]
        return fmean(value for _, value in points) if points else None

    def crossed(self, name: str, beyond: Callable[[float], bool]) -> tuple[int, float] | None:
        """(first step of the window whose own value is beyond a bound, mean), where the mean of a whole window is."""
        if self.seen.get(name, 0) < self.window or not beyond(mean := self.mean(name)):
            return None
        return next(step for step, value in list(self.points[name])[-self.window :] if beyond(value)), mean

    def changed(self, name: str, beyond: Callable[[float, float], bool]) -> tuple[int, float, float] | None:
        """(first step, mean of the first window, mean of the last) where `beyond(then, value)`."""
        if self.seen.get(name, 0) < 2 * self.window:
            return None
        then = fmean(self.first[name])
        found = self.crossed(name, lambda value: beyond(then, value))
        return found and (found[0], then, found[1])


def _no_signal(doctor: Doctor) -> Seen:
    if not (found := doctor.crossed("informative_share", lambda share: share <= 1 - NO_SIGNAL)):
        return None
    kinds = ((what, doctor.mean(f"groups/{kind}")) for kind, what in KINDS.items())
    parts = ", ".join(f"{what} in {share:.0%}" for what, share in kinds if share)
    return found[0], f"in {1 - found[1]:.0%} of the groups all answers earned the same ({parts or 'whatever they say'})"


def _many(metric: str, bound: float, said: str) -> Callable[[Doctor], Seen]:
    """A share that is too high over a window. Of groups: where next to none teach, that is told instead."""

    def look(doctor: Doctor) -> Seen:
        found = doctor.crossed(metric, lambda share: share >= bound)
        covered = metric.startswith("groups/") and "no_signal" in doctor.told
        return (found[0], said.format(found[1])) if found and not covered else None

    return look


def _in_vain(metric: str, beyond: Callable[[float, float], bool], said: str) -> Callable[[Doctor], Seen]:
    """A change since the first window that the accuracy has not gained by, although it had room to."""

    def look(doctor: Doctor) -> Seen:
        found, now, first = doctor.changed(metric, beyond), doctor.mean("accuracy"), doctor.first.get("accuracy")
        if not found or now is None or not first or now >= KNOWN or now - fmean(first) >= FLAT:
            return None
        return found[0], f"{said.format(*found[1:])}, and accuracy from {fmean(first):.0%} to {now:.0%}"

    return look


def _entropy(doctor: Doctor) -> Seen:
    found = doctor.changed("entropy", lambda then, value: value <= COLLAPSED * then)
    accuracy = doctor.mean("accuracy")
    if not found or accuracy is None or accuracy >= KNOWN:
        return None
    return found[0], f"entropy went from {found[1]:.3g} to {found[2]:.3g} nats a token, with {accuracy:.0%} right"


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


def _spikes(doctor: Doctor) -> Seen:
    if doctor.broken:
        return doctor.step, doctor.broken
    norms = [(step, value) for step, value in doctor.points["grad_norm"] if value > 0]  # 0: a batch that taught nothing
    usual = median(value for _, value in norms) if len(norms) >= FEWEST else 0.0
    spikes = [(step, value) for step, value in norms if value > SPIKE * usual > 0]
    if len(spikes) < SPIKES:
        return None
    return spikes[0][
        0
    ], f"{len(spikes)} gradient norms above {SPIKE:.0f} times the usual {usual:.3g}, first {spikes[0][1]:.3g}"


def _no_rate(doctor: Doctor) -> Seen:
    """Not the first step of a warm-up nor the end of a schedule, which are one line each."""
    points = list(doctor.points["learning_rate"])
    moved = max((place for place, (_, rate) in enumerate(points) if rate != 0), default=-1)
    still = points[moved + 1 :]
    return (still[0][0], f"{len(still)} lines of the log in a row") if len(still) >= STANDSTILL else None


def _drift(doctor: Doctor) -> Seen:
    return (doctor.step, doctor.disagreement.rstrip(".")) if doctor.disagreement else None


def _same(row: Mapping[str, Any]) -> float:
    """Highest where the whole group earned the same; its advantages may be rounding noise."""
    return -abs(row["advantage"])


_SOLVED = _many("groups/solved", HALF, "in {:.0%} of the groups every answer is right, which teaches nothing")
_UNSOLVED = _many("groups/unsolved", HALF, "in {:.0%} of the groups every answer is wrong and earns the same")
_BLIND = _many("groups/blind", HALF, "in {:.0%} of the groups right and wrong answers earn the same")
_CUT = _many("truncated_share", CUT, "{:.0%} of the answers ran into the token limit")
_FORMAT = _in_vain("format_rate", lambda then, now: now >= then + NICER, "format went from {:.0%} to {:.0%}")
_LENGTH = _in_vain("completions/mean_length", lambda then, now: now >= LONGER * then, "from {:.0f} to {:.0f} tokens")

CHECKS = {
    "no_signal": Check("No signal", _no_signal, "easier or harder problems (task), more grpo.num_generations", _same),
    "solved": Check("Solved", _SOLVED, "harder problems (task), fewer grpo.max_steps, or run.halt_on: [solved]",
                    lambda row: (row["strict"], _same(row))),
    "unsolved": Check("Unsolved", _UNSOLVED, "more grpo.num_generations, easier problems (task), or a reward for part "
                      "of the way", lambda row: (not row["strict"], _same(row))),
    "blind": Check("Blind rewards", _BLIND, "rewards: one has to pay right answers more than wrong ones", _same),
    "truncated": Check("Truncated", _CUT, "a larger grpo.max_completion_length", lambda row: row["truncated"]),
    "entropy_collapse": Check("Entropy collapse", _entropy, "grpo.epsilon_high: 0.28 (DAPO, arXiv:2503.14476), or a "
                              "lower grpo.learning_rate", lambda row: not row["strict"]),
    "one_reward": Check("One reward", _one_reward, "rewards: its weight, and one that some right answers earn",
                        lambda row: row["advantage"]),
    "format_only": Check("Format only", _FORMAT, "rewards: more weight for right answers than for their form",
                         lambda row: row["formatted"] and not row["strict"]),
    "length_inflation": Check("Length inflation", _LENGTH, "a lower grpo.max_completion_length, grpo.loss_type: dapo, "
                              "and no reward that grows with length", lambda row: row["tokens"]),
    "parting": Check("Reward and validation part", _parting, "rewards (src/reward_funcs.py attack), grpo.beta above 0, "
                     "or evaluation.patience: 3", lambda row: (not row["strict"], row["advantage"])),
    "gradient_spikes": Check("Gradient spikes", _spikes, "a lower grpo.learning_rate or grpo.max_grad_norm",
                             lambda row: abs(row["advantage"])),
    "drift": Check("Drift", _drift, "rollouts.engine: transformers shows whether it is the engine",
                   lambda row: row["tokens"]),
    "no_learning_rate": Check("Learning rate at 0", _no_rate, "grpo.learning_rate, grpo.lr_scheduler_type, "
                              "grpo.warmup_steps", lambda row: 0),
}  # fmt: skip
