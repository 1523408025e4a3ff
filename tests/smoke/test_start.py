"""Services that start before their servers, or before those are set up: they wait, say so, and then work."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from ops.cli.migrate import migrate
from ops.local.processes import Process, wait_until
from ops.local.servers import Server, Servers
from ops.local.supervisor import Supervisor
from tests.e2e.broker import channel
from tests.e2e.system import ROOT, System, eventually, set_up
from topology.services import DATABASES, START_ORDER
from topology.table import CONSUMERS, queue_arguments

READY_WITHIN_S = 10.0
# Waiting is watched for so long. Retries come after 0.1 s, doubled to 3 s: in this time each loop makes about five.
WATCH_S = 4.0
# One line for each of a service's loops and each reason there is, and room for a reminder: not one for each try.
LINES_AT_MOST = 12

BROKER, DATABASE = "the broker is away", "the database does not answer"
NO_QUEUES, NO_TABLES = "`ecom topology apply`", "`ecom migrate`"


@dataclass
class Started:
    """The services as they were started anew, and what they have logged since."""

    system: System
    logs_began_at: Mapping[str, int]
    pids: Mapping[str, int]

    def lines(self, service: str) -> list[dict[str, Any]]:
        (child,) = [child for child in self.system.supervisor.children if child.service == service]
        text = child.log.read_bytes()[self.logs_began_at[child.name] :].decode()
        return [json.loads(line) for line in text.splitlines()]

    def check_logs(self, reasons: Mapping[str, set[str]]) -> None:
        """Every service said what it waits for, on one line each, in few lines, and as no fault of its own."""
        for service in START_ORDER:
            lines = self.lines(service)
            warnings = [line["event"] for line in lines if line["level"] == "warning"]
            shown = "\n".join(str(line) for line in lines)
            assert not [line for line in lines if line["level"] in ("error", "critical") or "exception" in line], shown
            assert not [line for line in lines if "\n" in line["event"]], shown
            assert len(lines) <= LINES_AT_MOST, shown
            assert bool(warnings) == bool(reasons.get(service)), shown

    def check_reasons(self, reasons: Mapping[str, set[str]]) -> None:
        """Every service lives, is ready if and only if it lacks nothing, and names what it lacks and nothing else."""
        for service in START_ORDER:
            url = self.system.probe_url(service)
            assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
            answer = requests.get(f"{url}/readyz", timeout=5)
            lacks = reasons.get(service, set())
            assert answer.status_code == (503 if lacks else 200), f"{service}: {answer.text}"
            said = {reason for reason in (BROKER, DATABASE, NO_QUEUES, NO_TABLES) if reason in answer.text}
            assert said == lacks, f"{service}: {answer.text}"

    def ready_after(self) -> float:
        """Seconds until all are ready, none was restarted, and a new order is paid."""
        began = time.monotonic()
        self.system.wait_ready(READY_WITHIN_S)
        assert self.system.supervisor.pids() == self.pids
        flow = Flow(self.system.url("gateway"))
        flow.stock("patient", 1)
        assert flow.at_rest(flow.order("patient")["order_id"])["status"] == "PAID"
        took = time.monotonic() - began
        assert took <= READY_WITHIN_S
        return took


def start_all_anew(system: System) -> Started:
    """SIGKILL all services; return when those that the supervisor started in their place answer."""
    before = [Process.of(pid) for pid in system.supervisor.pids().values()]
    system.kill(*system.supervisor.pids())
    assert wait_until(lambda: not any(process and process.alive() for process in before), 10)
    sizes = {child.name: child.log.stat().st_size for child in system.supervisor.children}

    def answer() -> list[str]:
        return [name for name, why in system.troubles().items() if not why.startswith("{")]

    eventually(answer, lambda names: not names, 60, "not listening")
    return Started(system, sizes, dict(system.supervisor.pids()))


@pytest.fixture
def start_without(system: System, machines: Servers) -> Iterator[Callable[[Sequence[Server]], Started]]:
    """Stops some servers and starts all services anew; all servers are there at the end."""

    def start(away: Sequence[Server]) -> Started:
        for server in away:
            server.stop()
        return start_all_anew(system)

    yield start
    for server in machines.each():
        server.start()


def watch(started: Started, reasons: Mapping[str, set[str]]) -> None:
    """For a while they say the same, and do not flood their logs with it."""
    eventually(lambda: lacking(started, reasons), lambda wrong: not wrong, 20)
    wait_until(lambda: bool(lacking(started, reasons)), WATCH_S, pause_s=0.5)
    started.check_reasons(reasons)
    assert started.system.supervisor.pids() == started.pids


def lacking(started: Started, reasons: Mapping[str, set[str]]) -> list[str]:
    """What differs from these reasons. A process opens its port anew in the moment in which its schema is there."""
    try:
        started.check_reasons(reasons)
    except (AssertionError, requests.ConnectionError) as wrong:
        return [str(wrong)]
    return []


@pytest.mark.long  # in the short run the next test does without both at once
@pytest.mark.parametrize("name", ["broker", "database"])
def test_services_started_without_a_server_wait_for_it_say_so_and_then_work(
    system: System, machines: Servers, start_without: Callable[[Sequence[Server]], Started], name: str
) -> None:
    server = machines.broker if name == "broker" else machines.postgres
    assert server is not None
    started = start_without([server])
    reasons = {service: {BROKER} for service in START_ORDER}
    if name == "database":
        reasons = {service: {DATABASE} for service in DATABASES}
    watch(started, reasons)
    started.check_logs(reasons)
    server.start()
    print(f"\nan order is paid {started.ready_after():.1f} s after the {name} was there")


def test_services_started_before_everything_work_once_servers_tables_and_queues_are_there(
    system: System, machines: Servers, start_without: Callable[[Sequence[Server]], Started]
) -> None:
    for service in DATABASES:
        system.databases.run(service, "DROP SCHEMA public CASCADE")
        system.databases.run(service, "CREATE SCHEMA public AUTHORIZATION pg_database_owner")
    with channel(system.amqp_uri) as opened:
        for queue in queue_arguments():
            opened.queue_delete(queue)
    started = start_without(machines.each())
    # Before its schema is there a service asks for nothing else.
    nothing = {service: {DATABASE} if service in DATABASES else {BROKER} for service in START_ORDER}
    watch(started, nothing)
    started.check_logs(nothing)

    for server in machines.each():
        server.start()
    empty = {service: {NO_TABLES} for service in DATABASES}
    eventually(lambda: lacking(started, empty), lambda wrong: not wrong, READY_WITHIN_S)

    migrate(system.settings)
    no_queues = {service: {NO_QUEUES} for service in CONSUMERS}
    eventually(lambda: lacking(started, no_queues), lambda wrong: not wrong, READY_WITHIN_S)

    set_up()
    print(f"\nan order is paid {started.ready_after():.1f} s after all was set up")
    assert not system.faults()


def test_servers_that_are_killed_are_started_again_on_their_ports_and_data(system: System, machines: Servers) -> None:
    flow = Flow(system.url("gateway"))
    flow.stock("survivor", 5)
    for server in machines.each():
        if server.popen is None:  # nobody is told of the death of a process that another one started
            server.restart()
    system.wait_ready()
    pids, ports = system.supervisor.pids(), [server.port for server in machines.each()]
    heard: list[str] = []
    keeper = Supervisor([], lambda child: [], os.environ, ROOT, heard.append, servers=machines.each())
    for server in machines.each():
        assert server.process
        server.process.send(signal.SIGKILL)

    def back() -> bool:
        keeper.run_once()
        return len(heard) >= 2 and all(server.answers() for server in machines.each())

    assert wait_until(back, 60), heard
    assert sorted(heard) == [f"{name} died (signal SIGKILL); restarting at once" for name in ("PostgreSQL", "RabbitMQ")]
    assert [server.port for server in machines.each()] == ports
    system.wait_ready()
    assert flow.at_rest(flow.order("survivor")["order_id"])["status"] == "PAID"
    assert system.supervisor.pids() == pids
