"""Which groups of completions a report shows: all of a short run, an even share of a long one, with the count said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from llm_grpo.config.schema import RewardSpec
from llm_grpo.runs import Run, read_jsonl

BUDGET_BYTES = 3_000_000  # of JSON; with curves and tables the page stays below 5 MB
LONGEST = 6000  # characters of one completion that are shown: the head and the tail
FIELDS = ("completion", "extracted", "strict", "lenient", "formatted", "truncated", "tokens", "advantage", "rewards")


def shown_groups(run: Run, rewards: Sequence[RewardSpec]) -> tuple[list[dict[str, Any]], int]:
    """(groups in the order of training, how many there were in all).

    Where not all fit, whole steps are taken evenly over the run, the first and the last among them.
    """
    files = run.completion_files()
    if not files:
        return [], 0
    sizes = [file.stat().st_size for file in files]  # they are compressed, by as much as the first
    unpacked = sum(len(json.dumps(row, ensure_ascii=False).encode()) for row in read_jsonl(files[0])) / max(1, sizes[0])
    share = min(1.0, BUDGET_BYTES / max(1, unpacked * sum(sizes)))
    count = max(2, int(len(files) * share))
    chosen = {round(i * (len(files) - 1) / (count - 1)) for i in range(count)}
    groups, total, used = [], 0, 0
    for number, file in enumerate(files):
        of_step = list(_groups(read_jsonl(file), rewards))
        total += len(of_step)
        for group in of_step if number in chosen else ():
            used += len(json.dumps(group, ensure_ascii=False).encode())
            if used <= BUDGET_BYTES or not groups:
                groups.append(group)
    return groups, total


def _groups(rows: Iterator[dict[str, Any]], rewards: Sequence[RewardSpec]) -> Iterator[dict[str, Any]]:
    for (step, name), members in groupby(rows, key=lambda row: (row["step"], row["id"])):
        answers = list(members)
        first = answers[0]
        yield {
            "step": step,
            "id": name,
            "question": _cut(str(first["question"])),
            "answer": str(first["answer"]),
            "completions": [
                {key: row.get(key) for key in FIELDS}
                | {"completion": _cut(row["completion"]), "reward": _sum(row["rewards"], rewards)}
                for row in answers
            ],
        }


def _sum(scores: dict[str, float | None], rewards: Sequence[RewardSpec]) -> float | None:
    """TRL's weighted sum (records.weighted_sum); the scores of a row stand in the order of the config's rewards."""
    known = [spec.weight * value for spec, value in zip(rewards, scores.values(), strict=True) if value is not None]
    return sum(known) if known else None


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]}\n[... {len(text) - LONGEST} characters ...]\n{text[-LONGEST // 2 :]}"
