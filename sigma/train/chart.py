"""A line chart as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 34


@dataclass(frozen=True)
class Line:
    """One curve. `style` is the CSS class that colours it (`c0` .. `c4`)."""

    label: str
    points: Points
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Rule:
    """A horizontal reference value, drawn dashed with its label."""

    label: str
    value: float


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` round numbers that cover [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def thin(points: Points, most: int = 800) -> Points:
    """At most `most` points, always keeping the last one."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def line_chart(
    title: str, lines: Sequence[Line], rules: Sequence[Rule] = (), *, unit: str = "", from_zero: bool = False
) -> str:
    """The chart as one `<figure>`; says so when there is nothing to draw yet."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return f"<figure><figcaption>{escape(title)}</figcaption><p class=quiet>Nothing measured yet.</p></figure>"
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [rule.value for rule in rules]
    frame = _Frame(min(xs), max(xs), 0.0 if from_zero else min(ys), max(ys))
    parts = [frame.grid(unit)]
    parts += [frame.rule(rule) for rule in rules]
    parts += [frame.curve(line) for line in drawn]
    legend = "".join(f"<span class={line.style}>{escape(line.label)}</span>" for line in drawn)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{escape(title, quote=True)}'>{''.join(parts)}</svg>"
        f"<div class=legend>{legend}</div></figure>"
    )


class _Frame:
    """Maps data to pixels and draws the axes."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        pad = (y_high - y_low) * 0.05 or abs(y_high) * 0.05 or 1.0
        self.x_low, self.x_high = x_low, x_high if x_high > x_low else x_low + 1
        self.y_low, self.y_high = (y_low if y_low == 0 else y_low - pad), y_high + pad

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, unit: str) -> str:
        parts: list[str] = []
        for value in nice_ticks(self.y_low, self.y_high):
            y = self.y(value)
            parts.append(f"<path class=grid d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>")
            parts.append(f"<text x={LEFT - 6} y={y + 4:.1f} text-anchor=end>{value:.6g}</text>")
        for value in sorted({float(round(tick)) for tick in nice_ticks(self.x_low, self.x_high)}):  # steps are whole
            parts.append(f"<text x={self.x(value):.1f} y={HEIGHT - 14} text-anchor=middle>{value:.6g}</text>")
        parts.append(f"<text x={WIDTH - RIGHT} y={HEIGHT - 1} text-anchor=end class=quiet>step</text>")
        if unit:
            parts.append(f"<text x=4 y={TOP - 2} class=quiet>{escape(unit)}</text>")
        return "".join(parts)

    def rule(self, rule: Rule) -> str:
        y = self.y(rule.value)
        text = f"{escape(rule.label)} {rule.value:.3f}"
        return (
            f"<path class=rule d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>"
            f"<text x={WIDTH - RIGHT - 4} y={y - 4:.1f} text-anchor=end class=quiet>{text}</text>"
        )

    def curve(self, line: Line) -> str:
        points = thin(line.points)
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        parts = [f"<path class='curve {line.style}' d='M{path}'/>"]
        if line.dots or len(points) == 1:
            parts += [self._dot(line.style, x, y) for x, y in points]
        return "".join(parts)

    def _dot(self, style: str, x: float, y: float) -> str:
        tip = f"<title>step {x:.0f}: {y:.4g}</title>"
        return f"<circle class={style} cx={self.x(x):.1f} cy={self.y(y):.1f} r=3>{tip}</circle>"
