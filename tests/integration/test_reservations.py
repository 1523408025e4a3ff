"""Reservations whose messages come to two replicas at once: the later one sees what the earlier one has committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import eventlet
import pytest
from sqlalchemy.orm import Session

from inventory_service import queries
from shared import outbox
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.events import CommitRequested, ReleaseRequested
from tests.databases import Databases
from tests.integration.support import WAITING, Bench, emitted, handler_of, order_created, statements, until

CREATED = "q.inventory.order-created"
COMMITS = "q.inventory.commit-requested"
RELEASES = "q.inventory.release-requested"


@pytest.fixture
def inventory(bench: Callable[..., Bench], database: Databases) -> Bench:
    for sku in ("apple", "pear"):
        database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES (:sku, 10)", sku=sku)
    return bench("inventory")


@contextmanager
def awaited(inventory: Bench, database: Databases, queue: str, *events: Envelope) -> Iterator[Session]:
    """A transaction of another replica; before it commits, these messages are handled until they wait for it."""
    with inventory.sessions.begin() as session:
        yield session
        handled = eventlet.spawn(inventory.handle_batch, queue, events)
        until(lambda: handled.dead or database.rows("inventory", WAITING))
        assert not handled.dead, "nothing was waited for"
    handled.wait()
    done = {row["message_id"] for row in database.rows("inventory", "SELECT message_id FROM consumed_messages")}
    assert {event.message_id for event in events} <= done


def handle(inventory: Bench, queue: str, session: Session, events: Iterable[Envelope]) -> None:
    """Handle messages in a transaction that stays open."""
    tx = Tx(session, "inventory_service", {})
    getattr(inventory.service, handler_of(queue).method_name)(Events(list(events)), tx)
    outbox.emit(session, tx.outgoing_events())


def reservations(database: Databases) -> dict[UUID, str]:
    return {row["order_id"]: row["state"] for row in database.rows("inventory", "SELECT * FROM reservations")}


def stock(database: Databases) -> dict[str, tuple[int, int]]:
    rows = database.rows("inventory", "SELECT sku, on_hand, reserved FROM stock_items")
    return {row["sku"]: (row["on_hand"], row["reserved"]) for row in rows}


def told(database: Databases) -> list[str]:
    return [row["event_type"] for row in database.rows("inventory", "SELECT event_type FROM outbox ORDER BY id")]


def test_a_commit_that_waited_for_a_release_sells_nothing(inventory: Bench, database: Databases) -> None:
    order = order_created(skus=("apple", "pear"), quantity=2)
    inventory.handle_batch(CREATED, [emitted(order)])

    with awaited(inventory, database, COMMITS, emitted(CommitRequested(order.order_id))) as session:
        handle(inventory, RELEASES, session, [emitted(ReleaseRequested(order.order_id, "deadline"))])

    assert reservations(database) == {order.order_id: "RELEASED"}
    assert stock(database) == {"apple": (10, 0), "pear": (10, 0)}
    assert told(database) == ["inventory.reserved", "inventory.released"]


def test_a_release_that_waited_for_its_order_releases_its_items(inventory: Bench, database: Databases) -> None:
    order = order_created(skus=("apple", "pear"), quantity=2)

    with awaited(inventory, database, RELEASES, emitted(ReleaseRequested(order.order_id, "deadline"))) as session:
        handle(inventory, CREATED, session, [emitted(order)])

    assert reservations(database) == {order.order_id: "RELEASED"}
    assert stock(database) == {"apple": (10, 0), "pear": (10, 0)}
    assert database.rows("inventory", "SELECT sku, quantity FROM inventory_release_events ORDER BY sku") == [
        {"sku": "apple", "quantity": 2},
        {"sku": "pear", "quantity": 2},
    ]


def test_an_order_that_waited_for_another_of_its_skus_gets_what_is_left(inventory: Bench, database: Databases) -> None:
    first, second = order_created(skus=("apple",), quantity=7), order_created(skus=("apple",), quantity=7)

    with awaited(inventory, database, CREATED, emitted(second)) as session:
        handle(inventory, CREATED, session, [emitted(first)])

    assert reservations(database) == {first.order_id: "RESERVED", second.order_id: "REFUSED"}
    assert stock(database)["apple"] == (10, 7)


def test_an_order_that_waited_for_its_own_repeat_reserves_nothing(inventory: Bench, database: Databases) -> None:
    order = order_created(skus=("apple",), quantity=2)

    with awaited(inventory, database, CREATED, emitted(order)) as session:
        handle(inventory, CREATED, session, [emitted(order)])

    assert stock(database)["apple"] == (10, 2)
    assert told(database) == ["inventory.reserved"]


def test_a_reservation_is_read_with_its_items_by_one_statement(inventory: Bench) -> None:
    orders = [order_created(skus=skus, quantity=2) for skus in (("pear", "apple"), ("apple",))]
    refused = order_created(quantity=1000)
    inventory.handle_batch(CREATED, [emitted(order) for order in (*orders, refused)])

    with inventory.sessions.read() as session, statements(inventory) as sent:
        found = queries.reservations_of(session, [order.order_id for order in (*orders, refused)] + [uuid4()])

    assert {key: dict(held.quantities) for key, held in found.items()} == {
        orders[0].order_id: {"apple": 2, "pear": 2},
        orders[1].order_id: {"apple": 2},
        refused.order_id: {},
    }
    assert list(found) == sorted(found)
    assert len(sent) == 1
