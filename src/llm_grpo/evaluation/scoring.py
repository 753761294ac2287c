"""Generate, score, compare: the same code before, during and after training, and for completions made elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from llm_grpo import processes
from llm_grpo.config.schema import Config
from llm_grpo.diagnosis.prospects import prospects
from llm_grpo.evaluation.comparison import bootstrap_interval, majority_is_right, pass_at_k, wilson_interval
from llm_grpo.records import Completion, Problem, Reward, Scored, Task, columns_of, weighted_sum
from llm_grpo.rollouts import Engine, Sampling

# The shares of an evaluation, each with what of a judgement it counts.
SHARES = {"strict_accuracy": "strict", "lenient_accuracy": "lenient", "format_rate": "formatted"}


def evaluate(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    max_tokens: int,
    samples: Sampling | None = None,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """One greedy answer per problem, judged and scored, as a JSON-ready report with one entry per item.

    samples: besides, so many sampled answers per problem, reported as avg@k, maj@k and pass@k under "sampled",
    with what each earned in its item.
    """
    start = time.perf_counter()
    prompts = [problem.messages for problem in problems]
    greedy = engine.generate(prompts, Sampling(max_tokens=max_tokens), on_done)
    report = report_on(score(task, problems, [group[0] for group in greedy], rewards), rewards, task)
    if samples is not None:
        groups = engine.generate(prompts, samples, on_done)
        asked = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
        drawn = iter(score(task, asked, [completion for group in groups for completion in group], rewards, samples.n))
        scored = [[next(drawn) for _ in group] for group in groups]
        report["sampled"] = _sampled(scored, samples)
        for entry, group in zip(report["items"], scored, strict=True):
            entry["sampled_rewards"] = {r.label: [s.rewards[r.label] for s in group] for r in rewards}
    report["seconds"] = round(time.perf_counter() - start, 2)
    return report


def evaluator(
    config: Config,
    task: Task,
    engine: Engine,
    rewards: Sequence[Reward],
    bar: Callable[[str | None, int], AbstractContextManager[Callable[[int], None] | None]],
) -> Callable[..., dict[str, Any]]:
    """evaluate(problems, what): the same parser and rewards before, during and after; where `what` is given with a bar
    of that name, and sampled too if evaluation.samples says so, with what that promises."""
    samples = sampling_of(config, config.evaluation.samples)

    def run(problems: Sequence[Problem], what: str | None = None) -> dict[str, Any]:
        drawn = samples if what else None
        with bar(what, len(problems) * (2 if drawn else 1)) as on_done:
            report = evaluate(engine, task, problems, rewards, config.answer_tokens(), drawn, on_done)
        return report | ({"prospects": prospects(report, rewards, config.grpo)} if drawn else {})

    return run


def sampling_of(config: Config, samples: int) -> Sampling | None:
    """How `samples` answers to a problem are drawn in an evaluation: as in training. None for the greedy one alone."""
    drawn = (config.answer_tokens(), config.grpo["temperature"], config.grpo["top_p"], samples, config.run.seed)
    return Sampling(*drawn) if samples > 1 else None


def score(
    task: Task,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    rewards: Sequence[Reward],
    group: int = 1,
) -> list[Scored]:
    """Judge and score one completion per problem, through the very functions the trainer uses. Of several processes
    each does a part, as in training, and `group` rows stay together: a judge that costs money is paid once."""
    if len(problems) >= group * processes.count():
        return processes.shared_out(lambda *own: _scored(task, *own, rewards), problems, completions, block=group)
    return _scored(task, problems, completions, rewards)  # a reward is not called with nothing


def _scored(
    task: Task, problems: Sequence[Problem], completions: Sequence[Completion], rewards: Sequence[Reward]
) -> list[Scored]:
    examples = [problem.example for problem in problems]
    messages = [[{"role": "assistant", "content": completion.answer}] for completion in completions]
    prompts = [list(problem.messages) for problem in problems]
    values = {r.label: r.function(prompts=prompts, completions=messages, **columns_of(examples)) for r in rewards}
    return [
        Scored(
            example,
            completion,
            task.judge(completion.answer, example.answer),
            {label: column[index] for label, column in values.items()},
        )
        for index, (example, completion) in enumerate(zip(examples, completions, strict=True))
    ]


def report_on(scored: Sequence[Scored], rewards: Sequence[Reward], task: Task | None = None) -> dict[str, Any]:
    """Shares with their 95 % intervals, mean rewards and lengths, what the task counts besides, and every item."""
    n = len(scored)
    report: dict[str, Any] = {"n": n}
    for name, counted in SHARES.items():
        count = sum(getattr(s.judgement, counted) for s in scored)
        report[name] = count / n if n else 0.0
        report[f"{name}_ci95"] = [round(bound, 4) for bound in wilson_interval(count, n)]
    report["truncated_share"] = _mean([s.completion.truncated for s in scored])
    report["mean_tokens"] = _mean([s.completion.tokens for s in scored])
    report["rewards"] = {r.label: _mean([s.rewards[r.label] for s in scored]) for r in rewards}
    report["reward"] = _mean([weighted_sum(rewards, s.rewards) for s in scored])
    if task is not None and task.metrics is not None:
        report["metrics"] = asdict(task.metrics(scored))
    report["items"] = [item(s) for s in scored]
    return report


def item(scored: Scored) -> dict[str, Any]:
    """One scored completion as it is written to JSON."""
    return {
        "id": scored.example.id,
        "question": scored.example.question,
        "answer": scored.example.answer,
        "completion": scored.completion.text,
        "extracted": scored.judgement.extracted,
        "strict": scored.judgement.strict,
        "lenient": scored.judgement.lenient,
        "formatted": scored.judgement.formatted,
        "tokens": scored.completion.tokens,
        "truncated": scored.completion.truncated,
        "rewards": dict(scored.rewards),
    }


def without_items(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a report, for summaries and logs."""
    return {key: value for key, value in report.items() if key != "items"}


def _sampled(groups: Sequence[Sequence[Scored]], sampling: Sampling) -> dict[str, Any]:
    """avg@k, maj@k and pass@k over k samples per problem, for the strict and the lenient reading."""
    result: dict[str, Any] = {"k": sampling.n, "temperature": sampling.temperature, "top_p": sampling.top_p}
    judged = [[scored.judgement for scored in group] for group in groups]
    for kind in ("strict", "lenient"):
        right = [[getattr(j, kind) for j in group] for group in judged]
        votes = [[j.extracted if kind == "lenient" or j.formatted else None for j in group] for group in judged]
        columns = {
            "avg_at_k": [sum(r) / len(r) for r in right],
            "maj_at_k": [majority_is_right(v, r) for v, r in zip(votes, right, strict=True)],
        }
        passes = {k: [pass_at_k(len(r), sum(r), k) for r in right] for k in _powers(sampling.n)}
        result[kind] = {name: _mean(values) for name, values in columns.items()}
        result[kind]["passed"] = [sum(r) for r in right]  # of each item's k
        result[kind] |= {f"{name}_ci95": list(bootstrap_interval(values)) for name, values in columns.items()}
        result[kind]["pass_at_k"] = {str(k): _mean(values) for k, values in passes.items()}
        result[kind]["pass_at_k_ci95"] = {str(k): list(bootstrap_interval(values)) for k, values in passes.items()}
    return result


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def _mean(values: Sequence[float | bool | None]) -> float | None:
    """The mean of those that are not None; None where there is none."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
