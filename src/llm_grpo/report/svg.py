"""Where the lines of a chart and the pieces of a bar lie: numbers, which figures.html draws as SVG.

SVG scales, prints, follows the page's colours, and says its numbers to a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 404, 8, 178  # between the axes' words
MOST_POINTS = 400  # a line of more is thinned: a screen shows no more


@dataclass(frozen=True)
class Line:
    """One line of a chart: (step, value) pairs; `dots` marks each point (few, measured ones)."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def chart(title: str, lines: Sequence[Line], limits: tuple[float, float] | None = None) -> dict[str, Any] | None:
    """What the macro `chart` draws; None where no line has a point. limits: (lowest, highest) value shown."""
    lines = [Line(line.label, _finite(line.points), line.dots) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    low, high = limits or _padded(min(values), max(values))
    x, y = _scale(min(steps), max(steps), LEFT, RIGHT), _scale(low, high, BOTTOM, TOP)
    placed = [[(x(step), y(min(max(value, low), high))) for step, value in _thinned(line.points)] for line in lines]
    whole = [tick for tick in _ticks(min(steps), max(steps)) if tick == int(tick)] or [min(steps)]
    return {
        "title": title,
        "said": f"{title}. {'; '.join(map(_said, lines))}.",
        "lines": list(zip(lines, placed, strict=True)),
        "columns": [(x(tick), tick) for tick in whole],
        "rows": [(y(tick), tick) for tick in _ticks(low, high)],
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT},
    }


def bars(title: str, parts: Sequence[tuple[str, float]], unit: str) -> dict[str, Any] | None:
    """What the macro `bars` draws: parts that add up, such as the phases of a step; None where they are nothing."""
    total = sum(size for _, size in parts)
    if total <= 0:
        return None
    ends = [0.0, *accumulate(100 * size / total for _, size in parts)]
    return {
        "title": f"{title}: {total:.2f} {unit}",
        "labels": [f"{name} {size:.2f} {unit} ({size / total:.0%})" for name, size in parts],
        "pieces": [(round(left, 2), round(right - left, 2)) for left, right in pairwise(ends)],
    }


def _finite(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if value is not None and math.isfinite(value)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, the mean of each stretch, so that no spike decides by chance whether it is seen."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)) for part in stretches]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Four or so round numbers within the bounds (steps of 1, 2 or 5 times a power of ten)."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _said(line: Line) -> str:
    """What a screen reader says in place of a line: where it begins, ends, and its extremes."""
    values = [value for _, value in line.points]
    return (
        f"{line.label} from {values[0]:.3g} at step {line.points[0][0]:g} to {values[-1]:.3g} at step "
        f"{line.points[-1][0]:g}, lowest {min(values):.3g}, highest {max(values):.3g}"
    )
