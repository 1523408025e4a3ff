"""Fixtures and options of every test.

`make test` gives the environment of a private stack. Where there is none, tests that need servers are skipped on a
laptop and fail in CI: a missing broker must never look like a pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.system import Systems

# No test may find the stack that a developer runs in this checkout.
os.environ["ECOM_STACK"] = os.devnull
# A process of which nothing is said is in production, where it would refuse the settings of tests.
os.environ.setdefault("ECOM_ENV", "development")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the same tests at full size")
    parser.addoption("--containers", action="store_true", help="the tests that need a container engine")
    parser.addoption("--load-s", type=float, default=600.0, help="how long customers order during an upgrade, at least")
    parser.addoption("--orders-per-s", type=float, default=20.0, help="how many they post then")
    parser.addoption("--upgrade-from", metavar="COMMIT", help="instead of the last release, or of HEAD before any")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `long` run in the long run alone, those marked `containers` by `make compose-test` alone."""
    for marker in ("long", "containers"):
        if not config.getoption(f"--{marker}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the tests run at full size."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def servers() -> None:
    """Needs RabbitMQ and PostgreSQL, as `make test` starts them."""
    if "AMQP_URI" in os.environ and "DATABASE_ADMIN_URL" in os.environ:
        return
    if os.environ.get("CI"):
        pytest.fail("no servers: run the tests by `make test`")
    pytest.skip("no servers: run the tests by `make test`")


@pytest.fixture(scope="session")
def systems(servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systems]:
    """Whole systems of real processes, for tests of several folders."""
    from tests.e2e.system import Systems  # not by whom eventlet patches: it opens sockets and starts threads

    systems = Systems(tmp_path_factory.mktemp)
    yield systems
    systems.stop()
