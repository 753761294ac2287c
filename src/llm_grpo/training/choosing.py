"""Which prompts are asked next: those whose answers are expected to differ, since only they teach (`sampling:`).

Of each prompt a Beta posterior of its pass rate is kept: what the task's judge called right by the strict reading, of
all answers so far; with each batch the earlier ones count a little less, since the policy moves on. What a group of G
is expected to teach is E[1 - p^G - (1-p)^G], the chance that its answers do not all pass and do not all fail. Where
rewards are not 0 or 1 that is a stand-in: whether their groups differ is what is logged, and what refilling looks at.

Prompts known to teach more than a new one does are asked again, up to `repeats` times in all; a share of every batch
stays with new ones; a prompt at `retire_at` or above is not asked until its posterior has faded. New ones come in an
order of our own: accelerate's loader fetches a batch ahead, before the newest answers are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from llm_grpo.config.schema import Config, SamplingSection
from llm_grpo.errors import UserError
from llm_grpo.policy import is_rewritten
from llm_grpo.problems import read_pass_rates
from llm_grpo.records import Problem

PRIOR = 0.1  # of a Beta(PRIOR, PRIOR): most prompts are always or never solved, so a group that all failed says a lot
# The rows of a process, by the prompt of each -> (TRL's batch of them, and of the groups of all processes: how many
# answers passed, whether their rewards differ).
Make = Callable[[list[int]], tuple[dict[str, Any], list[int], list[bool]]]
STATE = ("passed", "failed", "asked", "last", "batch", "place", "new_groups", "new_informative")


class Choosing:
    """The posterior of every prompt, and the order of the new ones. All of it is in `state`, for a checkpoint."""

    def __init__(self, sampling: SamplingSection, prompts: int, group: int, seed: int) -> None:
        self.sampling, self.group, self.seed = sampling, group, seed
        self.passed, self.failed = torch.zeros(prompts, dtype=torch.float64), torch.zeros(prompts, dtype=torch.float64)
        self.asked, self.last = torch.zeros(prompts, dtype=torch.long), torch.zeros(prompts, dtype=torch.long)
        self.batch = self.place = 0
        self.new_groups, self.new_informative = 0.0, 0.0
        self._order: tuple[int, list[int]] = (-1, [])  # of an epoch, made when it is needed
        self._new: set[int] = set()  # of the batch in hand

    def know(self, rates: Mapping[int, tuple[int, int]]) -> None:
        """What was measured beforehand: of each prompt, how many answers passed and how many there were."""
        for prompt, (passed, tried) in rates.items():
            self.passed[prompt], self.failed[prompt] = passed, tried - passed

    def generation_batch(self, rows: int, make: Make, log: Mapping[str, list[float]]) -> dict[str, Any]:
        """A generation batch of so many rows: groups whose answers all earn the same are replaced by others that were
        asked for besides, up to `refill`."""
        state = PartialState()
        groups = rows * state.num_processes // self.group
        prompts, told = self.next(groups)
        mine = slice(rows * state.process_index, rows * (state.process_index + 1))
        output, teaching = self._ask(prompts, mine, make)
        left = int(self.sampling.refill * groups)
        seen, refilled = set(prompts), 0
        while empty := [group for group, teaches in enumerate(teaching) if not teaches][:left]:
            others, _ = self.next(len(empty), besides=tuple(seen))
            if not others:
                break
            seen, left = seen | set(others), left - len(others)
            fresh, differ = self._ask(others, slice(None), make)
            good = [group for group, teaches in enumerate(differ) if teaches]
            output = replaced(output, fresh, empty[: len(good)], good, self.group)
            refilled += len(good)
            for group in empty[: len(good)]:
                teaching[group] = True
        for name, value in (told | {"choosing/refilled": refilled / groups}).items():
            log[name].append(value)
        return output

    def _ask(self, prompts: Sequence[int], mine: slice, make: Make) -> tuple[dict[str, Any], list[bool]]:
        output, passed, teaching = make([prompt for prompt in prompts for _ in range(self.group)][mine])
        self.learn(prompts, passed, teaching)
        return output, teaching

    def next(self, groups: int, besides: Sequence[int] = ()) -> tuple[list[int], dict[str, float]]:
        """(the prompts of so many groups, what to log of the choice); none stands twice, and none of `besides`."""
        passed, failed = self._posterior()
        gain = expected_information(passed, failed, self.group)
        mean = passed / (passed + failed)
        known = self.passed + self.failed > 0
        retired = known & (mean >= self.sampling.retire_at)
        again = known & ~retired & (self.asked < self.sampling.repeats) & (gain > self._of_a_new_one())
        again[list(besides)] = False
        wanted = min(groups - math.ceil(self.sampling.explore * groups), int(again.sum()))
        best = torch.where(again, gain, -1.0).argsort(descending=True, stable=True)[:wanted].tolist()
        new = self._new_ones(groups - wanted, retired, {*best, *besides})
        self._new = {prompt for prompt in new if not known[prompt]}
        told = {"revisited": wanted / groups, "explored": len(self._new) / groups, "retired": float(retired.sum())}
        return best + new, {f"choosing/{name}": value for name, value in told.items()}

    def learn(self, prompts: Sequence[int], passed: Sequence[int], informative: Sequence[bool]) -> None:
        """Of each group: its prompt, how many of its answers passed, whether their rewards differ."""
        before_passed, before_failed = self._posterior()
        for prompt, right, differs in zip(prompts, passed, informative, strict=True):
            self.passed[prompt] = before_passed[prompt] - PRIOR + right
            self.failed[prompt] = before_failed[prompt] - PRIOR + self.group - right
            self.asked[prompt] += 1
            self.last[prompt] = self.batch
            if prompt in self._new:
                self.new_groups, self.new_informative = self.new_groups + 1, self.new_informative + differs
        self.batch += 1
        self.new_groups, self.new_informative = self.new_groups * self._keeps, self.new_informative * self._keeps

    @property
    def state(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in STATE}
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}

    @state.setter
    def state(self, values: Mapping[str, Any]) -> None:
        vars(self).update({name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()})

    @property
    def _keeps(self) -> float:
        return 1.0 - self.sampling.forget

    def _posterior(self) -> tuple[Tensor, Tensor]:
        """(alpha, beta) of every prompt as of now."""
        faded = self._keeps ** (self.batch - self.last).double()
        return PRIOR + self.passed * faded, PRIOR + self.failed * faded

    def _of_a_new_one(self) -> float:
        """How often new prompts taught something lately; the prior's guess until some were asked."""
        prior = torch.tensor([PRIOR], dtype=torch.float64)
        guess = float(expected_information(prior, prior, self.group))
        return (self.new_informative + guess) / (self.new_groups + 1)

    def _new_ones(self, count: int, retired: Tensor, taken: set[int]) -> list[int]:
        """The next of the order that are not taken and not retired; those too where there are no others."""
        found: list[int] = []
        for allow_retired in (False, True):
            for _ in range(len(self.asked)):
                if len(found) == count:
                    return found
                prompt = self._at(self.place)
                self.place += 1
                if prompt not in taken and (allow_retired or not retired[prompt]):
                    found.append(prompt)
                    taken.add(prompt)
        return found

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self.asked))
        if self._order[0] != epoch:
            drawn = torch.randperm(len(self.asked), generator=torch.Generator().manual_seed(self.seed + epoch))
            self._order = (epoch, drawn.tolist())
        return self._order[1][index]


def expected_information(alpha: Tensor, beta: Tensor, group: int) -> Tensor:
    """E[1 - p^G - (1-p)^G] with p ~ Beta(alpha, beta): the moments of a Beta are products."""
    all_pass, all_fail = torch.ones_like(alpha), torch.ones_like(alpha)
    for i in range(group):
        all_pass, all_fail = all_pass * (alpha + i), all_fail * (beta + i)
    whole = torch.stack([alpha + beta + i for i in range(group)]).prod(dim=0)
    return 1 - all_pass / whole - all_fail / whole


def replaced(
    batch: dict[str, Any], fresh: dict[str, Any], old: Sequence[int], new: Sequence[int], group: int
) -> dict[str, Any]:
    """TRL's batch with the rows of some groups taken from another one, as many; padded to the wider of the two."""
    rows_of = [torch.tensor([i * group + j for i in groups for j in range(group)]).long() for groups in (old, new)]
    result = dict(batch)
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or name == "group":  # the group's place stays its own
            continue
        one, other = value.clone(), fresh[name]
        if value.ndim > 1:
            one, other = (_widened(name, part, max(value.shape[1], other.shape[1])) for part in (one, other))
        one[rows_of[0]] = other[rows_of[1]]
        result[name] = one
    return result | {"num_items_in_batch": result["completion_mask"].sum()}


def _widened(name: str, value: Tensor, width: int) -> Tensor:
    """Prompts are padded on the left. A mask says what counts, so that zero does for every column."""
    missing = width - value.shape[1]
    return torch.nn.functional.pad(value, (missing, 0) if name.startswith("prompt_") else (0, missing))


def choosing_of(config: Config, problems: Sequence[Problem]) -> Choosing | None:
    """What `sampling:` asks for; None where TRL's order is kept. Raises UserError."""
    sampling, group = config.sampling, config.grpo["num_generations"]
    if not sampling.choose:
        return None
    if sampling.refill and (is_rewritten() or PartialState().num_processes > 1):
        raise UserError("sampling.refill is for TRL's own trainer in one process; set it to 0 here.")
    aggregation = config.grpo["multi_objective_aggregation"]
    if sampling.refill and (config.grpo["scale_rewards"] == "batch" or aggregation != "sum_then_normalize"):
        raise UserError(
            "sampling.refill: grpo.scale_rewards=batch and grpo.multi_objective_aggregation=normalize_then_sum measure "
            "rewards by all groups of a batch, and would know two batches. Set sampling.refill=0, or the others."
        )
    choosing = Choosing(sampling, len(problems), group, config.run.seed)
    if sampling.pass_rates:
        known = read_pass_rates(Path(sampling.pass_rates), {problem.example.id for problem in problems})
        choosing.know({n: known[p.example.id] for n, p in enumerate(problems) if p.example.id in known})
    return choosing
