"""Nobody needs to start services and servers in an order: what lacks another waits for it, in the same process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import requests

from ops.local.servers import Servers
from tests.e2e.system import eventually
from tests.upgrade import journeys
from tests.upgrade.conftest import StartFleet
from tests.upgrade.fleet import Fleet
from tests.upgrade.versions import NOW

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

# What starts together, one after the other.
BY_HAND = (
    ("gateway",),
    ("order", "postgres"),
    ("broker",),
    ("inventory",),
    ("payment",),
    ("catalog",),
    ("auth",),
    ("ops",),
)
ORDERS = {
    "by hand": BY_HAND,
    "reversed": BY_HAND[::-1],
    "at once": (tuple(name for names in BY_HAND for name in names),),
}


@pytest.fixture
def machines() -> Iterator[Servers]:
    """The broker and the database server, which run again at the end."""
    machines = Servers.attach(os.environ["ECOM_TEST_STACK"])
    yield machines
    for server in machines.each():
        server.start()


def lives(fleet: Fleet, service: str) -> bool:
    """Whether the process of a service answers."""
    (child,) = fleet.children_of(service)
    try:
        return requests.get(f"{child.probe_url}/healthz", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_services_started_in_any_order_become_ready_without_a_restart(
    start_fleet: StartFleet, machines: Servers, order: tuple[tuple[str, ...], ...]
) -> None:
    fleet = start_fleet(NOW, replicas=1)
    for child in fleet.supervisor.children:
        fleet.remove(child)
    for server in machines.each():
        server.stop()
    servers = {"broker": machines.broker, "postgres": machines.postgres}
    for names in order:
        services = [name for name in names if name not in servers]
        for service in services:
            fleet.add(service, NOW)
        for name in names:
            if server := servers.get(name):
                server.start()
        for service in services:
            eventually(lambda: lives(fleet, service), bool)  # noqa: B023
    fleet.serve()
    journeys.checkout(fleet)
    fleet.check()
