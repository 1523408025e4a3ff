"""The auth service: checks passwords and issues tokens."""

from __future__ import annotations

from typing import Any

from auth_service import domain, models, passwords
from auth_service.domain import Account
from shared import auth
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.http import Probes
from shared.edge.once import once
from shared.edge.rpc import rpc
from shared.edge.settings import Setting
from shared.errors import Unauthenticated
from shared.events import Identity


class AuthService(Probes):
    """Issues and introspects tokens. Services verify a token themselves, without a call to this service."""

    name = "auth_service"

    settings = Setting()
    db = Database()
    context = Context()

    @once
    def add_development_users(self) -> None:
        """Add the users that the documentation names. Does nothing in production."""
        if self.settings.production:
            return
        with self.db.read() as session:
            missing = domain.DEVELOPMENT_PASSWORDS.keys() - models.names(session)
        accounts = [
            Account(name, passwords.hash_of(domain.DEVELOPMENT_PASSWORDS[name]), (name,)) for name in sorted(missing)
        ]
        with self.db.begin() as session:
            models.add(session, accounts)

    @rpc
    def issue_token(self, username: str, password: str) -> dict[str, Any]:
        """Issue a token for a name and its password. Raises Unauthenticated."""
        return self._token(self._sign_in(username, password))

    @rpc
    def issue_session(self, username: str, password: str) -> dict[str, Any]:
        """Issue a token for the dashboard's cookie. No route of the API accepts it. Raises Unauthenticated."""
        identity = self._sign_in(username, password)
        return self._token(identity, auth.SESSION_S, auth.DASHBOARD)

    @rpc
    def issue_mock_token(self, user_id: str, roles: list[str]) -> dict[str, Any]:
        """Issue a token for any user and roles if AUTH_MOCK is on. Raises Forbidden if it is off."""
        return self._token(domain.sign_in_as(user_id, tuple(roles), self.settings.mock_tokens))

    @rpc
    def introspect(self, token: str) -> dict[str, Any]:
        """Return the claims of a token (RFC 7662). An invalid token is not active, whatever the reason.

        Raises RoleMissing.
        """
        self.context.require(domain.may_introspect)
        try:
            claims = auth.verify(token, self.settings.auth_keys)
        except Unauthenticated:
            return {"active": False}
        return {
            "active": True,
            "token_type": "Bearer",
            "sub": claims.identity.user_id,
            "username": claims.identity.user_id,
            "roles": list(claims.identity.roles),
            "scope": " ".join(claims.identity.roles),
            "iss": auth.ISSUER,
            "aud": auth.AUDIENCE,
            "iat": claims.issued_at,
            "exp": claims.expires_at,
            "jti": claims.token_id,
        }

    def _sign_in(self, username: str, password: str) -> Identity:
        with self.db.read() as session:
            account = models.find(session, username)
        fits = passwords.fits(account.password_hash if account else None, password)
        if self.settings.production and domain.is_published(username, password):
            fits = False  # the database may come from a development stack
        return domain.sign_in(account, fits)

    def _token(self, identity: Identity, life_s: int = auth.LIFE_S, audience: str = auth.AUDIENCE) -> dict[str, Any]:
        token = auth.issue(self.settings.auth_keys, identity.user_id, identity.roles, life_s, audience=audience)
        return {"access_token": token, "token_type": "Bearer", "expires_in": life_s}
