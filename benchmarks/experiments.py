"""What happens to this project as it grows: old orders, one hot sku, more processes, more load than it can take."""

from __future__ import annotations

from collections.abc import Callable

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
ENDS_WITHIN_S = 60.0  # after an overload


def _measured(rig: Rig, ours: Ours, seconds: float, connections: int = CONNECTIONS, hot: bool = False) -> Run:
    post(rig, ours, 16, WARM_UP_S + 1, hot=hot)
    return post(rig, ours, connections, seconds, hot=hot)


def growth(rig: Rig, short: bool) -> None:
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
    report.print_runs("Growth", list(runs.items()))
    load_before, backlog_before, load, backlog = runs.values()
    ratios = {
        "cpu_load": round(load.cpu_ms_per_order / load_before.cpu_ms_per_order, 2),
        "cpu_backlog": round(backlog.cpu_ms_per_order / backlog_before.cpu_ms_per_order, 2),
        "statements_backlog": round(backlog.counts["statements"] / backlog_before.counts["statements"], 2),
    }
    print(ratios)
    report.save({"growth": {**ratios, **{name: report.as_json(run) for name, run in runs.items()}}})


def hot(rig: Rig, short: bool) -> None:
    """One sku in every order, against 1,000 skus."""
    ours, seconds = Ours(), SHORT_S if short else LOAD_S
    ours.start(rig)
    runs = {"spread": _measured(rig, ours, seconds), "hot": _measured(rig, ours, seconds, hot=True)}
    ours.stop(rig)
    report.print_runs("One hot sku", list(runs.items()))
    ratio = round(runs["hot"].ended_per_s / runs["spread"].ended_per_s, 2)
    print(f"hot_over_spread {ratio}")
    report.save({"hot": {"hot_over_spread": ratio, **{name: report.as_json(run) for name, run in runs.items()}}})


def scale(rig: Rig, short: bool) -> None:
    """1, 2 and 4 processes of each service that orders pass."""
    runs = {}
    for replicas in (1, 2, MOST_REPLICAS):
        ours = Ours(replicas)
        ours.start(rig)
        runs[replicas] = _measured(rig, ours, SHORT_S if short else LOAD_S)
        ours.stop(rig)
    report.print_runs("Processes of each service", [(str(replicas), run) for replicas, run in runs.items()])
    ratios = {f"{n}_over_1": round(run.ended_per_s / runs[1].ended_per_s, 2) for n, run in runs.items() if n > 1}
    print(ratios)
    report.save({"scale": {**ratios, **{str(n): report.as_json(run) for n, run in runs.items()}}})


def overload(rig: Rig, short: bool) -> None:
    """Twice as many orders as it can take. Raises StackFault if something dies or an accepted order ends late."""
    ours, seconds = Ours(), SHORT_OVERLOAD_S if short else OVERLOAD_S
    ours.start(rig)
    sustained = _measured(rig, ours, SHORT_S if short else LOAD_S)
    rate = OVERLOAD * sustained.ended_per_s
    run = post(rig, ours, OVERLOAD_CONNECTIONS, seconds, rate=rate)
    ours.stop(rig)
    report.print_runs("Overload", [("sustained", sustained), (f"{OVERLOAD:g} times as much", run)])
    report.save({"overload": {"sustained": report.as_json(sustained), "overload": report.as_json(run)}})
    faults = []
    if run.ended_processes:
        faults.append(f"died: {', '.join(run.ended_processes)}")
    if run.last_end_s > ENDS_WITHIN_S:
        faults.append(f"the last order ended {run.last_end_s:.0f} s after the load")
    if run.refused != run.refused_properly:
        faults.append(f"{run.refused - run.refused_properly} of {run.refused} refusals are no 503 with Retry-After")
    if run.unanswered:
        faults.append(f"{run.unanswered} posts got no answer")
    if faults:
        raise StackFault("; ".join(faults), exit_code=1)


EXPERIMENTS: dict[str, Callable[[Rig, bool], None]] = {
    "growth": growth,
    "hot": hot,
    "scale": scale,
    "overload": overload,
}
