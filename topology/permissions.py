"""Applies `topology.users` to the broker, and reports where users, tags and permissions of the broker differ from it.

A user whom the table does not name is extra if he is `guest`, has one of our names, or has rights in our vhost.
`apply` deletes the first two kinds; the third may be somebody's, and is only reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from topology.declare import Drift
from topology.definitions import definitions, has_password, permission, topic_permissions
from topology.management import Management
from topology.users import PREFIX, Rights

GUEST = "guest"
EXTRA = "is not in the table"


class Users(NamedTuple):
    """The users as they are to be: passwords and rights by name, in one vhost that one administrator manages."""

    vhost: str
    administrator: str
    passwords: Mapping[str, str]
    rights: Mapping[str, Rights]


def apply(users: Users, management: Management) -> list[Drift]:
    """Create or change every user, delete extra ones, and return the drift that is left. It may be repeated."""
    management.load(definitions(users.vhost, users.passwords, users.rights))
    for name in sorted(_deletable(users, management.definitions())):
        management.delete_user(name)
    return drift(users, management.definitions())


def drift(users: Users, seen: Mapping[str, Any]) -> list[Drift]:
    """The differences between the table and the broker's definitions."""
    found = {row["name"]: row for row in seen.get("users", ())}
    lines = []
    for name in users.rights:
        if name not in found:
            lines.append(Drift("user", name, "is missing"))
        elif not has_password(found[name], users.passwords[name]):
            lines.append(Drift("user", name, "has another password"))
    for name, row in sorted(found.items()):
        tags = row.get("tags") or []
        tags = tags.split(",") if isinstance(tags, str) else list(tags)  # before 3.9 a text
        if tags and name != users.administrator and name in users.rights:
            lines.append(Drift("user", name, f"has the tag {', '.join(tags)}, the table says none"))
    entitled = {row["user"] for row in seen.get("permissions", ()) if row["vhost"] == users.vhost}
    extra = _deletable(users, seen) | (entitled - users.rights.keys() - {users.administrator})
    lines += [Drift("user", name, EXTRA) for name in sorted(extra)]
    lines += _permission_drift(users, seen)
    return lines + _topic_drift(users, seen)


def _deletable(users: Users, seen: Mapping[str, Any]) -> set[str]:
    names = {row["name"] for row in seen.get("users", ())}
    ours = {name for name in names if name == GUEST or name.startswith(PREFIX)}
    return ours - users.rights.keys() - {users.administrator}


def _permission_drift(users: Users, seen: Mapping[str, Any]) -> list[Drift]:
    there = {(row["user"], row["vhost"]): row for row in seen.get("permissions", ()) if row["user"] in users.rights}
    lines = []
    for name, rights in users.rights.items():
        wanted = permission(name, users.vhost, rights)
        row = there.pop((name, users.vhost), None)
        lines += (
            [Drift("permission", name, "is missing")] if row is None else _differences("permission", name, wanted, row)
        )
    # A service has no business in another vhost.
    return lines + [Drift("permission", name, f"vhost {vhost} {EXTRA}") for name, vhost in sorted(there)]


def _topic_drift(users: Users, seen: Mapping[str, Any]) -> list[Drift]:
    there = {
        (row["user"], row["exchange"]): row
        for row in seen.get("topic_permissions", ())
        if row["user"] in users.rights and row["vhost"] == users.vhost
    }
    lines = []
    for name, rights in users.rights.items():
        for wanted in topic_permissions(name, users.vhost, rights):
            shown = f"{name} on {wanted['exchange']}"
            row = there.pop((name, wanted["exchange"]), None)
            if row is None:
                lines.append(Drift("topic permission", shown, "is missing"))
            else:
                lines += _differences("topic permission", shown, wanted, row)
    return lines + [Drift("topic permission", f"{name} on {exchange}", EXTRA) for name, exchange in sorted(there)]


def _differences(kind: str, shown: str, wanted: Mapping[str, Any], row: Mapping[str, Any]) -> list[Drift]:
    return [
        Drift(kind, shown, f"{name} is {row.get(name)}, the table says {value}")
        for name, value in wanted.items()
        if row.get(name) != value
    ]
