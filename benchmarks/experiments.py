"""What happens to this project as it grows: old orders, one hot sku, more processes, more load than it can take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.contenders import Ours
from benchmarks.history import fill
from benchmarks.measure import WARM_UP_S, Run, drain, post
from benchmarks.rig import Rig
from ops.local.processes import StackFault

HISTORY, SHORT_HISTORY = (10_000, 1_000_000), (1_000, 20_000)
BACKLOG = 3_000
MOST_REPLICAS = 4
CONNECTIONS = 48
LOAD_S, SHORT_S = 20.0, 6.0
OVERLOAD_S, SHORT_OVERLOAD_S = 60.0, 15.0
OVERLOAD = 2.0  # times the rate that it can take
OVERLOAD_CONNECTIONS = 400

Section = dict[str, Any]


def _measured(rig: Rig, ours: Ours, seconds: float, connections: int = CONNECTIONS, hot: bool = False) -> Run:
    post(rig, ours, 16, WARM_UP_S + 1, hot=hot)
    return post(rig, ours, connections, seconds, hot=hot)


def growth(rig: Rig, short: bool) -> Section:
    """10,000 and then 1,000,000 orders that are there already: under load, and from a backlog, whose batches are full.

    Statements are compared from the backlog: under load their number depends on how full the batches are.
    """
    ours, runs = Ours(), {}
    ours.start(rig)
    there = 0
    for orders in SHORT_HISTORY if short else HISTORY:
        fill(rig, ours.databases(rig), there, orders)
        there = orders
        runs[f"{orders:,} orders, load"] = _measured(rig, ours, SHORT_S if short else LOAD_S)
        runs[f"{orders:,} orders, backlog"] = drain(rig, ours, BACKLOG, CONNECTIONS)
    ours.stop(rig)
    load_before, backlog_before, load, backlog = runs.values()
    ratios = {
        "cpu_load": load.cpu_ms_per_order / load_before.cpu_ms_per_order,
        "cpu_backlog": backlog.cpu_ms_per_order / backlog_before.cpu_ms_per_order,
        "statements_backlog": backlog.counts["statements"] / backlog_before.counts["statements"],
    }
    return report.section(runs, _rounded(ratios))


def hot(rig: Rig, short: bool) -> Section:
    """One sku in every order, against 1,000 skus."""
    ours, seconds = Ours(), SHORT_S if short else LOAD_S
    ours.start(rig)
    runs = {"spread": _measured(rig, ours, seconds), "hot": _measured(rig, ours, seconds, hot=True)}
    ours.stop(rig)
    return report.section(runs, _rounded({"hot_over_spread": runs["hot"].ended_per_s / runs["spread"].ended_per_s}))


def scale(rig: Rig, short: bool) -> Section:
    """1, 2 and 4 processes of each service that orders pass."""
    runs = {}
    for replicas in (1, 2, MOST_REPLICAS):
        ours = Ours(replicas)
        ours.start(rig)
        runs[str(replicas)] = _measured(rig, ours, SHORT_S if short else LOAD_S)
        ours.stop(rig)
    ratios = {f"{n}_over_1": run.ended_per_s / runs["1"].ended_per_s for n, run in runs.items() if n != "1"}
    return report.section(runs, _rounded(ratios))


def overload(rig: Rig, short: bool) -> Section:
    """Twice as many orders as it can take. Raises StackFault if a post gets no answer.

    `post` itself checks that nothing has died and that every accepted order has been paid.
    """
    ours, seconds = Ours(), SHORT_OVERLOAD_S if short else OVERLOAD_S
    ours.start(rig)
    sustained = _measured(rig, ours, SHORT_S if short else LOAD_S)
    rate = OVERLOAD * sustained.ended_per_s
    run = post(rig, ours, OVERLOAD_CONNECTIONS, seconds, rate=rate)
    ours.stop(rig)
    part = report.section(
        {"sustained": sustained, f"{OVERLOAD:g} times as much": run},
        _rounded({"last_end_s": run.last_end_s, "improper_refusals": run.refused - run.refused_properly}),
    )
    if run.unanswered:
        report.print_section("overload", part)
        raise StackFault(f"{run.unanswered} posts got no answer", exit_code=1)
    return part


def _rounded(ratios: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in ratios.items()}


EXPERIMENTS: dict[str, Callable[[Rig, bool], Section]] = {
    "growth": growth,
    "hot": hot,
    "scale": scale,
    "overload": overload,
}
