"""The queries on sessions and revocations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from auth_service.derived import Refresh
from auth_service.domain import Account
from auth_service.sessions.domain import LIFE, Family, Kind
from shared.paging import decode_cursor, encode_cursor, id_position, page_of, row_position, time_position
from shared.times import timestamp

# Any gateway's tokens end within an hour. So long is also enough for one that could not ask.
REVOCATIONS_KEPT = timedelta(hours=2)
# Revocations get their number before their transaction commits, so a later one may be seen first.
OVERLAP = timedelta(seconds=60)
REVOCATIONS_PER_PAGE = 1000

_LAST_ROW = 2**63 - 1
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

_ACCOUNT = "u.user_id, u.email, u.name, u.display_name, u.roles, u.version, u.locale, u.kind"
_MAY_SIGN_IN = "NOT u.disabled AND u.erase_after IS NULL AND u.erased_at IS NULL"


@dataclass(frozen=True)
class Turned:
    """A session after a refresh: its user, and the generation and key of its refresh token."""

    account: Account
    session_id: UUID
    generation: int
    kid: str


# The first row of the table of rules, in one statement: of many at once only the first finds its generation.
_ROTATE = text(
    f"""
    UPDATE sessions AS s
    SET generation = s.generation + 1, kid = :kid, rotated_at = now(), expires_at = least(s.ends_at, now() + :life)
    FROM users AS u
    WHERE s.session_id = :session_id AND s.generation = :generation AND s.kind = :kind AND s.ended_at IS NULL
      AND now() < s.expires_at AND now() < s.ends_at AND u.user_id = s.user_id AND {_MAY_SIGN_IN}
    RETURNING s.generation, s.kid, {_ACCOUNT}
    """
)


def rotate(session: Session, shown: Refresh, kid: str) -> Turned | None:
    """Begin the next generation of a session, by this key, if a refresh token of the current one was shown.

    None in every other case. One statement.
    """
    values = {
        "kid": kid,
        "life": LIFE[Kind.API],
        "session_id": shown.session_id,
        "generation": shown.generation,
        "kind": Kind.API,
    }
    row = session.execute(_ROTATE, values).one_or_none()
    return Turned(_account_of(row), shown.session_id, row.generation, row.kid) if row else None


_LOCK = text(
    f"""
    SELECT s.generation, s.kid, s.rotated_at, s.expires_at, s.ends_at, s.ended_at IS NOT NULL AS ended,
           {_MAY_SIGN_IN} AS may_sign_in, now() AS at, {_ACCOUNT}
    FROM sessions AS s JOIN users AS u ON u.user_id = s.user_id
    WHERE s.session_id = :session_id AND s.kind = :kind
    FOR UPDATE OF s
    """
)


def lock_family(session: Session, session_id: UUID) -> tuple[Family, Turned, datetime] | None:
    """A session of a client, its row locked: for the rules, for an answer, and the moment of the database.

    None where there is none. One statement.
    """
    row = session.execute(_LOCK, {"session_id": session_id, "kind": Kind.API}).one_or_none()
    if row is None:
        return None
    family = Family(row.generation, row.rotated_at, row.expires_at, row.ends_at, row.ended, row.may_sign_in)
    return family, Turned(_account_of(row), session_id, row.generation, row.kid), row.at


def _account_of(row: Any) -> Account:
    return Account(
        row.user_id,
        row.name,
        row.email,
        row.display_name,
        roles=tuple(row.roles),
        kind=row.kind,
        version=row.version,
        locale=row.locale,
    )


def owner_of(session: Session, session_id: UUID) -> str | None:
    """Whose session this is, or was. None where there is none. One statement."""
    owner: str | None = session.scalar(
        text("SELECT user_id FROM sessions WHERE session_id = :session_id"), {"session_id": session_id}
    )
    return owner


# The ids of sessions are UUIDv7: the newest comes first.
_LIVE = text(
    """
    SELECT session_id, client, network, created_at, rotated_at FROM sessions
    WHERE user_id = :user_id AND ended_at IS NULL AND session_id < :before AND expires_at > now()
    ORDER BY session_id DESC LIMIT :most
    """
)
_NEWEST = UUID(int=2**128 - 1)


def live_sessions(
    session: Session, user_id: str, current: UUID | None, limit: int, cursor: str | None
) -> dict[str, Any]:
    """A page of a user's sessions that have not ended, the newest first. One statement.

    Raises InvalidCursor.
    """
    (before,) = decode_cursor(cursor, {"user": user_id}, [id_position]) if cursor else [_NEWEST]
    rows = session.execute(_LIVE, {"user_id": user_id, "before": before, "most": limit + 1}).all()
    page, more = page_of(rows, limit)
    items = [
        {
            "id": str(row.session_id),
            "client": row.client,
            "network": row.network,
            "created_at": timestamp(row.created_at),
            "used_at": timestamp(row.rotated_at),
            "current": row.session_id == current,
        }
        for row in page
    ]
    return {"items": items, "next_cursor": encode_cursor([items[-1]["id"]], {"user": user_id}) if more else None}


_STANDING = text(
    f"""
    SELECT u.version, {_MAY_SIGN_IN} AS may_sign_in,
           s.session_id IS NOT NULL AND s.ended_at IS NULL AND now() < s.ends_at AS session_goes_on
    FROM users AS u LEFT JOIN sessions AS s ON s.session_id = CAST(:session_id AS uuid) AND s.user_id = u.user_id
    WHERE u.user_id = :user_id
    """
)


def stands(session: Session, user_id: str, version: int | None, session_id: str | None) -> bool:
    """Whether nothing has ended a token of this user, version and session before its time. One statement.

    A token without a version may be of nobody: a mock user, or one of the version before.
    """
    row = session.execute(_STANDING, {"user_id": user_id, "session_id": session_id}).one_or_none()
    if row is None:
        return version is None
    return bool(
        row.may_sign_in and (version is None or version >= row.version) and (session_id is None or row.session_goes_on)
    )


# One row with the moment of asking comes also where nothing was revoked.
_REVOKED = text(
    """
    SELECT asked.at AS asked_at, revoked.id, revoked.user_id, revoked.version, revoked.session_id, revoked.at
    FROM (SELECT now() AS at) AS asked
    LEFT JOIN LATERAL (
        SELECT id, user_id, version, session_id, at FROM revocations
        WHERE at >= greatest(CAST(:at AS timestamptz), asked.at - :kept) AND (at, id) > (CAST(:at AS timestamptz), :id)
        ORDER BY at, id LIMIT :most
    ) AS revoked ON true
    ORDER BY revoked.at, revoked.id
    """
)


def revocations(session: Session, since: str | None) -> dict[str, Any]:
    """A page of what was revoked after a position, or in the last 2 hours: {items, next, since}. One statement.

    `next` is the position of the next page, None on the last one. When all pages are read, the next round begins at
    `since` of the first: some of what it answers is known already. Raises InvalidCursor.
    """
    at, id_ = decode_cursor(since, {}, [time_position, row_position]) if since else (_BEGINNING, _LAST_ROW)
    values = {"at": at, "id": id_, "kept": REVOCATIONS_KEPT, "most": REVOCATIONS_PER_PAGE + 1}
    rows = session.execute(_REVOKED, values).all()
    found, more = page_of([row for row in rows if row.id is not None], REVOCATIONS_PER_PAGE)
    items = [
        {
            "user_id": row.user_id,
            "version": row.version,
            "session_id": str(row.session_id) if row.session_id else None,
        }
        for row in found
    ]
    return {
        "items": items,
        "next": encode_cursor([found[-1].at.isoformat(), found[-1].id], {}) if more else None,
        "since": encode_cursor([(rows[0].asked_at - OVERLAP).isoformat(), _LAST_ROW], {}),
    }
