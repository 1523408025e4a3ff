"""The release audit in tests: rows as services write them, sealed, and read again as they stand."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from inventory_service.audit import chain as sealing
from shared.seals import Seal
from tests.databases import Databases

KEY = "a key that tests seal with and nobody else"
OTHER_KEY = "another key that seals nothing of theirs yet"

# One transaction; times a second apart, so that the order of a page is that of `n`.
_WRITE = """
INSERT INTO inventory_release_events
  (order_id, reservation_id, sku, quantity, reason, requested_by, roles, trace_id, released_at)
SELECT gen_random_uuid(), gen_random_uuid(), 'sku-' || n % 7, 1 + n % 5,
  (ARRAY['payment_failed', 'cancelled', 'expired', 'manual'])[1 + n % 4], 'user-' || n % 3, ARRAY['customer'],
  md5(n::text), timestamptz '2026-01-01T00:00:00Z' + make_interval(secs => n)
FROM generate_series(CAST(:first AS int), CAST(:first AS int) + CAST(:count AS int) - 1) n
"""


def write(database: Databases, count: int, first: int = 0) -> None:
    """Write releases down, `count` of them in one transaction."""
    database.run("inventory", _WRITE, first=first, count=count)


def seal(database: Databases, key: str = KEY, limit: int = sealing.ROWS_PER_SEAL) -> int:
    """Seal all that can be sealed; how many seals that made."""
    made = 0
    while seal_once(database, key, limit):
        made += 1
    return made


def seal_once(database: Databases, key: str = KEY, limit: int = sealing.ROWS_PER_SEAL) -> int:
    """One seal in its transaction; how many rows it covers."""
    engine = database.engines["inventory"].execution_options(isolation_level="READ COMMITTED")
    with Session(engine) as session, session.begin():
        return sealing.seal_once(session, key, limit)


def sealed(database: Databases, *counts: int, key: str = KEY) -> None:
    """Write so many releases and seal them, once for each count."""
    first = 0
    for count in counts:
        write(database, count, first)
        assert seal(database, key) == 1
        first += count


def chain(database: Databases) -> list[Seal]:
    """Every seal."""
    return [Seal(**row) for row in database.rows("inventory", "SELECT * FROM release_seals ORDER BY seq")]


def rows(database: Databases) -> list[dict[str, Any]]:
    """Every row, in the order of the chain."""
    return database.rows("inventory", "SELECT * FROM inventory_release_events ORDER BY xid, id")
