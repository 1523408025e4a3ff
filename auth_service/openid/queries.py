"""The statements on identities, and on sign-ins at providers that were started."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_or
from sqlalchemy.orm import Session

from auth_service.models import IdentityRow, OauthAttempt
from shared.times import timestamp

_FACTS = text(
    "SELECT (SELECT user_id FROM identities WHERE provider = :provider AND subject = :subject) AS owner_id,"
    " (SELECT user_id FROM users WHERE email = :email) AS holder_id,"
    " EXISTS (SELECT FROM identities WHERE user_id = :linking AND provider = :provider) AS has_another"
)

_ADD = text(
    "INSERT INTO users (user_id, email, display_name, roles, locale)"
    " VALUES (:user_id, :email, :display_name, CAST(:roles AS text[]), :locale)"
    " ON CONFLICT DO NOTHING RETURNING user_id"
)


@dataclass(frozen=True)
class Begun:
    """A sign-in that was started; with a user, if they want to link the identity, and their session."""

    nonce: str
    verifier: str
    redirect_uri: str
    link_user_id: str | None
    link_session_id: UUID | None


@dataclass(frozen=True)
class Facts:
    """Whose an identity is, who has an address, and whether who wants to link has linked another subject."""

    owner_id: str | None
    holder_id: str | None
    has_another: bool


def begin(session: Session, life: timedelta, **values: Any) -> None:
    """Keep a sign-in that was started, for so long."""
    session.execute(insert(OauthAttempt).values(expires_at=func.now() + life, **values))


def take(session: Session, attempt_id: UUID, provider: str, state_hash: str) -> Begun | None:
    """The sign-in that a client comes back to, which nobody can come back to again; None if there is none."""
    taken = (
        update(OauthAttempt)
        .where(
            OauthAttempt.attempt_id == attempt_id,
            OauthAttempt.provider == provider,
            OauthAttempt.state_hash == state_hash,
            OauthAttempt.used_at.is_(None),
            OauthAttempt.expires_at > func.now(),
        )
        .values(used_at=func.now())
        .returning(
            OauthAttempt.nonce,
            OauthAttempt.verifier,
            OauthAttempt.redirect_uri,
            OauthAttempt.link_user_id,
            OauthAttempt.link_session_id,
        )
    )
    row = session.execute(taken).one_or_none()
    return Begun(*row) if row else None


def facts(session: Session, provider: str, subject: str, email: str | None, linking: str | None) -> Facts:
    """What is known of an identity and an address. One statement."""
    values = {"provider": provider, "subject": subject, "email": email, "linking": linking}
    row = session.execute(_FACTS, values).one()
    return Facts(row.owner_id, row.holder_id, row.has_another)


def add_user(session: Session, user_id: str, email: str, name: str | None, roles: tuple[str, ...], locale: str) -> bool:
    """Add a user without a password, whose address a provider has proven; whether the address was still free."""
    values = {"user_id": user_id, "email": email, "display_name": name, "roles": list(roles), "locale": locale}
    return session.execute(_ADD, values).one_or_none() is not None


def link(session: Session, provider: str, subject: str, user_id: str) -> bool:
    """Let an identity sign in as a user; whether neither had another by now."""
    added = (
        insert_or(IdentityRow)
        .values(provider=provider, subject=subject, user_id=user_id)
        .on_conflict_do_nothing()
        .returning(IdentityRow.user_id)
    )
    return session.execute(added).one_or_none() is not None


def unlink(session: Session, user_id: str, provider: str) -> bool:
    """Let a user's identity at a provider sign in no more; whether there was one."""
    gone = delete(IdentityRow).where(IdentityRow.user_id == user_id, IdentityRow.provider == provider)
    return session.execute(gone.returning(IdentityRow.subject)).one_or_none() is not None


def unlink_all(session: Session, user_id: str) -> dict[str, list[str]]:
    """Unlink every identity of a user; for the record, the names of their providers, if there were any."""
    gone = delete(IdentityRow).where(IdentityRow.user_id == user_id).returning(IdentityRow.provider)
    providers = sorted(session.scalars(gone))
    return {"unlinked": providers} if providers else {}


def of_user(session: Session, user_id: str) -> list[dict[str, Any]]:
    """The identities of a user, one for each provider: {provider, linked_at}."""
    found = (
        select(IdentityRow.provider, IdentityRow.linked_at)
        .where(IdentityRow.user_id == user_id)
        .order_by(IdentityRow.provider)
    )
    return [{"provider": row.provider, "linked_at": timestamp(row.linked_at)} for row in session.execute(found)]
