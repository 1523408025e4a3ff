"""Doing a POST once: its answer is stored under its key, in the transaction of the change that it answers for.

For every service that answers POSTs with an `Idempotency-Key`. Its migrations call
`shared.migrations.create_idempotency_keys_v1`, its RIGHTS have a row "idempotency_keys", and a timer calls `purge`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, Session, mapped_column

from shared.errors import IdempotencyInProgress, IdempotencyKeyReused
from shared.tables import NOW, Base

# 24 hours are promised.
KEEP_HOURS = 48

# PostgreSQL's lock_not_available: another transaction has held the key for longer than lock_timeout.
_LOCK_NOT_AVAILABLE = "55P03"


class IdempotencyKeyRow(Base):
    """The stored answer of a POST. A key belongs to a user and a route."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int]
    body: Mapped[dict[str, Any]] = mapped_column(JSON)  # not JSONB: a replay is the same to the byte
    location: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "created_at", postgresql_using="brin"),)


@dataclass(frozen=True)
class KeyedRequest:
    """A POST with its key: who sent it, by which route, and what it asks for."""

    user_id: str
    route: str
    key: str
    content: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of the content."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class KeyedAnswer:
    """What a POST answers. `replayed` says that it was stored by an earlier request with the same key."""

    status: int
    body: Mapping[str, Any]
    location: str
    replayed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The answer as it crosses RPC: {status, body, location, replayed}."""
        return dict(vars(self))


def claim_key(session: Session, request: KeyedRequest, answer: KeyedAnswer) -> KeyedAnswer | None:
    """Store the answer under the request's key: None when the key was free, else the answer stored before.

    The INSERT is the lock: a second request with the same key waits for the first to commit. Raises
    IdempotencyInProgress when that takes longer than lock_timeout (2 s), and IdempotencyKeyReused when the key was
    used for another request.
    """
    row = {
        "user_id": request.user_id,
        "route": request.route,
        "key": request.key,
        "fingerprint": request.fingerprint,
        "status": answer.status,
        "body": answer.body,
        "location": answer.location,
    }
    statement = insert(IdempotencyKeyRow).values(row).on_conflict_do_nothing().returning(IdempotencyKeyRow.key)
    try:
        if session.scalar(statement):
            return None
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) == _LOCK_NOT_AVAILABLE:
            raise IdempotencyInProgress() from error
        raise
    stored = session.get_one(IdempotencyKeyRow, (request.user_id, request.route, request.key))
    if stored.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused()
    return KeyedAnswer(stored.status, stored.body, stored.location, replayed=True)


def purge(session: Session) -> int:
    """Delete the answers stored longer ago than KEEP_HOURS; how many."""
    gone = session.execute(
        text("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(hours => :hours)"),
        {"hours": KEEP_HOURS},
    )
    return int(gone.rowcount)  # type: ignore[attr-defined]
