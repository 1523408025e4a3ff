"""The broker's users in the form of RabbitMQ's definitions, which it loads at its start, by its API or by rabbitmqctl.

Definitions hold the hash of a password, never the password. Standard library only: ops.local uses it on a bare Python.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from topology.users import Rights

HASHING = "rabbit_password_hashing_sha256"
SALT_BYTES = 4

Row = dict[str, Any]


def user(name: str, password: str, tags: str = "") -> Row:
    """The definition of a user."""
    return {"name": name, "password_hash": _hashed(password), "hashing_algorithm": HASHING, "tags": tags}


def has_password(row: Row, password: str) -> bool:
    """Whether a user's definition has this password."""
    known = str(row.get("password_hash") or "")
    try:
        salt = base64.b64decode(known, validate=True)[:SALT_BYTES]
    except ValueError:
        return False
    fits = secrets.compare_digest(known.encode(), _hashed(password, salt).encode())
    return fits and row.get("hashing_algorithm") == HASHING


def permission(name: str, vhost: str, rights: Rights) -> Row:
    """What a user may configure, write and read."""
    return {
        "user": name,
        "vhost": vhost,
        "configure": rights.configure,
        "write": rights.write,
        "read": rights.read,
    }


def topic_permissions(name: str, vhost: str, rights: Rights) -> list[Row]:
    """The routing keys that a user may publish and bind with, a row for each exchange."""
    return [
        {"user": name, "vhost": vhost, "exchange": exchange, "write": topic.write, "read": topic.read}
        for exchange, topic in rights.topics.items()
    ]


def definitions(vhost: str, passwords: Mapping[str, str], rights: Mapping[str, Rights]) -> dict[str, list[Row]]:
    """The users with these rights, who have no tag, with their rights in a vhost."""
    return {
        "users": [user(name, passwords[name]) for name in rights],
        "permissions": [permission(name, vhost, own) for name, own in rights.items()],
        "topic_permissions": [row for name, own in rights.items() for row in topic_permissions(name, vhost, own)],
    }


def _hashed(password: str, salt: bytes = b"") -> str:
    salt = salt or secrets.token_bytes(SALT_BYTES)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
