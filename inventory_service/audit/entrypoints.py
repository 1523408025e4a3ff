"""The entrypoints of the release audit: the auditors' RPC methods and the timer that seals."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from inventory_service import domain
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

# How long an export waits for transactions that were open when it began, and how often it checks.
SEAL_WAIT_S = 2.0
SEAL_CHECK_EVERY_S = 0.02
# How long an export waits until committed rows are sealed: there can be many after a migration. Callers wait 10 s.
BACKLOG_WAIT_S = 5.0


class ReleaseAudit:
    """Base of the inventory service: answers auditors and seals releases. The service provides its dependencies."""

    name: str
    settings: Settings
    db: Database
    context: Context
    reminder = Reminder()  # shared by all workers of the process

    @rpc
    def release_events(
        self,
        filters: dict[str, Any],
        limit: int,
        cursor: str | None = None,
        offset: int = 0,
        include_total: bool = False,
    ) -> dict[str, Any]:
        """Return one page of the release audit, newest first: {items, next_cursor, total}. Raises InvalidCursor.

        The database reads the rows that `offset` skips. `total` is None unless `include_total` is set.
        """
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            items, next_cursor = pages.page(session, filters, limit, cursor, offset)
            total = pages.count(session, filters) if include_total else None
        return {"items": items, "next_cursor": next_cursor, "total": total}

    @rpc
    def release_events_before(self, filters: dict[str, Any], limit: int, event_id: int) -> dict[str, Any]:
        """Return the page that ends just before a release, newest first: {items, next_cursor, is_first}.

        If fewer than `limit` releases are newer, it is the first page, which then contains older ones as well.
        """
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            items, next_cursor, is_first = pages.page_before(session, filters, limit, event_id)
        return {"items": items, "next_cursor": next_cursor, "is_first": is_first}

    @rpc
    def release_event(self, event_id: int) -> dict[str, Any]:
        """Return one release with `seal`: {seq, sealed_at} or None. Raises NotFound."""
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            return pages.find(session, event_id)

    @rpc
    def release_totals(self, filters: dict[str, Any]) -> list[dict[str, Any]]:
        """Sum the releases by day (UTC) and reason: [{day, reason, releases, quantity}]."""
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            return pages.totals(session, filters)

    @rpc
    def release_chain(self) -> dict[str, Any]:
        """Describe the chain: {seals, rows, newest: {seq, mac, sealed_at}, waiting, oldest_waiting_at, trouble}.

        `trouble` says why nothing can be sealed, or is None.
        """
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            return chain.status(session)

    @rpc
    def open_release_export(self, filters: dict[str, Any]) -> dict[str, Any]:
        """Begin an export of every row committed so far: {export_id, sealed_to}. Seals unsealed rows first.

        Rows above an open transaction cannot be sealed; after SEAL_WAIT_S the export begins without them.
        Raises CannotWork if sealing is impossible, or takes longer than BACKLOG_WAIT_S.
        """
        self.context.require(domain.may_export_audit)
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
            green.sleep(SEAL_CHECK_EVERY_S if is_open else 0)
        with self.db.begin() as session:
            return exports.open_export(session, filters, self.context.identity)

    @rpc
    def release_export_page(self, export_id: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """Return one page of an export, newest first: {items, next_cursor}. Raises NotFound, InvalidCursor."""
        self.context.require(domain.may_export_audit)
        with self.db.read() as session:
            items, next_cursor = exports.export_page(session, UUID(export_id), limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def close_release_export(self, export_id: str, rows: int, sha256: str) -> dict[str, Any]:
        """Record that an export finished, and return its signed manifest. Raises NotFound, Conflict."""
        self.context.require(domain.may_export_audit)
        with self.db.begin() as session:
            return exports.close_export(session, UUID(export_id), rows, sha256, self.settings.audit_key)

    @rpc
    def release_exports(self, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """Return one page of the recorded exports, newest first: {items, next_cursor}. Raises InvalidCursor."""
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            items, next_cursor = exports.list_exports(session, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @every(1)
    def seal(self) -> None:
        """Seal every row that can be sealed, and set the metrics of unsealed rows."""
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
            green.sleep(0)  # let other calls run between two seals

    def _seal_once(self) -> int:
        with self.db.begin() as session:
            return chain.seal_once(session, self.settings.audit_key)
