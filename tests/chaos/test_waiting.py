"""A thousand clients wait at one gateway: their cost, the delay of their answers, and the faults they survive."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime

import psutil
import pytest

from ops.local.processes import Process, wait_until
from ops.local.servers import Servers
from tests.chaos.crowd import Crowd, Heard
from tests.chaos.test_killed import metric
from tests.e2e.broker import channel
from tests.e2e.held import held
from tests.e2e.system import System, eventually
from topology.table import HINTS_EXCHANGE

pytestmark = pytest.mark.timeout(600)

STOPS_WITHIN_S = 10.0
TOLD_WITHIN_S = 1.0
WAITS_S = 25  # the longest there is
PAID_WITHIN_S = 8.0
# A lost hint costs a second.
TOLD_WITHOUT_HINTS_WITHIN_S = 2.0


@pytest.fixture
def clients(long: bool) -> int:
    return 1000 if long else 100


def post(system: System, count: int) -> list[str]:
    """So many orders, posted by four customers at once."""
    system.flow().stock("waiting", 100_000)

    def shop(share: int) -> list[str]:
        flow = system.flow(share % system.replicas)
        return [flow.order("waiting")["order_id"] for _ in range(count // 4)]

    with ThreadPoolExecutor(4) as threads:
        return [order_id for posted in threads.map(shop, range(4)) for order_id in posted]


def all_are(system: System, status: str, order_ids: list[str]) -> None:
    statement = "SELECT count(*) AS n FROM orders WHERE order_id = ANY(CAST(:ids AS uuid[])) AND status <> :status"

    def others() -> int:
        return int(system.databases.rows("order", statement, ids=order_ids, status=status)[0]["n"])

    eventually(others, lambda n: n == 0, 120, f"not {status}")


def crowd_at(system: System, replica: int) -> Crowd:
    return Crowd(system.url("gateway", replica), system.flow().token("customer"))


def waits(order_ids: list[str]) -> list[str]:
    return [f"/api/orders/{order_id}?wait=PAID,CANCELLED&timeout={WAITS_S}" for order_id in order_ids]


def memory_of(system: System, name: str) -> int:
    """A process's resident memory in kB."""
    return int(psutil.Process(system.supervisor.pids()[name]).memory_info().rss) // 1024


def connections_of(system: System, name: str) -> int:
    process = psutil.Process(system.supervisor.pids()[name])
    port = system.settings.port("gateway", int(name[-1]))
    return sum(1 for item in process.net_connections("tcp") if item.laddr.port == port and item.status == "ESTABLISHED")


def lateness(heard: list[Heard]) -> list[float]:
    """How long after each order's change its client had the answer, in seconds; the latest last."""
    return sorted(item.at - datetime.fromisoformat(item.body["updated_at"]).timestamp() for item in heard)


@contextmanager
def without_hints(system: System) -> Iterator[None]:
    """No hint reaches a gateway: its queue is bound to an exchange that is gone; a new one has the old one's name."""
    with channel(system.amqp_uri) as opened:
        opened.exchange_delete(HINTS_EXCHANGE)
        opened.exchange_declare(HINTS_EXCHANGE, "fanout", durable=True)
    try:
        yield
    finally:
        system.kill_service("gateway")  # new ones bind new queues


@pytest.mark.parametrize("hints", [True, False], ids=["with hints", "without hints"])
def test_all_waiting_clients_are_answered_soon_after_the_change(system: System, clients: int, hints: bool) -> None:
    limit = TOLD_WITHIN_S if hints else TOLD_WITHOUT_HINTS_WITHIN_S
    with ExitStack() as around:
        if not hints:
            around.enter_context(without_hints(system))
        with held(system.databases, "payment"):
            order_ids = post(system, clients)
            all_are(system, "RESERVED", order_ids)
            crowd = around.enter_context(crowd_at(system, 0))
            before, connections = memory_of(system, "gateway-0"), connections_of(system, "gateway-0")
            asked_at = time.monotonic()
            crowd.ask(waits(order_ids))
            eventually(lambda: connections_of(system, "gateway-0"), lambda n: n >= connections + clients)
            # Others are served meanwhile.
            assert system.flow(0).get(f"/api/orders/{order_ids[0]}")["status"] == "RESERVED"
            system.flow(0).stock("meanwhile", 1)
            with_all = memory_of(system, "gateway-0")
            assert time.monotonic() - asked_at < 20, "so long that the first would not wait any more"
        heard = crowd.answers()
    late = lateness(heard)
    each = (with_all - before) / clients
    print(f"\n{clients} clients: {before} kB before, {with_all} kB with them, {each:.1f} kB each")
    print(f"told after {late[len(late) // 2]:.3f} s (median), {late[-1]:.3f} s (latest)")
    assert {(item.status, item.body["status"]) for item in heard} == {(200, "PAID")}
    assert [item.body["order_id"] for item in heard] == order_ids
    assert late[-1] <= limit


def test_a_stopping_gateway_answers_all_waiting_clients(system: System, clients: int) -> None:
    with held(system.databases, "payment"):
        order_ids = post(system, 20)
        all_are(system, "RESERVED", order_ids)
        connections = connections_of(system, "gateway-0")
        with crowd_at(system, 0) as crowd:
            crowd.ask(waits(order_ids * (clients // 20)))
            crowd.ask([f"/api/orders/{order_id}/events" for order_id in order_ids])
            eventually(lambda: connections_of(system, "gateway-0"), lambda n: n >= connections + clients + 20)
            # The last of them may still be at the door.
            assert system.flow(0).get(f"/api/orders/{order_ids[0]}")["status"] == "RESERVED"
            process = Process.of(system.supervisor.pids()["gateway-0"])
            assert process is not None
            began = time.monotonic()
            process.send(signal.SIGTERM)
            assert wait_until(lambda: not process.alive(), 30), "it does not stop"
            took = time.monotonic() - began
            heard = crowd.answers()
    print(f"\nstopped after {took:.1f} s with {clients} waiting clients and 20 streams")
    assert {item.status for item in heard} == {200}
    assert {item.body["status"] for item in heard[:clients]} == {"RESERVED"}
    assert all("event: order.created" in item.body for item in heard[clients:])
    assert took <= STOPS_WITHIN_S


def all_wait(system: System, clients: int) -> None:
    """Return when so many clients wait at the first gateway: later kills meet waiting clients."""
    eventually(lambda: metric(system, "gateway-0", "ecom_waiting_clients"), lambda count: count == clients)


def test_a_waiting_client_gets_the_payment_after_a_restart_of_the_broker(system: System, machines: Servers) -> None:
    assert machines.broker is not None
    with held(system.databases, "payment"):
        order_ids = post(system, 40)
        all_are(system, "RESERVED", order_ids)
        crowd = crowd_at(system, 0)
        asked_at = time.time()
        crowd.ask(waits(order_ids))
        all_wait(system, len(order_ids))
        machines.broker.kill()
        machines.broker.start()
        system.wait_ready()
        left_s = asked_at + WAITS_S - time.time()
    with crowd:
        heard = crowd.answers()
    assert {item.status for item in heard} == {200}
    # On a machine so slow that their time is over, they are answered with what is known.
    assert {item.body["status"] for item in heard} <= ({"PAID"} if left_s > PAID_WITHIN_S else {"PAID", "RESERVED"})


def test_a_waiting_client_gets_the_payment_after_the_order_service_was_killed(system: System) -> None:
    with held(system.databases, "payment"):
        order_ids = post(system, 40)
        all_are(system, "RESERVED", order_ids)
        crowd = crowd_at(system, 0)
        crowd.ask(waits(order_ids))
        all_wait(system, len(order_ids))
        system.kill(*system.replicas_of("order"))
    with crowd:
        heard = crowd.answers()
    assert {item.status for item in heard} == {200}, "never an error: what is known at the end is an answer"
    assert {item.body["status"] for item in heard} <= {"PAID", "RESERVED"}
    all_are(system, "PAID", order_ids)


def test_connections_of_clients_that_hang_up_are_closed(system: System) -> None:
    with held(system.databases, "payment"):
        order_ids = post(system, 40)
        all_are(system, "RESERVED", order_ids)
        gateway = psutil.Process(system.supervisor.pids()["gateway-0"])
        files, connections = gateway.num_fds(), connections_of(system, "gateway-0")
        with crowd_at(system, 0) as crowd:
            crowd.ask(waits(order_ids) + [f"/api/orders/{order_id}/events" for order_id in order_ids])
            eventually(lambda: connections_of(system, "gateway-0"), lambda n: n >= connections + 80)
            assert gateway.num_fds() >= files + 40
        # Half of them would wait for 25 s, half for ever.
        eventually(gateway.num_fds, lambda n: n <= files + 5, 15, "files are open")
