"""People of the tests of auth_service, and the mails that they get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from argon2 import PasswordHasher

from auth_service import derived, models, passwords
from auth_service.domain import Account
from shared import auth
from shared.edge.context import RequestContext
from shared.events import Identity
from shared.ids import new_trace_id
from tests.databases import Databases
from tests.integration.support import Bench

PASSWORD, OTHER_PASSWORD = ("an agreeable summer", "a disagreeable winter")
HERE = {"network": "192.0.2.1", "client": "app/1", "session_id": None}

# Hashing is slow on purpose, and these tests hash many passwords.
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def add_people(bench: Bench, *people: Account) -> None:
    """Add people, each with PASSWORD unless they have another."""
    with bench.sessions.begin() as session:
        models.add(session, people)


def ann(**changes: Any) -> Account:
    """A customer with an address."""
    known: dict[str, Any] = {
        "user_id": "u-ann",
        "name": None,
        "email": "ann@example.com",
        "display_name": "Ann",
        "password_hash": passwords.hash_of(PASSWORD),
        "roles": ("customer",),
    }
    return Account(**{**known, **changes})


def bob(**changes: Any) -> Account:
    """An operator whom an admin has made, with a name and no address."""
    known: dict[str, Any] = {
        "user_id": "bob",
        "name": "bob",
        "password_hash": passwords.hash_of(PASSWORD),
        "roles": ("operator",),
    }
    return Account(**{**known, **changes})


def act_as(service: Any, answer: dict[str, Any]) -> dict[str, Any]:
    """Let the user of a login's answer call the service; the origin of their requests."""
    claims = auth.verify(answer["access_token"], service.settings.auth_keys)
    service.context = RequestContext(new_trace_id(), claims.identity)
    return {**HERE, "session_id": claims.session_id}


def act_as_nobody(service: Any) -> None:
    """Let somebody call who is not signed in."""
    service.context = RequestContext(new_trace_id(), Identity("shell", ()))


def mails(database: Databases, email: str | None = None) -> list[dict[str, Any]]:
    """The mails that were asked for, the oldest first."""
    rows = database.rows("auth", "SELECT * FROM proofs ORDER BY proof_id")
    return [row for row in rows if email in (None, row["email"])]


def token_of(bench: Bench, mail: dict[str, Any]) -> str:
    """The token that a mail holds."""
    proof_id = mail["proof_id"]
    assert isinstance(proof_id, UUID)
    return derived.proof_token(bench.settings.auth_keys, mail["kind"], proof_id, mail["email"])


def last_token(bench: Bench, database: Databases, email: str, kind: str) -> str:
    """The token in the last mail of a kind to an address."""
    return token_of(bench, [mail for mail in mails(database, email) if mail["kind"] == kind][-1])


def emitted(database: Databases) -> list[tuple[str, dict[str, Any]]]:
    """Type and payload of all events, the oldest first."""
    rows = database.rows("auth", "SELECT event_type, body FROM outbox ORDER BY id")
    return [(row["event_type"], json.loads(row["body"])["payload"]) for row in rows]


def recorded(database: Databases, user_id: str) -> Sequence[str]:
    """What has happened to a user's account."""
    rows = database.rows("auth", "SELECT event FROM auth_events WHERE user_id = :u ORDER BY id", u=user_id)
    return [row["event"] for row in rows]
