"""The broker or the database is away for a while: orders wait, nothing dies, and work goes on when it is back."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from ops.processes import wait_until
from ops.servers import Server, Servers
from tests.chaos.load import Load
from tests.e2e.system import System, eventually

# At full size an outage or a load lasts minutes.
pytestmark = pytest.mark.timeout(600)

RECOVERED_WITHIN_S = 10.0
OUTAGE_S = 15.0


def pass_time(seconds: float) -> None:
    """An outage lasts so long: there is nothing to wait for but the clock."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 1)


def assert_recovered(system: System, load: Load) -> float:
    """Every service is ready soon after the outage, and posts are accepted: after how many seconds."""
    began = time.monotonic()
    load.wait_for(3)
    accepted = time.monotonic() - began
    took = accepted + system.wait_ready(30)
    refused = dict(Counter(load.refused))
    print(f"\nposts accepted {accepted:.1f} s and all ready {took:.1f} s after it was back; repeats {refused}")
    assert took <= RECOVERED_WITHIN_S, system.troubles()
    return took


def server_of(machines: Servers, name: str) -> Server:
    server = machines.broker if name == "broker" else machines.postgres
    assert server is not None
    return server


@pytest.mark.parametrize("name", ["broker", "database"])
def test_a_server_that_is_killed_and_started_again_loses_nothing(system: System, machines: Servers, name: str) -> None:
    server = server_of(machines, name)
    with Load(system) as load:
        load.wait_for(20)
        server.kill()
        server.start()
        assert_recovered(system, load)
        load.wait_for(20)
    # Who was waiting for an answer when it died was told so, and not left to the 10 s of an RPC.
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
        server.pause()
        try:
            eventually(lambda: set(system.troubles()), lambda names: names >= hurt_by(name), OUTAGE_S + 15)
            pass_time(OUTAGE_S * (2 if long else 0))
        finally:
            server.resume()
        assert_recovered(system, load)
        load.wait_for(20)
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()


def hurt_by(name: str) -> set[str]:
    """Replicas that cannot work without it, and must say so."""
    services = ["order", "inventory", "payment"]
    return {f"{service}-{replica}" for service in services for replica in range(2)}


def test_orders_wait_for_a_database_that_is_away(system: System, machines: Servers, long: bool) -> None:
    server = server_of(machines, "database")
    with Load(system) as load:
        load.wait_for(30)
        server.stop()
        away = time.monotonic()
        eventually(lambda: set(system.troubles()), lambda names: names >= hurt_by("database"), 15)
        pass_time(OUTAGE_S * (4 if long else 1) - (time.monotonic() - away))
        assert not any(system.dead_letters().values())
        server.start()
        assert_recovered(system, load)
        load.wait_for(20)
    system.wait_quiet(60)
    load.check_all_are_there()
    load.check_refusals()
