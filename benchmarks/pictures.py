"""A line chart as SVG, by hand: two of them need no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 50
COLOURS = ("#1d6fb8", "#c2410c", "#4d7c0f", "#6b7280")


@dataclass(frozen=True)
class Line:
    """A named row of points."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def picture(title: str, across: str, up: str, lines: Sequence[Line], log: bool = False) -> str:
    """The chart; `log` makes its height logarithmic."""
    most_x = round_up(max(x for line in lines for x, _ in line.points))
    highest = max(y for line in lines for _, y in line.points)
    if log:
        low = math.floor(math.log10(min(y for line in lines for _, y in line.points)))
        high = math.ceil(math.log10(highest))
        marks = [10.0**n for n in range(low, high + 1)]
    else:
        marks = [round_up(highest) * n / 5 for n in range(6)]

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / most_x

    def place_y(y: float) -> float:
        part = (math.log10(y) - low) / max(1, high - low) if log else y / marks[-1]
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="12" role="img"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 18, title, size=14),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, across, anchor="middle"),
        f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, up, anchor="middle")}</g>',
    ]
    for mark in marks:
        y = place_y(mark)
        drawn.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        drawn.append(_text(LEFT - 6, y + 4, f"{mark:g}", anchor="end"))
    for n in range(6):
        x = most_x * n / 5
        drawn.append(_text(place_x(x), HEIGHT - BOTTOM + 18, f"{x:g}", anchor="middle"))
    for n, line in enumerate(lines):
        colour, dash = COLOURS[n % len(COLOURS)], ' stroke-dasharray="4 4"' if line.dashed else ""
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line.points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        drawn += [
            f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3" fill="{colour}"/>'
            for x, y in line.points
            if not line.dashed
        ]
        drawn.append(f'<path d="M{LEFT + 10} {TOP + 14 * n - 14}h20" stroke="{colour}" stroke-width="2"{dash}/>')
        drawn.append(_text(LEFT + 36, TOP + 14 * n - 10, line.name))
    return "\n".join([*drawn, "</svg>", ""])


def round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten, or of their halves: an end of an axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value)


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
