"""The rules of signing in. The functions take and return plain values; passwords.py does the hashing."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import Forbidden, Unauthenticated
from shared.events import Identity
from shared.roles import ADMIN, ROLES, SERVICE, has_role


@dataclass(frozen=True)
class Account:
    """A user as stored in the database."""

    name: str
    password_hash: str
    roles: tuple[str, ...]
    disabled: bool = False


# For development and the demo only: name -> password. Each user has the role of the same name.
DEVELOPMENT_PASSWORDS = {name: f"demo-{name}" for name in ROLES}


def is_published(name: str, password: str) -> bool:
    """Whether the documentation publishes this password. Production refuses it."""
    return DEVELOPMENT_PASSWORDS.get(name) == password


def sign_in(account: Account | None, password_fits: bool) -> Identity:
    """Return the identity that signs in.

    Raises the same Unauthenticated for an unknown name, a wrong password and a disabled user.
    """
    if account is None or not password_fits or account.disabled:
        raise Unauthenticated("The name or the password is wrong.")
    return Identity(account.name, account.roles)


def sign_in_as(user_id: str, roles: tuple[str, ...], mock: bool) -> Identity:
    """Return the requested identity if mock tokens are allowed (`mock`). Raises Forbidden otherwise."""
    if not mock:
        raise Forbidden("Mock tokens are not issued here.")
    return Identity(user_id, roles)


def may_introspect(caller: Identity) -> bool:
    """Whether someone may ask what a token says."""
    return has_role(caller, SERVICE, ADMIN)
