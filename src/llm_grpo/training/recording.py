"""Every completion of a run, judged and written down as it was trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from operator import mul
from statistics import fmean
from typing import Any

from llm_grpo import processes, runs
from llm_grpo.diagnosis.live import KINDS
from llm_grpo.evaluation.scoring import item
from llm_grpo.policy import Policy
from llm_grpo.records import Completion, Example, Scored, Task
from llm_grpo.rollouts import stop_tokens
from llm_grpo.runs import Run

ROUNDING = 1e-12  # of sums of squares; below, nothing differs


def reading(policy: Policy) -> Callable[[Sequence[Sequence[int]]], list[Completion]]:
    """How generated token ids, without padding, are read: as the policy's engine reads its own."""

    def read(ids: Sequence[Sequence[int]]) -> list[Completion]:
        stops = stop_tokens(policy.model.generation_config.eos_token_id, policy.tokenizer)
        return [policy.engine.reader.completion(row, stops) for row in ids]

    return read


@contextmanager
def unparsed(tokenizer: Any) -> Iterator[None]:
    """While this lasts, TRL (1.15) does not take answers apart by the tokenizer's `response_template`: rewards would
    see one part of them, and evaluation all."""
    kept = {name: vars(tokenizer)[name] for name in ("response_template", "response_schema") if name in vars(tokenizer)}
    vars(tokenizer).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(tokenizer).update(kept)


class Recorder:
    """Called with each generation batch: judges it, writes it to completions/, returns metrics for TRL's log. Several
    processes judge their own parts, the first writes all, and the metrics are of all.

    passed: of the newest batch of this process, whether the strict reading called each completion right."""

    def __init__(self, task: Task, run: Run, weights: Mapping[str, float]) -> None:
        self.task, self.run, self.weights = task, run, weights
        self.passed: list[bool] = []

    def __call__(
        self,
        step: int,
        examples: Sequence[Example],
        completions: Sequence[Completion],
        logs: dict[str, Any],
        informative: Sequence[bool],
    ) -> dict[str, float]:
        """examples, completions: of this process; logs: TRL's, with the newest rewards and advantages of all processes;
        informative: of all too, whether the rewards of a completion's group differ."""
        own = self._rows(step, examples, completions, logs)
        self.passed = [row["strict"] for row in own]
        rows = list(chain(*processes.of_all(own)))
        runs.append_jsonl(self.run.completions / f"step_{step:06d}.jsonl.gz", rows)
        return {
            "accuracy": _share(rows, "strict"),
            "accuracy_lenient": _share(rows, "lenient"),
            "format_rate": _share(rows, "formatted"),
            "truncated_share": _share(rows, "truncated"),
            "completion_tokens": float(sum(row["tokens"] for row in rows)),
            **of_groups(rows, informative, self.weights),
        }

    def _rows(
        self, step: int, examples: Sequence[Example], completions: Sequence[Completion], logs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        rows = []
        start = (processes.rank() - processes.count()) * len(examples)  # TRL's logs are deques that end with this batch
        for place, (example, completion) in enumerate(zip(examples, completions, strict=True), start):
            rewards = {name: _number(values[place]) for name, values in logs["rewards"].items()}
            judgement = self.task.judge(completion.answer, example.answer)
            scored = Scored(example, completion, judgement, rewards)
            rows.append({"step": step, **item(scored), "advantage": float(logs["advantages"][place])})
        return rows


def of_groups(
    rows: Sequence[Mapping[str, Any]], informative: Sequence[bool], weights: Mapping[str, float]
) -> dict[str, float]:
    """What the doctor reads of the groups of a batch (rows of one prompt after each other): how many earned the same
    and were all right, all wrong, or neither; each reward's share of the variance within groups; and how far what is
    earned goes with being right there. What cannot be said of a batch is left out."""
    groups = [list(places) for _, places in groupby(range(len(rows)), key=lambda place: rows[place]["id"])]
    equal = [[rows[place]["strict"] for place in group] for group in groups if not informative[group[0]]]
    kinds = Counter("solved" if all(right) else "blind" if any(right) else "unsolved" for right in equal)
    found = {f"groups/{kind}": kinds[kind] / len(groups) for kind in KINDS}

    def centred(values: Sequence[float]) -> list[float]:
        means = [fmean(values[place] for place in group) for group in groups]
        return [values[place] - mean for group, mean in zip(groups, means, strict=True) for place in group]

    parts = {
        name: centred([weight * (row["rewards"][name] or 0.0) for row in rows]) for name, weight in weights.items()
    }
    spread = {name: sum(each * each for each in part) for name, part in parts.items()}
    if (total := sum(spread.values())) > ROUNDING and len(parts) > 1:
        found |= {f"variance_share/{name}": size / total for name, size in spread.items()}
    earned = [sum(each) for each in zip(*parts.values(), strict=True)]
    right = centred([row["strict"] for row in rows])
    if (scale := math.hypot(*earned) * math.hypot(*right)) > ROUNDING:
        found["reward_accuracy_correlation"] = sum(map(mul, earned, right)) / scale
    return found


def _share(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _number(value: float) -> float | None:
    return None if value != value else float(value)  # NaN is TRL's "cannot be judged"
