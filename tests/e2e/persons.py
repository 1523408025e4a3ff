"""People in the tests of the whole system: made without a mail, and the tokens of the mails that they get."""

from __future__ import annotations

import math
import uuid

from auth_service import derived
from ops.cli.flow import Flow, Token
from shared import auth
from shared.ids import uuid7
from tests.e2e.system import System

# Of the development user whose hash they share: to hash another takes 30 ms.
PASSWORD = "demo-customer"


def new_address() -> str:
    """An address that nobody has."""
    return f"person-{uuid.uuid4().hex}@example.com"


def person(system: System, flow: Flow, *roles: str) -> str:
    """A new user with PASSWORD, whom the flow knows by their address; the address. Their token has no session."""
    email, user_id = new_address(), str(uuid7())
    system.databases.run(
        "auth",
        "INSERT INTO users (user_id, email, password_hash, roles)"
        " SELECT :user_id, :email, password_hash, CAST(:roles AS text[]) FROM users WHERE name = 'customer'",
        user_id=user_id,
        email=email,
        roles=list(roles or ("customer",)),
    )
    flow._tokens[email] = Token(auth.issue(system.settings.auth_keys, user_id, roles or ("customer",)), math.inf)
    return email


def mailed(system: System, kind: str, email: str, to: str | None = None) -> str:
    """The token of a new mail of a kind to the address of a user, or to another that they want to have."""
    proof_id, address = uuid7(), to or email
    system.databases.run(
        "auth",
        "INSERT INTO proofs (proof_id, kind, about, email, user_id, locale, network, expires_at, sent_at)"
        " VALUES (:id, :kind, :kind, :address, (SELECT user_id FROM users WHERE email = :email), 'en', 'none',"
        " now() + interval '10 minutes', now())",
        id=proof_id,
        kind=kind,
        address=address,
        email=email,
    )
    return derived.proof_token(system.settings.auth_keys, kind, proof_id, address)


def token_to(system: System, email: str, kind: str) -> str:
    """The token in the last mail of a kind to an address."""
    rows = system.databases.rows(
        "auth",
        "SELECT proof_id FROM proofs WHERE email = :email AND kind = :kind ORDER BY proof_id DESC LIMIT 1",
        email=email,
        kind=kind,
    )
    assert rows, f"{email} got no mail to {kind}"
    return derived.proof_token(system.settings.auth_keys, kind, rows[0]["proof_id"], email)
