"""Doing a POST once: its answer is stored under its key, in the transaction of the change that it answers for.

For every service that answers POSTs with an `Idempotency-Key`. Its migrations call
`shared.migrations.create_idempotency_keys_v1`, its RIGHTS have a row "idempotency_keys", and a timer calls `purge`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import JSON, Index, TextClause, select, text, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, Session, mapped_column

from shared.errors import IdempotencyInProgress, IdempotencyKeyReused
from shared.tables import NOW, Base

# 24 hours are promised.
KEEP_HOURS = 48

# PostgreSQL's lock_not_available: another transaction has held the key for longer than lock_timeout.
_LOCK_NOT_AVAILABLE = "55P03"

# Longer than a transaction that is not stuck takes, and short for those who wait together with the one held up.
TOGETHER_LOCK_TIMEOUT_MS = 200


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


# A user and one of their keys.
Claim = tuple[str, str]


@dataclass(frozen=True)
class KeyedRequest:
    """A POST with its key: who sent it, by which route, and what it asks for."""

    user_id: str
    route: str
    key: str
    content: Mapping[str, Any]

    @property
    def claim(self) -> Claim:
        """What it claims of its route's keys."""
        return self.user_id, self.key

    @cached_property
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


@dataclass(frozen=True)
class KnownAnswer:
    """The answer of a key that has been used, and the fingerprint of the request that used it."""

    fingerprint: str
    answer: KeyedAnswer

    def to(self, request: KeyedRequest) -> KeyedAnswer:
        """The answer for a repeat. Raises IdempotencyKeyReused when the key was used for another request."""
        if request.fingerprint != self.fingerprint:
            raise IdempotencyKeyReused()
        return self.answer


@dataclass(frozen=True)
class Claiming:
    """The statement of `claim_keys`, for one claim and for several."""

    alone: TextClause
    together: TextClause


def claiming(is_used: str = "false") -> Claiming:
    """Build the statement that claims keys.

    `is_used` is an SQL condition on given.user_id and given.key: a key for which it holds is not claimed.
    """
    # Sorted, so that transactions that claim several keys wait for each other in one order.
    statement = f"""
        INSERT INTO idempotency_keys (user_id, route, key, fingerprint, status, body, location)
        SELECT user_id, :route, key, fingerprint, status, CAST(body AS json), location
        FROM unnest(
            CAST(:user_ids AS text[]), CAST(:keys AS text[]), CAST(:fingerprints AS text[]),
            CAST(:statuses AS integer[]), CAST(:bodies AS text[]), CAST(:locations AS text[])
        ) AS given (user_id, key, fingerprint, status, body, location)
        WHERE NOT {is_used}
        ORDER BY user_id, key
        ON CONFLICT DO NOTHING
        RETURNING user_id, key
    """
    together = f"SET LOCAL lock_timeout = {TOGETHER_LOCK_TIMEOUT_MS}; {statement}"
    return Claiming(*(text(sql).execution_options(prepared=True) for sql in (statement, together)))


_CLAIMING = claiming()


def claim_keys(
    session: Session, claims: Sequence[tuple[KeyedRequest, KeyedAnswer]], statement: Claiming = _CLAIMING
) -> set[Claim]:
    """Store the answers of requests of one route under their keys, each key once; return the claims of the free keys.

    The INSERT is the lock: a second request with the same key waits for the first to commit. Raises
    IdempotencyInProgress when that takes longer than lock_timeout: 2 s for one claim. Several claims wait at most
    TOGETHER_LOCK_TIMEOUT_MS for this and every later lock of the transaction, because all of them wait for one.
    """
    requests = [request for request, _ in claims]
    answers = [answer for _, answer in claims]
    values = {
        "route": requests[0].route,
        "user_ids": [request.user_id for request in requests],
        "keys": [request.key for request in requests],
        "fingerprints": [request.fingerprint for request in requests],
        "statuses": [answer.status for answer in answers],
        "bodies": [json.dumps(answer.body) for answer in answers],
        "locations": [answer.location for answer in answers],
    }
    try:
        claimed = session.execute(statement.together if len(claims) > 1 else statement.alone, values)
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) == _LOCK_NOT_AVAILABLE:
            raise IdempotencyInProgress() from error
        raise
    return {(row.user_id, row.key) for row in claimed}


def known_answers(session: Session, requests: Collection[KeyedRequest]) -> dict[Claim, KnownAnswer]:
    """The answers that are stored under the keys of these requests of one route."""
    if not requests:
        return {}
    table = IdempotencyKeyRow.__table__.c
    query = select(table.user_id, table.key, table.fingerprint, table.status, table.body, table.location).where(
        table.route == next(iter(requests)).route,
        tuple_(table.user_id, table.key).in_([request.claim for request in requests]),
    )
    return {
        (row.user_id, row.key): KnownAnswer(
            row.fingerprint, KeyedAnswer(row.status, row.body, row.location, replayed=True)
        )
        for row in session.execute(query)
    }


def claim_key(session: Session, request: KeyedRequest, answer: KeyedAnswer) -> KeyedAnswer | None:
    """Store the answer under the request's key: None when the key was free, else the answer stored before.

    Raises IdempotencyInProgress as `claim_keys` does, and IdempotencyKeyReused when the key was used for another
    request.
    """
    if claim_keys(session, [(request, answer)]):
        return None
    return known_answers(session, [request])[request.claim].to(request)


_GIVE_BACK = text(
    """
    DELETE FROM idempotency_keys USING unnest(CAST(:user_ids AS text[]), CAST(:keys AS text[])) AS given (user_id, key)
    WHERE route = :route AND idempotency_keys.user_id = given.user_id AND idempotency_keys.key = given.key
    """
)


def give_back(session: Session, requests: Iterable[KeyedRequest]) -> None:
    """Free the keys that this transaction has claimed for these requests of one route: they made nothing."""
    given = list(requests)
    values = {
        "route": given[0].route,
        "user_ids": [request.user_id for request in given],
        "keys": [request.key for request in given],
    }
    session.execute(_GIVE_BACK, values)


def purge(session: Session) -> int:
    """Delete the answers stored longer ago than KEEP_HOURS; how many."""
    gone = session.execute(
        text("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(hours => :hours)"),
        {"hours": KEEP_HOURS},
    )
    return int(gone.rowcount)  # type: ignore[attr-defined]
