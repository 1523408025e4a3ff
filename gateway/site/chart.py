"""Released units over time as stacked bars: the values from which a template draws the chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

# More bars than these cannot be told apart: then a bar stands for a week, a month or a year.
MAX_DAYS = 92
MAX_WEEKS = 104
MAX_MONTHS = 120
# With fewer slots, a single bar would fill the chart.
MIN_SLOTS = 14
# Each reason has a colour of its own, whatever the filters: its number is that of a `series` in dashboard.css. Reasons
# that are not here share the last one.
REASONS = ("payment_failed", "order_cancelled", "deadline", "expired", "manual")
OTHER = "other reasons"
COLOURS = (*REASONS, OTHER)

PLOT_PX = 180
MAX_LABELS = 4


@dataclass(frozen=True)
class Segment:
    """The units of one reason in a bar: the number of its colour, and its position in pixels from the top."""

    colour: int
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """One day or longer: its position in percent of the width, its label, and its tooltip."""

    x: float
    width: float
    segments: tuple[Segment, ...]
    label: str
    tooltip: str


@dataclass(frozen=True)
class Tick:
    """A number or a day on an axis. `at` is in pixels from the top for numbers, in percent of the width for days."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Bars with their axes. `rows` has the same numbers as a table, without the days that have no releases."""

    unit: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    numbers: tuple[Tick, ...]
    labels: tuple[Tick, ...]
    rows: tuple[tuple[str, tuple[int, ...], int], ...]


def colour_of(reason: str) -> int:
    """The number of the colour of a reason."""
    return COLOURS.index(reason if reason in REASONS else OTHER)


def chart(totals: Sequence[Mapping[str, Any]], first: date | None, last: date | None) -> Chart | None:
    """The chart of the totals from `first` to `last`, or None when nothing was released.

    Without `first` it begins with the first release, and without `last` it ends with the last one. So does a range with
    too many days for daily bars.
    """
    if not totals:
        return None
    days = [date.fromisoformat(row["day"]) for row in totals]
    begin, end = min(first or days[0], days[0]), max(last or days[-1], days[-1])
    if (end - begin).days >= MAX_DAYS:
        begin, end = days[0], days[-1]
    unit = _unit(begin, end)
    starts = list(_starts(begin, end, unit))
    units: dict[date, Counter[str]] = {start: Counter() for start in starts}
    for day, row in zip(days, totals, strict=True):
        units[_start(day, unit)][COLOURS[colour_of(row["reason"])]] += row["quantity"]
    series = tuple(name for name in COLOURS if any(name in counted for counted in units.values()))
    top = _round_up(max(counted.total() for counted in units.values()))
    slot = 100 / max(len(starts), MIN_SLOTS)
    margin = (100 - slot * len(starts)) / 2  # few bars stand in the middle
    bars = tuple(
        Bar(
            round(margin + place * slot + slot * 0.1, 3),
            round(slot * 0.8, 3),
            tuple(_stacked(units[start], top)),
            _label(start, unit),
            _tooltip(start, unit, units[start], series),
        )
        for place, start in enumerate(starts)
    )
    step = -(-len(starts) // MAX_LABELS)
    return Chart(
        unit,
        series,
        bars,
        tuple(Tick(PLOT_PX * (1 - share / 2), f"{top * share // 2:,}") for share in (0, 1, 2)),
        tuple(
            Tick(round(margin + (place + 0.5) * slot, 3), _label(start, unit))
            for place, start in enumerate(starts)
            if place % step == step // 2
        ),
        tuple(
            (_spoken(start, unit), tuple(counted[name] for name in series), counted.total())
            for start, counted in units.items()
            if counted
        ),
    )


def _unit(begin: date, end: date) -> str:
    days = (end - begin).days + 1
    if days <= MAX_DAYS:
        return "day"
    if days <= MAX_WEEKS * 7:
        return "week"
    return "month" if days <= MAX_MONTHS * 30.44 else "year"


def _start(day: date, unit: str) -> date:
    """The first day of the bar that contains a day."""
    match unit:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)
    return day


def _starts(begin: date, end: date, unit: str) -> Iterable[date]:
    start = _start(begin, unit)
    while start <= end:
        yield start
        # Go past the end of this bar, whatever its length, and back to the start of the next one.
        start = _start(start + timedelta(days={"day": 1, "week": 7, "month": 31, "year": 366}[unit]), unit)


def _stacked(counted: Counter[str], top: int) -> Iterable[Segment]:
    y = float(PLOT_PX)
    for number, name in enumerate(COLOURS):
        height = PLOT_PX * counted[name] / top
        if height:
            y -= height
            yield Segment(number, round(y, 2), round(height, 2))


def _round_up(number: int) -> int:
    """The next round number whose half is also round."""
    power = 1
    while True:
        for lead in (2, 4, 6, 8, 10, 12, 16):
            if lead * power >= number:
                return lead * power
        power *= 10


def _label(start: date, unit: str) -> str:
    if unit in ("day", "week"):
        return f"{start.day} {start:%b}"
    return f"{start:%b %Y}" if unit == "month" else str(start.year)


def _spoken(start: date, unit: str) -> str:
    match unit:
        case "week":
            return f"week of {start.isoformat()}"
        case "month":
            return f"{start:%B} {start.year}"
        case "year":
            return str(start.year)
    return start.isoformat()


def _tooltip(start: date, unit: str, counted: Counter[str], series: Sequence[str]) -> str:
    parts = ", ".join(f"{name} {counted[name]:,}" for name in series if counted[name])
    return f"{_spoken(start, unit)}: {counted.total():,} units" + (f" ({parts})" if parts else "")
