"""The witness: copies each head of the release audit's chain into the operations ledger, soon after it is made.

A user who may write the inventory database can cut off the chain's tail, rows and seals: the rest is a valid chain.
The ledger is another database, and its own role cannot delete from it either.
"""

from __future__ import annotations

import logging

from inventory_service.audit import chain
from ops.audit import ledger
from ops.dlq.service_databases import ServiceDatabases
from shared.edge.database import Sessions
from shared.logs import Reminder
from shared.metrics import AUDIT_TROUBLE

log = logging.getLogger(__name__)

# Read and written in one go.
HEADS_AT_ONCE = 1000


class Witness:
    """Compares the chain with the ledger again and again. After a fault, kept in `trouble`, it saves no head until
    the chain is repaired.

    Heads of another chain on top of those it knows would hide the place where they part.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._reminder = Reminder()

    def run_once(self, sessions: Sessions, databases: ServiceDatabases) -> int:
        """Record the heads that are new; how many. Raises CannotWork."""
        count = 0
        while True:
            with sessions.read() as session:
                head = ledger.newest_head(session.connection())
            known = head["seq"] if head else 0
            with databases.read("inventory") as session:
                # From the head known on, to see that it is there still: read after the ledger, so no older than that.
                seals = list(chain.seals_after(session, known - 1, HEADS_AT_ONCE))
                newest = None if seals or head is None else chain.newest_seal(session)
            if head is None or (seals and seals[0].mac == head["mac"]):
                self._say(None)
            elif not seals:
                self._say(f"the ledger knows seal {known}, the chain ends at {newest.seq if newest else 0}")
            else:
                self._say(
                    f"the ledger knows another seal {known}" if seals[0].seq == known else f"seal {known} is gone"
                )
            new = [] if self.trouble else [seal for seal in seals if seal.seq > known]
            if new:
                with sessions.begin() as session:
                    ledger.write_heads(session.connection(), new)
            count += len(new)
            if self.trouble or len(seals) < HEADS_AT_ONCE:
                return count

    def _say(self, trouble: str | None) -> None:
        self.trouble = trouble
        AUDIT_TROUBLE.labels("ops_service").set(trouble is not None)
        if trouble is None:
            self._reminder.forget()
        elif self._reminder.due(trouble):
            log.error("the release audit was changed: %s; `ecom audit verify` finds where", trouble)
