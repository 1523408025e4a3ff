"""The runbook for dead messages is replayed: see tests/e2e/replayed.py."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from shared.envelope import envelope
from shared.events import CommitRequested, Identity, ReleaseRequested
from shared.ids import new_trace_id
from tests.e2e.broker import Publishers
from tests.e2e.replayed import Replayed
from tests.e2e.system import System, eventually

OPERATOR = Identity("operator", ("operator",))


class Runbook(Replayed):
    """The page's scenes: messages that die, and what mends them."""

    def __init__(self, system: System, directory: Path) -> None:
        super().__init__(system, directory)
        self.orders = [uuid.uuid4() for _ in range(3)]
        self.nobodys = uuid.uuid4()

    def dead(self) -> None:
        """Three commits of what was never reserved, a release that breaks its schema, and one that is no JSON."""
        self.system.databases.run("ops", "TRUNCATE operations, operation_messages")  # what other tests did
        broken = envelope("order_service", ReleaseRequested(self.nobodys, "payment_failed"), new_trace_id(), OPERATOR)
        body = broken.to_json().replace('"payment_failed"', '"payment failed"')
        with Publishers(self.system.amqp_uri) as publishers:
            for sent, order_id in enumerate(self.orders, start=1):
                event = envelope("order_service", CommitRequested(order_id), new_trace_id(), OPERATOR)
                publishers.publish(event.type, event.to_json().encode())
                eventually(lambda: self.written("q.inventory.commit-requested"), lambda n: n == sent)  # noqa: B023
            publishers.publish(broken.type, body.encode())
            eventually(lambda: self.written("q.inventory.release-requested"), lambda n: n == 1)
            publishers.publish(broken.type, b"{no JSON")
        eventually(lambda: self.written("q.inventory.release-requested"), lambda n: n == 2)
        eventually(lambda: sum(self.system.dead_letters().values()), lambda n: n == 5)

    def mended(self) -> None:
        """The reservations are there now."""
        flow = self.system.flow()
        flow.stock("runbook", 10)
        for order_id in self.orders:
            items = {"order_id": str(order_id), "items": [{"sku": "runbook", "quantity": 1}]}
            flow.send("POST", "/api/stocks/reserve", items, user="admin").raise_for_status()

    def written(self, queue: str) -> int:
        """How many deaths in a queue are written down."""
        return sum(row["queue"] == queue for row in self.system.deaths())


@pytest.mark.timeout(300)  # some forty commands, one after the other
def test_every_command_of_the_runbook_prints_what_the_page_says(system: System, tmp_path: Path) -> None:
    with Runbook(system, tmp_path) as book:
        try:
            book.replay("operations.md", "## Dead messages\n")
        finally:
            # The release that was corrected left a tombstone for an order that never was.
            left = system.databases.run("inventory", "DELETE FROM reservations WHERE order_id = :id", id=book.nobodys)
    assert left == 1
    assert book.commands >= 20
