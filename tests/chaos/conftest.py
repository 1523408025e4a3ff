"""Chaos tests kill, stop and freeze what the end-to-end tests leave in peace; on processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ops.servers import Servers
from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import System, eventually

# What an outage makes the services write down: a timer's run that could not be; and a fault that a test puts into a
# database. CRITICAL is never allowed.
ALLOWED_IN_LOGS = (r"ProviderTimeout", r"CannotWork: the database is away", r"test_fault")

CENSUS_WITHIN_S = 120.0  # a message may be on its way into a DLQ for 60 s before it is missed there


@pytest.fixture(scope="package")
def outage_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While it exists the payment provider answers nobody."""
    return tmp_path_factory.mktemp("provider") / "down"


@pytest.fixture(scope="package")
def system(servers: None, tmp_path_factory: pytest.TempPathFactory, outage_file: Path, long: bool) -> Iterator[System]:
    """Every service with two replicas, quick to notice a silent broker or provider."""
    refuse_patched_process()
    system = System(
        tmp_path_factory.mktemp("chaos-logs"),
        AMQP_HEARTBEAT_S="5",
        PAYMENT_MODE=f"down_while:{outage_file}",
        PROVIDER_TIMEOUT_S="1",
        PROVIDER_OPEN_S="1",
    )
    system.full_size = long
    system.start()
    yield system
    system.wait_ready()
    # An operator who was killed left this to the census; it takes its time, most of which has passed by now.
    eventually(lambda: written_down_as_dead(system), lambda rows: rows == 0, CENSUS_WITHIN_S, "written down as dead")
    wrong = system.stop(ALLOWED_IN_LOGS)
    assert not wrong, "\n".join(wrong[:20])


def written_down_as_dead(system: System) -> int:
    """How many messages are written down as lying in a DLQ."""
    statement = "SELECT count(*) AS times FROM dead_messages WHERE left_at IS NULL"
    return sum(
        row["times"] for name in ("inventory", "payment", "order") for row in system.databases.rows(name, statement)
    )


@pytest.fixture(scope="package")
def machines() -> Servers:
    """The broker and the database server, to be killed and frozen."""
    return Servers.attach(os.environ["ECOM_TEST_STACK"])


@pytest.fixture
def provider_away(outage_file: Path) -> Callable[[], AbstractContextManager[None]]:
    """Begins an outage of the payment provider that ends with its block."""

    @contextmanager
    def away() -> Iterator[None]:
        outage_file.touch()
        try:
            yield
        finally:
            outage_file.unlink()

    return away


@pytest.fixture(autouse=True)
def agreement(system: System) -> Iterator[None]:
    """Before every test all is ready; after it all orders are at rest, nothing is dead and all books agree."""
    system.wait_ready()
    yield
    system.wait_quiet(patience_s=60)
    eventually(system.troubles, lambda troubles: not troubles, 30, "not ready")
