"""Smoke tests: one replica of each service, and the little that must go right for anything to."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ops.local.servers import Servers
from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import System, Systems


@pytest.fixture(scope="package")
def system(systems: Systems) -> Iterator[System]:
    """One replica of every service; at the end no log holds a fault, whatever was away."""
    refuse_patched_process()
    system = systems.like(1)
    yield system
    wrong = system.faults()
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(scope="package")
def machines() -> Servers:
    """The broker and the database server, to be stopped and started."""
    return Servers.attach(os.environ["ECOM_TEST_STACK"])


@pytest.fixture(autouse=True)
def agreement(system: System) -> Iterator[None]:
    """After every test all orders are at rest and all books agree."""
    yield
    system.wait_quiet()
