"""What admins and operators do to an account: each change with its record, its event and what it revokes.

`ecom user` calls the same functions. Whoever calls them owns the transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from auth_service import models, records
from auth_service.models import User
from auth_service.openid import queries as identities
from auth_service.people import domain, queries
from auth_service.people.domain import Event
from auth_service.records import Origin
from auth_service.sessions.domain import Why
from shared import outbox
from shared.envelope import envelope
from shared.errors import NotFound
from shared.events import Identity, Payload, UserCreated, UserDisabled, UserEnabled, UserRoleChanged

SERVICE_NAME = "auth_service"


class Changes:
    """The changes of one actor in one transaction.

    An actor who `is_user` must still be an admin when the rows are locked, and changes only others. An operator at a
    terminal is none: who can write to the database needs no role.
    """

    def __init__(
        self, session: Session, origin: Origin, identity: Identity, trace_id: str, is_user: bool = True
    ) -> None:
        self._session = session
        self._origin = origin
        self._identity = identity
        self._trace_id = trace_id
        self._is_user = is_user

    def put_roles(self, user_id: str, written: Sequence[str], reason: str) -> dict[str, Any]:
        """Give a user these roles in place of those they have. Returns the person.

        Raises NotFound, ValidationFailed, OwnRoles, RoleMissing, LastAdmin, ServiceRole.
        """
        roles = domain.roles_from(written)
        user, admins = self._lock(user_id)
        domain.check_kind_of_roles(user.kind, user.roles, roles)
        domain.check_an_admin_stays(user_id, roles, user.disabled, admins)
        if set(roles) != set(user.roles):
            before, user.roles = user.roles, list(roles)
            if domain.becomes_staff(before, roles):
                version = records.revoke_all(self._session, user, Why.PROMOTED)
            else:
                version = records.outdate(self._session, user)
            self._record(Event.ROLES_CHANGED, user_id, roles=list(roles), before=before, reason=reason)
            self._emit(UserRoleChanged(user_id, roles, version))
        return queries.shown(user)

    def disable(self, user_id: str, reason: str) -> dict[str, Any]:
        """Let a user sign in no more, and end all they are signed in with. Returns the person.

        Raises NotFound, OwnRoles, RoleMissing, LastAdmin.
        """
        user, admins = self._lock(user_id)
        domain.check_an_admin_stays(user_id, user.roles, True, admins)
        if not user.disabled:
            user.disabled = True
            records.revoke_all(self._session, user, Why.DISABLED)
            self._record(Event.DISABLED, user_id, reason=reason)
            self._emit(UserDisabled(user_id))
        return queries.shown(user)

    def enable(self, user_id: str, reason: str) -> dict[str, Any]:
        """Let a disabled user sign in again. Returns the person. Raises NotFound, OwnRoles, RoleMissing, Conflict."""
        user, _ = self._lock(user_id)
        domain.check_may_be_enabled(queries.is_leaving(user))
        if user.disabled:
            user.disabled = False
            self._record(Event.ENABLED, user_id, reason=reason)
            self._emit(UserEnabled(user_id))
        return queries.shown(user)

    def end_sessions(self, user_id: str, why: Why = Why.ADMIN) -> None:
        """End all sessions and tokens of a user. Raises NotFound."""
        user = models.lock(self._session, user_id)
        if user is None:
            raise NotFound
        records.revoke_all(self._session, user, why)
        self._record(Event.SESSIONS_ENDED, user_id)

    def set_password(self, user_id: str, password_hash: str) -> None:
        """Give a user another password, and end all that signs them in: sessions, and identities. Raises NotFound."""
        user = models.lock(self._session, user_id)
        if user is None:
            raise NotFound
        user.password_hash = password_hash
        user.password_at = records.now_of(self._session)
        records.revoke_all(self._session, user, Why.PASSWORD_RESET)
        self._record(Event.PASSWORD_SET, user_id, **identities.unlink_all(self._session, user_id))

    def created(self, user_id: str, roles: Sequence[str], via: str) -> None:
        """Record a user that was added in this transaction, and tell of them."""
        self._record(Event.CREATED, user_id, roles=list(roles), via=via)
        self._emit(UserCreated(user_id, tuple(roles), via))

    def looked_up(self, ids: Sequence[str]) -> None:
        """Record of whom the actor has read name and address: one row, which belongs to the actor."""
        self._record(Event.LOOKED_UP, self._origin.actor_id, ids=list(ids))

    def _lock(self, user_id: str) -> tuple[User, list[str]]:
        actor_id = self._origin.actor_id or ""
        user, admins, actor_roles = queries.lock_with_admins(self._session, user_id, actor_id)
        if self._is_user:
            domain.check_actor(actor_id, user_id, actor_roles)
        return user, admins

    def _record(self, event: Event, user_id: str | None, **details: Any) -> None:
        records.record(self._session, event, user_id, self._origin, **details)

    def _emit(self, payload: Payload) -> None:
        outbox.emit(self._session, [envelope(SERVICE_NAME, payload, self._trace_id, self._identity)])
