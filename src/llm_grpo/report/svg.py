"""Charts as plain SVG: they scale, print, follow the page's colours, and say their numbers to a screen reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 22  # room for the axes' words
MOST_POINTS = 400  # a line of more is thinned: a screen shows no more


@dataclass(frozen=True)
class Line:
    """One line of a chart: (step, value) pairs; `dots` marks each point (few, measured ones)."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def chart(title: str, lines: Sequence[Line], limits: tuple[float, float] | None = None) -> Markup:
    """A figure with a legend, or nothing where no line has a point. limits: (lowest, highest) value shown."""
    lines = [Line(line.label, _finite(line.points), line.dots) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    x = _scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    low, high = limits or _padded(min(values), max(values))
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_grid(low, high, y), _axis(min(steps), max(steps), x)]
    for number, line in enumerate(lines):
        placed = [(x(step), y(min(max(value, low), high))) for step, value in _thinned(line.points)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(number % 8, path))
        if line.dots or len(placed) == 1:
            parts += [Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(number % 8, a, b)
                      for a, b in placed]  # fmt: skip
    legend = Markup("").join(
        Markup('<li class="c{}">{}</li>').format(number % 8, line.label) for number, line in enumerate(lines)
    )
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        '<ul class="legend">{}</ul></figure>'
    ).format(title, WIDTH, HEIGHT, _said(title, lines), Markup("").join(parts), legend)


def bars(title: str, parts: Sequence[tuple[str, float]], unit: str) -> Markup:
    """One bar cut into parts that add up, such as the phases of a step."""
    total = sum(size for _, size in parts)
    if total <= 0:
        return Markup("")
    pieces, left = [], 0.0
    for number, (_, size) in enumerate(parts):
        width = 100 * size / total
        rect = '<rect class="bar c{}" x="{:.2f}%" width="{:.2f}%" y="0" height="28"/>'
        pieces.append(Markup(rect).format(number % 8, left, width))
        left += width
    rows = Markup("").join(
        Markup('<li class="c{}">{} {:.2f} {} ({:.0%})</li>').format(number % 8, name, size, unit, size / total)
        for number, (name, size) in enumerate(parts)
    )
    said = f"{title}: " + ", ".join(f"{name} {size:.2f} {unit}" for name, size in parts)
    return Markup(
        '<figure class="bars"><figcaption>{}: {:.2f} {}</figcaption><svg width="100%" height="28" role="img" '
        'aria-label="{}">{}</svg><ul class="legend">{}</ul></figure>'
    ).format(title, total, unit, said, Markup("").join(pieces), rows)


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
    return lambda value: start + (value - low) / span * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _grid(low: float, high: float, y: Callable[[float], float]) -> Markup:
    rows = []
    for tick in _ticks(low, high):
        place = y(tick)
        rows.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, place, place
            )
            + Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(
                LEFT - 5, place + 3.5, tick
            )
        )
    return Markup("").join(rows)


def _axis(first: float, last: float, x: Callable[[float], float]) -> Markup:
    ticks = [tick for tick in _ticks(first, last) if tick == int(tick)] or [first]
    text = '<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>'
    return Markup("").join(Markup(text).format(x(tick), HEIGHT - 6, tick) for tick in ticks)


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


def _said(title: str, lines: Sequence[Line]) -> str:
    """What a screen reader says in place of the picture: where each line begins, ends, and its extremes."""
    each = []
    for line in lines:
        values = [value for _, value in line.points]
        each.append(
            f"{line.label} from {values[0]:.3g} at step {line.points[0][0]:g} to {values[-1]:.3g} at step "
            f"{line.points[-1][0]:g}, lowest {min(values):.3g}, highest {max(values):.3g}"
        )
    return f"{title}. {'; '.join(each)}."
