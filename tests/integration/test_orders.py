"""The order service's own queries: pages by each filter, and a command that waited for a concurrent change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import eventlet
import pytest
from sqlalchemy import text

from order_service import queries
from order_service.domain import Status
from shared.changes import changed, notify_after_commit
from shared.errors import BadRequest
from shared.events import Identity
from tests.databases import Databases
from tests.integration.support import SYSTEM, Bench, assert_read_by_index, statements, until

EVERYBODY = Identity("olga", ("operator",))
ANN = Identity("ann", ("customer",))
BEGAN = datetime(2026, 1, 14, 10, tzinfo=UTC)
ORDERS = 20_000
# Each made a minute after the one before and changed in another order; of 200 users; one in twenty is not PAID.
MANY = """
    INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key,
                        fingerprint, created_at, updated_at)
    SELECT gen_random_uuid(), 'user-' || n % 200,
           CASE WHEN n % 40 = 0 THEN 'CANCELLED' WHEN n % 40 = 20 THEN 'REFUND_FAILED' ELSE 'PAID' END, 'EUR', n,
           'mock_ok', '', 'key-' || n, '', CAST(:began AS timestamptz) + n * interval '1 minute',
           CAST(:began AS timestamptz) + n * 7919 % :count * interval '1 minute'
    FROM generate_series(0, :count - 1) n
"""


def changed_at(n: int) -> int:
    """The minute of an order's last change."""
    return n * 7919 % ORDERS


def minute(n: int) -> str:
    return (BEGAN + timedelta(minutes=n)).isoformat()


@pytest.fixture
def order(bench: Callable[..., Bench]) -> Bench:
    return bench("order")


@pytest.fixture
def many(order: Bench, database: Databases) -> Bench:
    """The order service with many orders; an order's total is its number."""
    database.run("order", MANY, began=BEGAN, count=ORDERS)
    database.run("order", "ANALYZE orders")
    return order


def pages(many: Bench, limit: int, viewer: Identity = EVERYBODY, **filters: str) -> Iterator[list[int]]:
    cursor = None
    while True:
        with many.sessions.read() as session:
            items, cursor = queries.orders_page(session, viewer, limit, cursor, filters)
        yield [item["total"] for item in items]
        if cursor is None:
            return


NEITHER = "CANCELLED,REFUND_FAILED"
# What is asked, and which numbers are right.
FILTERS: dict[str, tuple[dict[str, str], Callable[[int], bool]]] = {
    "status": ({"status": "CANCELLED"}, lambda n: n % 40 == 0),
    "states": ({"status": NEITHER}, lambda n: n % 20 == 0),
    "user": ({"user": "user-7"}, lambda n: n % 200 == 7),
    "from": ({"from": minute(ORDERS - 300)}, lambda n: n >= ORDERS - 300),
    "to": ({"to": minute(300)}, lambda n: n < 300),
    "from and to": ({"from": minute(1000), "to": minute(1250)}, lambda n: 1000 <= n < 1250),
    "user and time": ({"user": "user-7", "to": minute(19_000)}, lambda n: n % 200 == 7 and n < 19_000),
    "status and time": ({"status": "CANCELLED", "from": minute(10_000)}, lambda n: n % 40 == 0 and n >= 10_000),
    "states and time": ({"status": NEITHER, "from": minute(15_000)}, lambda n: n % 20 == 0 and n >= 15_000),
    "user and status": ({"user": "user-40", "status": "CANCELLED"}, lambda n: n % 200 == 40),
}
# The same by change: the oldest change comes first.
BY_CHANGE: dict[str, tuple[dict[str, str], Callable[[int], bool]]] = {
    "change": ({"sort": "updated_at", "user": "user-7"}, lambda n: n % 200 == 7),
    "updated_from": ({"updated_from": minute(19_700)}, lambda n: changed_at(n) >= 19_700),
    "updated_to": ({"updated_to": minute(300)}, lambda n: changed_at(n) < 300),
    "both": ({"updated_from": minute(1000), "updated_to": minute(1250)}, lambda n: 1000 <= changed_at(n) < 1250),
    "user and change": (
        {"user": "user-7", "updated_to": minute(19_000)},
        lambda n: n % 200 == 7 and changed_at(n) < 19_000,
    ),
    "state and change": (
        {"status": "CANCELLED", "updated_from": minute(10_000)},
        lambda n: n % 40 == 0 and changed_at(n) >= 10_000,
    ),
    "states and change": (
        {"status": NEITHER, "updated_from": minute(15_000)},
        lambda n: n % 20 == 0 and changed_at(n) >= 15_000,
    ),
}


def test_a_filter_finds_all_that_fit_page_by_page_newest_first(many: Bench, subtests: pytest.Subtests) -> None:
    for name, (filters, fits) in FILTERS.items():
        with subtests.test(name):
            assert_pages(many, filters, [n for n in range(ORDERS) if fits(n)][::-1])


def test_orders_that_changed_come_page_by_page_oldest_change_first(many: Bench, subtests: pytest.Subtests) -> None:
    for name, (filters, fits) in BY_CHANGE.items():
        with subtests.test(name):
            assert_pages(many, filters, sorted((n for n in range(ORDERS) if fits(n)), key=changed_at))


@pytest.mark.parametrize(
    "filters",
    [
        {"updated_from": minute(1), "sort": "created_at"},
        {"from": minute(1), "sort": "updated_at"},
        {"to": minute(9), "updated_to": minute(9)},
    ],
    ids=lambda filters: " ".join(filters),
)
def test_a_filter_by_the_time_that_is_not_sorted_by_is_refused(order: Bench, filters: dict[str, str]) -> None:
    with pytest.raises(BadRequest) as refused:
        order.service.list_orders(10, None, filters)
    words = f"Does not go with a list that is sorted by {filters.get('sort', 'updated_at')}."
    assert list(refused.value.details.values()) == [[words]]


def pairs(numbers: list[int]) -> list[list[int]]:
    """Pairs."""
    return [numbers[place : place + 2] for place in range(0, len(numbers), 2)]


def assert_pages(many: Bench, filters: dict[str, str], right: list[int]) -> None:
    """The pages hold the right orders, in this order."""
    assert len(right) > 90
    read = list(pages(many, 40, **filters))
    assert [number for page in read for number in page] == right
    assert {len(page) for page in read[:-1]} == {40}


def test_no_order_is_skipped_or_repeated_while_others_change(many: Bench, database: Databases) -> None:
    change = "UPDATE orders SET updated_at = CAST(:at AS timestamptz) WHERE total IN (:read, :unread)"
    first, last = ORDERS - 300, ORDERS
    numbers = sorted(range(ORDERS), key=changed_at)[first:]
    moved: list[int] = []
    read: list[int] = []
    for turn, page in enumerate(pages(many, 40, updated_from=minute(first))):
        read += page
        if turn < 3:
            moved += [page[5], numbers[-5 - turn]]  # one that was read, and one that was not
            database.run("order", change, at=minute(last + turn), read=moved[-2], unread=moved[-1])
    still = [number for number in numbers if number not in moved]
    assert [number for number in read if number in still] == still
    # The two of a turn share their new time.
    assert [set(pair) for pair in pairs(read[-6:])] == [set(pair) for pair in pairs(moved)]
    assert {number: read.count(number) for number in moved} == dict(zip(moved, [2, 1] * 3, strict=True))


def test_customers_page_through_their_own_orders_with_any_filter(many: Bench) -> None:
    customer = Identity("user-7", ("customer",))
    own = [n for n in range(ORDERS) if n % 200 == 7][::-1]
    assert [number for page in pages(many, 40, customer) for number in page] == own
    assert list(pages(many, 40, customer, user="user-8")) == [[]]
    assert list(pages(many, 40, customer, idempotency_key="key-7")) == [[7]]
    assert list(pages(many, 40, customer, idempotency_key="key-8")) == [[]]
    assert list(pages(many, 40, EVERYBODY, idempotency_key="key-8", user="user-8")) == [[8]]
    assert list(pages(many, 40, EVERYBODY, idempotency_key="key-8")) == [[]], "a key is its user's"


@pytest.mark.parametrize("sort", ["created_at", "updated_at"])
def test_orders_of_one_moment_are_each_read_once(order: Bench, database: Databases, sort: str) -> None:
    database.run("order", MANY, began=BEGAN, count=100)
    database.run("order", "UPDATE orders SET created_at = :at, updated_at = :at", at=BEGAN)
    read = [number for page in pages(order, 40, sort=sort) for number in page]
    assert sorted(read) == list(range(100))


@pytest.mark.parametrize("filters", [{"status": "SENT"}, {"status": "PAID,"}, {"sort": "total"}])
def test_a_state_or_a_sort_that_there_is_none_of_is_refused(order: Bench, filters: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        list(pages(order, 40, **filters))


def test_every_filter_has_an_index_that_gives_its_page_in_order(many: Bench, subtests: pytest.Subtests) -> None:
    asked = {name: filters for name, (filters, _) in (FILTERS | BY_CHANGE).items()}
    asked |= {"nothing": {}, "idempotency_key": {"user": "user-7", "idempotency_key": "key-7"}}
    asked |= {"all by change": {"sort": "updated_at"}, "most states": {"status": ",".join(Status)}}
    for name, filters in asked.items():
        with subtests.test(name):
            refuse_slow(many, filters, most=10**9 if name == "user and status" else 90)  # two filters share no index


def refuse_slow(many: Bench, filters: dict[str, str], most: int) -> None:
    """A page comes by an index, and no more is read than about a page, not all that fits."""
    with statements(many) as sent:
        first = pages(many, 40, **filters)
        next(first)
        next(first, None)  # and the page after it, by its cursor
    asked = [(statement, values) for statement, values in sent if "FROM orders" in statement]
    assert asked
    assert_read_by_index(many, asked, most)


def one_order(database: Databases, status: Status) -> UUID:
    database.run("order", MANY, began=BEGAN, count=1)
    statement = "UPDATE orders SET user_id = 'ann', status = :status, payment_id = gen_random_uuid()"
    database.run("order", statement, status=status.value)
    (row,) = database.rows("order", "SELECT order_id FROM orders")
    return UUID(str(row["order_id"]))


def test_a_cancel_that_waited_for_a_payment_gives_the_money_back(order: Bench, database: Databases) -> None:
    order_id = one_order(database, Status.RESERVED)
    order.called_by(ANN)
    with order.sessions.begin() as session:
        # Payment's answer is being followed: not committed yet.
        session.execute(text("SELECT 1 FROM orders FOR UPDATE"))
        session.execute(text("UPDATE orders SET status = 'PAID', version = version + 1"))
        cancel = eventlet.spawn(order.service.cancel_order, str(order_id), "key")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'EXECUTE select_orders%'"
        )
        until(lambda: database.rows("order", waiting))
    assert cancel.wait()["body"]["status"] == "REFUND_PENDING"
    told = {row["event_type"] for row in database.rows("order", "SELECT event_type FROM outbox")}
    assert told == {"payment.refund.requested", "inventory.release.requested"}


def owners(database: Databases) -> dict[str, tuple[str, str]]:
    """Of each event in the outbox: who owns the order, and who caused the event."""
    events = [json.loads(row["body"]) for row in database.rows("order", "SELECT body FROM outbox")]
    return {event["type"]: (event["payload"]["customer_id"], event["identity"]["user_id"]) for event in events}


def test_a_new_order_names_its_customer(order: Bench, database: Databases) -> None:
    order.called_by(ANN)
    body = {"currency": "EUR", "payment_method": "mock_ok", "items": [{"sku": "a", "quantity": 1, "unit_price": 1}]}
    order.service.create_order(body, "key")
    assert owners(database) == {"order.created": ("ann", "ann")}


def test_events_name_the_owner_when_an_admin_cancels(order: Bench, database: Databases) -> None:
    order_id = one_order(database, Status.RESERVED)
    order.called_by(Identity("root", ("admin",)))
    order.service.cancel_order(str(order_id), "key")
    assert owners(database) == {
        "order.cancelled": ("ann", "root"),
        "inventory.release.requested": ("ann", "root"),
    }


def test_events_name_the_owner_when_the_deadline_cancels(order: Bench, database: Databases) -> None:
    one_order(database, Status.RESERVED)
    order.service.settings = order._container.config["settings"]
    order.service.cancel_overdue()
    assert owners(database) == {
        "order.cancelled": ("ann", "system:deadline"),
        "inventory.release.requested": ("ann", "system:deadline"),
    }


def test_a_deadline_that_waited_for_a_payment_changes_nothing(order: Bench, database: Databases) -> None:
    one_order(database, Status.RESERVED)
    order.service.settings = order._container.config["settings"]
    with order.sessions.begin() as session:
        session.execute(text("SELECT 1 FROM orders FOR UPDATE"))
        session.execute(text("UPDATE orders SET status = 'PAID'"))
        clock = eventlet.spawn(order.service.cancel_overdue)
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'EXECUTE select_orders%'"
        )
        until(lambda: database.rows("order", waiting))
    clock.wait()
    assert database.rows("order", "SELECT status FROM orders") == [{"status": "PAID"}]
    assert database.rows("order", "SELECT 1 FROM outbox") == []


def test_changes_are_notified_after_their_commit_and_not_without_one(order: Bench, database: Databases) -> None:
    order_id = one_order(database, Status.RESERVED)
    order.called_by(ANN)
    told: list[tuple[set[str], str]] = []

    def tell(ids: set[str]) -> None:
        told.append((ids, database.rows("order", "SELECT status FROM orders")[0]["status"]))

    notify_after_commit(order.database.Session, tell)
    with order.sessions.begin() as session:
        session.execute(text("UPDATE orders SET status = 'PAID'"))
        changed(session, [order_id])
        session.rollback()
    assert told == []
    order.service.cancel_order(str(order_id), "key")
    order.service.cancel_order(str(order_id), "key")  # known by its key: rolled back
    assert told == [({str(order_id)}, "CANCELLED")], "who asks at the hint finds the change"


def test_only_newer_states_and_later_steps_are_returned(order: Bench, database: Databases) -> None:
    order_id = one_order(database, Status.PENDING)
    order.called_by(SYSTEM)
    assert order.service.changed_orders({str(order_id): 1, str(UUID(int=7)): 0}) == []
    order.called_by(ANN)
    cancelled = order.service.cancel_order(str(order_id), "key")["body"]
    order.called_by(SYSTEM)
    assert order.service.changed_orders({str(order_id): 1}) == [cancelled]
    assert order.service.changed_orders({str(order_id): cancelled["version"]}) == []
    assert order.service.changed_orders({}) == []
    order.called_by(ANN)
    steps = order.service.steps(str(order_id), 0)
    assert (steps["version"], [step["event"] for step in steps["steps"]]) == (cancelled["version"], ["cancel"])
    assert order.service.steps(str(order_id), steps["steps"][-1]["id"])["steps"] == []
    assert order.service.steps(str(order_id), 10**18 - 1)["steps"] == []


def test_a_paid_order_has_ended_when_its_stock_is_committed(order: Bench, database: Databases) -> None:
    order_id = one_order(database, Status.PAID)
    order.called_by(ANN)
    step = """
        INSERT INTO order_events (order_id, type, to_status, source, user_id, details)
        VALUES (:order_id, :type, :to_status, '', '', '{}')
    """

    def ended() -> tuple[str, bool]:
        told = order.service.steps(str(order_id), 10**17)
        assert told["steps"] == [], "all steps count, also those that are not asked for"
        return told["status"], told["ended"]

    found = []
    for type_, status in (
        ("order.created", "PENDING"),
        ("inventory.reserved", "RESERVED"),
        ("payment.succeeded", "PAID"),
        ("inventory.committed", "PAID"),
        ("cancel", "REFUND_PENDING"),
    ):
        database.run("order", step, order_id=order_id, type=type_, to_status=status)
        found.append(ended())
    assert found == [
        ("PENDING", False),
        ("RESERVED", False),
        ("PAID", False),
        ("PAID", True),
        ("REFUND_PENDING", False),
    ]
