"""Who may sign in, and what a token says of him. Plain values only: the hashing is in passwords.py."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import Forbidden, Unauthenticated
from shared.events import Identity


@dataclass(frozen=True)
class Account:
    """A user as the database knows him."""

    name: str
    password_hash: str
    roles: tuple[str, ...]
    disabled: bool = False


# Development and demo only: name -> password; each has the role of his name.
DEVELOPMENT_PASSWORDS = {name: f"demo-{name}" for name in ("customer", "operator", "auditor", "admin", "service")}


def is_published(name: str, password: str) -> bool:
    """Whether everybody can read this password in the documentation: in production it opens nothing."""
    return DEVELOPMENT_PASSWORDS.get(name) == password


def sign_in(account: Account | None, password_fits: bool) -> Identity:
    """Who signs in. Raises the same Unauthenticated for an unknown name, a wrong password and a disabled user."""
    if account is None or not password_fits or account.disabled:
        raise Unauthenticated("The name or the password is wrong.")
    return Identity(account.name, account.roles)


def sign_in_as(user_id: str, roles: tuple[str, ...], mock: bool) -> Identity:
    """Whoever is asked for, where mock tokens are issued. Raises Forbidden elsewhere."""
    if not mock:
        raise Forbidden("Mock tokens are not issued here.")
    return Identity(user_id, roles)
