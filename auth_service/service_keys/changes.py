"""Making and revoking keys of services, each with its record, its event and what it revokes.

`ecom user keys` calls the same functions. Whoever calls them owns the transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from auth_service import derived, models, records
from auth_service.records import Origin
from auth_service.service_keys import domain, queries
from auth_service.sessions.domain import Why
from shared import outbox
from shared.envelope import envelope
from shared.errors import NotFound
from shared.events import Identity, UserCreated
from shared.ids import uuid7
from shared.roles import SERVICE
from shared.times import timestamp

SECRET_BYTES = 32


class KeyChanges:
    """The changes of one actor to services' keys, in one transaction. `via` is where the actor works: admin or cli."""

    def __init__(self, session: Session, origin: Origin, identity: Identity, trace_id: str, via: str) -> None:
        self._session = session
        self._origin = origin
        self._identity = identity
        self._trace_id = trace_id
        self._via = via

    def create(self, name: str, roles: Sequence[str], ends: datetime) -> dict[str, Any]:
        """Make a key of a service: {key_id, key, roles, expires_at}. The first key makes the service's user.

        Raises ValidationFailed.
        """
        domain.check_name(name)
        granted, user_id = domain.roles_of(roles), domain.user_of(name)
        key_id, secret = uuid7().hex, secrets.token_urlsafe(SECRET_BYTES)
        domain.check_expiry(ends, records.now_of(self._session))
        if queries.add_service(self._session, user_id):
            created = UserCreated(user_id, (SERVICE,), self._via)
            outbox.emit(self._session, [envelope("auth_service", created, self._trace_id, self._identity)])
        by = self._origin.actor_id or ""
        queries.add(self._session, key_id, user_id, derived.hash_of(secret), granted, by, ends)
        records.record(self._session, "key_created", user_id, self._origin, key_id=key_id, roles=granted)
        return {
            "key_id": key_id,
            "key": domain.key_text(key_id, secret),
            "roles": granted,
            "expires_at": timestamp(ends),
        }

    def revoke(self, name: str, key_id: str) -> None:
        """Revoke a key of a service, and every token of the service. A key that is revoked already stays so.

        Raises NotFound.
        """
        user_id = domain.user_of(name)
        user = models.lock(self._session, user_id)
        if user is None or not queries.is_key_of(self._session, user_id, key_id):
            raise NotFound(f"The service {name} has no such key.")
        if queries.revoke(self._session, user_id, key_id):
            records.revoke_all(self._session, user, Why.KEY_REVOKED)
            records.record(self._session, "key_revoked", user_id, self._origin, key_id=key_id)
