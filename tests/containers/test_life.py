"""A stack of containers goes on when a container is killed, a server is restarted, a secret is wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.containers.customers import Customers
from tests.containers.engine import say
from tests.containers.figures import Figures, memory_mb, processor_seconds, seconds_to_start
from tests.containers.site import Site, eventually
from topology.services import NAMES

START_S = 3.0  # of a processor: how long that takes, other work of the machine decides
MEMORY_MB = 512.0  # what deploy/k8s gives most of them
GRACE_S = 40.0  # stop_grace_period of docker-compose.yml
KILLED = 137

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def started(site: Site) -> None:
    """The stack of a developer, who tries it out."""
    site.run("python3 deploy/make_secrets.py")
    site.set("ECOM_ENV", "development")
    site.compose("up --wait")


def all_healthy(site: Site, patience_s: float = 120.0) -> None:
    for name in ("rabbitmq", "postgres", *NAMES):
        eventually(lambda: site.health(name), lambda found: found and set(found) == {"healthy"}, patience_s)  # noqa: B023


def test_an_order_is_paid(site: Site) -> None:
    flow = site.flow()
    flow.stock("first", 10)
    assert flow.at_rest(flow.order("first")["order_id"])["status"] == "PAID"


@pytest.mark.parametrize("name", NAMES)
def test_a_container_that_is_killed_comes_back_and_no_order_is_lost(site: Site, name: str) -> None:
    (container,) = site.containers(name)
    before = site.inspect(container)["RestartCount"]
    with Customers(site) as customers:
        # `docker kill` is a person's wish, after which no engine restarts a container.
        kill_from_outside(site, container)
        eventually(lambda: site.inspect(container)["RestartCount"], lambda n: n > before, 60)
        eventually(lambda: site.health(name), lambda found: found == ["healthy"], 60)
        seen = len(customers.orders)
        eventually(lambda: len(customers.orders), lambda n: n > seen + 20)
    say(f"{name} killed: {customers.summary()}")
    customers.check()


def kill_from_outside(site: Site, container: str) -> None:
    """SIGKILL the first process of a container, as the kernel does when memory is short."""
    os.kill(site.inspect(container)["State"]["Pid"], signal.SIGKILL)


@pytest.mark.parametrize("name", ["rabbitmq", "postgres"])
def test_a_server_that_is_restarted_loses_no_order(site: Site, name: str) -> None:
    with Customers(site) as customers:
        site.compose(f"restart {name}")
        all_healthy(site)
        seen = len(customers.orders)
        eventually(lambda: len(customers.orders), lambda n: n > seen + 20)
    say(f"{name} restarted: {customers.summary()}")
    customers.check()


def test_two_containers_of_a_service_share_its_orders(site: Site) -> None:
    site.compose("up --wait --scale order=2")
    assert len(site.containers("order")) == 2
    with Customers(site) as customers:
        eventually(lambda: len(customers.orders), lambda n: n > 100)
    customers.check()
    for container in site.containers("order"):
        said = site.run(f"docker exec {container} ecom --version")
        assert site.version in said
    site.compose("up --wait --scale order=1")


def test_the_data_outlives_the_containers(site: Site) -> None:
    flow = site.flow()
    flow.stock("kept", 3)
    order = flow.order("kept")["order_id"]
    assert flow.at_rest(order)["status"] == "PAID"
    site.compose("down")
    site.compose("up --wait")
    flow = site.flow()
    assert flow.get(f"/api/orders/{order}")["status"] == "PAID"
    assert flow.get("/api/stocks/kept")["on_hand"] == 2


def test_a_wrong_password_is_named_by_the_service_that_has_it_and_hurts_no_other(site: Site) -> None:
    flow = site.flow()
    flow.stock("patient", 1)
    with wrong_password(site, "payment"):
        eventually(lambda: site.compose("logs --no-color payment"), lambda log: "password authentication failed" in log)
        assert site.health("payment") != ["healthy"]
        order = flow.order("patient")["order_id"]
        eventually(lambda: flow.get(f"/api/orders/{order}")["status"], lambda status: status == "RESERVED")
    assert flow.at_rest(order, 60)["status"] == "PAID"


@contextmanager
def wrong_password(site: Site, name: str) -> Iterator[None]:
    """Start a service with a password that its database refuses; afterwards with the right one."""
    path = site.folder / f"deploy/secrets/{name}_database_url"
    right = path.read_text()
    path.write_text(right.replace(right.rpartition("@")[0][-8:], "00000000"))
    try:
        site.compose(f"up --detach --no-deps --force-recreate {name}")
        yield
    finally:
        path.write_text(right)
        site.compose(f"up --wait --no-deps --force-recreate {name}")


def test_every_service_keeps_within_its_memory_under_load(site: Site, figures: Figures) -> None:
    with Customers(site) as customers:
        eventually(lambda: len(customers.orders), lambda n: n > 200)
        used = memory_mb(site)
    for name, megabytes in used.items():
        figures.note(name, "memory", f"{megabytes:.0f} MB")
    assert {name: used[name] for name in NAMES if used[name] > MEMORY_MB} == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_service_stops_within_its_grace_period_under_load_and_starts_with_three_seconds_of_a_processor(
    site: Site, figures: Figures, name: str
) -> None:
    (container,) = site.containers(name)
    with Customers(site) as customers:
        began = time.monotonic()
        site.compose(f"stop {name}")
        stopped_s = time.monotonic() - began
        assert site.inspect(container)["State"]["ExitCode"] != KILLED
        assert stopped_s < GRACE_S
        started_s = seconds_to_start(site, container)
        used_s = processor_seconds(site, container)
    customers.check()
    figures.note(name, "stop", f"{stopped_s:.1f} s")
    figures.note(name, "start", f"{started_s:.1f} s, {used_s:.1f} s of a processor")
    assert used_s < START_S
