"""The rules of services' keys. The functions take and return plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.errors import ValidationFailed
from shared.events import Identity
from shared.roles import ADMIN, ROLES, has_role, role_of

PREFIX = "ek"
LONGEST_LIFE = timedelta(days=366)  # a year, whichever it is

# A secret has 32 random bytes as base64url; the id of its key is a UUID without hyphens.
KEY = re.compile(rf"{PREFIX}_(?P<key_id>[0-9a-f]{{32}})_(?P<secret>[A-Za-z0-9_-]{{43}})")

# A service's name as it stands in addresses. `service:<name>` is the id of its user.
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class Shown:
    """A key as its service shows it."""

    key_id: str
    secret: str


def user_of(name: str) -> str:
    """The id of a service's user."""
    return f"service:{name}"


def read_key(key: str) -> Shown | None:
    """The parts of a key; None for what cannot be one."""
    match = KEY.fullmatch(key)
    return Shown(match["key_id"], match["secret"]) if match else None


def key_text(key_id: str, secret: str) -> str:
    """A key as it is handed out."""
    return f"{PREFIX}_{key_id}_{secret}"


def roles_of(given: Iterable[str]) -> list[str]:
    """The roles of a key, each once: what its service may do with it. ROLE_ADMIN is `admin`. Raises ValidationFailed.

    `service` is allowed here, and nowhere else.
    """
    roles = list(dict.fromkeys(map(role_of, given)))
    if not roles or not set(roles) <= set(ROLES):
        raise ValidationFailed(details={"roles": [f"Must be some of {', '.join(ROLES)}."]})
    return roles


def check_name(name: str) -> None:
    """Raise ValidationFailed for a name that no service can have."""
    if not NAME.fullmatch(name):
        raise ValidationFailed(details={"name": [f"Must match {NAME.pattern}."]})


def check_expiry(expires_at: datetime, now: datetime) -> None:
    """Raise ValidationFailed unless a key ends later than now, and within a year."""
    if not now < expires_at <= now + LONGEST_LIFE:
        raise ValidationFailed(details={"expires_at": ["Must be in the future, and at most a year from now."]})


def may_manage_keys(caller: Identity) -> bool:
    """Whether someone may make, list and revoke the keys of services."""
    return has_role(caller, ADMIN)
