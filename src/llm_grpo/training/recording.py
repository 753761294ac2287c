"""Every completion of a run, judged and written down as it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llm_grpo import runs
from llm_grpo.evaluation.scoring import item
from llm_grpo.policy import Policy
from llm_grpo.records import Completion, Example, Scored, Task
from llm_grpo.rollouts import stop_tokens
from llm_grpo.runs import Run


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
    """Called with each generation batch: judges it, writes it to completions/, returns metrics for TRL's log."""

    def __init__(self, task: Task, run: Run) -> None:
        self.task, self.run = task, run

    def __call__(
        self, step: int, examples: Sequence[Example], completions: Sequence[Completion], logs: dict[str, Any]
    ) -> dict[str, float]:
        """examples: one per completion; logs: TRL's, with its newest rewards and advantages."""
        rows = self._rows(step, examples, completions, logs)
        runs.append_jsonl(self.run.completions / f"step_{step:06d}.jsonl.gz", rows)
        return {
            "accuracy": _share(rows, "strict"),
            "accuracy_lenient": _share(rows, "lenient"),
            "format_rate": _share(rows, "formatted"),
            "truncated_share": _share(rows, "truncated"),
            "completion_tokens": float(sum(row["tokens"] for row in rows)),
        }

    def _rows(
        self, step: int, examples: Sequence[Example], completions: Sequence[Completion], logs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        rows = []
        for index, (example, completion) in enumerate(zip(examples, completions, strict=True)):
            place = index - len(examples)  # TRL's logs are deques that end with this batch
            rewards = {name: _number(values[place]) for name, values in logs["rewards"].items()}
            judgement = self.task.judge(completion.answer, example.answer)
            scored = Scored(example, completion, judgement, rewards)
            rows.append({"step": step, **item(scored), "advantage": float(logs["advantages"][place])})
        return rows


def _share(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _number(value: float) -> float | None:
    return None if value != value else float(value)  # NaN is TRL's "cannot be judged"
