"""The curves of a run, from its files alone: what report.html (by svg.py) and curves.png (by matplotlib) draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_grpo.report.svg import Line
from llm_grpo.runs import Run, read_jsonl

# (title, {metric: label}, limits). A chart without a number is left out, so that one list serves every engine.
CHARTS: tuple[tuple[str, dict[str, str], tuple[float, float] | None], ...] = (
    ("Accuracy and format", {"accuracy": "strict, sampled", "format_rate": "format, sampled"}, (0, 1)),
    ("Reward", {"reward": "total"}, None),
    ("Reward by function, unweighted", {}, None),  # of each run its own
    ("Groups that teach something", {"informative_share": "share of the groups"}, (0, 1)),
    ("Loss", {"loss": "loss"}, None),
    ("Gradient norm, before clipping", {"grad_norm": "gradient norm"}, None),
    ("Tokens of a completion", {"completions/mean_length": "mean", "completions/max_length": "longest"}, None),
    ("Wasted", {"wasted_share": "seconds on groups that teach nothing", "padding_share": "padding in updates"}, (0, 1)),
    ("Tokens of an update", {"tokens_generated": "generated", "tokens_updated": "learnt from"}, None),
    ("Cut at the token limit", {"truncated_share": "share of the completions"}, (0, 1)),
    ("Entropy", {"entropy": "nats a token", "updated_rows/entropy": "nats a token, rows that are updated"}, None),
    ("KL to the starting weights", {"kl": "nats a token"}, None),
    ("Engine against trainer", {"sampling/sampling_logp_difference/mean": "nats a token"}, None),
    ("Learning rate", {"learning_rate": "learning rate"}, None),
    ("Tokens a second", {"tokens_per_second": "tokens/s"}, None),
)


@dataclass(frozen=True)
class Logged:
    """What a run has logged so far: a row a step, and the evaluations on validation."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    checks: Sequence[Mapping[str, Any]]


def logged(run: Run) -> Logged:
    rows = run.steps()
    for row in rows:
        if row.get("frac_reward_zero_std") is not None:
            row.setdefault("informative_share", 1 - row["frac_reward_zero_std"])
    return Logged(run.folder.name, rows, list(read_jsonl(run.validation)))


def charts(runs: Sequence[Logged]) -> list[tuple[str, list[Line], tuple[float, float] | None]]:
    """(title, lines, limits) of each chart of one run, or of several over each other."""
    found = []
    for title, keys, limits in CHARTS:
        lines = [line for run in runs for line in _lines(run, title, keys, f"{run.name}: " if len(runs) > 1 else "")]
        if any(line.points for line in lines):
            found.append((title, lines, limits))
    return found


def _lines(run: Logged, title: str, keys: Mapping[str, str], whose: str) -> list[Line]:
    if not keys:
        means = dict.fromkeys(k for row in run.rows for k in row if k.startswith("rewards/") and k.endswith("/mean"))
        keys = {key: key.split("/")[1].removesuffix("_reward_func") for key in means}
    lines = []
    for key, label in keys.items():
        points = [(row["step"], row[key]) for row in run.rows if row.get(key) is not None]
        lines.append(Line(f"{whose}{label}", points))
    if title.startswith("Accuracy"):
        checks = [(check["step"], check["strict_accuracy"]) for check in run.checks]
        lines.append(Line(f"{whose}strict, greedy, validation", checks, dots=True))
    return lines


def draw(run: Run) -> None:
    """curves.png: the first eight charts, the values pale and their moving average in full. Nothing is drawn for a run
    without logged steps; the file is replaced whole."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = charts([logged(run)])[:8]
    if not wanted:
        return
    figure, axes = plt.subplots(2, 4, figsize=(20, 7.5), constrained_layout=True)
    figure.suptitle(run.folder.name)
    for axis, (title, lines, limits) in zip(axes.flat, wanted, strict=False):
        for line in (line for line in lines if line.points):
            steps, values = zip(*line.points, strict=True)
            (drawn,) = axis.plot(steps, values if line.dots else smooth(values), "o-" if line.dots else "-")
            drawn.set_label(line.label)
            axis.plot(steps, values, color=drawn.get_color(), alpha=0.25, linewidth=0.8)
        axis.set(title=title, xlabel="step", **({"ylim": limits} if limits else {}))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    draft = run.curves.with_name(".curves.png")
    figure.savefig(draft, dpi=110)
    plt.close(figure)
    draft.replace(run.curves)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with the bias of the first values taken out (as in Adam, Kingma and Ba 2015)."""
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result
