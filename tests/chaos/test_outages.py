"""The broker or the database is away for a while: orders wait, nothing dies, and work goes on when it is back."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from functools import partial
from statistics import median

import pytest
import requests
from sqlalchemy import text

from auth_service import records
from ops.local.processes import wait_until
from ops.local.servers import Server, Servers
from tests.chaos.load import Load
from tests.e2e.signed_in import add_user, signed_in
from tests.e2e.system import System, eventually
from tests.e2e.test_sessions import change_by_hand, let_in
from topology.table import QUEUES

# At full size an outage or a load lasts minutes.
pytestmark = pytest.mark.timeout(1200)

RECOVERED_WITHIN_S = 10.0
DATABASE_AWAY_S, DATABASE_AWAY_LONG_S = 60.0, 600.0
BROKER_FROZEN_LONG_S = 60.0
# A replica drops a silent broker after two heartbeats, and must then reconnect.
NOTICED_WITHIN_S = 30.0


def pass_time(until: float) -> None:
    """An outage lasts so long: there is nothing to wait for but the clock."""
    wait_until(lambda: time.monotonic() >= until, max(0.0, until - time.monotonic()) + 1)


def assert_recovered(system: System, load: Load) -> None:
    """From now on, as the server answers again: all are ready and a new order is paid within RECOVERED_WITHIN_S."""
    began = time.monotonic()
    pids = system.supervisor.pids()
    key = f"after-{uuid.uuid4().hex}"
    order_id = eventually(lambda: post(system, load.sku, key), lambda posted: posted is not None)
    load.accepted[key] = order_id
    accepted = time.monotonic() - began
    eventually(lambda: status_of(system, order_id), lambda status: status == "PAID")
    paid = time.monotonic() - began
    system.wait_ready(30)
    took = time.monotonic() - began
    repeats = dict(Counter(load.refused))
    print(f"\nafter it was back: order accepted {accepted:.1f} s, paid {paid:.1f} s, all ready {took:.1f} s; {repeats}")
    assert took <= RECOVERED_WITHIN_S, system.troubles()
    assert system.supervisor.pids() == pids


def post(system: System, sku: str, key: str) -> str | None:
    try:
        return str(system.flow().order(sku, key=key)["order_id"])
    except requests.RequestException:
        return None


def status_of(system: System, order_id: str) -> str:
    (row,) = system.databases.rows("order", "SELECT status FROM orders WHERE order_id = :id", id=order_id)
    return str(row["status"])


def server_of(machines: Servers, name: str) -> Server:
    server = machines.broker if name == "broker" else machines.postgres
    assert server is not None
    return server


LOCKED_S, LOCKED_LONG_S = 12.0, 60.0
OPERATOR_TOLD_WITHIN_S = 10.0


def test_a_locked_row_holds_up_its_own_orders_and_the_operator_is_told_whose_session_holds_it(
    system: System, long: bool
) -> None:
    flow, skus = system.flow(), [f"lock-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for sku in skus:
        flow.stock(sku, 1000)
    locked, free = skus
    usual = [seconds_to_be_paid(system, free) for _ in range(5)]
    engine = system.databases.engines["inventory"].execution_options(isolation_level="READ COMMITTED")
    with engine.connect() as somebody:
        row = text("SELECT pg_backend_pid() FROM stock_items WHERE sku = :sku FOR UPDATE")
        pid = somebody.execute(row, {"sku": locked}).scalar_one()
        began = time.monotonic()
        waiting = [str(flow.order(locked)["order_id"]) for _ in range(3)]
        wanted = f"stock_items sku={locked}, held by PostgreSQL session {pid}"
        eventually(lambda: warnings(system), lambda said: wanted in said, OPERATOR_TOLD_WITHIN_S)
        told = time.monotonic() - began
        took = []
        while time.monotonic() - began < (LOCKED_LONG_S if long else LOCKED_S):
            waiting.append(str(flow.order(locked)["order_id"]))
            took.append(seconds_to_be_paid(system, free))
        assert {status_of(system, order_id) for order_id in waiting} == {"PENDING"}
        assert max(oldest_unsettled(system)) > 5
    for order_id in waiting:
        eventually(partial(status_of, system, order_id), lambda status: status == "PAID")
    print(
        f"\nrow locked: told after {told:.1f} s; {len(took)} others paid, median {median(took):.2f} s,"
        f" longest {max(took):.2f} s; before, median {median(usual):.2f} s; {len(waiting)} held up"
    )
    assert median(took) < median(usual) + 0.5, (took, usual)


def seconds_to_be_paid(system: System, sku: str) -> float:
    began = time.monotonic()
    order_id = str(system.flow().order(sku)["order_id"])
    eventually(lambda: status_of(system, order_id), lambda status: status == "PAID")
    return time.monotonic() - began


def warnings(system: System) -> str:
    """What every replica of inventory_service warns of in /readyz."""
    answers = [requests.get(f"{system.url('inventory', replica)}/readyz", timeout=5) for replica in range(2)]
    assert {answer.status_code for answer in answers} == {200}
    return "\n".join(warning for answer in answers for warning in answer.json()["warnings"])


def oldest_unsettled(system: System) -> list[float]:
    """The gauge of each replica of inventory_service, for the queue of new orders."""
    name = 'ecom_oldest_unsettled_seconds{queue="q.inventory.order-created"} '
    pages = [requests.get(f"{system.url('inventory', replica)}/metrics", timeout=5).text for replica in range(2)]
    return [float(line.removeprefix(name)) for page in pages for line in page.splitlines() if line.startswith(name)]


@pytest.mark.parametrize("name", ["broker", "database"])
def test_a_server_that_is_killed_and_started_again_loses_nothing(system: System, machines: Servers, name: str) -> None:
    server = server_of(machines, name)
    with Load(system) as load:
        load.wait_for(20)
        server.kill()
        server.start()
        assert_recovered(system, load)
        load.wait_for(20)
    # A client that waited for an answer when it died got an error at once, not after the 10 s of an RPC.
    assert load.longest_s < 8, load.longest_s
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()


@pytest.mark.parametrize("name", ["broker", pytest.param("database", marks=pytest.mark.long)])
def test_a_server_that_freezes_and_goes_on_loses_nothing(
    system: System, machines: Servers, name: str, long: bool
) -> None:
    server = server_of(machines, name)
    with Load(system) as load:
        load.wait_for(20)
        frozen = time.monotonic()
        server.pause()
        try:
            eventually(lambda: unaware(system, name), lambda names: not names, NOTICED_WITHIN_S, "unaware")
            if long:
                pass_time(frozen + BROKER_FROZEN_LONG_S)
        finally:
            server.resume()
        assert_recovered(system, load)
        load.wait_for(20)
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()


def unaware(system: System, name: str) -> list[str]:
    """Consumers or replicas that cannot work without this server and do not report it."""
    troubles = system.troubles()
    if name == "database":
        needing = {child.name: "database" for child in system.supervisor.children if child.service != "gateway"}
        return [replica for replica, word in needing.items() if word not in troubles.get(replica, "")]
    names = [child.name for child in system.supervisor.children]
    # A consumer that cannot send a failed message on is paused, and reports it.
    consumers = [
        f"{queue.name} of {queue.service}-{replica}"
        for queue in QUEUES
        for replica in range(system.replicas)
        if f"{queue.name}:" not in (why := troubles.get(f"{queue.service}-{replica}", ""))
        and f"{queue.name} is paused" not in why
    ]
    return consumers + [replica for replica in names if replica not in troubles]


def test_orders_wait_for_a_database_that_is_away(system: System, machines: Servers, long: bool) -> None:
    server = server_of(machines, "database")
    outage_s = DATABASE_AWAY_LONG_S if long else DATABASE_AWAY_S
    with Load(system, outage_s=outage_s) as load:
        load.wait_for(30)
        server.stop()
        away = time.monotonic()
        eventually(lambda: unaware(system, "database"), lambda names: not names, NOTICED_WITHIN_S, "unaware")
        pass_time(away + outage_s)
        assert not any(system.dead_letters().values())
        server.start()
        assert_recovered(system, load)
        load.wait_for(20)
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()


def test_whoever_is_shut_out_while_the_broker_is_away_gets_in_nowhere_and_not_for_long_afterwards(
    system: System, machines: Servers
) -> None:
    """No gateway can hear of it without the broker. Nothing can be done without it either.

    Once the broker is back auth_service connects again, too, before it can say what was revoked.
    """
    user = f"u-{uuid.uuid4().hex[:12]}"
    add_user(system, user, "customer")
    client = signed_in(system, user)
    orders = "/api/orders"
    assert let_in(system, client.headers, orders) == [200, 200]
    server = server_of(machines, "broker")
    server.stop()
    try:
        eventually(lambda: let_in(system, client.headers, orders), lambda found: found == [503, 503])
        change_by_hand(system, user, lambda session, row: records.revoke_all(session, row, "test"))
        assert let_in(system, client.headers, orders) == [503, 503]
    finally:
        server.start()
    served = [0.0, 0.0]

    def answers() -> list[int]:
        found = let_in(system, client.headers, orders)
        for gateway, status in enumerate(found):
            if status == 200:
                served[gateway] = served[gateway] or time.monotonic()
        return found

    eventually(answers, lambda found: found == [401, 401], 30)
    late = [time.monotonic() - began for began in served if began]
    print(f"\nserved after the broker was back, before they knew: {late}")
    assert max(late, default=0.0) <= RECOVERED_WITHIN_S
    system.wait_ready(60)
