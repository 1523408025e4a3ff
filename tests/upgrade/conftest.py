"""Two versions of every service at once, as in every upgrade and on every way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import Systems
from tests.upgrade.customers import Load
from tests.upgrade.fleet import Fleet
from tests.upgrade.versions import Version, released

StartFleet = Callable[..., Fleet]


@pytest.fixture(scope="session")
def last_release(request: pytest.FixtureRequest) -> Version:
    """The version that this one must work beside."""
    return released(request.config.getoption("--upgrade-from"))


@pytest.fixture(scope="session")
def load(request: pytest.FixtureRequest) -> Load:
    """What the options ask for."""
    return Load(request.config.getoption("--orders-per-s"), request.config.getoption("--load-s"))


@pytest.fixture
def start_fleet(systems: Systems, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartFleet]:
    """Starts all services of a version; they are stopped at the end of the test."""
    refuse_patched_process()
    systems.stop()
    started: list[Fleet] = []

    def start(version: Version, replicas: int = 2) -> Fleet:
        started.append(Fleet(tmp_path_factory.mktemp("fleet-"), version, replicas))
        started[-1].start()
        return started[-1]

    yield start
    wrong = {fleet: fleet.stop() for fleet in started}
    assert not [lines for fleet, lines in wrong.items() if fleet.checked and lines]
