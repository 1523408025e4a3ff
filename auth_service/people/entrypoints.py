"""The entrypoints by which admins, operators, auditors and services see people, and admins change what they may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from auth_service.people import domain, queries
from auth_service.people.changes import Changes
from auth_service.records import Origin
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc


class People:
    """Base of the auth service: people, as others see and change them. The service provides its dependencies.

    `origin` is where a request came from, as `records.Origin.read` reads it.
    """

    db: Database
    context: Context

    @rpc
    def list_people(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of people by user_id: {items, next_cursor}. `filters`: email, role. Raises InvalidCursor."""
        self.context.require(domain.may_read_people)
        with self.db.read() as session:
            items, next_cursor = queries.page(session, limit, cursor, filters or {})
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def get_person(self, user_id: str) -> dict[str, Any]:
        """One person: {user_id, name, email, roles, kind, disabled, created_at}. Raises NotFound."""
        self.context.require(domain.may_read_people)
        with self.db.read() as session:
            return queries.person(session, user_id)

    @rpc
    def person_events(self, user_id: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """A page of what was done with an account, newest first: {items, next_cursor}.

        Raises NotFound, InvalidCursor.
        """
        self.context.require(domain.may_read_records)
        with self.db.read() as session:
            items, next_cursor = queries.records(session, user_id, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def look_up_people(self, ids: list[str], origin: dict[str, Any]) -> dict[str, Any]:
        """Those of at most 100 people who are there, by user_id: {items}. It is recorded who has asked for whom.

        Raises ValidationFailed.
        """
        self.context.require(domain.may_look_up)
        domain.check_ids(ids)
        with self._change_people(origin) as (session, changes):
            items = queries.people(session, ids)
            changes.looked_up([item["user_id"] for item in items])
        return {"items": items}

    @rpc
    def people(self, ids: list[str]) -> dict[str, Any]:
        """Those of at most 100 people who are there, for a service that shows or mails them: {items}.

        Raises ValidationFailed.
        """
        self.context.require(domain.may_ask_for_people)
        domain.check_ids(ids)
        with self.db.read() as session:
            return {"items": queries.people(session, ids)}

    @rpc
    def put_roles(self, user_id: str, roles: list[str], reason: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Give a person these roles; tokens of before end. Returns the person.

        Raises NotFound, ValidationFailed, OwnRoles, LastAdmin, ServiceRole.
        """
        self.context.require(domain.may_change_people)
        with self._change_people(origin) as (_, changes):
            return changes.put_roles(user_id, roles, reason)

    @rpc
    def disable_person(self, user_id: str, reason: str, origin: dict[str, Any]) -> dict[str, Any]:
        """End all that a person is signed in with, and let them sign in no more. Returns the person.

        Raises NotFound, OwnRoles, LastAdmin.
        """
        self.context.require(domain.may_change_people)
        with self._change_people(origin) as (_, changes):
            return changes.disable(user_id, reason)

    @rpc
    def enable_person(self, user_id: str, reason: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Let a disabled person sign in again. Returns the person. Raises NotFound, OwnRoles, Conflict."""
        self.context.require(domain.may_change_people)
        with self._change_people(origin) as (_, changes):
            return changes.enable(user_id, reason)

    @rpc
    def end_sessions_of(self, user_id: str, origin: dict[str, Any]) -> None:
        """End all sessions and tokens of a person. Raises NotFound."""
        self.context.require(domain.may_change_people)
        with self._change_people(origin) as (_, changes):
            changes.end_sessions(user_id)

    @contextmanager
    def _change_people(self, origin: dict[str, Any]) -> Iterator[tuple[Any, Changes]]:
        identity, trace_id = self.context.identity, self.context.trace_id
        with self.db.begin() as session:
            yield session, Changes(session, Origin.read(origin, identity), identity, trace_id)
