"""The broker's users on the broker of this run, each with all rights in a vhost of their own.

What a user may do there is not in question: only that the broker makes sure of who they are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from ops.local.broker import Broker
from shared.config import Settings
from shared.senders import SHELL_USER
from topology.declare import apply
from topology.services import NAMES
from topology.users import broker_user

VHOST = "senders"

# The settings of a process that connects as a service, or as `shell`.
As = Callable[[str], Settings]


def settings_as(settings: Settings, broker: Broker, directory: Path) -> As:
    """Make the vhost with its topology, and the users that the broker does not have yet."""
    given = {broker_user(name): urlsplit(os.environ.get(f"{name.upper()}_AMQP_URI", "")) for name in NAMES}
    passwords = {user: uri.password or secrets.token_hex(8) for user, uri in given.items()}
    passwords[SHELL_USER] = urlsplit(os.environ.get("SHELL_AMQP_URI", "")).password or secrets.token_hex(8)
    administrator = str(urlsplit(settings.amqp_uri).username)
    file = directory / "users.json"
    file.write_text(json.dumps(_definitions(passwords, [*passwords, administrator])))
    broker.rabbitmqctl("import_definitions", str(file))

    def uri(user: str, password: str) -> str:
        parts = urlsplit(settings.amqp_uri)
        return urlunsplit(parts._replace(netloc=f"{quote(user)}:{password}@{parts.hostname}:{parts.port}", path=VHOST))

    apply(uri(administrator, str(urlsplit(settings.amqp_uri).password)))
    return lambda name: replace(settings, amqp_uri=uri(broker_user(name), passwords[broker_user(name)]), amqp_uris={})


def _definitions(passwords: dict[str, str], allowed: Iterable[str]) -> dict[str, object]:
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [
            {
                "name": user,
                "password_hash": _hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for user, password in passwords.items()
        ],
        "vhosts": [{"name": VHOST}],
        "permissions": [{"user": user, "vhost": VHOST, **everything} for user in allowed],
    }


def _hash(password: str) -> str:
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
