"""One run: orders are posted, every one of them is followed to its end, and what that cost is written down."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contenders import Contender, Floor, Ours
from benchmarks.counters import Counts, Usage
from benchmarks.plan import Plan
from benchmarks.rig import Rig
from ops.local.processes import StackFault

# The first seconds of a load are left out of its rate, and out of nothing else.
WARM_UP_S = 2.0
DRAIN_S = 300.0
# PostgreSQL's sessions report their transactions at most once a second.
REPORTED_S = 1.2
POLL_S = 0.25
PERCENTILES = (50, 95, 99)
# Processes that are no part of the system that is measured.
ASIDE = ("provider", "load")


@dataclass(frozen=True)
class Run:
    """What one run measured. Times in milliseconds, memory in MB; CPU, statements and the like for one order."""

    contender: str
    accepted: int
    ended_per_s: float
    cpu_ms: Mapping[str, float]  # by group of processes; those of ASIDE are no part of the system
    counts: Mapping[str, float]
    memory_mb: Mapping[str, float]
    # Where orders were posted over HTTP:
    connections: int = 0
    offered_per_s: float | None = None  # None: as fast as answers come
    refused: int = 0
    refused_properly: int = 0  # 503 with Retry-After
    unanswered: int = 0
    accepted_per_s: float = 0.0
    ended_per_s_during_load: float = 0.0
    last_end_s: float = 0.0  # how long after the load's end the last order ended
    post_ms: Mapping[str, float] = field(default_factory=dict)
    saga_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def cpu_ms_per_order(self) -> float:
        """CPU of the system for one order, PostgreSQL and RabbitMQ included."""
        return sum(ms for group, ms in self.cpu_ms.items() if group not in ASIDE)


class Watch:
    """The steps of orders since a moment at which nothing was going on."""

    def __init__(self, rig: Rig, contender: Contender) -> None:
        self.rig, self.contender = rig, contender
        self.databases = list(contender.databases(rig).values())
        self.cursor = rig.cursor(contender.databases(rig)["order"])
        self.last: int = self.one("SELECT coalesce(max(id), 0) FROM order_events")
        self.begin_spending()

    def begin_spending(self) -> None:
        """Count CPU and statements from here on."""
        self.counts = self.rig.counts(self.databases)
        self.usage = self.rig.usage()

    def one(self, query: str, *values: Any) -> Any:
        """The first value of the first row."""
        self.cursor.execute(query, values)
        return self.cursor.fetchone()[0]

    def steps(self, type_: str) -> int:
        """How many steps of this type there were."""
        return int(self.one("SELECT count(*) FROM order_events WHERE id > %s AND type = %s", self.last, type_))

    def ends(self) -> dict[str, float]:
        """When each order became PAID."""
        self.cursor.execute(
            "SELECT order_id, extract(epoch FROM at)::float8 FROM order_events"
            " WHERE id > %s AND to_status = 'PAID' AND from_status <> 'PAID'",
            (self.last,),
        )
        return {str(order_id): at for order_id, at in self.cursor.fetchall()}

    def wait(self, patience_s: float = DRAIN_S) -> None:
        """Return when every order has passed its last step."""
        deadline = time.monotonic() + patience_s
        created = self.steps("order.created")
        self.rig.check_processes()
        while (ended := self.steps("inventory.committed")) < created:
            if time.monotonic() > deadline:
                raise StackFault(f"{self.contender.name}: {created - ended} of {created} orders have not ended")
            time.sleep(POLL_S)
        self.rig.check_processes()

    def spent(self) -> tuple[Usage, Counts]:
        """CPU, memory and counts since the beginning."""
        usage = self.rig.usage()
        time.sleep(REPORTED_S)
        return Usage(usage.cpu_since(self.usage), usage.memory_mb), self.rig.counts(self.databases) - self.counts


def post(rig: Rig, contender: Contender, connections: int, seconds: float, **asked: Any) -> Run:
    """Post orders over HTTP and wait for the end of all of them. `asked`: further fields of the `Plan`."""
    watch = Watch(rig, contender)
    plan = Plan(contender.urls, contender.users, uuid.uuid4().hex[:8], connections, seconds, **asked)
    posts, load_s = rig.post(plan)
    load_ended = max(post.answered for post in posts)
    watch.wait()
    usage, counts = watch.spent()
    ends = watch.ends()
    accepted = {post.order_id: post.due for post in posts if post.status == 201 and post.order_id}
    if missing := len(accepted.keys() - ends.keys()):
        raise StackFault(f"{contender.name}: {missing} accepted orders are not PAID")
    began = min(post.due for post in posts)
    during = [at for at in ends.values() if began + WARM_UP_S <= at <= began + seconds]
    during_s = min(seconds, load_ended - began) - WARM_UP_S
    whole_s = max(ends.values()) - began
    statuses = Counter(post.status for post in posts)
    return Run(
        contender=contender.name,
        connections=connections,
        offered_per_s=plan.rate,
        accepted=len(accepted),
        refused=len(posts) - statuses[201] - statuses[0],
        refused_properly=sum(post.status == 503 and post.retry_after for post in posts),
        unanswered=statuses[0],
        accepted_per_s=len(accepted) / (load_ended - began),
        # A system that accepts more than it ends is the faster the longer its clients have been gone: the better of
        # both figures is taken, for everybody.
        ended_per_s=max(len(during) / during_s, len(ends) / whole_s) if during_s > 0 else len(ends) / whole_s,
        ended_per_s_during_load=len(during) / during_s if during_s > 0 else 0.0,
        last_end_s=max(ends.values()) - load_ended,
        post_ms=percentiles([post.answered - post.due for post in posts if post.status == 201]),
        saga_ms=percentiles([ends[order_id] - due for order_id, due in accepted.items()]),
        cpu_ms=_each({**usage.cpu_s, "load": load_s}, len(ends)),
        counts=counts.per(len(ends)),
        memory_mb=usage.memory_mb,
    )


def create(rig: Rig, floor: Floor, count: int) -> Run:
    """Let the floor create its own orders and end them."""
    watch = Watch(rig, floor)
    cpu_s = floor.create(rig, count)
    watch.wait()
    return _rated(watch, "order.created", {"create": cpu_s})


def drain(rig: Rig, ours: Ours, count: int, connections: int) -> Run:
    """Let so many orders wait in their first queue while inventory_service is stopped, start it, and follow them."""
    watch = Watch(rig, ours)
    with ours.without(rig, "inventory"):
        posts, _ = rig.post(Plan(ours.urls, ours.users, uuid.uuid4().hex[:8], connections, 600.0, posts=count))
        watch.begin_spending()
    watch.wait()
    run = _rated(watch, "inventory.reserved", {})
    if run.accepted < sum(post.status == 201 for post in posts):
        raise StackFault("orders of the backlog are not PAID")
    return run


def _rated(watch: Watch, first: str, aside_cpu_s: Mapping[str, float]) -> Run:
    """A run without posts, its rate counted from the first step of a type."""
    usage, counts = watch.spent()
    ends = watch.ends()
    query = "SELECT extract(epoch FROM min(at))::float8 FROM order_events WHERE id > %s AND type = %s"
    began = watch.one(query, watch.last, first)
    return Run(
        contender=watch.contender.name,
        accepted=len(ends),
        ended_per_s=len(ends) / (max(ends.values()) - began),
        cpu_ms=_each({**usage.cpu_s, **aside_cpu_s}, len(ends)),
        counts=counts.per(len(ends)),
        memory_mb=usage.memory_mb,
    )


def _each(cpu_s: Mapping[str, float], orders: int) -> dict[str, float]:
    return {group: round(seconds * 1000 / orders, 3) for group, seconds in cpu_s.items()}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds: the smallest value that so many percent do not exceed."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {f"p{p}": round(ordered[math.ceil(p / 100 * len(ordered)) - 1] * 1000, 1) for p in PERCENTILES}
