"""End-to-end tests drive real processes through real HTTP, and read their books afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.e2e.broker import Tap
from tests.e2e.system import System, Systems

# What the tests here provoke, and the services are right to write down.
ALLOWED_IN_LOGS = (r"ProviderTimeout",)


def refuse_patched_process() -> None:
    """Real threads and blocking sockets do not belong in a process patched by eventlet: it hangs."""
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("socket"):
        pytest.fail(
            "tests/e2e and tests/chaos run in a pytest of their own, not patched by eventlet: `make test` keeps them"
            " apart from tests/unit and tests/integration",
            pytrace=False,
        )


def two_of_each(systems: Systems) -> System:
    """Every service with two replicas, quick to notice a silent broker or provider."""
    refuse_patched_process()
    return systems.like(2, AMQP_HEARTBEAT_S="5", PROVIDER_TIMEOUT_S="1", PROVIDER_OPEN_S="1")


@pytest.fixture(scope="package")
def system(systems: Systems) -> Iterator[System]:
    """Every service with two replicas; at the end no log holds a fault."""
    system = two_of_each(systems)
    yield system
    wrong = system.faults(ALLOWED_IN_LOGS)
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(autouse=True)
def agreement(system: System) -> Iterator[None]:
    """After every test all orders are at rest and all books agree."""
    yield
    system.wait_quiet()


@pytest.fixture
def tap(system: System) -> Iterator[Tap]:
    """A tap that gets every event."""
    tap = Tap(system.amqp_uri)
    yield tap
    tap.close()
