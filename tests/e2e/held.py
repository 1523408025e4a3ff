"""Keeping a service's events in its outbox for a while: committed, and not published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from ops.local.processes import wait_until
from tests.databases import Databases

# The one lock by which the replicas of a service agree whose relay publishes. Its id is not imported: shared.relay
# imports eventlet, and this process shall stay without.
LOCK = (
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND application_name LIKE '% relay' AND datname = current_database()"
)
END_RELAYS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE '% relay' AND datname = current_database()"
)


@contextmanager
def held(databases: Databases, service: str) -> Iterator[None]:
    """While the block runs nothing leaves this service's outbox: a session of ours leads instead of its relays."""
    with databases.connect(service) as connection:

        def lock_id() -> int | None:
            return connection.execute(text(LOCK)).scalar()

        assert wait_until(lambda: lock_id() is not None, patience_s=10), f"no relay of {service} leads"
        lock = lock_id()

        def taken() -> bool:
            connection.execute(text(END_RELAYS))
            return bool(connection.execute(text("SELECT pg_try_advisory_lock(:id)"), {"id": lock}).scalar())

        assert wait_until(taken, patience_s=10, pause_s=0.01), f"the relay of {service} keeps its lock"
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:id)"), {"id": lock})
