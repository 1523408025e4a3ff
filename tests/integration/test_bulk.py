"""Many rows in one statement, whatever is in them."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import func

from inventory_service.models import ReleaseEvent, StockItem
from order_service.models import OrderEventRow, OrderRow
from shared.bulk import insert_many, insert_of, update_many
from shared.tables import OutboxRow
from tests.databases import Databases
from tests.integration.support import Bench, statements

Benches = Callable[..., Bench]

ODD = ["", "a'b", 'a"b', "{a,b}", "NULL", "\\", "%s %(given_sku)s", "naïve ☃", "a\nb"]


def outbox_row(number: int) -> dict[str, object]:
    return {
        "message_id": uuid4(),
        "aggregate_id": uuid4(),
        "event_type": "order.created",
        "traceparent": "",
        "body": str(number),
    }


def test_texts_cross_unchanged(bench: Benches, database: Databases) -> None:
    one = bench("inventory")
    with one.sessions.begin() as session:
        insert_many(session, StockItem, [{"sku": sku, "on_hand": 2**60} for sku in ODD])
    assert database.rows("inventory", "SELECT sku, on_hand, reserved FROM stock_items ORDER BY ctid") == [
        {"sku": sku, "on_hand": 2**60, "reserved": 0} for sku in ODD
    ]


def test_arrays_json_nothing_and_times_cross_unchanged(bench: Benches, database: Databases) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    all_roles = [[], ["auditor"], ODD]
    common = {"sku": "apple", "quantity": 1, "reason": "manual", "requested_by": "admin", "trace_id": "t"}
    rows = [
        {"order_id": uuid4(), "reservation_id": uuid4(), "roles": roles, "released_at": at, **common}
        for roles in all_roles
    ]
    with bench("inventory").sessions.begin() as session:
        insert_many(session, ReleaseEvent, rows)
    saved = database.rows("inventory", "SELECT * FROM inventory_release_events ORDER BY id")
    assert [{name: row[name] for name in rows[0]} for row in saved] == rows

    order_id, details = uuid4(), [{}, {"odd": ODD, "nested": {"none": None, "n": 1.5}}]
    with bench("order").sessions.begin() as session:
        order = {"order_id": order_id, "user_id": "u", "status": "PENDING", "currency": "EUR", "total": 1}
        insert_many(
            session,
            OrderRow,
            [order | {"payment_method": "m", "trace_id": "t", "idempotency_key": "k", "fingerprint": "f"}],
        )
        step = {"order_id": order_id, "type": "t", "to_status": "PENDING", "source": "s", "user_id": "u"}
        insert_many(session, OrderEventRow, [step | {"subject_id": None, "details": value} for value in details])
    saved = database.rows("order", "SELECT subject_id, details FROM order_events ORDER BY id")
    assert saved == [{"subject_id": None, "details": value} for value in details]


def test_identity_columns_grow_in_the_order_of_the_rows(bench: Benches, database: Databases) -> None:
    rows = [outbox_row(number) for number in range(300)]
    with bench("order").sessions.begin() as session:
        insert_many(session, OutboxRow, rows)
    saved = database.rows("order", "SELECT body FROM outbox ORDER BY id")
    assert [row["body"] for row in saved] == [row["body"] for row in rows]


def test_no_rows_are_no_statement(bench: Benches, database: Databases) -> None:
    one = bench("inventory")
    with statements(one) as sent, one.sessions.begin() as session:
        insert_many(session, StockItem, [])
        update_many(session, StockItem, "sku", [])
    assert sent == []


def test_an_update_returns_by_key_what_a_column_holds_afterwards(bench: Benches, database: Databases) -> None:
    one = bench("inventory")
    with one.sessions.begin() as session:
        insert_many(session, StockItem, [{"sku": sku, "on_hand": 1, "version": 5} for sku in "abc"])
        rows = [{"sku": sku, "on_hand": number} for number, sku in enumerate("ab", start=7)]
        after = update_many(
            session, StockItem, "sku", rows, {"version": StockItem.version + 1}, returning=StockItem.version
        )
    assert after == {"a": 6, "b": 6}
    saved = database.rows("inventory", "SELECT sku, on_hand, version FROM stock_items ORDER BY sku")
    assert [(row["sku"], row["on_hand"], row["version"]) for row in saved] == [("a", 7, 6), ("b", 8, 6), ("c", 1, 5)]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_statement_has_the_same_text_for_any_number_of_rows(bench: Benches, database: Databases, count: int) -> None:
    one = bench("inventory")
    touched = {"updated_at": func.now()}
    texts = []
    for rows in ([{"sku": "a", "on_hand": 1}], [{"sku": f"b{n}", "on_hand": n} for n in range(count)]):
        with statements(one) as sent, one.sessions.begin() as session:
            insert_many(session, StockItem, rows)
            update_many(session, StockItem, "sku", rows, touched)
        texts.append([text for text, _ in sent])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_an_insert_can_leave_out_what_exists(bench: Benches, database: Databases) -> None:
    statement = insert_of(StockItem, "sku", "on_hand").on_conflict_do_nothing().returning(StockItem.sku)
    given = {"given_sku": ["a", "b"], "given_on_hand": [1, 2]}
    with bench("inventory").sessions.begin() as session:
        insert_many(session, StockItem, [{"sku": "a", "on_hand": 9}])
        assert session.scalars(statement, given).all() == ["b"]
