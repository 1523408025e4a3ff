"""A service whose handler SIGKILLs its own process, and a parent that starts it again each time.

    python -m tests.integration.killer MESSAGE_ID    the message that kills; one line for each death

Its effect on any other message is a reservation, which can be made once.
"""

from __future__ import annotations

# isort: off
from shared.edge import patched  # noqa: F401

# isort: on
import os
import signal
import sys
from typing import Any
from uuid import UUID

from nameko.containers import ServiceContainer

from inventory_service import queries
from inventory_service.domain import State
from ops.local.processes import tie
from shared.config import read
from shared.edge.consumer import handles
from shared.edge.database import Database
from shared.edge.runner import nameko_config
from shared.edge.tx import Events, Tx
from shared.ids import uuid7

QUEUE = "q.inventory.order-created"


class InventoryService:
    """Reserves until the message that kills it arrives."""

    name = "inventory_service"
    killer: UUID

    db = Database()

    @handles(QUEUE)
    def reserve(self, events: Events, tx: Tx) -> None:
        ids = {event.payload.order_id: uuid7() for event in events}
        assert queries.claim_reservations(tx.session, ids, State.RESERVED) == set(ids), "an effect came twice"
        for event in events:
            if event.message_id == self.killer:
                # After the effects of all were written: none of them may stay of a batch that was not committed.
                os.kill(os.getpid(), signal.SIGKILL)


def live_again_and_again(service: Any, name: str) -> None:
    """Run a service in a child, and print a line and start it again each time it has died."""
    tied, parent = tie(signal.SIGKILL), os.getpid()
    while True:
        # What is imported need not be imported again for each of its lives.
        child = os.fork()
        if not child:
            # Its parent may be killed while it starts it, and no process would end it.
            if tied:
                tied()
            if os.getppid() != parent:
                return
            container = ServiceContainer(service, nameko_config(read(), name))
            container.start()
            container.wait()
        _, how = os.waitpid(child, 0)
        print(f"died of {signal.Signals(os.WTERMSIG(how)).name}", flush=True)


if __name__ == "__main__":
    InventoryService.killer = UUID(sys.argv[1])
    live_again_and_again(InventoryService, "inventory")
