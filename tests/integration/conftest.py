"""Integration tests run parts of services in this process, on a real RabbitMQ and a real PostgreSQL."""

import tests.patched  # noqa: F401  # isort: skip

import os
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from ops.migrate import migrate
from ops.servers import Servers
from shared.config import Settings, read
from tests.integration.support import Bench, Mail, Wire
from topology.declare import apply


@pytest.fixture(scope="session")
def settings(servers: None) -> Settings:
    """The settings of this run, with every database migrated and the topology applied."""
    settings = read()
    migrate(settings)
    apply(settings.amqp_uri)
    return settings


@pytest.fixture
def database(settings: Settings) -> "Iterator[Databases]":
    """Every service's database, empty, reached as the superuser."""
    databases = Databases(settings)
    databases.empty()
    yield databases
    databases.close()


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
def wire(settings: Settings) -> Iterator[Wire]:
    """A wire to the database server."""
    url = make_url(settings.database_admin_url)
    wire = Wire(url.host or "127.0.0.1", url.port or 5432)
    yield wire
    wire.close()


@pytest.fixture
def servers_of_this_run(servers: None) -> Servers:
    """The broker itself, to break."""
    if "ECOM_TEST_STACK" not in os.environ:
        pytest.skip("no broker of our own: run the tests by `make test`")
    found = Servers.attach(os.environ["ECOM_TEST_STACK"])
    if found.broker is None:
        pytest.skip("no broker of our own")
    return found


class Databases:
    """One engine for each service's database, whose statements commit themselves."""

    def __init__(self, settings: Settings) -> None:
        admin = make_url(settings.database_admin_url)
        self.engines: dict[str, Engine] = {
            name: create_engine(
                admin.set(database=make_url(settings.database_url(name)).database), isolation_level="AUTOCOMMIT"
            )
            for name in ("order", "inventory", "payment", "auth")
        }

    def rows(self, name: str, statement: str, **parameters: object) -> list[dict[str, object]]:
        """What a statement returns, as dicts."""
        with self.engines[name].connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), parameters).mappings()]

    def run(self, name: str, statement: str, **parameters: object) -> None:
        """A statement that returns nothing."""
        with self.engines[name].connect() as connection:
            connection.execute(text(statement), parameters)

    def empty(self) -> None:
        """Delete all rows of all services' tables; those without any are left alone, which is faster."""
        for name in self.engines:
            tables = [
                str(row["tablename"])
                for row in self.rows(
                    name,
                    "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
                )
            ]
            full = " UNION ALL ".join(f"SELECT '{table}' AS t WHERE EXISTS (SELECT FROM {table})" for table in tables)
            if rows := self.rows(name, full) if full else []:
                self.run(name, "TRUNCATE " + ", ".join(str(row["t"]) for row in rows) + " CASCADE")

    def close(self) -> None:
        """Give the connections back."""
        for engine in self.engines.values():
            engine.dispose()
