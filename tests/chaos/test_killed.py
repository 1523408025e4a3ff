"""Processes that die in the middle of their work."""

from __future__ import annotations

import random
import re
import signal
import statistics
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from sqlalchemy import text

from ops.local.processes import Process, wait_until
from tests.chaos.leaders import leader_of, ports_of, session_that_leads
from tests.chaos.load import Load
from tests.e2e.held import held
from tests.e2e.system import System, eventually
from topology.services import PUBLISHERS, START_ORDER
from topology.table import CONSUMERS

# At full size an outage or a load lasts minutes.
pytestmark = pytest.mark.timeout(600)

# SIGTERM: messages in progress are finished and the rest goes back to the queue.
STOPS_WITHIN_S = 10.0
# The kernel closes a dead leader's session at once; the server ends a silent one's after 10 s.
LED_AGAIN_WITHIN_S = 2.0
LED_AGAIN_AFTER_FREEZING_WITHIN_S = 12.0
# So many at random, however slow the machine is.
FEWEST_KILLS = 3
# What the death of a leader may add to an event's way from its commit to its publish.
DELAYED_BY_S = 3.0


def unpublished(system: System, service: str, order_id: str) -> list[str]:
    statement = "SELECT event_type FROM outbox WHERE aggregate_id = :id AND published_at IS NULL ORDER BY id"
    return [row["event_type"] for row in system.databases.rows(service, statement, id=order_id)]


@pytest.mark.parametrize(
    ("service", "committed"),
    [
        ("order", {"mock_ok": "order.created", "mock_declined": "order.created"}),
        ("inventory", {"mock_ok": "inventory.reserved", "mock_declined": "inventory.reserved"}),
        ("payment", {"mock_ok": "payment.succeeded", "mock_declined": "payment.failed"}),
    ],
)
def test_a_service_killed_after_its_commit_and_before_its_publish_loses_nothing(
    system: System, service: str, committed: dict[str, str]
) -> None:
    flow = system.flow()
    flow.stock("killed", 100)

    def only_committed(orders: dict[str, str]) -> bool:
        return all(unpublished(system, service, orders[payment]) == [committed[payment]] for payment in committed)

    with held(system.databases, service):
        orders = {payment: flow.order("killed", 2, payment=payment)["order_id"] for payment in committed}
        eventually(lambda: only_committed(orders), bool, otherwise="not committed")
        system.kill_service(service)
        # Those that were started again have not published it either: the event is in the database alone.
        assert only_committed(orders)
    ends = {payment: flow.at_rest(order_id)["status"] for payment, order_id in orders.items()}
    assert ends == {"mock_ok": "PAID", "mock_declined": "CANCELLED"}


def test_replicas_killed_at_random_under_load_lose_nothing(system: System, long: bool) -> None:
    chance = random.Random(20260114)
    killed = 0
    with Load(system) as load:
        until = time.monotonic() + (120 if long else 6)
        while killed < FEWEST_KILLS or time.monotonic() < until:
            load.wait_for(5, patience_s=60)
            name = chance.choice(sorted(system.supervisor.pids()))
            system.kill(name)
            killed += 1
    system.wait_ready()
    system.wait_quiet(120)
    load.check_all_are_there()
    print(
        f"\n{killed} kills, {len(load.accepted)} orders, {len(load.refused)} repeated, slowest {load.slowest_s:.1f} s"
    )


def last_told(system: System) -> dict[str, int]:
    """The newest row of each outbox."""
    return {name: system.databases.rows(name, "SELECT max(id) AS id FROM outbox")[0]["id"] or 0 for name in PUBLISHERS}


def delays_since(system: System, last: dict[str, int]) -> list[float]:
    """The seconds from commit to publish of each later event: the delay of the relays alone."""
    statement = (
        "SELECT extract(epoch FROM published_at - created_at) AS s FROM outbox"
        " WHERE id > :id AND published_at IS NOT NULL"
    )
    return [float(row["s"]) for name in PUBLISHERS for row in system.databases.rows(name, statement, id=last[name])]


def kill_leader(system: System, service: str) -> float:
    """SIGKILL the replica that leads; return when another session does: after how many seconds."""
    leader = leader_of(system, service)
    killed = time.monotonic()
    system.kill(leader.name)
    eventually(lambda: session_that_leads(system, service), lambda session: session not in (None, leader.session))
    return round(time.monotonic() - killed, 2)


def test_a_leader_that_is_killed_while_nothing_is_to_do_is_followed_within_2_s(system: System) -> None:
    # Under load every commit makes a replica look for a leader; here it must look by itself.
    led_again = {service: kill_leader(system, service) for service in PUBLISHERS}
    print(f"\nled again in the quiet after {led_again} s")
    assert max(led_again.values()) <= LED_AGAIN_WITHIN_S, led_again


def test_a_leader_that_is_killed_is_followed_within_2_s_and_no_event_waits_for_more_than_3_s(
    system: System, long: bool
) -> None:
    led_again = {}
    with Load(system, customers=2, pause_s=0.1 if long else 0.3) as load:
        before = last_told(system)
        load.wait_for(15)
        usual = statistics.median(delays_since(system, before))
        began, orders = time.monotonic(), len(load.accepted)
        before = last_told(system)
        for service in PUBLISHERS:
            led_again[service] = kill_leader(system, service)
            load.wait_for(10)
            system.wait_ready()
        rate = (len(load.accepted) - orders) / (time.monotonic() - began)
    system.wait_quiet()
    late = delays_since(system, before)
    load.check_all_are_there()
    print(
        f"\nled again after {led_again} s; {len(late)} events of {rate:.0f} orders a second published after at most"
        f" {max(late):.2f} s, usually {usual:.3f} s"
    )
    assert max(led_again.values()) <= LED_AGAIN_WITHIN_S, led_again
    assert max(late) <= usual + DELAYED_BY_S


def test_leading_replicas_that_freeze_are_followed_within_12_s_and_do_no_harm_when_they_go_on(system: System) -> None:
    leaders = {service: leader_of(system, service) for service in PUBLISHERS}
    led_again: dict[str, float] = {}
    system.flow().sell({"thawed": 1000})
    with Load(system, customers=2) as load:
        load.wait_for(10)
        frozen = [process for leader in leaders.values() if (process := Process.of(leader.pid))]
        began = time.monotonic()
        for process in frozen:
            process.send(signal.SIGSTOP)

        def still_frozen() -> list[str]:
            for service in leaders.keys() - led_again.keys():
                if session_that_leads(system, service) not in (None, leaders[service].session):
                    led_again[service] = round(time.monotonic() - began, 1)
            return [service for service in leaders if service not in led_again]

        try:
            eventually(still_frozen, lambda services: not services, 40)
            # The broker ends a silent consumer's connection soon after; its messages go to the others.
            flow = system.flow()
            flow.stock("thawed", 10)
            order_id = eventually(lambda: post_patiently(system, "thawed"), lambda found: found is not None, 60)
            eventually(lambda: order_of(system, order_id), lambda status: status == "PAID", 60)
            assert all(process.alive() for process in frozen)
        finally:
            for process in frozen:
                process.send(signal.SIGCONT)
    print(f"\nled again after {led_again} s")
    system.wait_ready()
    for service, leader in leaders.items():
        assert metric(system, leader.name, "ecom_outbox_leader") == (leader_of(system, service).name == leader.name)
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()
    assert max(led_again.values()) <= LED_AGAIN_AFTER_FREEZING_WITHIN_S, led_again


def metric(system: System, name: str, metric_name: str, labels: str = "") -> float:
    """The sum of a metric over all labels of one replica that match."""
    service, _, replica = name.rpartition("-")
    answer = requests.get(f"{system.probe_url(service, int(replica))}/metrics", timeout=5).text
    found = re.findall(rf"^{metric_name}(?:{{.*{labels}.*}})? ([0-9.e+]+)$", answer, re.MULTILINE)
    return sum(float(value) for value in found)


def post_patiently(system: System, sku: str) -> str | None:
    try:
        return system.flow().order(sku, key=f"patient-{sku}")["order_id"]
    except requests.RequestException:
        return None


def order_of(system: System, order_id: str) -> str:
    (row,) = system.databases.rows("order", "SELECT status FROM orders WHERE order_id = :id", id=order_id)
    return row["status"]


@contextmanager
def killed_again_and_again(system: System, service: str) -> Iterator[None]:
    """While the block runs, each replica of a service is killed as soon as it is started."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):  # it takes a second to start
            system.kill(*system.replicas_of(service))

    system.kill(*system.replicas_of(service))
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_what_is_on_the_menu_is_ordered_while_the_catalog_is_killed_and_what_is_in_doubt_once_it_is_back(
    system: System,
) -> None:
    flow = system.flow()
    for sku in ("known", "doubtful"):
        flow.stock(sku, 10, price=10)
        assert flow.post_order(sku, unit_price=10).status_code == 201
    system.databases.run("order", "DELETE FROM offers WHERE sku = 'doubtful'")
    before, key = lines_of(system, "doubtful"), str(uuid.uuid4())

    with killed_again_and_again(system, "catalog"):
        known = [flow.post_order("known", unit_price=10) for _ in range(3)]
        doubtful = flow.post_order("doubtful", unit_price=10, key=key)
        assert [one.status_code for one in known] == [201] * 3
        assert (doubtful.status_code, doubtful.json()["error"]["code"]) == (503, "unavailable")
        assert int(doubtful.headers["Retry-After"]) >= 1
        assert lines_of(system, "doubtful") == before
        used = "SELECT count(*) AS times FROM idempotency_keys WHERE key = :key"
        assert system.databases.rows("order", used, key=key) == [{"times": 0}]
        assert flow.at_rest(known[-1].json()["order_id"])["status"] == "PAID"

    system.wait_ready()
    taken = flow.post_order("doubtful", unit_price=10, key=key)
    assert (taken.status_code, taken.json()["total"]) == (201, 10)
    assert lines_of(system, "doubtful") == before + 1


def lines_of(system: System, sku: str) -> int:
    """How many lines of orders have a sku."""
    (row,) = system.databases.rows("order", "SELECT count(*) AS times FROM order_items WHERE sku = :sku", sku=sku)
    return int(row["times"])


# For each consuming process and queue: how many messages it handled, and how many of them were duplicates.
Counts = dict[tuple[str, int, str], tuple[float, float]]
SETTLED = re.compile(r'^ecom_events_total{outcome="(.*?)",queue="(.*?)",.*} ([0-9.e+]+)$', re.MULTILINE)


def settled(system: System) -> Counts:
    counts: Counts = defaultdict(lambda: (0.0, 0.0))
    for service in CONSUMERS:
        for name, pid in system.replicas_of(service).items():
            replica = int(name.rpartition("-")[2])
            for outcome, queue, value in SETTLED.findall(
                requests.get(f"{system.probe_url(service, replica)}/metrics", timeout=5).text
            ):
                settled, again = counts[name, pid, queue]
                again += float(value) if outcome == "duplicate" else 0.0
                counts[name, pid, queue] = (settled + float(value), again)
    return counts


def grown(before: Counts, after: Counts) -> tuple[float, dict[str, float]]:
    """What was settled in between by those that live, whether they lived before or not; and where which came again."""
    grew = {key: (new[0] - before[key][0], new[1] - before[key][1]) for key, new in after.items()}
    again = {f"{name} {queue}": many for (name, _, queue), (_, many) in grew.items() if many}
    return sum(many for many, _ in grew.values()), again


def ask_to_stop(name: str, pid: int) -> float:
    """SIGTERM; return when the process is gone: after how many seconds."""
    process = Process.of(pid)
    assert process is not None
    began = time.monotonic()
    process.send(signal.SIGTERM)
    assert wait_until(lambda: not process.alive(), 20), f"{name} does not stop"
    return time.monotonic() - began


def test_replicas_that_are_asked_to_stop_under_load_do_so_in_time_and_nothing_is_lost_or_comes_again(
    system: System,
) -> None:
    took = {}
    before = settled(system)
    with Load(system, customers=2) as load:
        for service in START_ORDER:
            load.wait_for(5)
            name, pid = sorted(system.replicas_of(service).items())[0]
            took[service] = round(ask_to_stop(name, pid), 1)
    system.wait_ready()
    system.wait_quiet()
    messages, again = grown(before, settled(system))
    print(
        f"\nstopped after {took}; {len(load.accepted)} orders, {len(load.refused)} repeated: {set(load.refused)};"
        f" {messages:.0f} messages, again {again}"
    )
    load.check_all_are_there()
    assert max(took.values()) <= STOPS_WITHIN_S, took
    assert messages > 100
    assert not again


WAITING_SESSIONS = (
    "SELECT client_port FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def stop_at_work(system: System, service: str, sku: str) -> None:
    """SIGTERM a replica that is in the middle of a batch; return when it has finished that and is gone.

    It is whichever replica has a batch: one of them may get all messages of a queue while it has room. Orders of `sku`
    give work to all but the catalog, which hears of its availability.
    """
    logs = {child.name: child.log for child in system.supervisor.children if child.service == service}
    logged = {name: log.stat().st_size for name, log in logs.items()}

    def at_work() -> str | None:
        waiting = {row["client_port"] for row in system.databases.rows(service, WAITING_SESSIONS)}
        return next((name for name, pid in system.replicas_of(service).items() if waiting & ports_of(pid)), None)

    with system.databases.connect(service) as connection:
        holding = connection.execution_options(isolation_level="READ COMMITTED")
        with holding.begin():
            # Every transaction of a batch begins by writing into it.
            holding.execute(text("LOCK TABLE consumed_messages IN SHARE ROW EXCLUSIVE MODE"))
            told = system.flow().send("POST", "/api/inventory/reconcile", {"skus": [sku]}, user="admin")
            assert told.json()["told"] == 1
            name = eventually(at_work, bool, otherwise=f"no replica of {service} is in the middle of a batch")
            process = Process.of(system.replicas_of(service)[name])
            assert process is not None
            process.send(signal.SIGTERM)
            eventually(
                lambda: b"stopping on SIGTERM" in logs[name].read_bytes()[logged[name] :],
                bool,
                otherwise=f"{name} does not stop",
            )
    assert wait_until(lambda: not process.alive(), STOPS_WITHIN_S), f"{name} does not stop"


def test_a_stopping_replica_finishes_its_messages_and_none_is_delivered_again(
    system: System,
) -> None:
    before = settled(system)
    with Load(system, customers=2) as load:
        for service in CONSUMERS:
            load.wait_for(5)
            stop_at_work(system, service, load.sku)
        load.wait_for(5)
    system.wait_ready()
    system.wait_quiet()
    messages, again = grown(before, settled(system))
    load.check_all_are_there()
    assert messages > 0
    assert not again
