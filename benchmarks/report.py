"""The table, the file and the pictures of what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import ASIDE, Run
from benchmarks.pictures import Line, picture
from ops.local.install import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
PICTURES = ROOT / "docs" / "images"


def middle(runs: Sequence[Run]) -> Run:
    """The run of the median rate; of an even number the slower one."""
    return sorted(runs, key=lambda run: run.ended_per_s)[(len(runs) - 1) // 2]


def ratios(rounds: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The figures that matter, as medians over the rounds. `rounds`: what was measured -> its run in each round."""

    def rate(name: str) -> float:
        return median(run.ended_per_s for run in rounds[name])

    found = {}
    if {"ours", "faststream"} <= rounds.keys():
        found["ours_over_peer"] = rate("ours") / rate("faststream")
    if {"ours", "nameko"} <= rounds.keys():
        found["ours_over_nameko"] = rate("ours") / rate("nameko")
    if {"ours", "floor"} <= rounds.keys():
        found["ours_over_floor"] = rate("ours") / rate("floor")
    if {"backlog", "floor"} <= rounds.keys():
        found["backlog_over_floor"] = rate("backlog") / rate("floor")
    if "steady" in rounds:
        found["p95_post_ms"] = median(run.post_ms["p95"] for run in rounds["steady"])
        found["p95_saga_ms"] = median(run.saga_ms["p95"] for run in rounds["steady"])
    if "ours" in rounds:
        found["cpu_ms_per_order"] = median(run.cpu_ms_per_order for run in rounds["ours"])
    return {name: round(value, 2) for name, value in found.items()}


def rounds_section(rounds: Mapping[str, Sequence[Run]], titles: Mapping[str, str]) -> dict[str, Any]:
    """The part of the file about the rounds."""
    return {
        name: {"title": titles[name], "median": as_json(middle(runs)), "rounds": [as_json(run) for run in runs]}
        for name, runs in rounds.items()
    }


def as_json(run: Run) -> dict[str, Any]:
    """A run, with the CPU of the system for one order."""
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(run).items()}
    return {**rounded, "cpu_ms_per_order": round(run.cpu_ms_per_order, 2)}


def save(sections: Mapping[str, Any], place: Path = RESULTS) -> None:
    """Write these sections into the file; the others stay as they are."""
    place.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    measured = {name: datetime.now(UTC).isoformat(timespec="seconds") for name in sections}
    known |= dict(sections)
    known["measured_at"] = {**known.get("measured_at", {}), **measured}
    place.write_text(json.dumps(known, indent=1) + "\n")


def print_runs(title: str, rows: Sequence[tuple[str, Run]]) -> None:
    """Print runs as a table, and their CPU by process as another."""
    console = Console(width=200)
    table = Table(title=title, title_justify="left")
    heads = (
        *("what", "offered/s", "accepted", "refused", "orders ended/s", "POST p50/p95/p99 ms", "saga p50/p95/p99 ms"),
        *("CPU ms", "published", "transactions", "statements", "fsyncs", "memory MB"),
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "what" else "right")
    for name, run in rows:
        table.add_row(
            name,
            f"{run.offered_per_s:.0f}" if run.offered_per_s else "",
            str(run.accepted),
            str(run.refused + run.unanswered),
            f"{run.ended_per_s:.0f}",
            "/".join(f"{ms:.0f}" for ms in run.post_ms.values()),
            "/".join(f"{ms:.0f}" for ms in run.saga_ms.values()),
            f"{run.cpu_ms_per_order:.2f}",
            *(f"{run.counts[name]:.2f}" for name in ("published", "transactions", "statements", "wal_syncs")),
            f"{sum(mb for group, mb in run.memory_mb.items() if group not in ASIDE):.0f}",
        )
    console.print(table)
    for name, run in rows:
        parts = sorted(run.cpu_ms.items(), key=lambda part: -part[1])
        console.print(f"  {name}: " + ", ".join(f"{group} {ms:.2f}" for group, ms in parts if ms >= 0.005))
    console.print()


def draw(curves: Mapping[str, Sequence[Run]], titles: Mapping[str, str], folder: Path = PICTURES) -> None:
    """Draw throughput and latency against offered load."""
    ended = [
        Line(titles[name], [(run.offered_per_s or 0.0, run.ended_per_s_during_load) for run in runs])
        for name, runs in curves.items()
    ]
    most = max(x for line in ended for x, _ in line.points)
    ideal = Line("every order that is offered", [(0.0, 0.0), (most, most)], dashed=True)
    late = [
        Line(titles[name], [(run.offered_per_s or 0.0, run.saga_ms["p95"]) for run in runs])
        for name, runs in curves.items()
    ]
    (folder / "bench-throughput.svg").write_text(
        picture(
            "Orders ended while the load lasts", "orders offered a second", "orders ended a second", [*ended, ideal]
        )
    )
    (folder / "bench-latency.svg").write_text(
        picture("From the POST to PAID, 95 of 100 orders", "orders offered a second", "milliseconds", late, log=True)
    )
