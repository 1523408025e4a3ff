"""The entrypoints of signing in by name or address and password."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from auth_service import domain, records
from auth_service.records import Origin
from auth_service.sessions import opening
from auth_service.sessions.domain import Kind
from auth_service.signing_in import checking
from auth_service.signing_in.checking import Attempt
from shared import auth
from shared.config import Settings
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.ids import uuid7


class SigningIn:
    """Base of the auth service: tokens for those who know a password. The service provides its dependencies.

    Each method raises Unauthenticated for an unknown name, a wrong password and a disabled user alike, RateLimited when
    too many sign-ins have failed, which `login` raises as SignInPaused, and CannotWork when too many are under way.
    """

    settings: Settings
    db: Database

    @rpc
    def login(self, login: str, password: str, device_token: str | None, origin: dict[str, Any]) -> dict[str, Any]:
        """Sign in by a name, or a proven address, and its password: access, refresh and device token, and the user."""
        with checking.told_as_paused():
            session_id, attempt, account = self._open(login, password, device_token, Origin.read(origin), Kind.API)
        return opening.answer(self.settings.auth_keys, account, session_id, attempt.device_id or uuid7())

    @rpc
    def issue_token(self, username: str, password: str, origin: dict[str, Any] | None = None) -> dict[str, Any]:
        """Issue a token for a name and its password, without a session."""
        said = Origin.read(origin or {})
        _, account = self._check(username, password, None, said)
        with self.db.begin() as session:
            records.record(session, "signed_in", account.user_id, said, kind="token")
        return opening.access(self.settings.auth_keys, account, None)

    @rpc
    def issue_session(
        self, username: str, password: str, device_token: str | None = None, origin: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Issue a token for the dashboard's cookie, and a device token. No route of the API accepts the first."""
        said = Origin.read(origin or {})
        session_id, attempt, account = self._open(username, password, device_token, said, Kind.DASHBOARD)
        keys = self.settings.auth_keys
        return {
            **opening.access(keys, account, session_id, auth.SESSION_S, auth.DASHBOARD),
            "device_token": opening.device_token(keys, account, attempt.device_id or uuid7()),
        }

    @rpc
    def issue_mock_token(self, user_id: str, roles: list[str]) -> dict[str, Any]:
        """Issue a token for any user and roles if AUTH_MOCK is on. Raises Forbidden if it is off.

        It has no version: nothing that an admin does ends it.
        """
        identity = domain.sign_in_as(user_id, tuple(roles), self.settings.mock_tokens)
        token = auth.issue(self.settings.auth_keys, identity.user_id, identity.roles)
        return {"access_token": token, "token_type": "Bearer", "expires_in": auth.LIFE_S}

    def _open(
        self, login: str, password: str, device_token: str | None, origin: Origin, kind: Kind
    ) -> tuple[UUID, Attempt, domain.Account]:
        attempt, account = self._check(login, password, device_token, origin)
        with self.db.begin() as session:
            session_id = opening.open_session(session, self.settings.auth_keys, account, origin, kind)
            checking.succeed(session, attempt)
        return session_id, attempt, account

    def _check(
        self, login: str, password: str, device_token: str | None, origin: Origin
    ) -> tuple[Attempt, domain.Account]:
        with self.db.read() as session:
            attempt = checking.begin(session, self.settings.auth_keys, login, device_token, origin.network)
        return attempt, checking.check(self.db, self.settings, attempt, password, origin)
