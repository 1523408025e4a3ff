"""The tables, the file and the pictures of what was measured."""

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
from ops.local.install import ROOT, RUN

RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
SHORT_RESULTS = RUN / "bench-short.json"  # no figures to keep
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
    if "alone" in rounds:
        found["p50_alone_saga_ms"] = median(run.saga_ms["p50"] for run in rounds["alone"])
    if "ours" in rounds:
        found["cpu_ms_per_order"] = median(run.cpu_ms_per_order for run in rounds["ours"])
    return {name: round(value, 2) for name, value in found.items()}


def as_json(run: Run) -> dict[str, Any]:
    """A run, with the CPU of the system for one order."""
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(run).items()}
    return {**rounded, "cpu_ms_per_order": round(run.cpu_ms_per_order, 2)}


def section(runs: Mapping[str, Run], ratios: Mapping[str, float]) -> dict[str, Any]:
    """A part of the file: runs by name, and what is said of them together."""
    return {"ratios": dict(ratios), "runs": {name: as_json(run) for name, run in runs.items()}}


def save(place: Path, sections: Mapping[str, Any]) -> None:
    """Write these sections into the file; the others stay as they are."""
    place.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    measured = {name: datetime.now(UTC).isoformat(timespec="seconds") for name in sections}
    known |= dict(sections)
    known["measured_at"] = {**known.get("measured_at", {}), **measured}
    place.write_text(json.dumps(known, indent=1) + "\n")


HEADS = (
    *("what", "offered/s", "accepted", "refused", "orders ended/s", "POST p50/p95/p99 ms", "saga p50/p95/p99 ms"),
    *("CPU ms", "published", "transactions", "statements", "fsyncs", "memory MB"),
)


def cells(name: str, run: Mapping[str, Any]) -> list[str]:
    """A run, as `as_json` gives it, as a row under HEADS."""
    return [
        name,
        f"{run['offered_per_s']:.0f}" if run["offered_per_s"] else "",
        str(run["accepted"]),
        str(run["refused"] + run["unanswered"]),
        f"{run['ended_per_s']:.0f}",
        "/".join(f"{ms:.0f}" for ms in run["post_ms"].values()),
        "/".join(f"{ms:.0f}" for ms in run["saga_ms"].values()),
        f"{run['cpu_ms_per_order']:.2f}",
        *(f"{run['counts'][name]:.2f}" for name in ("published", "transactions", "statements", "wal_syncs")),
        f"{sum(mb for group, mb in run['memory_mb'].items() if group not in ASIDE):.0f}",
    ]


def processes(run: Mapping[str, Any]) -> str:
    """The CPU for one order by group of processes, the most first."""
    parts = sorted(run["cpu_ms"].items(), key=lambda part: -part[1])
    return ", ".join(f"{group} {ms:.2f}" for group, ms in parts if ms >= 0.005)


def print_section(title: str, part: Mapping[str, Any]) -> None:
    """Print a section as a table, with its CPU by process and its ratios."""
    console = Console(width=180)
    table = Table(title=title, title_justify="left")
    for head in HEADS:
        table.add_column(head, justify="left" if head == "what" else "right")
    for name, run in part["runs"].items():
        table.add_row(*cells(name, run))
    console.print(table)
    for name, run in part["runs"].items():
        console.print(f"  {name}: {processes(run)}")
    for name, value in part["ratios"].items():
        console.print(f"{name:>20} {value}")
    console.print()


def draw(curves: Mapping[str, Sequence[Run]], folder: Path = PICTURES) -> None:
    """Draw throughput and latency against offered load, a line for each contender."""
    ended = [
        Line(name, [(run.offered_per_s or 0.0, run.ended_per_s_during_load) for run in runs])
        for name, runs in curves.items()
    ]
    most = max(y for line in ended for _, y in line.points)
    ideal = Line("every order that is offered", [(0.0, 0.0), (most, most)], dashed=True)
    late = [
        Line(name, [(run.offered_per_s or 0.0, run.saga_ms["p95"]) for run in runs]) for name, runs in curves.items()
    ]
    across = "orders offered a second"
    throughput = picture("Orders ended while the load lasts", across, "orders ended a second", [*ended, ideal])
    latency = picture("From the POST to PAID, 95 of 100 orders", across, "milliseconds", late, log=True)
    (folder / "bench-throughput.svg").write_text(throughput)
    (folder / "bench-latency.svg").write_text(latency)
