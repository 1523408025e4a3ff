"""What people see of their account, and take away of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from auth_service.domain import Account
from auth_service.models import AuthEvent, IdentityRow, SessionRow
from shared.errors import NotFound
from shared.paging import (
    Parser,
    decode_cursor,
    encode_cursor,
    id_position,
    name_position,
    page_of,
    row_position,
)
from shared.times import timestamp


def shown(account: Account) -> dict[str, Any]:
    """An account as its user sees it."""
    return {
        "id": account.user_id,
        "email": account.email,
        "name": account.display_name or account.name,
        "roles": list(account.roles),
        "locale": account.locale,
        "has_password": account.password_hash is not None,
        "created_at": timestamp(account.created_at) if account.created_at else None,
    }


@dataclass(frozen=True)
class Part:
    """A part of an export: a query of one user's rows, what they are read by, and how a row is written."""

    query: Select[*tuple[Any, ...]]
    user: InstrumentedAttribute[Any]
    key: InstrumentedAttribute[Any]
    parser: Parser
    write: Callable[[Row[Any], str], dict[str, Any]]


def _session(row: Row[Any], user_id: str) -> dict[str, Any]:
    return {
        "id": str(row.session_id),
        "kind": row.kind,
        "client": row.client,
        "network": row.network,
        "created_at": timestamp(row.created_at),
        "used_at": timestamp(row.rotated_at),
        "ended_at": timestamp(row.ended_at) if row.ended_at else None,
        "ended_why": row.ended_why,
    }


def _identity(row: Row[Any], user_id: str) -> dict[str, Any]:
    return {"provider": row.provider, "subject": row.subject, "linked_at": timestamp(row.linked_at)}


def _event(row: Row[Any], user_id: str) -> dict[str, Any]:
    """Who else did it is not told: it is an admin's data. Nor is their network."""
    is_own = row.actor_id in (None, user_id)
    return {
        "at": timestamp(row.at),
        "event": row.event,
        "by": "you" if row.actor_id == user_id else "nobody signed in" if is_own else "staff",
        "session_id": str(row.session_id) if row.session_id and is_own else None,
        "network": row.network if is_own else None,
        "details": row.details,
    }


PARTS: Mapping[str, Part] = {
    "sessions": Part(
        select(
            SessionRow.session_id,
            SessionRow.kind,
            SessionRow.client,
            SessionRow.network,
            SessionRow.created_at,
            SessionRow.rotated_at,
            SessionRow.ended_at,
            SessionRow.ended_why,
        ),
        SessionRow.user_id,
        SessionRow.session_id,
        id_position,
        _session,
    ),
    "identities": Part(
        select(IdentityRow.provider, IdentityRow.subject, IdentityRow.linked_at),
        IdentityRow.user_id,
        IdentityRow.provider,
        name_position,
        _identity,
    ),
    "events": Part(
        select(
            AuthEvent.id,
            AuthEvent.at,
            AuthEvent.event,
            AuthEvent.actor_id,
            AuthEvent.session_id,
            AuthEvent.network,
            AuthEvent.details,
        ),
        AuthEvent.user_id,
        AuthEvent.id,
        row_position,
        _event,
    ),
}


def export(
    session: Session, user_id: str, part: str, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of a part of what is kept of a user, the oldest first, and the next cursor. One statement.

    Raises NotFound for what is no part, InvalidCursor.
    """
    if part not in PARTS:
        raise NotFound("An account has no such part.")
    wanted = PARTS[part]
    filters = {"user_id": user_id, "part": part}
    query = wanted.query.where(wanted.user == user_id).order_by(wanted.key).limit(limit + 1)
    if cursor is not None:
        (after,) = decode_cursor(cursor, filters, [wanted.parser])
        query = query.where(wanted.key > after)
    rows, more = page_of(session.execute(query).all(), limit)
    next_cursor = encode_cursor([getattr(rows[-1], wanted.key.key)], filters) if more else None
    return [wanted.write(row, user_id) for row in rows], next_cursor
