"""The rules of signing in. The functions take and return plain values; passwords.py does the hashing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.errors import Forbidden, Unauthenticated
from shared.events import Identity
from shared.roles import ADMIN, ROLES, SERVICE, has_role


class Kind(StrEnum):
    """Who a user is."""

    PERSON = "person"
    SERVICE = "service"


@dataclass(frozen=True)
class Account:
    """A user as stored in the database. `disabled` is also true of one who is about to be erased, or is erased."""

    user_id: str
    name: str | None
    email: str | None = None
    display_name: str | None = None
    password_hash: str | None = None
    password_at: datetime | None = None
    roles: tuple[str, ...] = ()
    kind: str = Kind.PERSON
    version: int = 1
    locale: str = "en"
    disabled: bool = False
    created_at: datetime | None = None

    @property
    def identity(self) -> Identity:
        """As whom this user acts."""
        return Identity(self.user_id, self.roles)


# For development and the demo only: name -> password. Each user has the role of the same name.
DEVELOPMENT_PASSWORDS = {name: f"demo-{name}" for name in ROLES}


def is_published(name: str, password: str) -> bool:
    """Whether the documentation publishes this password. Production refuses it."""
    return DEVELOPMENT_PASSWORDS.get(name) == password


def sign_in(account: Account | None, password_fits: bool) -> Account:
    """Return the account that signs in.

    Raises the same Unauthenticated for an unknown name, a wrong password and a disabled user.
    """
    if account is None or not password_fits or account.disabled or account.kind != Kind.PERSON:
        raise Unauthenticated("The name or the password is wrong.")
    return account


def sign_in_as(user_id: str, roles: tuple[str, ...], mock: bool) -> Identity:
    """Return the requested identity if mock tokens are allowed (`mock`). Raises Forbidden otherwise."""
    if not mock:
        raise Forbidden("Mock tokens are not issued here.")
    return Identity(user_id, roles)


def may_introspect(caller: Identity) -> bool:
    """Whether someone may ask what a token says."""
    return has_role(caller, SERVICE, ADMIN)
