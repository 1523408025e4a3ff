"""The cost of each batch handler: a batch is one transaction, and needs what its budget says."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from ops.docs.budgets import BUDGETS, POST, RELAY, Cost
from payment_service.domain import payment_id_of
from shared.config import Settings
from shared.edge.publisher import Outgoing, Publisher
from shared.envelope import Envelope
from shared.events import (
    AvailabilityChanged,
    CommitRequested,
    OfferChanged,
    OrderCancelled,
    PaymentFailed,
    PaymentSucceeded,
    RefundRequested,
    ReleaseRequested,
    ReservationFailed,
    Reserved,
)
from shared.prices import Price
from shared.relay import publish_once
from tests.databases import Databases
from tests.integration.support import (
    CUSTOMER,
    SYSTEM,
    Bench,
    Frames,
    Mail,
    Wire,
    emitted,
    order_created,
    statements,
    wire_to_broker,
)
from topology.table import BY_NAME, QUEUES

SIZES = (1, 50)
BATCH = SIZES[-1]
SKUS = [f"sku-{number}" for number in range(10)]

Benches = Callable[..., Bench]

CREATED = "q.inventory.order-created"
COMMITS = "q.inventory.commit-requested"
RELEASES = "q.inventory.release-requested"
CHARGES = "q.payment.inventory-reserved"
REFUNDS = "q.payment.refund-requested"
VOIDS = "q.payment.order-cancelled"
INVENTORY_RESULTS = "q.order.inventory-result"
PAYMENT_RESULTS = "q.order.payment-result"
AVAILABILITY = "q.catalog.stock-availability"
OFFERS = "q.order.catalog-offers"


def stock(database: Databases, on_hand: int = 100_000) -> None:
    for sku in SKUS:
        database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES (:sku, :n)", sku=sku, n=on_hand)


def some(number: int) -> list[str]:
    return [SKUS[(number + step) % len(SKUS)] for step in range(3)]


def reserved(order_id: UUID, method: str = "mock_ok", skus: Sequence[str] = ("apple",)) -> Reserved:
    order = order_created(order_id, skus=skus, method=method)
    return Reserved(order_id, uuid4(), order.items, order.total, order.currency, method)


def posted(bench: Bench, number: int = BATCH) -> list[UUID]:
    """Orders as clients post them."""
    order = {
        "currency": "EUR",
        "payment_method": "mock_ok",
        "items": [{"sku": sku, "quantity": 1, "unit_price": 100} for sku in some(0)],
    }
    return [UUID(bench.service.create_order(order, f"key-{place}")["body"]["order_id"]) for place in range(number)]


# Each makes what came before the batch, and returns the batch: 50 messages that drive every branch of the handler.


def to_reserve(bench: Bench, database: Databases) -> list[Envelope]:
    stock(database)
    database.run("inventory", "INSERT INTO recipes (sku, changed_by) VALUES ('set', 'admin')")
    for sku in some(7):
        database.run("inventory", "INSERT INTO recipe_lines VALUES ('set', :sku, 2)", sku=sku)
    skus = [[*some(n), "set"] if n % 3 else some(n) for n in range(BATCH)]
    wanted = [order_created(skus=skus[n], quantity=2 if n % 5 else 900_000) for n in range(BATCH)]
    return [emitted(order) for order in wanted]


def to_commit(bench: Bench, database: Databases) -> list[Envelope]:
    stock(database)
    orders = [order_created(skus=some(n)) for n in range(BATCH)]
    bench.handle_batch(CREATED, [emitted(order) for order in orders])
    bench.handle_batch(RELEASES, [emitted(ReleaseRequested(order.order_id, "deadline")) for order in orders[:5]])
    return [emitted(CommitRequested(order.order_id)) for order in orders]


def to_release(bench: Bench, database: Databases) -> list[Envelope]:
    stock(database)
    orders = [order_created(skus=some(n)) for n in range(BATCH)]
    bench.handle_batch(CREATED, [emitted(order) for order in orders[5:]])  # those released first leave tombstones
    bench.handle_batch(COMMITS, [emitted(CommitRequested(order.order_id)) for order in orders[25:]])
    return [emitted(ReleaseRequested(order.order_id, "order_cancelled")) for order in orders]


def to_charge(bench: Bench, database: Databases) -> list[Envelope]:
    orders = [uuid4() for _ in range(BATCH)]
    bench.handle_batch(VOIDS, [emitted(OrderCancelled(order_id, "deadline")) for order_id in orders[:5]])
    return [emitted(reserved(order_id, "mock_declined" if n % 7 else "mock_ok")) for n, order_id in enumerate(orders)]


def to_refund(bench: Bench, database: Databases) -> list[Envelope]:
    orders = [uuid4() for _ in range(BATCH)]
    methods = ["mock_refund_declined" if n % 7 == 0 else "mock_ok" for n in range(BATCH)]
    bench.handle_batch(CHARGES, [emitted(reserved(*pair)) for pair in zip(orders, methods, strict=True)])
    return [
        emitted(RefundRequested(order_id, payment_id_of(order_id), uuid4(), 100, "EUR", "order_cancelled"))
        for order_id in orders
    ]


def to_void(bench: Bench, database: Databases) -> list[Envelope]:
    orders = [uuid4() for _ in range(BATCH)]
    bench.handle_batch(CHARGES, [emitted(reserved(order_id)) for order_id in orders[:5]])
    database.run("payment", "UPDATE payments SET status = 'PENDING'")  # a call under way
    return [emitted(OrderCancelled(order_id, "deadline")) for order_id in orders]


def to_follow_inventory(bench: Bench, database: Databases) -> list[Envelope]:
    orders = posted(bench)
    return [
        emitted(reserved(order_id, skus=some(0)) if n % 5 else ReservationFailed(order_id, "out_of_stock", ()))
        for n, order_id in enumerate(orders)
    ]


def to_follow_payment(bench: Bench, database: Databases) -> list[Envelope]:
    orders = posted(bench)
    return [
        emitted(
            PaymentSucceeded(order_id, payment_id_of(order_id), 300, "EUR", "reference")
            if n % 5
            else PaymentFailed(order_id, payment_id_of(order_id), "card_declined")
        )
        for n, order_id in enumerate(orders)
    ]


def to_learn_availability(bench: Bench, database: Databases) -> list[Envelope]:
    return [emitted(AvailabilityChanged(f"sku-{n}", n % 2 == 0, n if n % 3 else None, n + 1)) for n in range(BATCH)]


def to_learn_offers(bench: Bench, database: Databases) -> list[Envelope]:
    price = Price("EUR", 1, 5, datetime(2026, 1, 14, tzinfo=UTC))
    offers = [
        OfferChanged(uuid4(), f"sku-{n}", n + 1, "A lamp", None, True, (price,), ("listed",)) for n in range(BATCH)
    ]
    return [emitted(offer, source="catalog_service") for offer in offers]


# What has taken effect when all 50 have; the statement must return one row, and its value.
CASES: dict[str, tuple[Callable[[Bench, Databases], list[Envelope]], str, int]] = {
    CREATED: (to_reserve, "SELECT count(*) AS n FROM reservations WHERE state IN ('RESERVED', 'REFUSED')", 50),
    COMMITS: (to_commit, "SELECT count(*) AS n FROM reservations WHERE state = 'COMMITTED'", 45),
    RELEASES: (to_release, "SELECT count(*) AS n FROM reservations WHERE state = 'RELEASED'", 50),
    CHARGES: (to_charge, "SELECT count(*) AS n FROM payments WHERE status IN ('COMPLETED', 'FAILED')", 45),
    REFUNDS: (to_refund, "SELECT count(*) AS n FROM refunds WHERE status IN ('COMPLETED', 'FAILED')", 50),
    VOIDS: (to_void, "SELECT count(*) AS n FROM payments WHERE status = 'VOID' OR cancelled", 50),
    INVENTORY_RESULTS: (to_follow_inventory, "SELECT count(*) AS n FROM orders WHERE status <> 'PENDING'", 50),
    PAYMENT_RESULTS: (to_follow_payment, "SELECT count(*) AS n FROM orders WHERE status <> 'PENDING'", 50),
    OFFERS: (to_learn_offers, "SELECT count(*) AS n FROM offers", 50),
    AVAILABILITY: (to_learn_availability, "SELECT count(*) AS n FROM availability", 50),
}


def test_every_queue_of_the_table_is_measured() -> None:
    assert set(CASES) == {queue.name for queue in QUEUES}
    assert {POST, RELAY, *CASES} == set(BUDGETS)


@contextmanager
def measured(bench: Bench, wire: Wire) -> Iterator[list[Cost]]:
    """What is done meanwhile by a service whose database is reached by this wire, and what its relay sends then."""
    with bench.sessions.read() as session:
        session.connection()  # what a connection asks when it is made costs no batch anything
    frames, found = Frames(), []
    broker = wire_to_broker(bench.settings, frames)
    publisher = Publisher(broker.amqp_uri(bench.settings.amqp_uri), heartbeat_s=30)
    try:
        with relay_connection(bench) as connection:
            publish_once(connection, publisher)  # what came before
            publisher.publish_all([Outgoing("", "nobody", "", str(uuid4()), mandatory=False)])  # connects
            wire.completed.clear()
            with statements(bench) as sent:
                yield found
            began = frames.count
            events = publish_once(connection, publisher)
            found.append(Cost(len(sent), wire.completed.count("BEGIN"), events, frames.count - began))
    finally:
        publisher.close()
        broker.close()


@contextmanager
def relay_connection(bench: Bench) -> Iterator[Connection]:
    engine = create_engine(bench.settings.database_url(bench.name), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("queue", CASES)
def test_a_batch_costs_what_its_budget_says(
    queue: str, size: int, bench: Benches, database: Databases, mail: Mail, wire: Wire, settings
) -> None:
    service = BY_NAME[queue].service
    prepare, effect, expected = CASES[queue]
    events = prepare(bench(service), database)
    one = bench(service, url=wire.url(settings.database_url(service)))
    before = database.rows(service, effect)[0]["n"]

    with measured(one, wire) as found:
        one.handle_batch(queue, events[-size:])

    effects = database.rows(service, effect)[0]["n"]
    cost, shown = found[0], f"{queue}, {size}: {found[0]} by {wire.completed}"
    assert effects == (expected if size == BATCH else before + 1), shown
    assert cost == BUDGETS[queue][SIZES.index(size)], shown
    assert wire.completed.count("COMMIT") == cost.transactions, shown


@pytest.mark.parametrize("size", SIZES)
def test_posts_cost_what_their_budget_says(
    size: int, bench: Benches, database: Databases, wire: Wire, settings: Settings
) -> None:
    posts = [
        {
            "order": {
                "currency": "EUR",
                "payment_method": "mock_ok",
                "items": [{"sku": sku, "quantity": 1, "unit_price": 5} for sku in some(number)],
            },
            "key": f"key-{number}",
            "user_id": f"user-{number % 7}",
            "roles": ["customer"],
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
        }
        for number in range(size)
    ]
    order = bench("order", url=wire.url(settings.database_url("order")))
    order.called_by(SYSTEM if size > 1 else CUSTOMER)

    with measured(order, wire) as found:
        if size > 1:
            order.service.create_orders(posts)
        else:
            order.service.create_order(posts[0]["order"], posts[0]["key"])

    assert database.rows("order", "SELECT count(*) AS n FROM orders")[0]["n"] == size
    assert found[0] == BUDGETS[POST][SIZES.index(size)], f"{found[0]} by {wire.completed}"


@pytest.mark.parametrize("size", SIZES)
def test_the_relay_costs_what_its_budget_says(
    size: int, bench: Benches, database: Databases, mail: Mail, wire: Wire, settings: Settings
) -> None:
    inventory = bench("inventory")
    stock(database)
    inventory.handle_batch(CREATED, [emitted(order_created(skus=some(0))) for _ in range(size)])
    frames = Frames()
    broker = wire_to_broker(settings, frames)
    publisher = Publisher(broker.amqp_uri(settings.amqp_uri), heartbeat_s=30)
    engine = create_engine(
        wire.url(settings.database_url("inventory")), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    try:
        publisher.publish_all([Outgoing("", "nobody", "", str(uuid4()), mandatory=False)])  # connects
        with engine.connect() as connection:
            wire.completed.clear()
            began = frames.count
            events = publish_once(connection, publisher)
        cost = Cost(len(wire.statements()), wire.completed.count("BEGIN"), events, frames.count - began)
    finally:
        publisher.close()
        broker.close()

    assert cost == BUDGETS[RELAY][SIZES.index(size)], f"{cost} by {wire.completed}"


@pytest.mark.parametrize("queue", CASES)
def test_fifty_repeated_messages_change_and_tell_nothing(
    queue: str, bench: Benches, database: Databases, mail: Mail
) -> None:
    service = BY_NAME[queue].service
    prepare, _, _ = CASES[queue]
    one = bench(service)
    events = prepare(one, database)
    tables = [
        str(row["tablename"])
        for row in database.rows(service, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    ]

    def everything() -> dict[str, object]:
        return {table: database.rows(service, f'SELECT * FROM "{table}" ORDER BY ctid') for table in tables}

    one.handle_batch(queue, events + events + events)
    once = everything()
    one.handle_batch(queue, events)
    one.handle_batch(queue, list(reversed(events)))

    assert everything() == once
