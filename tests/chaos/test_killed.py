"""Processes that die in the middle of their work."""

from __future__ import annotations

import random
import re
import signal
import time

import pytest
import requests

from ops.processes import Process, wait_until
from ops.supervisor import SERVICES
from tests.chaos.load import Load
from tests.e2e.held import held
from tests.e2e.system import System, eventually

# At full size an outage or a load lasts minutes.
pytestmark = pytest.mark.timeout(600)

# SIGTERM: what is in work is finished and the rest handed back.
STOPS_WITHIN_S = 10.0


def unpublished(system: System, service: str, order_id: str) -> list[str]:
    statement = "SELECT event_type FROM outbox WHERE aggregate_id = :id AND published_at IS NULL ORDER BY id"
    return [row["event_type"] for row in system.databases.rows(service, statement, id=order_id)]


@pytest.mark.parametrize(
    ("service", "payment", "committed", "end"),
    [
        ("order", "mock_ok", ["order.created"], "PAID"),
        ("inventory", "mock_ok", ["inventory.reserved"], "PAID"),
        ("payment", "mock_ok", ["payment.succeeded"], "PAID"),
        ("payment", "mock_declined", ["payment.failed"], "CANCELLED"),
    ],
)
def test_a_service_killed_after_its_commit_and_before_its_publish_loses_nothing(
    system: System, service: str, payment: str, committed: list[str], end: str
) -> None:
    flow = system.flow()
    flow.stock("killed", 100)
    with held(system.databases, service):
        order_id = flow.order("killed", 2, payment=payment)["order_id"]
        eventually(lambda: unpublished(system, service, order_id), lambda types: types == committed)
        system.kill_service(service)
        # Those that were started again have not published it either: the event is in the database alone.
        assert unpublished(system, service, order_id) == committed
    assert flow.at_rest(order_id)["status"] == end


def test_replicas_killed_at_random_under_load_lose_nothing(system: System, long: bool) -> None:
    chance = random.Random(20260114)
    killed = 0
    with Load(system) as load:
        until = time.monotonic() + (120 if long else 10)
        while time.monotonic() < until:
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
    assert killed >= 3


def test_leading_replicas_that_freeze_hold_nothing_up_for_good_and_do_no_harm_when_they_go_on(system: System) -> None:
    leaders = [leader_of(system, service) for service in ("order", "inventory", "payment")]
    with Load(system, customers=2) as load:
        load.wait_for(10)
        frozen = [process for pid in leaders if (process := Process.of(pid))]
        for process in frozen:
            process.send(signal.SIGSTOP)
        try:
            # The server ends a silent leader's session after 10 s, the broker a silent consumer's soon after.
            flow = system.flow()
            flow.stock("thawed", 10)
            order_id = eventually(lambda: post_patiently(system, "thawed"), lambda found: found is not None, 60)
            assert eventually(lambda: order_of(system, order_id), lambda status: status == "PAID", 60)
            assert all(process.alive() for process in frozen)
        finally:
            for process in frozen:
                process.send(signal.SIGCONT)
    system.wait_ready()
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()


def leader_of(system: System, service: str) -> int:
    def leaders() -> list[str]:
        return [name for name in system.replicas_of(service) if metric(system, name, "ecom_outbox_leader") == 1]

    (name,) = eventually(leaders, lambda names: len(names) == 1)
    return system.replicas_of(service)[name]


def metric(system: System, name: str, metric_name: str) -> float | None:
    service, _, replica = name.rpartition("-")
    text = requests.get(f"{system.url(service, int(replica))}/metrics", timeout=5).text
    found = re.search(rf"^{metric_name}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def post_patiently(system: System, sku: str) -> str | None:
    try:
        return system.flow().order(sku, key=f"patient-{sku}")["order_id"]
    except requests.RequestException:
        return None


def order_of(system: System, order_id: str) -> str:
    (row,) = system.databases.rows("order", "SELECT status FROM orders WHERE order_id = :id", id=order_id)
    return row["status"]


def test_replicas_that_are_asked_to_stop_under_load_do_so_in_time_and_lose_nothing(system: System) -> None:
    took = {}
    with Load(system) as load:
        for service in SERVICES:
            load.wait_for(5)
            name, pid = sorted(system.replicas_of(service).items())[0]
            process = Process.of(pid)
            assert process is not None
            began = time.monotonic()
            process.send(signal.SIGTERM)
            assert wait_until(lambda: not process.alive(), 20), f"{name} does not stop"  # noqa: B023
            took[service] = round(time.monotonic() - began, 1)
    print(f"\nstopped after {took}; {len(load.accepted)} orders, {len(load.refused)} repeated: {set(load.refused)}")
    system.wait_quiet()
    load.check_all_are_there()
    assert max(took.values()) <= STOPS_WITHIN_S, took
