"""The entrypoints of services' keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from hmac import compare_digest
from typing import Any

from auth_service import derived, models
from auth_service.records import Origin
from auth_service.service_keys import domain, queries
from auth_service.service_keys.changes import KeyChanges
from auth_service.sessions import opening
from shared.auth import LIFE_S
from shared.config import Settings
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.errors import InvalidGrant, NotFound


class ServiceKeys:
    """Base of the auth service: keys by which programs sign in. The service provides its dependencies."""

    settings: Settings
    db: Database
    context: Context

    @rpc
    def exchange_key(self, name: str, key: str) -> dict[str, Any]:
        """Return an access token for a service's name and one of its keys.

        It has the roles of the key, and ends with it. Raises the same InvalidGrant for every fault.
        """
        shown = domain.read_key(key)
        if shown is None or not domain.NAME.fullmatch(name):
            raise InvalidGrant
        with self.db.autocommit() as session:
            known = queries.find(session, domain.user_of(name), shown.key_id)
            if known is None or not compare_digest(known.secret_hash, derived.hash_of(shown.secret)):
                raise InvalidGrant
            if not known.was_used_today:
                queries.note_use(session, shown.key_id)
        life_s = max(1, min(LIFE_S, known.left_s))
        return opening.access(self.settings.auth_keys, known.account, None, life_s)

    @rpc
    def create_key(self, name: str, roles: list[str], expires_at: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Make a key of a service and return it: {key_id, key, roles, expires_at}. Nobody can read the key again.

        `expires_at` is RFC 3339. The first key makes the service's user. Raises RoleMissing, ValidationFailed.
        """
        self.context.require(domain.may_manage_keys)
        ends = datetime.fromisoformat(expires_at)
        with self._change_keys(origin) as changes:
            return changes.create(name, roles, ends)

    @rpc
    def list_keys(self, name: str, limit: int, cursor: str | None) -> dict[str, Any]:
        """Return a page of a service's keys, without their secrets. Raises RoleMissing, NotFound, InvalidCursor."""
        self.context.require(domain.may_manage_keys)
        with self.db.read() as session:
            page = queries.page(session, domain.user_of(name), limit, cursor)
            if not page["items"] and session.get(models.User, domain.user_of(name)) is None:
                raise NotFound(f"There is no service {name}.")
        return page

    @rpc
    def revoke_key(self, name: str, key_id: str, origin: dict[str, Any]) -> None:
        """Revoke a key of a service, and every token of the service: its other keys get new ones.

        A key that is revoked already stays so. Raises RoleMissing, NotFound.
        """
        self.context.require(domain.may_manage_keys)
        with self._change_keys(origin) as changes:
            changes.revoke(name, key_id)

    @contextmanager
    def _change_keys(self, origin: dict[str, Any]) -> Iterator[KeyChanges]:
        identity, trace_id = self.context.identity, self.context.trace_id
        with self.db.begin() as session:
            yield KeyChanges(session, Origin.read(origin, identity), identity, trace_id, "admin")
