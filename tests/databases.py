"""Every service's database, read and changed by tests as the superuser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, make_url, text

from shared.config import Settings

Row = dict[str, Any]


class Databases:
    """One engine for each service's database, as the superuser; each statement commits itself."""

    def __init__(self, settings: Settings) -> None:
        admin = make_url(settings.database_admin_url)
        self.engines: dict[str, Engine] = {
            name: create_engine(
                admin.set(database=make_url(settings.database_url(name)).database),
                isolation_level="AUTOCOMMIT",
                pool_pre_ping=True,
            )
            for name in ("order", "inventory", "payment", "auth", "ops")
        }

    def connect(self, name: str) -> AbstractContextManager[Connection]:
        """A connection to one service's database."""
        return self.engines[name].connect()

    def rows(self, name: str, statement: str, **parameters: object) -> list[Row]:
        """What a statement returns, as dicts."""
        with self.connect(name) as connection:
            result = connection.execute(text(statement), parameters)
            names = tuple(result.keys())
            return [dict(zip(names, row, strict=True)) for row in result]  # mappings() takes twice as long

    def run(self, name: str, statement: str, **parameters: object) -> int:
        """How many rows a statement touched."""
        with self.connect(name) as connection:
            return connection.execute(text(statement), parameters).rowcount

    def empty(self) -> None:
        """Delete all rows of all services' tables; those without any are left alone, which is faster."""
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        for name in self.engines:
            names = [row["tablename"] for row in self.rows(name, tables)]
            full = " UNION ALL ".join(f"SELECT '{table}' AS t WHERE EXISTS (SELECT FROM {table})" for table in names)
            if rows := self.rows(name, full) if full else []:
                self.run(name, f"TRUNCATE {', '.join(row['t'] for row in rows)} CASCADE")

    @contextmanager
    def doctored(self) -> Iterator[Doctored]:
        """The same databases, where whatever is changed is seen in this block alone and then undone."""
        with ExitStack() as stack:
            opened = {}
            for name, engine in self.engines.items():
                connection = stack.enter_context(engine.connect().execution_options(isolation_level="READ COMMITTED"))
                transaction = connection.begin()
                stack.callback(transaction.rollback)
                opened[name] = connection
            yield Doctored(opened)

    def close(self) -> None:
        """Give the connections back."""
        for engine in self.engines.values():
            engine.dispose()


class Doctored(Databases):
    """Databases in open transactions."""

    def __init__(self, connections: dict[str, Connection]) -> None:
        self.connections = connections

    def connect(self, name: str) -> AbstractContextManager[Connection]:
        return nullcontext(self.connections[name])
