"""The statements on accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from auth_service import models
from auth_service.accounts.domain import FRESH
from auth_service.domain import Account
from auth_service.models import SessionRow, User
from auth_service.sessions.domain import Kind
from shared.errors import LastAdmin, TokenInvalid
from shared.roles import ADMIN

_INSERT = text(
    """
    INSERT INTO users (user_id, email, display_name, password_hash, password_at, roles, locale)
    VALUES (:user_id, :email, :display_name, :password_hash, now(), CAST(:roles AS text[]), :locale)
    ON CONFLICT DO NOTHING
    RETURNING user_id
    """
)

# In the order of their ids, as whoever changes roles locks them: two admins who leave at once do not deadlock, and the
# second sees that the first is gone.
_WITH_ADMINS = text(
    """
    SELECT user_id, roles @> ARRAY[CAST(:admin AS text)] AS is_admin FROM users
    WHERE user_id = :user_id OR (
        roles @> ARRAY[CAST(:admin AS text)] AND NOT disabled AND erase_after IS NULL AND erased_at IS NULL
    )
    ORDER BY user_id FOR NO KEY UPDATE
    """
)


def by_email(session: Session, email: str) -> Account | None:
    """The account with an address, in lower case, or None."""
    user = session.scalar(select(User).where(User.email == email))
    return models.account_of(user) if user else None


def by_id(session: Session, user_id: str) -> Account | None:
    """The account of a user, or None."""
    user = session.scalar(select(User).where(User.user_id == user_id))
    return models.account_of(user) if user else None


def add(session: Session, account: Account) -> Account:
    """Add an account whose password is set now; as it is stored. Raises TokenInvalid if its address is taken by now."""
    values = {
        "user_id": account.user_id,
        "email": account.email,
        "display_name": account.display_name,
        "password_hash": account.password_hash,
        "roles": list(account.roles),
        "locale": account.locale,
    }
    if session.execute(_INSERT, values).one_or_none() is None:
        raise TokenInvalid
    added = by_id(session, account.user_id)
    assert added is not None
    return added


def set_password(session: Session, user: User, password_hash: str) -> None:
    """Give a user, whose row is locked, a new password: every device token of before is worthless."""
    user.password_hash = password_hash
    user.password_at = session.scalar(select(func.clock_timestamp()))
    session.flush()


def is_taken(session: Session, email: str) -> bool:
    """Whether a user has this address."""
    return session.scalar(select(User.user_id).where(User.email == email)) is not None


def check_admin_stays(session: Session, user_id: str) -> None:
    """Lock a user and all who are admins and may sign in: an admin must stay beside this user. Raises LastAdmin."""
    locked = session.execute(_WITH_ADMINS, {"admin": ADMIN, "user_id": user_id}).all()
    if {row.user_id for row in locked if row.is_admin} == {user_id}:
        raise LastAdmin


def is_fresh(session: Session, user_id: str, session_id: UUID | None) -> bool:
    """Whether a user has signed in to this session lately, and it has not ended."""
    if session_id is None:
        return False
    found = select(SessionRow.session_id).where(
        SessionRow.session_id == session_id,
        SessionRow.user_id == user_id,
        SessionRow.ended_at.is_(None),
        SessionRow.created_at > func.now() - FRESH,
    )
    return session.scalar(found) is not None


def live_session(session: Session, user_id: str, session_id: UUID | None) -> Mapping[str, Any] | None:
    """The session of a token if it is one of the API and goes on: its id, generation and kid."""
    if session_id is None:
        return None
    found = select(SessionRow.session_id, SessionRow.generation, SessionRow.kid).where(
        SessionRow.session_id == session_id,
        SessionRow.user_id == user_id,
        SessionRow.kind == Kind.API,
        SessionRow.ended_at.is_(None),
        SessionRow.expires_at > func.now(),
        SessionRow.ends_at > func.now(),
    )
    row = session.execute(found).mappings().one_or_none()
    return dict(row) if row else None
