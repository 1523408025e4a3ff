"""`make bench`: rounds in turn, then the curves, or one of the experiments.

make bench                            three rounds and the curves: at most 40 minutes
make bench ARGS=--short               one short round: 5 minutes
make bench ARGS='--only growth'       10,000 and 1,000,000 orders that are there already; also hot, scale, overload
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import experiments, page, report
from benchmarks.contenders import Contender, FastStream, Floor, Nameko, Ours
from benchmarks.measure import WARM_UP_S, Run, create, drain, post
from benchmarks.rig import Rig
from ops.local.processes import StackFault, adopt_orphans, end_descendants
from ops.local.stack import Interrupted, Progress, catch_signals, stopping_now

STEADY = 0.6  # the part of the saturated rate at which latency is promised
STEADY_CONNECTIONS = 96
ALONE_PER_S = 2.0  # so few that each order has ended before the next one comes
CURVE = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
TITLES = {
    "ours": Ours.title,
    "backlog": "this project, from a backlog",
    "steady": f"this project at {STEADY:.0%} of its rate",
    "alone": "this project, one order at a time",
    "floor": Floor.title,
    "faststream": FastStream.title,
    "nameko": Nameko.title,
}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    connections: Sequence[int]
    load_s: float
    steady_s: float
    alone_s: float
    orders: int  # of the floor and of the backlog
    curve_s: float


FULL = Size(rounds=3, connections=(16, 48, 96), load_s=14, steady_s=30, alone_s=20, orders=10_000, curve_s=12)
SHORT = Size(rounds=1, connections=(48,), load_s=10, steady_s=15, alone_s=10, orders=3_000, curve_s=0)


@contextmanager
def running(rig: Rig, contender: Contender) -> Iterator[None]:
    """A contender that takes orders, warmed up."""
    contender.start(rig)
    rig.progress.done(f"{contender.name} runs")
    try:
        if contender.urls:
            post(rig, contender, connections=16, seconds=WARM_UP_S + 1)
        yield
    finally:
        contender.stop(rig)


def saturated(rig: Rig, contender: Contender, size: Size) -> Run:
    """Its best run over the numbers of connections."""
    runs = [post(rig, contender, connections, size.load_s) for connections in size.connections]
    return max(runs, key=lambda run: run.ended_per_s)


def one_round(rig: Rig, size: Size) -> dict[str, Run]:
    """Everything once, in turn, so that a slow minute of the machine hits a round and not a contender."""
    floor, ours, found = Floor(), Ours(), {}
    with running(rig, floor):
        create(rig, floor, 500)
        found["floor"] = create(rig, floor, size.orders)
    with running(rig, ours):
        found["ours"] = saturated(rig, ours, size)
        rate = STEADY * found["ours"].ended_per_s
        found["steady"] = post(rig, ours, STEADY_CONNECTIONS, size.steady_s, rate=rate)
        found["alone"] = post(rig, ours, 1, size.alone_s, rate=ALONE_PER_S)
        found["backlog"] = drain(rig, ours, size.orders, connections=48)
    for peer in (FastStream(), Nameko()):
        with running(rig, peer):
            found[peer.name] = saturated(rig, peer, size)
    return found


def curve(rig: Rig, contender: Contender, rate: float, seconds: float) -> list[Run]:
    """Runs at parts of a contender's own rate."""
    with running(rig, contender):
        return [post(rig, contender, STEADY_CONNECTIONS, seconds, rate=part * rate) for part in CURVE]


def rounds(rig: Rig, size: Size) -> Iterator[dict[str, Any]]:
    """Measure the rounds, then the curves; print what has ended, and give what is to be saved of it."""
    measured: dict[str, list[Run]] = {}
    for n in range(size.rounds):
        found = one_round(rig, size)
        for name, run in found.items():
            measured.setdefault(name, []).append(run)
        named = {TITLES[name]: run for name, run in found.items()}
        own_ratios = report.ratios({name: [run] for name, run in found.items()})
        report.print_section(f"Round {n + 1} of {size.rounds}", report.section(named, own_ratios))
    ratios = report.ratios(measured)
    medians = {TITLES[name]: report.middle(runs) for name, runs in measured.items()}
    sections = {"ratios": ratios, "rounds": report.section(medians, ratios)}
    if size.rounds > 1:
        report.print_section("Medians", sections["rounds"])
    sections["rounds"]["all"] = {name: [report.as_json(run) for run in runs] for name, runs in measured.items()}
    yield sections
    if size.curve_s:
        curves = {
            contender.title: curve(rig, contender, report.middle(measured[contender.name]).ended_per_s, size.curve_s)
            for contender in (Ours(), FastStream())
        }
        report.draw(curves)
        yield {"curves": {name: [report.as_json(run) for run in runs] for name, runs in curves.items()}}


def one_experiment(rig: Rig, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the experiment that was chosen, print it, and give what is to be saved of it."""
    measured = experiments.EXPERIMENTS[chosen.only](rig, chosen.short)
    report.print_section(chosen.only, measured)
    yield {chosen.only: measured}


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when everything was measured and nothing died."""
    parser = argparse.ArgumentParser(prog="make bench", description="This project beside its peers and its floor.")
    parser.add_argument("--short", action="store_true", help="one short round: 5 minutes")
    parser.add_argument("--only", choices=experiments.EXPERIMENTS, help="one experiment instead of the rounds")
    chosen = parser.parse_args(words)
    place = report.SHORT_RESULTS if chosen.short else report.RESULTS
    adopt_orphans()
    catch_signals()
    progress = Progress()
    try:
        with Rig(progress, replicas=experiments.MOST_REPLICAS if chosen.only == "scale" else 1).running() as rig:
            measured = one_experiment(rig, chosen) if chosen.only else rounds(rig, SHORT if chosen.short else FULL)
            for sections in measured:  # what was measured is saved even if what follows fails
                report.save(place, {"cores": os.cpu_count(), **sections})
        if not chosen.short:
            page.main()
        progress(f"results are in {place}")
        return 0
    except StackFault as fault:
        print(f"bench: {fault}", file=sys.stderr, flush=True)
        return fault.exit_code
    except Interrupted as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        stopping_now()
        end_descendants()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
