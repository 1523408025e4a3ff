"""The table of users and its queries."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Text, false, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from auth_service.domain import Account
from shared.rights import Rights
from shared.tables import NOW, Base

# Nobody but this service reads its tables: they hold hashes of passwords.
RIGHTS = {"users": Rights(changed=("password_hash", "disabled"))}
TABLES = frozenset(RIGHTS)


class User(Base):
    """A user who may sign in with a password."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(primary_key=True)
    password_hash: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    disabled: Mapped[bool] = mapped_column(server_default=false())
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


def find(session: Session, name: str) -> Account | None:
    """Return the account with this name, or None."""
    user = session.get(User, name)
    return Account(user.name, user.password_hash, tuple(user.roles), user.disabled) if user else None


def names(session: Session) -> set[str]:
    """Return the names of all users."""
    return set(session.scalars(select(User.name)))


def add(session: Session, accounts: Collection[Account]) -> None:
    """Add the accounts whose names are free. An existing user does not change."""
    if accounts:
        session.execute(
            insert(User).on_conflict_do_nothing(),
            [
                {"name": account.name, "password_hash": account.password_hash, "roles": list(account.roles)}
                for account in accounts
            ],
        )
