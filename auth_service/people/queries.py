"""The statements on people, as others see and change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, bindparam, or_, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session
from sqlalchemy.types import Text

from auth_service.domain import Account, Kind
from auth_service.models import AuthEvent, User, account_of
from shared.bulk import is_given, table_of
from shared.errors import NotFound
from shared.paging import decode_cursor, encode_cursor, name_position, page_of, row_position
from shared.roles import ADMIN
from shared.times import timestamp

_USERS, _RECORDS = table_of(User), table_of(AuthEvent)

_PERSON = (
    _USERS.c.user_id,
    _USERS.c.name,
    _USERS.c.email,
    _USERS.c.display_name,
    _USERS.c.roles,
    _USERS.c.kind,
    _USERS.c.disabled,
    _USERS.c.erase_after,
    _USERS.c.erased_at,
    _USERS.c.created_at,
)
_IS_ACTIVE = ~_USERS.c.disabled & _USERS.c.erase_after.is_(None) & _USERS.c.erased_at.is_(None)
_THESE = select(*_PERSON).where(is_given(_USERS.c.user_id)).order_by(_USERS.c.user_id)

# What others show of people whose ids they have.
_IN_BATCH = ("user_id", "name", "email", "roles", "disabled")

# Read by its key a page is a page. The few who have a rare role are found by the index on roles and sorted; of a role
# that many have, the key finds a page soon. PostgreSQL knows how many have which role, and chooses.
_ROLE = _USERS.c.roles.contains(bindparam("role", type_=ARRAY(Text)))

# Two admins who take each other's role at once must not both succeed: both lock all admins first, in one order.
_LOCK = (
    select(User)
    .where(
        or_(
            _USERS.c.user_id.in_([bindparam("user_id"), bindparam("actor_id")]),
            _USERS.c.roles.contains(bindparam("admin", [ADMIN], type_=ARRAY(Text))) & _IS_ACTIVE,
        )
    )
    .order_by(_USERS.c.user_id)
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)


def shown(row: Any) -> dict[str, Any]:
    """A person as others see them, of a `User` or a row of its columns.

    Their name is that which they gave themselves, or by which they sign in.
    """
    return {
        "user_id": row.user_id,
        "name": row.display_name or row.name,
        "email": row.email,
        "roles": list(row.roles),
        "kind": row.kind,
        "disabled": row.disabled or row.erase_after is not None or row.erased_at is not None,
        "created_at": timestamp(row.created_at),
    }


def page(
    session: Session, limit: int, cursor: str | None, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """One page of people by user_id, and the next cursor. One statement.

    `filters`: email (exact, in any case), role.
    """
    query: Select[Any] = select(*_PERSON)
    values: dict[str, Any] = {}
    if filters.get("email"):
        query, values["email"] = query.where(_USERS.c.email == bindparam("email")), filters["email"].lower()
    if filters.get("role"):
        query, values["role"] = query.where(_ROLE), [filters["role"]]
    if cursor:
        (values["after"],) = decode_cursor(cursor, filters, [name_position])
        query = query.where(_USERS.c.user_id > bindparam("after"))
    found = session.execute(query.order_by(_USERS.c.user_id).limit(limit + 1), values).all()
    rows, more = page_of(found, limit)
    return [shown(row) for row in rows], encode_cursor([rows[-1].user_id], filters) if more else None


def person(session: Session, user_id: str) -> dict[str, Any]:
    """One person. Raises NotFound."""
    row = session.execute(select(*_PERSON).where(_USERS.c.user_id == user_id)).one_or_none()
    if row is None:
        raise NotFound
    return shown(row)


def people(session: Session, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Those of these people who are there, by user_id: {user_id, name, email, roles, disabled}. One statement."""
    found = session.execute(_THESE, {"given_user_id": list(ids)})
    return [{name: value for name, value in shown(row).items() if name in _IN_BATCH} for row in found]


def records(session: Session, user_id: str, limit: int, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """One page of what was done with an account, newest first, and the next cursor. Raises NotFound.

    One statement, and another one for an account of which there is no record.
    """
    filters = {"user_id": user_id}
    query = select(_RECORDS).where(_RECORDS.c.user_id == user_id)
    if cursor:
        (before,) = decode_cursor(cursor, filters, [row_position])
        query = query.where(_RECORDS.c.id < before)
    found = session.execute(query.order_by(_RECORDS.c.id.desc()).limit(limit + 1)).all()
    if not found and not cursor:
        person(session, user_id)
    rows, more = page_of(found, limit)
    return [_record(row) for row in rows], encode_cursor([rows[-1].id], filters) if more else None


def lock_with_admins(session: Session, user_id: str, actor_id: str) -> tuple[User, list[str], list[str] | None]:
    """Lock a user, the actor and every admin who may sign in. Raises NotFound.

    Returns the user, the ids of these admins, and the roles of the actor: [] of one who may not sign in, None of one
    who is no user, or a service: what a service may do is in its key.
    """
    found = {user.user_id: user for user in session.scalars(_LOCK, {"user_id": user_id, "actor_id": actor_id})}
    if user_id not in found:
        raise NotFound
    accounts = {name: account_of(user) for name, user in found.items()}
    admins = [name for name, one in accounts.items() if ADMIN in one.roles and not one.disabled]
    return found[user_id], admins, _roles_of_actor(accounts.get(actor_id))


def _roles_of_actor(actor: Account | None) -> list[str] | None:
    if actor is None or (actor.kind == Kind.SERVICE and not actor.disabled):
        return None
    return [] if actor.disabled else list(actor.roles)


def is_leaving(user: User) -> bool:
    """Whether a person is erased, or about to be."""
    return user.erase_after is not None or user.erased_at is not None


def _record(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": timestamp(row.at),
        "event": row.event,
        "user_id": row.user_id,
        "actor_id": row.actor_id,
        "session_id": str(row.session_id) if row.session_id else None,
        "network": row.network,
        "details": row.details,
    }
