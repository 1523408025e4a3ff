"""The entrypoints of sessions and tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from auth_service import derived, domain, models, proofs, records
from auth_service.derived import Refresh
from auth_service.domain import Account
from auth_service.records import Origin
from auth_service.sessions import domain as rules
from auth_service.sessions import opening, queries
from auth_service.sessions.domain import Refreshing, Why
from auth_service.sessions.queries import Turned
from shared import auth, outbox
from shared.config import Settings
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.envelope import envelope
from shared.errors import InvalidGrant, NotFound, Unauthenticated


class Sessions:
    """Base of the auth service: refresh tokens, sign-out, introspection, what is revoked.

    The service provides its dependencies.
    """

    settings: Settings
    db: Database
    context: Context

    @rpc
    def refresh(self, refresh_token: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Return what a sign-in returns but the device token, for a refresh token.

        The same token at once or soon again gets the same successor. One that comes later ends its session: somebody
        else may have it. Raises the same InvalidGrant for every fault. One statement where all is well.
        """
        keys = self.settings.auth_keys
        shown = derived.read_refresh_token(keys, refresh_token)
        if shown is None:
            raise InvalidGrant
        with self.db.begin() as session:
            turned = queries.rotate(session, shown, keys[0][0])
            if turned is None:
                turned = self._repeat(session, shown, Origin.read(origin))
        # By a key that is not listed any more the successor cannot be derived.
        if turned is None or turned.kid not in dict(keys):
            raise InvalidGrant
        return opening.answer(keys, turned.account, turned.session_id, None, turned.generation, turned.kid)

    def _repeat(self, session: Session, shown: Refresh, origin: Origin) -> Turned | None:
        """The session whose token was shown, if its answer comes once more. Ends it if the token was used again."""
        found = queries.lock_family(session, shown.session_id)
        if found is None:
            return None
        family, turned, at = found
        becomes = rules.refreshing(family, shown.generation, at, timedelta(seconds=self.settings.refresh_grace_s))
        if becomes is Refreshing.REUSE:
            self._end_for_reuse(session, turned.account, shown.session_id, origin)
        if becomes is Refreshing.ROTATE:  # its user was let in again at this very moment
            return queries.rotate(session, shown, self.settings.auth_keys[0][0])
        return turned if becomes is Refreshing.REPEAT else None

    def _end_for_reuse(self, session: Session, account: Account, session_id: UUID, origin: Origin) -> None:
        records.revoke_session(session, session_id, Why.REUSE)
        used_by = Origin(None, origin.network, session_id, origin.client)
        records.record(session, "session_reused", account.user_id, used_by)
        if account.email is None:
            return
        asked = proofs.ask(
            session,
            proofs.Kind.NOTICE,
            proofs.About.SESSION_REUSED,
            account.email,
            origin.network or "",
            user_id=account.user_id,
            locale=account.locale,
            limited=False,
        )
        if asked is not None:
            outbox.emit(session, [envelope("auth_service", asked, self.context.trace_id, account.identity)])

    @rpc
    def sign_out(self, everywhere: bool, origin: dict[str, Any]) -> None:
        """End the caller's session, or all of them. A token without a session has none to end."""
        caller = self.context.identity
        where = Origin.read(origin, caller)
        with self.db.begin() as session:
            if everywhere:
                user = models.lock(session, caller.user_id)
                if user is not None:
                    records.revoke_all(session, user, Why.SIGNED_OUT)
                    records.record(session, "signed_out_everywhere", user.user_id, where)
            elif where.session_id is not None:
                self._end(session, where.session_id, Why.SIGNED_OUT, caller.user_id, where)

    @rpc
    def list_sessions(self, limit: int, cursor: str | None, origin: dict[str, Any]) -> dict[str, Any]:
        """Return a page of the caller's sessions that have not ended, the newest first. Raises InvalidCursor."""
        caller = self.context.identity
        current = Origin.read(origin).session_id
        with self.db.read() as session:
            return queries.live_sessions(session, caller.user_id, current, limit, cursor)

    @rpc
    def end_session(self, session_id: str, origin: dict[str, Any]) -> None:
        """End one of the caller's sessions, if it has not ended. Raises NotFound for anybody else's."""
        caller = self.context.identity
        ended = UUID(session_id)
        with self.db.begin() as session:
            if queries.owner_of(session, ended) != caller.user_id:
                raise NotFound
            self._end(session, ended, Why.SIGNED_OUT, caller.user_id, Origin.read(origin, caller))

    @rpc
    def revoke_token(self, token: str, origin: dict[str, Any]) -> None:
        """End the session of a refresh token or an access token (RFC 7009). Nothing else happens for any other text."""
        keys = self.settings.auth_keys
        shown = derived.read_refresh_token(keys, token)
        session_id = str(shown.session_id) if shown else _session_in(token, keys)
        if session_id is None:
            return
        with self.db.begin() as session:
            owner = queries.owner_of(session, UUID(session_id))
            if owner is not None:
                self._end(session, UUID(session_id), Why.REVOKED, owner, Origin.read(origin))

    def _end(self, session: Session, session_id: UUID, why: Why, user_id: str, origin: Origin) -> None:
        if records.revoke_session(session, session_id, why):
            where = Origin(origin.actor_id, origin.network, session_id, origin.client)
            records.record(session, "session_ended", user_id, where, why=why)

    @rpc
    def introspect(self, token: str) -> dict[str, Any]:
        """Return the claims of a token (RFC 7662). An invalid or ended token is not active, whatever the reason.

        Raises RoleMissing.
        """
        self.context.require(domain.may_introspect)
        try:
            claims = auth.verify(token, self.settings.auth_keys)
        except Unauthenticated:
            return {"active": False}
        user_id = claims.identity.user_id
        with self.db.read() as session:
            if not queries.stands(session, user_id, claims.version, claims.session_id):
                return {"active": False}
        known = {"sid": claims.session_id, "ver": claims.version}
        return {
            "active": True,
            "token_type": "Bearer",
            "sub": user_id,
            "username": user_id,
            "roles": list(claims.identity.roles),
            "scope": " ".join(claims.identity.roles),
            "iss": auth.ISSUER,
            "aud": auth.AUDIENCE,
            "iat": claims.issued_at,
            "exp": claims.expires_at,
            "jti": claims.token_id,
            **{name: value for name, value in known.items() if value is not None},
        }

    @rpc
    def revocations(self, since: str | None = None) -> dict[str, Any]:
        """Return what gateways must refuse: {items: [{user_id, version, session_id}], next, since}.

        Without `since` all of the last 2 hours. Read page after page by `next` until it is None, then go on from the
        `since` of the first page. Raises RoleMissing, InvalidCursor.
        """
        self.context.require(rules.may_hear_revocations)
        with self.db.read() as session:
            return queries.revocations(session, since)


def _session_in(token: str, keys: auth.Keys) -> str | None:
    """The session of an access token, be it for the API or the dashboard. None for any other text."""
    for audience in (auth.AUDIENCE, auth.DASHBOARD):
        try:
            return auth.verify(token, keys, audience=audience).session_id
        except Unauthenticated:
            continue
    return None
