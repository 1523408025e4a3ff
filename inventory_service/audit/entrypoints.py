"""The entrypoints of the release audit: the auditors' RPC methods and the timer that seals."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from inventory_service.audit import chain, exports, pages
from shared.config import Settings
from shared.edge import green
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.edge.timer import every
from shared.errors import CannotWork
from shared.logs import Reminder
from shared.metrics import AUDIT_OLDEST, AUDIT_TROUBLE, AUDIT_UNSEALED

log = logging.getLogger(__name__)

# An export waits so long for transactions that were open when it began, and looks so often.
SEAL_WAIT_S = 2.0
SEAL_AGAIN_S = 0.02
# And so long for rows that are only not sealed yet: many, after a migration. Its caller waits for 10 s.
BACKLOG_WAIT_S = 5.0


class ReleaseAudit:
    """Base of the inventory service: answers auditors and seals releases. The service provides its dependencies."""

    name: str
    settings: Settings
    db: Database
    context: Context
    reminder = Reminder()  # of this process

    @rpc
    def release_events(
        self,
        filters: dict[str, Any],
        limit: int,
        cursor: str | None = None,
        offset: int = 0,
        include_total: bool = False,
    ) -> dict[str, Any]:
        """A page of the release audit, newest first: {items, next_cursor, total}. Raises InvalidCursor.

        `offset` skips so many rows, which are read; `total` is None unless asked for.
        """
        with self.db.read() as session:
            items, next_cursor = pages.page(session, filters, limit, cursor, offset)
            total = pages.count(session, filters) if include_total else None
        return {"items": items, "next_cursor": next_cursor, "total": total}

    @rpc
    def release_event(self, event_id: int) -> dict[str, Any]:
        """One release, with `seal`: {seq, sealed_at} or None. Raises NotFound."""
        with self.db.read() as session:
            return pages.find(session, event_id)

    @rpc
    def release_totals(self, filters: dict[str, Any]) -> list[dict[str, Any]]:
        """What was released by day (UTC) and reason: [{day, reason, releases, quantity}]."""
        with self.db.read() as session:
            return pages.totals(session, filters)

    @rpc
    def release_chain(self) -> dict[str, Any]:
        """How far the chain is: {seals, rows, newest: {seq, mac, sealed_at}, waiting, oldest_waiting_at, trouble}.

        `trouble` says why nothing can be sealed, or is None.
        """
        with self.db.read() as session:
            return chain.status(session)

    @rpc
    def open_release_export(self, filters: dict[str, Any]) -> dict[str, Any]:
        """Begin an export of all that is committed now: {export_id, sealed_to}. Rows not sealed yet are sealed first.

        A transaction that stays open keeps rows out of reach; after SEAL_WAIT_S the export goes without them.
        Raises CannotWork when they cannot be sealed, or are too many to be sealed at once.
        """
        with self.db.read() as session:
            ends_at = chain.next_xid(session)
        began = time.monotonic()
        while True:
            self._seal_once()
            with self.db.read() as session:
                is_open = chain.is_open_below(session, ends_at)
                is_behind = chain.is_behind(session, ends_at)
            waited = time.monotonic() - began
            if is_behind and waited > BACKLOG_WAIT_S:
                raise CannotWork("many releases are being sealed still")
            if not is_behind and (not is_open or waited > SEAL_WAIT_S):
                break
            green.sleep(SEAL_AGAIN_S if is_open else 0)
        with self.db.begin() as session:
            return exports.open_export(session, filters, self.context.identity)

    @rpc
    def release_export_page(self, export_id: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """A page of an export, newest first: {items, next_cursor}. Raises NotFound, InvalidCursor."""
        with self.db.read() as session:
            items, next_cursor = exports.export_page(session, UUID(export_id), limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def close_release_export(self, export_id: str, rows: int, sha256: str) -> dict[str, Any]:
        """Write down that an export is through; its signed manifest. Raises NotFound, Conflict."""
        with self.db.begin() as session:
            return exports.close_export(session, UUID(export_id), rows, sha256, self.settings.audit_key)

    @rpc
    def release_exports(self, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """A page of the record of exports, newest first: {items, next_cursor}. Raises InvalidCursor."""
        with self.db.read() as session:
            items, next_cursor = exports.list_exports(session, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @every(1)
    def seal(self) -> None:
        """Seal what is settled and not sealed yet; count what is not."""
        with self.db.read() as session:
            status = chain.status(session)
        now = datetime.now(UTC)
        oldest = datetime.fromisoformat(status["oldest_waiting_at"]) if status["waiting"] else now
        AUDIT_UNSEALED.labels(self.name).set(status["waiting"])
        AUDIT_OLDEST.labels(self.name).set(max((now - oldest).total_seconds(), 0))
        AUDIT_TROUBLE.labels(self.name).set(status["trouble"] is not None)
        if status["trouble"]:
            if self.reminder.due(status["trouble"]):
                log.error("%s", status["trouble"])
            return
        self.reminder.forget()
        more = status["waiting"] > 0
        while more:
            more = self._seal_once() == chain.ROWS_PER_SEAL
            green.sleep(0)  # calls are answered between two seals

    def _seal_once(self) -> int:
        with self.db.begin() as session:
            return chain.seal_once(session, self.settings.audit_key)
