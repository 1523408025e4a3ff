"""Sessions of users who have signed in, for tests that begin after that."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from auth_service import derived
from auth_service.sessions.domain import Kind
from shared import auth
from shared.ids import uuid7
from tests.e2e.system import System

_OPEN = """
INSERT INTO sessions (session_id, user_id, kind, kid, client, network, expires_at, ends_at)
SELECT :session_id, user_id, :kind, :kid, 'a test', '127.0.0.1', now() + interval '7 days', now() + interval '30 days'
FROM users WHERE user_id = :user_id
"""


@dataclass(frozen=True)
class SignedIn:
    """A session and its first tokens."""

    user_id: str
    session_id: UUID
    access_token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        """What a client of this session sends."""
        return {"Authorization": f"Bearer {self.access_token}"}


def signed_in(system: System, user_id: str) -> SignedIn:
    """A new session of a user who is there."""
    keys, session_id = system.settings.auth_keys, uuid7()
    (user,) = system.databases.rows("auth", "SELECT roles, version FROM users WHERE user_id = :id", id=user_id)
    system.databases.run("auth", _OPEN, session_id=session_id, user_id=user_id, kind=Kind.API.value, kid=keys[0][0])
    access = auth.issue(keys, user_id, tuple(user["roles"]), version=user["version"], session_id=str(session_id))
    return SignedIn(user_id, session_id, access, derived.refresh_token(keys, keys[0][0], session_id, 1))


def add_user(system: System, user_id: str, *roles: str) -> None:
    """Add a user who has no password."""
    statement = "INSERT INTO users (user_id, name, roles) VALUES (:user_id, :user_id, :roles)"
    system.databases.run("auth", statement, user_id=user_id, roles=list(roles))
