"""What one user may have open before it is paid: orders, and units in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import eventlet
import pytest

from order_service import new_orders
from order_service.domain import Open
from shared.config import Settings
from shared.edge.rpc import serialized
from shared.errors import EcomError, TooManyOrders, ValidationFailed
from shared.events import Identity
from tests.databases import Databases
from tests.integration.support import Bench, assert_read_by_index, statements

ANN, BOB = Identity("ann", ("customer",)), Identity("bob", ("customer",))

# Other users have open orders, and the user has many that are not open any more.
MANY = """
    INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key,
                        fingerprint)
    SELECT gen_random_uuid(), CASE WHEN n % 20 = 0 THEN 'ann' ELSE 'user-' || n END,
           CASE WHEN n % 20 = 0 AND n > 100 THEN 'PAID' ELSE 'RESERVED' END, 'EUR', n, 'mock_ok', '', 'key-' || n, ''
    FROM generate_series(1, 4000) n
"""


@pytest.fixture
def order(bench: Callable[..., Bench]) -> Bench:
    one = bench("order")
    one.called_by(ANN)
    return one


def limit(order: Bench, settings: Settings, orders: int = 0, units: int = 0) -> None:
    order.service.settings = replace(settings, max_open_orders_per_user=orders, max_held_units_per_user=units)


def post(order: Bench, key: str, *quantities: int) -> dict[str, Any]:
    items = [{"sku": "lamp", "quantity": quantity, "unit_price": 1} for quantity in quantities or (1,)]
    found: dict[str, Any] = order.service.create_order(
        {"currency": "EUR", "payment_method": "mock_ok", "items": items}, key
    )
    return found


def refused(order: Bench, key: str, *quantities: int) -> EcomError:
    with pytest.raises(TooManyOrders) as error:
        post(order, key, *quantities)
    return error.value


def open_orders(database: Databases) -> int:
    found: int = database.rows("order", "SELECT count(*) AS n FROM orders")[0]["n"]
    return found


def test_a_user_may_have_so_many_orders_open_and_another_user_as_many(order: Bench, settings: Settings) -> None:
    limit(order, settings, orders=2)
    made = [post(order, f"key-{n}") for n in range(2)]

    error = refused(order, "key-3")

    assert error.details == {"open_orders": 2, "max_open_orders": 2, "held_units": 2, "max_held_units": None}
    assert serialized(error)["exc_args"] == [error.message, error.details]
    assert post(order, "key-1") == {**made[1], "replayed": True}, "a repeat is no new order"
    order.called_by(BOB)
    assert post(order, "key-0")["status"] == 201
    order.called_by(ANN)
    order.service.cancel_order(made[0]["body"]["order_id"], "cancel")
    assert post(order, "key-3")["status"] == 201, "the key of a refused request is free"


def test_a_user_may_hold_so_many_units_in_open_orders(order: Bench, settings: Settings, database: Databases) -> None:
    limit(order, settings, units=10)
    post(order, "key-1", 3, 4)

    assert refused(order, "key-2", 1, 3).details["held_units"] == 7
    with pytest.raises(ValidationFailed) as too_large:
        post(order, "key-3", 6, 5)

    assert too_large.value.details == {"items": ["Must be at most 10 units together."]}
    assert post(order, "key-2", 1, 2)["status"] == 201
    database.run("order", "UPDATE orders SET status = 'PAID'")
    assert post(order, "key-4", 10)["status"] == 201


def test_a_repeat_whose_stored_answer_is_gone_is_answered_at_the_limit(
    order: Bench, settings: Settings, database: Databases
) -> None:
    limit(order, settings, orders=1)
    made = post(order, "key-1")
    database.run("order", "DELETE FROM idempotency_keys")
    assert post(order, "key-1")["body"]["order_id"] == made["body"]["order_id"]


@pytest.mark.parametrize(
    ("most", "quantity", "fit"), [({"orders": 5}, 1, 5), ({"units": 10}, 3, 3)], ids=["orders", "units"]
)
def test_of_many_orders_at_once_no_more_are_made_than_may_be_open(
    most: dict[str, int], quantity: int, fit: int, order: Bench, settings: Settings, database: Databases
) -> None:
    limit(order, settings, **most)

    def one(number: int) -> bool:
        try:
            return bool(post(order, f"key-{number}", quantity)["status"] == 201)
        except TooManyOrders:
            return False

    made = list(eventlet.GreenPool(12).imap(one, range(24)))

    assert made.count(True) == open_orders(database) == fit


def test_what_a_user_has_open_is_counted_in_an_index_and_costs_one_statement(
    order: Bench, settings: Settings, database: Databases
) -> None:
    database.run("order", MANY)
    database.run("order", "INSERT INTO order_items SELECT order_id, 1, 'lamp', 2, 1 FROM orders")
    database.run("order", "VACUUM ANALYZE orders, order_items")
    with statements(order) as free:
        post(order, "free")
    limit(order, settings, orders=50)
    with statements(order) as counted:
        post(order, "counted")

    with order.sessions.begin() as session:
        assert new_orders.open_of(session, ["ann"]) == {"ann": Open(7, 12)}  # 5 of 2 units, and the two of above

    (took,) = {sent for sent, _ in counted} - {sent for sent, _ in free}
    assert len(counted) - len(free) == 1
    lock, _, count = took.partition(";")
    assert "advisory" in lock
    assert_read_by_index(order, [(count, {"user_ids": ["ann"]})], most=7)
