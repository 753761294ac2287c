"""curves.png: one picture of a run, drawn from its files alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_grpo.runs import Run, read_jsonl


def draw(run: Run) -> None:
    """Reward in total and per function, accuracy and format rate, loss, gradient norm, completion length, and what the
    compute went into (training/spending.py).

    Nothing is drawn for a run without logged steps. The file is replaced whole.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, checks = list(read_jsonl(run.metrics)), list(read_jsonl(run.validation))
    if not rows:
        return
    figure, axes = plt.subplots(2, 4, figsize=(20, 7.5), constrained_layout=True)
    figure.suptitle(f"{run.folder.name}: {rows[-1]['step']} steps")
    parts = sorted({key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean")})
    _panel(axes[0][0], rows, {"reward": "total"}, "reward")
    _panel(
        axes[0][1],
        rows,
        {key: key.split("/")[1].removesuffix("_reward_func") for key in parts},
        "reward by function (unweighted)",
    )
    _panel(
        axes[0][2],
        rows,
        {"accuracy": "strict, sampled", "format_rate": "format, sampled"},
        "accuracy and format rate",
        (0, 1),
    )
    for name, style in (("strict_accuracy", "o-"), ("lenient_accuracy", "s--")):
        if checks:
            label = f"{name.split('_')[0]}, greedy, validation"
            axes[0][2].plot([c["step"] for c in checks], [c[name] for c in checks], style, markersize=4, label=label)
    axes[0][2].legend(fontsize=8)
    _panel(axes[1][0], rows, {"loss": "loss"}, "loss")
    _panel(axes[1][1], rows, {"grad_norm": "gradient norm"}, "gradient norm, before clipping")
    lengths = {"completions/mean_length": "mean", "completions/max_length": "longest"}
    _panel(axes[1][2], rows, lengths, "completion length (tokens)")
    shares = {"informative_share": "groups that teach", "wasted_share": "compute on groups that teach nothing",
              "padding_share": "padding in updates"}  # fmt: skip
    _panel(axes[0][3], rows, shares, "what teaches, what is wasted", (0, 1))
    tokens = {"tokens_generated": "generated", "tokens_updated": "updated"}
    _panel(axes[1][3], rows, tokens, "tokens of an update")
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


def _panel(
    axis: Any,
    rows: Sequence[dict[str, Any]],
    lines: dict[str, str],
    title: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """One line per key: the raw values pale, their moving average in full."""
    for key, label in lines.items():
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            (line,) = axis.plot(steps, smooth(values), label=label)
            axis.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axis.set(title=title, xlabel="step", **({"ylim": limits} if limits else {}))
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=8)
