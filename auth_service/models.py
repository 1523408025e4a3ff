"""The tables of people, their sessions and their keys."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Text, UniqueConstraint, false, select, text, update
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from auth_service.domain import Account
from shared.rights import Rights
from shared.tables import MESSAGING_RIGHTS, NOW, Base


class User(Base):
    """Somebody who may sign in, a person or a service.

    `user_id` never changes and is never used again. Those who were users before there were ids have their name as id.
    `email` is an address that was proven, in lower case. `version` grows with whatever ends all tokens of before.
    """

    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    email: Mapped[str | None]
    display_name: Mapped[str | None]
    password_hash: Mapped[str | None]
    password_at: Mapped[datetime | None]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    kind: Mapped[str] = mapped_column(server_default="person")
    version: Mapped[int] = mapped_column(server_default="1")
    locale: Mapped[str] = mapped_column(server_default="en")
    disabled: Mapped[bool] = mapped_column(server_default=false())
    erase_after: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (
        UniqueConstraint("name"),
        UniqueConstraint("email"),
        Index(None, "roles", postgresql_using="gin"),
        Index("ix_users_erase_after", "erase_after", postgresql_where=text("erase_after IS NOT NULL")),
    )


class Proof(Base):
    """An address that somebody is asked to prove, or is told something at: one mail. `mail_id` elsewhere is its id."""

    __tablename__ = "proofs"

    proof_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    about: Mapped[str]  # which text the mail has
    email: Mapped[str]
    user_id: Mapped[str | None] = mapped_column(ForeignKey(User.user_id))
    display_name: Mapped[str | None]  # as given on registering
    locale: Mapped[str]
    provider: Mapped[str | None]  # the identity that a link is about to link
    subject: Mapped[str | None]
    network: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    given_up_at: Mapped[datetime | None]  # nobody will try to send it any more
    attempts: Mapped[int] = mapped_column(server_default="0")
    send_after: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (
        Index("ix_proofs_email_created_at", "email", "created_at"),
        Index("ix_proofs_network_created_at", "network", "created_at"),
        Index(None, "user_id"),
        Index("ix_proofs_unsent", "send_after", postgresql_where=text("sent_at IS NULL AND given_up_at IS NULL")),
        Index(None, "expires_at"),
    )


class SessionRow(Base):
    """A sign-in: for the API the family of its refresh tokens, for the dashboard one hour."""

    __tablename__ = "sessions"

    session_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.user_id))
    kind: Mapped[str]
    kid: Mapped[str]  # the key from which its refresh tokens are derived
    generation: Mapped[int] = mapped_column(server_default="1")
    rotated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    client: Mapped[str]
    network: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    ended_why: Mapped[str | None]

    __table_args__ = (
        Index("ix_sessions_live", "user_id", "session_id", postgresql_where=text("ended_at IS NULL")),
        Index(None, "user_id"),
        Index(None, "expires_at"),
    )


class Revocation(Base):
    """What gateways must refuse: tokens of a user older than a version, or those of one session."""

    __tablename__ = "revocations"

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    user_id: Mapped[str | None]
    version: Mapped[int | None]
    session_id: Mapped[uuid.UUID | None]
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))

    __table_args__ = (Index(None, "at"),)


class AuthEvent(Base):
    """Who did what to whose account. Append only, without personal data; kept 400 days."""

    __tablename__ = "auth_events"

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    event: Mapped[str]
    user_id: Mapped[str | None]
    actor_id: Mapped[str | None]
    session_id: Mapped[uuid.UUID | None]
    network: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))

    __table_args__ = (
        Index("ix_auth_events_user_id_id", "user_id", "id"),
        # What admins did to others: whoever is erased leaves no network there, either.
        Index("ix_auth_events_to_others", "actor_id", postgresql_where=text("actor_id IS DISTINCT FROM user_id")),
        Index(None, "at", postgresql_using="brin"),
    )


class ApiKey(Base):
    """A key of a service, of which only the SHA-256 is kept."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.user_id))
    secret_hash: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    last_used_on: Mapped[date | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_api_keys_user_id_key_id", "user_id", "key_id"),)


class IdentityRow(Base):
    """Somebody as an OIDC provider knows them."""

    __tablename__ = "identities"

    provider: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.user_id))
    linked_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (UniqueConstraint("user_id", "provider"),)


class OauthAttempt(Base):
    """A sign-in at an OIDC provider that was started."""

    __tablename__ = "oauth_attempts"

    attempt_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    provider: Mapped[str]
    state_hash: Mapped[str]
    nonce: Mapped[str]
    verifier: Mapped[str]
    redirect_uri: Mapped[str]
    link_user_id: Mapped[str | None]
    link_session_id: Mapped[uuid.UUID | None]  # of the user who wants to link: nothing is linked once it has ended
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]

    __table_args__ = (Index(None, "expires_at"),)


class SignInFailure(Base):
    """The failures of one bucket: a device of a user, a typed name, or a network. A crash empties the table."""

    __tablename__ = "sign_in_failures"

    bucket: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int]
    pauses: Mapped[int] = mapped_column(server_default="0")
    since: Mapped[datetime]
    paused_until: Mapped[datetime | None]

    __table_args__ = (Index(None, "since"), {"prefixes": ["UNLOGGED"]})


# Nobody but this service reads its tables: they hold addresses and hashes of passwords.
RIGHTS = {
    **MESSAGING_RIGHTS,
    "users": Rights(
        changed=(
            *("name", "email", "display_name", "password_hash", "password_at", "roles", "version", "locale"),
            *("disabled", "erase_after", "erased_at"),
        )
    ),
    "proofs": Rights(
        changed=("used_at", "sent_at", "given_up_at", "attempts", "send_after"),
        deleted_because="a proof is forgotten a day after it expired, and with the person whose address it has",
    ),
    "sessions": Rights(
        changed=("generation", "kid", "rotated_at", "expires_at", "ended_at", "ended_why"),
        deleted_because="a session is forgotten 30 days after its end, and with the person",
    ),
    "revocations": Rights(deleted_because="no token lives as long as 2 hours"),
    # A person who is erased leaves no network behind.
    "auth_events": Rights(changed=("network",), purged_by="purge_auth_events(bigint)"),
    "api_keys": Rights(changed=("last_used_on", "revoked_at")),
    "identities": Rights(deleted_because="an identity is forgotten with the person"),
    "oauth_attempts": Rights(changed=("used_at",), deleted_because="an attempt is forgotten after 10 minutes"),
    "sign_in_failures": Rights(
        changed=("failures", "pauses", "since", "paused_until"),
        deleted_because="failures are forgotten after a day",
    ),
}
TABLES = frozenset(RIGHTS)


def account_of(user: User) -> Account:
    """A row as a plain value."""
    return Account(
        user.user_id,
        user.name,
        user.email,
        user.display_name,
        user.password_hash,
        user.password_at,
        tuple(user.roles),
        user.kind,
        user.version,
        user.locale,
        user.disabled or user.erase_after is not None or user.erased_at is not None,
        user.created_at,
    )


def find(session: Session, login: str) -> Account | None:
    """The account that signs in by this e-mail address or name, or None. A name counts as typed, an address does not.

    One statement, whoever exists: names of older versions may look like addresses, and the address comes first.
    """
    by_email = User.email == login.lower()
    query = select(User).where(by_email | (User.name == login)).order_by(by_email.is_(True).desc()).limit(1)
    user = session.scalar(query)
    return account_of(user) if user else None


def lock(session: Session, user_id: str) -> User | None:
    """A user's row, locked until the transaction ends. Rows that only name the user may be added meanwhile."""
    return session.scalar(select(User).where(User.user_id == user_id).with_for_update(key_share=True))


def replace_hash(session: Session, account: Account, password_hash: str) -> None:
    """Put a new hash of the same password in place of the one that was read, unless there is another password by now.

    It is the same password: no session ends, and no device becomes unknown.
    """
    session.execute(
        update(User)
        .where(User.user_id == account.user_id, User.password_hash == account.password_hash)
        .values(password_hash=password_hash)
    )


def names(session: Session) -> set[str]:
    """Return the names of all users."""
    return {name for name in session.scalars(select(User.name)) if name is not None}


def add(session: Session, accounts: Collection[Account]) -> None:
    """Add the accounts whose ids, names and addresses are free. An existing user does not change."""
    if accounts:
        session.execute(
            insert(User).on_conflict_do_nothing(),
            [
                {
                    "user_id": account.user_id,
                    "name": account.name,
                    "email": account.email,
                    "display_name": account.display_name,
                    "password_hash": account.password_hash,
                    "password_at": account.password_at,
                    "roles": list(account.roles),
                    "kind": account.kind,
                    "locale": account.locale,
                }
                for account in accounts
            ],
        )
