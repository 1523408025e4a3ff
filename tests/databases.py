"""Tests read and change every service's database as the superuser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, make_url, text

from shared.config import Settings
from topology.services import DATABASES

Row = dict[str, Any]

# TRUNCATE creates new files, which takes longer than deleting the few rows that a test leaves. With the role replica no
# trigger or foreign key is checked. The lock waits for transactions that still write.
_EMPTY = """
DO $$
DECLARE
    name text;
    has_rows boolean;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
        AND NOT relispartition AND relname <> 'alembic_version' LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', name) INTO has_rows;
        CONTINUE WHEN NOT has_rows;
        EXECUTE format('LOCK TABLE %I', name);
        IF pg_relation_size(quote_ident(name)) > 256 * 1024 THEN
            EXECUTE format('TRUNCATE %I CASCADE', name);
        ELSE
            EXECUTE format('DELETE FROM %I', name);
        END IF;
    END LOOP;
END $$
"""


class Databases:
    """One engine for each service's database, as the superuser. Each statement commits itself."""

    def __init__(self, settings: Settings) -> None:
        admin = make_url(settings.database_admin_url)
        self.engines: dict[str, Engine] = {
            name: create_engine(
                admin.set(database=make_url(settings.database_url(name)).database),
                isolation_level="AUTOCOMMIT",
                pool_pre_ping=True,
            )
            for name in DATABASES
        }

    def connect(self, name: str) -> AbstractContextManager[Connection]:
        """A connection to one service's database."""
        return self.engines[name].connect()

    def rows(self, name: str, statement: str, **parameters: object) -> list[Row]:
        """The rows that a statement returns, as dicts."""
        with self.connect(name) as connection:
            result = connection.execute(text(statement), parameters)
            names = tuple(result.keys())
            return [dict(zip(names, row, strict=True)) for row in result]  # mappings() takes twice as long

    def run(self, name: str, statement: str, **parameters: object) -> int:
        """Run a statement; return how many rows it changed."""
        with self.connect(name) as connection:
            return connection.execute(text(statement), parameters).rowcount

    def empty(self) -> None:
        """Delete all rows of all services' tables."""
        for name in self.engines:
            self.run(name, _EMPTY)

    @contextmanager
    def doctored(self) -> Iterator[Doctored]:
        """The same databases in transactions. Only this block sees its changes, and they are rolled back at its end."""
        with ExitStack() as stack:
            opened = {}
            for name, engine in self.engines.items():
                connection = stack.enter_context(engine.connect().execution_options(isolation_level="READ COMMITTED"))
                transaction = connection.begin()
                stack.callback(transaction.rollback)
                opened[name] = connection
            yield Doctored(opened)

    def close(self) -> None:
        """Close all connections."""
        for engine in self.engines.values():
            engine.dispose()


class Doctored(Databases):
    """Databases in open transactions."""

    def __init__(self, connections: dict[str, Connection]) -> None:
        self.connections = connections

    def connect(self, name: str) -> AbstractContextManager[Connection]:
        return nullcontext(self.connections[name])
