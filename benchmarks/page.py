"""The figures of `make bench` in docs/performance.md, from the file of its results. `make bench` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import HEADS, RESULTS, cells, processes
from ops.local.install import ROOT

FILE = ROOT / "docs" / "performance.md"
BEGINS, ENDS = "<!-- results: written by make bench -->\n", "<!-- end of results -->\n"

# Each section of the results, with its heading and what is promised of its ratios.
SECTIONS = {
    "rounds": (
        "Rounds in turn",
        {
            "ours_over_peer": "at least 4",
            "ours_over_nameko": "",
            "ours_over_floor": "at least 0.4",
            "backlog_over_floor": "at least 0.6",
            "p95_post_ms": "under 150",
            "p95_saga_ms": "under 600",
            "p50_alone_saga_ms": "",
            "cpu_ms_per_order": "at most 7",
        },
    ),
    "growth": (
        "Orders that are there already",
        {"cpu_load": "at most 1.25", "cpu_backlog": "at most 1.25", "statements_backlog": "1"},
    ),
    "hot": ("One hot sku", {"hot_over_spread": "at least 0.7"}),
    "scale": ("Processes of each service", {"2_over_1": "at least 0.85", "4_over_1": ""}),
    "overload": ("Twice as many orders as it can take", {"last_end_s": "at most 60", "improper_refusals": "0"}),
}
CURVES = """\
### Against offered load
Each contender at 20 to 120 % of its own rate.

![Orders ended a second against orders offered a second](images/bench-throughput.svg)

![Milliseconds from the POST to PAID against orders offered a second](images/bench-latency.svg)
"""
NOT_YET = "Nothing has been measured yet.\n"


def results(known: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    parts = [_section(name, known) for name in SECTIONS if name in known]
    if "curves" in known:
        parts.insert(1, CURVES)
    return "\n".join(parts) if parts else NOT_YET


def _section(name: str, known: Mapping[str, Any]) -> str:
    title, promised = SECTIONS[name]
    part = known[name]
    lines = [f"### {title}", f"Measured {known['measured_at'][name][:10]} on {known['cores']} cores.", ""]
    lines += ["| figure | measured | promised |", "|---|---|---|"]
    lines += [f"| {ratio} | {value} | {promised[ratio]} |" for ratio, value in part["ratios"].items()]
    lines += ["", _row(HEADS), _row(["---"] * len(HEADS))]
    lines += [_row(cells(what, run)) for what, run in part["runs"].items()]
    lines += ["", "CPU for one order, by processes, in ms:", ""]
    lines += [f"- {what}: {processes(run)}" for what, run in part["runs"].items()]
    return "\n".join([*lines, ""])


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def with_results(text: str, place: Path = RESULTS) -> str:
    """docs/performance.md with the figures as they must be. Raises ValueError where their place is not marked once."""
    before, begins, rest = text.partition(BEGINS)
    ends, after = rest.partition(ENDS)[1:]
    if not (begins and ends) or BEGINS in rest:
        raise ValueError("docs/performance.md must mark the place of the results once")
    known = json.loads(place.read_text()) if place.exists() else {}
    return before + begins + results(known) + ends + after


def main() -> None:
    """Bring docs/performance.md up to date."""
    FILE.write_text(with_results(FILE.read_text(encoding="utf-8")), encoding="utf-8")
