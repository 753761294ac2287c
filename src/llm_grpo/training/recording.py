"""Every completion of a run, judged and written down as it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_grpo import runs
from llm_grpo.config.schema import Config
from llm_grpo.evaluation.scoring import item
from llm_grpo.policy import Policy
from llm_grpo.records import Completion, Example, Reward, Scored, Task
from llm_grpo.rollouts import stop_tokens
from llm_grpo.runs import Run


class Recorder:
    """Called with each generation batch: judges it, writes it to completions/, returns metrics for TRL's log."""

    def __init__(self, config: Config, policy: Policy, task: Task, rewards: Sequence[Reward], run: Run) -> None:
        self.config, self.policy, self.task, self.rewards, self.run = config, policy, task, rewards, run

    def __call__(
        self, step: int, examples: Sequence[Example], output: dict[str, Any], logs: dict[str, Any]
    ) -> dict[str, float]:
        """examples: one per completion; output: TRL's tensors; logs: its newest texts and rewards."""
        rows = self._rows(step, examples, output, logs)
        runs.append_jsonl(self.run.completions / f"step_{step:06d}.jsonl", rows)
        return {
            "accuracy": _share(rows, "strict"),
            "accuracy_lenient": _share(rows, "lenient"),
            "format_rate": _share(rows, "formatted"),
            "truncated_share": _share(rows, "truncated"),
            "completion_tokens": float(sum(row["tokens"] for row in rows)),
        }

    def _rows(
        self, step: int, examples: Sequence[Example], output: dict[str, Any], logs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        ids, mask = output["completion_ids"].tolist(), output["completion_mask"]
        stops = stop_tokens(self.policy.model.generation_config.eos_token_id, self.policy.tokenizer)
        longest = self.config.grpo["max_completion_length"]
        rows = []
        for index, example in enumerate(examples):
            place = index - len(examples)  # TRL's logs are deques that end with this batch
            text = logs["completion"][place]
            text = text if isinstance(text, str) else text[-1]["content"]
            tokens = int(mask[index].sum())
            ended = not stops.isdisjoint(ids[index][:tokens])
            completion = Completion(text, tokens, truncated=tokens >= longest and not ended)
            rewards = {name: _number(values[place]) for name, values in logs["rewards"].items()}
            scored = Scored(example, completion, self.task.judge(text, example.answer), rewards)
            rows.append({"step": step, **item(scored), "advantage": float(logs["advantages"][place])})
        return rows


def _share(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _number(value: float) -> float | None:
    return None if value != value else float(value)  # NaN is TRL's "cannot be judged"
