"""An event need not be about an order: it names its own aggregate, in the outbox, to the relay and when it dies."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from shared import events, outbox
from shared.edge.publisher import Publisher
from shared.errors import UnexpectedEvent
from shared.events import Payload
from shared.failures import Delivery
from shared.ids import aggregate_of
from shared.relay import publish_once
from shared.schema import Sku
from tests.databases import Databases
from tests.integration.support import Bench, Mail, emitted, until
from topology import table

COUNTED = "stock.counted"
QUEUE = "q.payment.order-cancelled"


@dataclass(frozen=True)
class StockCounted(Payload):
    """The stock of a sku was counted."""

    sku: Sku

    @property
    def aggregate_id(self) -> UUID:
        return aggregate_of("sku", self.sku)


@pytest.fixture(autouse=True)
def catalogued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the event to the catalogue; no queue is bound to it unless a test does so."""
    monkeypatch.setitem(events.CATALOGUE, COUNTED, StockCounted)
    monkeypatch.setitem(events._TYPE_OF, StockCounted, COUNTED)


def test_a_row_of_the_outbox_has_the_aggregate_that_the_event_names(
    bench: Callable[..., Bench], database: Databases
) -> None:
    with bench("order").sessions.begin() as session:
        outbox.emit(session, [emitted(StockCounted("lamp"))])

    assert database.rows("order", "SELECT aggregate_id FROM outbox") == [{"aggregate_id": aggregate_of("sku", "lamp")}]


def test_a_refused_event_holds_back_later_events_of_its_aggregate_and_no_others(
    bench: Callable[..., Bench],
    database: Databases,
    connection: Connection,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lamp, other_lamp, desk = (emitted(StockCounted(sku)) for sku in ("lamp", "lamp", "desk"))
    with bench("order").sessions.begin() as session:
        outbox.emit(session, [lamp, other_lamp, desk])
    monkeypatch.setattr(
        publisher,
        "publish_all",
        lambda messages: ["refused" if item.message_id == str(lamp.message_id) else None for item in messages],
    )

    publish_once(connection, publisher)

    waiting = database.rows("order", "SELECT message_id FROM outbox WHERE published_at IS NULL ORDER BY id")
    assert [row["message_id"] for row in waiting] == [lamp.message_id, other_lamp.message_id]


def test_a_dead_message_that_is_about_no_order_is_recorded_without_one(
    bench: Callable[..., Bench], database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = table.BY_NAME[QUEUE]
    monkeypatch.setitem(table.BY_NAME, QUEUE, table.Queue(row.name, row.service, (*row.bindings, "stock.*")))
    event = emitted(StockCounted("lamp"))

    def fail(batch, tx):
        for one in batch:
            tx.fail(one, UnexpectedEvent("not now"))

    delivery = Delivery(1, event.to_json().encode(), event.type, str(event.message_id), {})
    bench("payment").batch(QUEUE, handle=fail).handle_batch([delivery])

    until(lambda: mail.waiting(table.dead_letter_queue(QUEUE)) == 1)
    columns = "SELECT message_id, event_type, order_id, trace_id, reason FROM dead_messages"
    assert database.rows("payment", columns) == [
        {
            "message_id": event.message_id,
            "event_type": COUNTED,
            "order_id": None,
            "trace_id": event.trace_id,
            "reason": "unexpected_event",
        }
    ]


def test_an_event_that_names_no_aggregate_is_a_defect_that_its_author_sees(bench: Callable[..., Bench]) -> None:
    @dataclass(frozen=True)
    class Nameless(Payload):
        order: str = str(uuid4())

    events._TYPE_OF[Nameless] = COUNTED
    try:
        with bench("order").sessions.begin() as session, pytest.raises(NotImplementedError):
            outbox.emit(session, [emitted(Nameless())])
    finally:
        del events._TYPE_OF[Nameless]
