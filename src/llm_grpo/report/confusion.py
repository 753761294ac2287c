"""Which class was answered for which: the confusion of one or several evaluations as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw_confusion(reports: Mapping[str, Mapping[str, Any]], file: Path) -> bool:
    """One panel per report, under its name; False, and no file, where they have no confusion (Task.metrics).

    Rows are the golds, columns the answers; a cell's colour is its share of the row. The file is replaced whole.
    """
    shown = {name: found for name, report in reports.items() if (found := report.get("metrics", {}).get("confusion"))}
    if not shown:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(shown), figsize=(8 * len(shown), 7.5), squeeze=False, constrained_layout=True)
    for axis, (name, confusion) in zip(axes[0], shown.items(), strict=True):
        _panel(axis, confusion, f"{name}: {sum(map(sum, confusion['counts']))} answers")
    draft = file.with_name(f".{file.name}")
    figure.savefig(draft, dpi=110, format="png")
    plt.close(figure)
    draft.replace(file)
    return True


def _panel(axis: Any, confusion: Mapping[str, list[Any]], title: str) -> None:
    counts = confusion["counts"]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(confusion["answered"])), confusion["answered"], rotation=90, fontsize=8)
    axis.set_yticks(range(len(confusion["gold"])), confusion["gold"], fontsize=8)
    axis.set(title=title, xlabel="answered", ylabel="right")
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                colour = "white" if shares[y][x] > 0.5 else "black"
                axis.text(x, y, str(count), ha="center", va="center", fontsize=7, color=colour)
