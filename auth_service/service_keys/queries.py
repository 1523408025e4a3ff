"""The queries on services' keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from auth_service.domain import Account, Kind
from auth_service.models import ApiKey
from shared.auth import SERVICE
from shared.paging import decode_cursor, encode_cursor, name_position, page_of
from shared.times import timestamp


@dataclass(frozen=True)
class Known:
    """A key that may be used, as it is stored, and its service's user with the roles of this key."""

    account: Account
    secret_hash: str
    left_s: int  # how long it is still valid
    was_used_today: bool


_KNOWN = text(
    """
    SELECT k.user_id, k.roles, k.secret_hash, floor(extract(epoch FROM k.expires_at - now())) AS left_s,
           k.last_used_on IS NOT DISTINCT FROM current_date AS was_used_today, u.version
    FROM api_keys AS k JOIN users AS u ON u.user_id = k.user_id
    WHERE k.key_id = :key_id AND k.user_id = :user_id AND k.revoked_at IS NULL AND now() < k.expires_at
      AND NOT u.disabled AND u.erased_at IS NULL
    """
)


def find(session: Session, user_id: str, key_id: str) -> Known | None:
    """A key of a service that may be used, or None. One statement."""
    row = session.execute(_KNOWN, {"key_id": key_id, "user_id": user_id}).one_or_none()
    if row is None:
        return None
    account = Account(row.user_id, None, roles=tuple(row.roles), kind=Kind.SERVICE, version=row.version)
    return Known(account, row.secret_hash, int(row.left_s), row.was_used_today)


def note_use(session: Session, key_id: str) -> None:
    """Remember the day on which a key was used. One statement."""
    session.execute(text("UPDATE api_keys SET last_used_on = current_date WHERE key_id = :key_id"), {"key_id": key_id})


_ADD_SERVICE = text(
    "INSERT INTO users (user_id, roles, kind) VALUES (:user_id, ARRAY[:role], 'service')"
    " ON CONFLICT DO NOTHING RETURNING user_id"
)


def add_service(session: Session, user_id: str) -> bool:
    """Add the user of a service, unless it is there; whether it was added. One statement."""
    added = session.execute(_ADD_SERVICE, {"user_id": user_id, "role": SERVICE}).one_or_none()
    return added is not None


def add(
    session: Session,
    key_id: str,
    user_id: str,
    secret_hash: str,
    roles: Sequence[str],
    created_by: str,
    expires_at: datetime,
) -> None:
    """Add a key. One statement."""
    session.add(
        ApiKey(
            key_id=key_id,
            user_id=user_id,
            secret_hash=secret_hash,
            roles=list(roles),
            created_by=created_by,
            expires_at=expires_at,
        )
    )
    session.flush()


def revoke(session: Session, user_id: str, key_id: str) -> bool:
    """Revoke a key of a service; whether it was not revoked yet. One statement."""
    revoked = update(ApiKey).where(ApiKey.key_id == key_id, ApiKey.user_id == user_id, ApiKey.revoked_at.is_(None))
    return session.execute(revoked.values(revoked_at=text("now()")).returning(ApiKey.key_id)).one_or_none() is not None


def is_key_of(session: Session, user_id: str, key_id: str) -> bool:
    """Whether a service has, or had, this key. One statement."""
    found = select(ApiKey.key_id).where(ApiKey.key_id == key_id, ApiKey.user_id == user_id)
    return session.scalar(found) is not None


# The ids of keys are UUIDv7: the newest comes first.
_PAGE = text(
    """
    SELECT key_id, roles, created_by, created_at, expires_at, last_used_on, revoked_at FROM api_keys
    WHERE user_id = :user_id AND key_id < :before ORDER BY key_id DESC LIMIT :most
    """
)
_NEWEST = "g"  # after every hex digit


def page(session: Session, user_id: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """A page of a service's keys, the newest first, without their secrets. One statement. Raises InvalidCursor."""
    (before,) = decode_cursor(cursor, {"user": user_id}, [name_position]) if cursor else [_NEWEST]
    rows = session.execute(_PAGE, {"user_id": user_id, "before": before, "most": limit + 1}).all()
    found, more = page_of(rows, limit)
    items = [
        {
            "key_id": row.key_id,
            "roles": list(row.roles),
            "created_by": row.created_by,
            "created_at": timestamp(row.created_at),
            "expires_at": timestamp(row.expires_at),
            "last_used_on": row.last_used_on.isoformat() if row.last_used_on else None,
            "revoked_at": timestamp(row.revoked_at) if row.revoked_at else None,
        }
        for row in found
    ]
    return {"items": items, "next_cursor": encode_cursor([items[-1]["key_id"]], {"user": user_id}) if more else None}
