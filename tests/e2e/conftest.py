"""End-to-end tests drive real processes through real HTTP, and read their books afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.e2e.broker import Tap
from tests.e2e.system import System

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


@pytest.fixture(scope="package")
def system(servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Every service with two replicas; at the end nothing is left and no log holds a fault."""
    refuse_patched_process()
    system = System(tmp_path_factory.mktemp("e2e-logs"), PROVIDER_TIMEOUT_S="1", PROVIDER_OPEN_S="1")
    system.start()
    yield system
    wrong = system.stop(ALLOWED_IN_LOGS)
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(autouse=True)
def agreement(system: System) -> Iterator[None]:
    """After every test all orders are at rest and all books agree."""
    yield
    system.wait_quiet()


@pytest.fixture
def tap(system: System) -> Iterator[Tap]:
    """Hears every event."""
    tap = Tap(system.amqp_uri)
    yield tap
    tap.close()
