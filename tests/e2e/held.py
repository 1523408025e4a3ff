"""Keeping a service's events in its outbox for a while: committed, and not published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from ops.processes import wait_until
from shared.relay import LOCK_ID
from tests.ledger import Databases

# Whoever holds the relay's lock. 32 bits of the id are objid, see pg_locks.
END_LEADER = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = :id"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()"
)
TAKE = "SELECT pg_try_advisory_lock(:id) AS taken"


@contextmanager
def held(databases: Databases, service: str) -> Iterator[None]:
    """While the block runs nothing leaves this service's outbox: a session of ours leads instead of its relays."""
    with databases.connect(service) as connection:

        def taken() -> bool:
            connection.execute(text(END_LEADER), {"id": LOCK_ID})
            return bool(connection.execute(text(TAKE), {"id": LOCK_ID}).scalar())

        assert wait_until(taken, patience_s=10, pause_s=0.01), f"the relay of {service} keeps its lock"
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:id)"), {"id": LOCK_ID})
