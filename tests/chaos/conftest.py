"""Chaos tests kill, stop and freeze what the end-to-end tests leave in peace; on the same processes, after them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from ops.local.servers import Servers
from tests.e2e.conftest import two_of_each
from tests.e2e.system import System, Systems, eventually
from topology.table import CONSUMERS

# What an outage makes the services write down: a timer's run that could not be; and a fault that a test puts into a
# database. CRITICAL is never allowed.
ALLOWED_IN_LOGS = (r"ProviderTimeout", r"CannotWork: the database is away", r"test_fault")

CENSUS_WITHIN_S = 120.0  # a message may be on its way into a DLQ for 60 s before it is missed there


@pytest.fixture(scope="package")
def system(systems: Systems, long: bool) -> Iterator[System]:
    """Every service with two replicas; at the end nothing is written down as dead and no log holds a fault."""
    system = two_of_each(systems)
    system.full_size = long
    yield system
    # An operator who was killed left this to the census; it takes its time, most of which has passed by now.
    eventually(lambda: written_down_as_dead(system), lambda rows: rows == 0, CENSUS_WITHIN_S, "written down as dead")
    wrong = system.faults(ALLOWED_IN_LOGS)
    assert not wrong, "\n".join(wrong[:20])


def written_down_as_dead(system: System) -> int:
    """How many messages are written down as lying in a DLQ."""
    statement = "SELECT count(*) AS times FROM dead_messages WHERE left_at IS NULL"
    return sum(row["times"] for name in CONSUMERS for row in system.databases.rows(name, statement))


@pytest.fixture(scope="package")
def machines() -> Servers:
    """The broker and the database server, to be killed and frozen."""
    return Servers.attach(os.environ["ECOM_TEST_STACK"])


@pytest.fixture
def provider_away(system: System) -> Callable[[], AbstractContextManager[None]]:
    """Begins an outage of the payment provider that ends with its block."""

    @contextmanager
    def away() -> Iterator[None]:
        system.outage_file.touch()
        try:
            yield
        finally:
            system.outage_file.unlink()

    return away


@pytest.fixture(autouse=True)
def agreement(system: System) -> Iterator[None]:
    """After every test all orders are at rest, nothing is dead, all books agree and all is ready for the next one."""
    yield
    system.wait_quiet(patience_s=60)
    system.wait_ready(30)
