"""Integration tests run parts of services in this process, on a real RabbitMQ and a real PostgreSQL."""

import tests.patched  # noqa: F401  # isort: skip

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from ops.cli.migrate import migrate
from ops.dlq import dlq_reader
from ops.local.servers import Servers
from shared.config import Settings, read
from shared.edge.broker import BrokerConnection
from shared.edge.publisher import Publisher
from tests.databases import Databases
from tests.integration.support import Bench, Mail, Wire, administer
from tests.integration.users import As, settings_as
from topology.declare import apply


@pytest.fixture(scope="session")
def each_as_its_user(servers: None) -> Settings:
    """The settings of this run, with the URIs of every service's user of the broker.

    The environment loses these: most of these tests publish and consume as one user, about whom nothing is checked.
    """
    settings = read()
    for name in settings.amqp_uris:
        del os.environ[f"{name.upper()}_AMQP_URI"]
    return settings


@pytest.fixture(scope="session")
def settings(each_as_its_user: Settings) -> Settings:
    """The settings of this run with one user for all, every database migrated and the topology applied."""
    settings = replace(each_as_its_user, amqp_uris={})
    own = servers_of_our_own()
    if own and own.postgres:
        without_fsync(settings)
    migrate(settings, own_cluster=bool(own and own.postgres))
    apply(settings.amqp_uri)
    return settings


def servers_of_our_own() -> Servers | None:
    """Those that `make test` has started for this run."""
    stack = os.environ.get("ECOM_TEST_STACK")
    return Servers.attach(stack) if stack else None


def without_fsync(settings: Settings) -> None:
    """Let the database server write without fsync: a kill loses nothing, and tests do not cut the power."""
    engine = create_engine(settings.database_admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))


@pytest.fixture(scope="session")
def databases(settings: Settings) -> Iterator[Databases]:
    """Every service's database, reached as the superuser; to connect takes longer than most tests do."""
    databases = Databases(settings)
    yield databases
    databases.close()


@pytest.fixture
def database(databases: Databases) -> Databases:
    """Every service's database, empty, reached as the superuser."""
    databases.empty()
    return databases


@pytest.fixture
def scratch(settings: Settings, database: Databases, service: str) -> Iterator[Connection]:
    """An empty database, as its owner."""
    admin = make_url(settings.database_admin_url)
    name = f"test_scratch_{service}"
    administer(database, service, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    administer(database, service, f"CREATE DATABASE {name} TEMPLATE template0")
    engine = create_engine(admin.set(database=name), poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
    administer(database, service, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def mail(settings: Settings) -> Iterator[Mail]:
    """Hands in the broker, whose queues are empty."""
    hands = Mail(settings)
    hands.empty()
    yield hands
    hands.close()


@pytest.fixture
def bench(settings: Settings, database: "Databases") -> Iterator[Callable[..., Bench]]:
    """Makes a service with its empty database and no container: bench("order")."""
    made: list[Bench] = []

    def make(service: str, **how: object) -> Bench:
        made.append(Bench(settings, service, **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that is paused tries again soon, however often it has."""
    monkeypatch.setattr("shared.edge.pausing.backoff", lambda: itertools.repeat(0.05))


@pytest.fixture
def wire(settings: Settings) -> Iterator[Wire]:
    """A wire to the database server."""
    url = make_url(settings.database_admin_url)
    wire = Wire(url.host or "127.0.0.1", url.port or 5432)
    yield wire
    wire.close()


@pytest.fixture
def servers_of_this_run(servers: None) -> Servers:
    """The broker itself, to break."""
    return _servers_of_this_run()


def _servers_of_this_run() -> Servers:
    found = servers_of_our_own()
    if found is not None and found.broker is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail("no broker of our own: run the tests by `make test`")
    pytest.skip("no broker of our own: run the tests by `make test`")


@pytest.fixture(scope="session")
def as_service(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> As:
    """The settings of a process that connects to the broker as a service: as_service("order")."""
    broker = _servers_of_this_run().broker
    assert broker is not None
    return settings_as(settings, broker, tmp_path_factory.mktemp("users"))


@pytest.fixture
def connection(settings: Settings, database: Databases) -> Iterator[Connection]:
    """The connection on which a leader reads and marks."""
    engine = create_engine(settings.database_url("order"), isolation_level="AUTOCOMMIT")
    with engine.connect() as one:
        yield one
    engine.dispose()


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    one = Publisher(settings.amqp_uri, heartbeat_s=10)
    yield one
    one.close()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[BrokerConnection]:
    """The connections that were opened to count or read queues."""
    opened: list[BrokerConnection] = []

    class Noted(BrokerConnection):
        def __init__(self, *given: Any) -> None:
            opened.append(self)
            super().__init__(*given)

    monkeypatch.setattr(dlq_reader, "BrokerConnection", Noted)
    return opened
