"""The books of stock: what people take in, take out and count, what is on hand, and what has moved it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import eventlet
import pytest
from sqlalchemy import text

from inventory_service.books import checks, queries
from inventory_service.recipes.queries import decide_alone
from shared.enumerations import MovementCause
from shared.errors import (
    BelowReserved,
    Conflict,
    EcomError,
    HasRecipe,
    IdempotencyKeyReused,
    InvalidCursor,
    RoleMissing,
    UnknownSku,
    ValidationFailed,
    VersionMoved,
)
from shared.events import CommitRequested, Identity, ReleaseRequested
from tests.databases import Databases
from tests.integration.support import (
    CUSTOMER,
    OPERATOR,
    Bench,
    assert_read_by_index,
    emitted,
    order_created,
    statements,
    until,
)

Benches = Callable[..., Bench]

CREATED = "q.inventory.order-created"
COMMITS = "q.inventory.commit-requested"
RELEASES = "q.inventory.release-requested"
MOST_STATEMENTS = 10
BOSS = Identity("boss", ("admin", "operator"))


@pytest.fixture
def inventory(bench: Benches) -> Bench:
    made = bench("inventory")
    made.called_by(OPERATOR)
    return made


def take_in(bench: Bench, key: str = "", reason: str = "delivery", **quantities: int) -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]
    return bench.service.stock_in(lines, reason, key or str(uuid4()))


def take_out(bench: Bench, key: str = "", reason: str = "waste", **quantities: int) -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]
    return bench.service.stock_out(lines, reason, key or str(uuid4()))


def count(bench: Bench, *lines: tuple[Any, ...], key: str = "") -> dict[str, Any]:
    """Set stock to what was counted: (sku, counted) or (sku, counted, version)."""
    as_dicts = [dict(zip(("sku", "counted", "version"), line, strict=False)) for line in lines]
    return bench.service.adjust_stock(as_dicts, "count", key or str(uuid4()))


def hold(bench: Bench, sku: str, quantity: int = 1) -> str:
    """An order that holds a sku."""
    order = order_created(skus=(sku,), quantity=quantity)
    bench.handle_batch(CREATED, [emitted(order)])
    return str(order.order_id)


def make_recipe(database: Databases, sku: str, **components: int) -> None:
    database.run("inventory", "INSERT INTO recipes (sku, changed_by) VALUES (:sku, 'admin')", sku=sku)
    for component, quantity in components.items():
        database.run(
            "inventory",
            "INSERT INTO recipe_lines (sku, component, quantity) VALUES (:sku, :component, :quantity)",
            sku=sku,
            component=component,
            quantity=quantity,
        )


def stock(database: Databases) -> dict[str, tuple[int, int, int]]:
    rows = database.rows("inventory", "SELECT sku, on_hand, reserved, version FROM stock_items")
    return {row["sku"]: (row["on_hand"], row["reserved"], row["version"]) for row in rows}


def moved(bench: Bench, **filters: Any) -> list[tuple[Any, ...]]:
    """What has moved, newest first: (sku, change, on_hand_after, cause, reason)."""
    items = bench.service.stock_movements(200, None, filters)["items"]
    return [tuple(item[name] for name in ("sku", "change", "on_hand_after", "cause", "reason")) for item in items]


def wrong(bench: Bench) -> list[dict[str, Any]]:
    """What breaks the rules of the books."""
    with bench.sessions.read() as session:
        return checks.unchained(session) + checks.miscounted(session)


def test_what_people_do_is_booked_with_balance_reason_and_note_and_told(inventory: Bench, database: Databases) -> None:
    lines = [{"sku": "lamp", "quantity": 12}, {"sku": "desk", "quantity": 3}]
    answer = inventory.service.stock_in(lines, "delivery", "key-1", "two boxes were wet")
    take_out(inventory, lamp=2)
    count(inventory, ("lamp", 9), ("desk", 3))

    assert (answer["status"], answer["replayed"]) == (200, False)
    assert [(item["sku"], item["on_hand"], item["version"]) for item in answer["body"]["stock"]] == [
        ("lamp", 12, 1),
        ("desk", 3, 1),
    ]
    listed = inventory.service.stock_movements(10)["items"]
    assert [item["id"] for item in listed] == sorted((item["id"] for item in listed), reverse=True)
    assert moved(inventory) == [
        ("lamp", -1, 9, "counted", "count"),
        ("lamp", -2, 10, "stock_out", "waste"),
        ("desk", 3, 3, "stock_in", "delivery"),
        ("lamp", 12, 12, "stock_in", "delivery"),
    ]
    assert [(item["note"], item["moved_by"]) for item in listed[2:]] == [("two boxes were wet", "operator")] * 2
    assert {item["id"] for item in answer["body"]["movements"]} == {item["id"] for item in listed[2:]}
    told = database.rows("inventory", "SELECT body FROM outbox WHERE event_type = 'stock.moved' ORDER BY id")
    events = [json.loads(row["body"])["payload"] for row in told]
    assert [(event["sku"], event["change"], event["on_hand"], event["reason"]) for event in events] == [
        ("lamp", 12, 12, "delivery"),
        ("desk", 3, 3, "delivery"),
        ("lamp", -2, 10, "waste"),
        ("lamp", -1, 9, "count"),
    ]
    assert [event["movement_id"] for event in events] == sorted(item["id"] for item in listed)
    assert wrong(inventory) == []


@pytest.mark.parametrize("number", [1, 100])
def test_any_number_of_lines_is_one_transaction_of_at_most_ten_statements(inventory: Bench, number: int) -> None:
    quantities = {f"sku-{n}": 5 for n in range(number)}
    counted = [(sku, 4) for sku in quantities]
    cost = {}
    for name, work in {
        "new skus": lambda: take_in(inventory, **quantities),
        "stock-in": lambda: take_in(inventory, **quantities),
        "stock-out": lambda: take_out(inventory, **quantities),
        "adjust": lambda: count(inventory, *counted),
    }.items():
        with statements(inventory) as sent:
            work()
        cost[name] = len(sent)

    assert cost == {"new skus": 10, "stock-in": 7, "stock-out": 6, "adjust": 6}
    assert max(cost.values()) <= MOST_STATEMENTS


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (lambda bench: take_out(bench, desk=1, lamp=7), BelowReserved),
        (lambda bench: take_out(bench, desk=1, lomp=1), UnknownSku),
        (lambda bench: take_out(bench, desk=1, soup=1), HasRecipe),
        (lambda bench: count(bench, ("desk", 1), ("lamp", 3)), BelowReserved),
        (lambda bench: count(bench, ("desk", 1), ("lamp", 5, 6)), VersionMoved),
        (lambda bench: count(bench, ("desk", 1), ("lomp", 5)), UnknownSku),
        (lambda bench: count(bench, ("desk", 1), ("desk", 2)), ValidationFailed),
        (lambda bench: take_in(bench, desk=1, new=1, soup=1), HasRecipe),
        (lambda bench: take_in(bench, desk=1, new=10**9 + 1), ValidationFailed),
        (lambda bench: take_in(bench, reason="theft", desk=1), ValidationFailed),
    ],
)
def test_a_line_that_cannot_be_booked_leaves_all_lines_unbooked_and_the_key_unused(
    inventory: Bench, database: Databases, refused: Callable[[Bench], Any], error: type[EcomError]
) -> None:
    take_in(inventory, "key-1", lamp=10, desk=10)
    hold(inventory, "lamp", 4)
    make_recipe(database, "soup", lamp=1)
    tables = ("stock_items", "stock_movements", "idempotency_keys", "outbox")
    before = {table: database.rows("inventory", f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables}

    with pytest.raises(error):
        refused(inventory)

    after = {table: database.rows("inventory", f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables}
    assert after == before


@pytest.mark.parametrize(
    "lower",
    [
        lambda bench: take_out(bench, lamp=1),
        lambda bench: count(bench, ("lamp", 24)),
        lambda bench: bench.service.put_stock("lamp", 24),
    ],
)
def test_below_reserved_names_the_newest_orders_that_hold_the_sku(
    inventory: Bench, lower: Callable[[Bench], Any]
) -> None:
    take_in(inventory, lamp=25, desk=1)
    hold(inventory, "desk")
    orders = [hold(inventory, "lamp") for _ in range(25)]
    inventory.called_by(BOSS)

    with pytest.raises(BelowReserved) as refused:
        lower(inventory)

    details = refused.value.details
    assert (details["sku"], details["reserved"]) == ("lamp", 25)
    assert details["holders"] == [{"order_id": order_id, "quantity": 1} for order_id in reversed(orders[-20:])]


def test_holders_are_those_whose_reservation_is_still_open(inventory: Bench) -> None:
    take_in(inventory, lamp=10)
    held, sold, released = (order_created(skus=("lamp",)) for _ in range(3))
    inventory.handle_batch(CREATED, [emitted(order) for order in (held, sold, released)])
    inventory.handle_batch(COMMITS, [emitted(CommitRequested(sold.order_id))])
    inventory.handle_batch(RELEASES, [emitted(ReleaseRequested(released.order_id, "order_cancelled"))])

    with inventory.sessions.read() as session:
        found = queries.holders(session, "lamp", 20)

    assert found == [{"order_id": str(held.order_id), "quantity": 1}]


def test_a_sku_with_a_recipe_gets_no_stock_by_put_either(inventory: Bench, database: Databases) -> None:
    take_in(inventory, lamp=1)
    make_recipe(database, "soup", lamp=1)
    inventory.called_by(BOSS)

    with pytest.raises(Conflict) as refused:
        inventory.service.put_stock("soup", 5)

    assert refused.value.details == {"problem": "has_recipe"}
    assert stock(database).keys() == {"lamp"}


def test_who_makes_stock_waits_for_who_makes_a_recipe_of_the_same_sku(inventory: Bench, database: Databases) -> None:
    """The lock of both is the same, so each sees what the other has made."""
    take_in(inventory, lamp=1)
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with inventory.sessions.begin() as session:
        decide_alone(session, ["soup"])
        session.execute(text("INSERT INTO recipes (sku, changed_by) VALUES ('soup', 'admin')"))
        waiting = eventlet.spawn(kind, lambda: take_in(inventory, soup=5, lamp=1))
        until(lambda: database.rows("inventory", waits))

    assert waiting.wait() == "HasRecipe"
    assert stock(database) == {"lamp": (1, 0, 1)}


def kind(work: Callable[[], Any]) -> str:
    """What becomes of a call."""
    try:
        return "replayed" if work()["replayed"] else "booked"
    except EcomError as error:
        return type(error).__name__


def test_twenty_equal_requests_book_once_and_all_have_the_same_answer(inventory: Bench, database: Databases) -> None:
    pool = eventlet.GreenPool(20)
    answers = list(pool.imap(lambda _: take_in(inventory, "key-1", lamp=5, desk=2), range(20)))

    assert Counter(answer["replayed"] for answer in answers) == {False: 1, True: 19}
    assert len({json.dumps(answer["body"]) for answer in answers}) == 1
    assert answers[0]["body"]["movements"]
    assert stock(database) == {"lamp": (5, 0, 1), "desk": (2, 0, 1)}


def test_a_key_of_one_call_is_free_for_another_and_not_for_another_body(inventory: Bench, database: Databases) -> None:
    take_in(inventory, "key-1", lamp=5)
    take_out(inventory, "key-1", lamp=1)
    with pytest.raises(IdempotencyKeyReused):
        take_in(inventory, "key-1", lamp=6)
    assert stock(database)["lamp"][0] == 4


def test_those_who_move_the_same_skus_in_another_order_do_not_deadlock(inventory: Bench, database: Databases) -> None:
    skus = [f"sku-{n}" for n in range(8)]

    def work(number: int) -> str:
        some = skus[number % 8 :] + skus[: number % 8]
        if number % 2:
            some.reverse()
        return kind(lambda: take_in(inventory, **dict.fromkeys(some, 1)))

    found = Counter(eventlet.GreenPool(10).imap(work, range(60)))

    assert found == {"booked": 60}
    assert {sku: of[0] for sku, of in stock(database).items()} == dict.fromkeys(skus, 60)
    assert wrong(inventory) == []


def test_balances_chain_while_orders_sell_and_people_count_at_once(inventory: Bench) -> None:
    take_in(inventory, lamp=500, desk=500)
    orders = [order_created(skus=("lamp", "desk")) for _ in range(120)]

    def sell(part: int) -> None:
        some = orders[part * 30 : part * 30 + 30]
        inventory.handle_batch(CREATED, [emitted(order) for order in some])
        inventory.handle_batch(COMMITS, [emitted(CommitRequested(order.order_id)) for order in some])
        inventory.handle_batch(
            RELEASES, [emitted(ReleaseRequested(order.order_id, "order_cancelled")) for order in some[::2]]
        )

    def tend(number: int) -> None:
        take_in(inventory, lamp=3)
        take_out(inventory, reason="spoiled", desk=1)
        count(inventory, ("lamp", 400 + number), ("desk", 300 + number))

    pool = eventlet.GreenPool(10)
    for number in range(4):
        pool.spawn(sell, number)
    for number in range(12):
        pool.spawn(tend, number)
    pool.waitall()

    causes = {item[3] for item in moved(inventory, sku="lamp")}
    assert causes == {"sale", "return", "stock_in", "counted"}
    assert wrong(inventory) == []


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ("UPDATE stock_movements SET on_hand_after = on_hand_after + 1 WHERE cause = 'stock_out'", checks.unchained),
        ("UPDATE stock_movements SET change = change - 1 WHERE cause = 'stock_out'", checks.unchained),
        ("UPDATE stock_movements SET on_hand_after = on_hand_after + 1", checks.miscounted),
        ("UPDATE stock_items SET on_hand = on_hand + 1", checks.miscounted),
        ("UPDATE stock_items SET reserved = reserved + 1", checks.miscounted),
        ("UPDATE reservations SET state = 'COMMITTED'", checks.miscounted),
    ],
)
def test_the_checks_find_books_that_are_broken(
    inventory: Bench, database: Databases, broken: str, check: Callable[[Any], list[dict[str, Any]]]
) -> None:
    take_in(inventory, lamp=10)
    take_out(inventory, lamp=1)
    take_in(inventory, lamp=3)
    hold(inventory, "lamp")
    assert wrong(inventory) == []

    database.run("inventory", broken)

    with inventory.sessions.read() as session:
        assert {row["sku"] for row in check(session)} == {"lamp"}


def test_a_chain_goes_on_over_rows_of_a_version_that_kept_no_balance(inventory: Bench, database: Databases) -> None:
    for _ in range(4):
        take_in(inventory, lamp=10)
    database.run("inventory", "UPDATE stock_movements SET on_hand_after = NULL WHERE on_hand_after IN (10, 30)")
    assert wrong(inventory) == []

    database.run("inventory", "UPDATE stock_movements SET change = 11 WHERE on_hand_after IS NULL")
    with inventory.sessions.read() as session:
        assert [row["should_be"] for row in checks.unchained(session)] == [41]


# What is on hand


def levels(bench: Bench, **filters: Any) -> dict[str, tuple[Any, ...]]:
    found, cursor = [], None
    while True:  # pages of two: every test of levels is one of pages, too
        page = bench.service.stock_levels(2, cursor, filters)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [item["sku"] for item in found] == sorted(item["sku"] for item in found)
    return {item["sku"]: (item["available"], item["low"], item["sold_out"], item["on_order"]) for item in found}


@pytest.fixture
def shelf(inventory: Bench, database: Databases) -> Bench:
    """Skus in every condition."""
    take_in(inventory, apple=20, flour=1000, lamp=10, salt=50, yeast=3)
    take_out(inventory, reason="spoiled", yeast=3)
    hold(inventory, "apple", 15)
    for sku, low_at in (("apple", 5), ("flour", 999), ("lamp", None), ("salt", 49), ("yeast", 0)):
        database.run("inventory", "INSERT INTO stock_rules (sku, low_at) VALUES (:sku, :at)", sku=sku, at=low_at)
    database.run("inventory", "INSERT INTO stock_signals VALUES ('salt', false, null, 1, now(), true)")
    make_recipe(database, "bread", flour=300, salt=5)
    make_recipe(database, "cake", flour=10, yeast=1)
    make_recipe(database, "wish")
    for number, (status, quantity) in enumerate([("PROPOSED", 5), ("ORDERED", 40), ("CANCELLED", 7)]):
        supplier, order = uuid4(), uuid4()
        database.run(
            "inventory",
            "INSERT INTO suppliers (supplier_id, name, lead_days) VALUES (:id, :called, 1)",
            id=supplier,
            called=f"supplier {number}",
        )
        database.run(
            "inventory",
            "INSERT INTO purchase_orders (po_id, supplier_id, status, made_by) VALUES (:id, :supplier, :status, 'a')",
            id=order,
            supplier=supplier,
            status=status,
        )
        database.run(
            "inventory",
            "INSERT INTO purchase_order_lines (po_id, sku, quantity, received) VALUES (:id, 'flour', :n, 4)",
            id=order,
            n=quantity,
        )
    return inventory


SHELF = {
    "apple": (5, True, False, 0),
    "bread": (3, False, False, 0),
    "cake": (0, False, True, 0),
    "flour": (1000, False, False, 36),
    "lamp": (10, False, False, 0),
    "salt": (50, True, False, 0),
    "wish": (None, False, False, 0),
    "yeast": (0, True, True, 0),
}


@pytest.mark.parametrize(
    ("filters", "skus"),
    [
        ({}, SHELF),
        ({"low": True}, ("apple", "salt", "yeast")),
        ({"low": False}, ("bread", "cake", "flour", "lamp", "wish")),
        ({"sold_out": True}, ("cake", "yeast")),
        ({"sold_out": False}, ("apple", "bread", "flour", "lamp", "salt", "wish")),
        ({"low": True, "sold_out": True}, ("yeast",)),
        ({"sku": "flour"}, ("flour",)),
        ({"sku": "bread"}, ("bread",)),
        ({"sku": "bread", "low": True}, ()),
        ({"sku": "unknown"}, ()),
    ],
)
def test_levels_are_filtered_and_paged_by_sku(shelf: Bench, filters: dict[str, Any], skus: Any) -> None:
    assert levels(shelf, **filters) == {sku: SHELF[sku] for sku in skus}


def test_a_level_tells_whether_a_sku_is_stocked_or_made(shelf: Bench) -> None:
    (stocked,) = shelf.service.stock_levels(1, None, {"sku": "apple"})["items"]
    (made,) = shelf.service.stock_levels(1, None, {"sku": "bread"})["items"]

    assert stocked == {
        "sku": "apple", "made": False, "on_hand": 20, "reserved": 15, "available": 5, "version": 1, "unit": "piece",
        "low_at": 5, "low": True, "sold_out": False, "on_order": 0,
    }  # fmt: skip
    assert made == {
        "sku": "bread", "made": True, "on_hand": None, "reserved": None, "available": 3, "version": 1, "unit": "piece",
        "low_at": None, "low": False, "sold_out": False, "on_order": 0,
    }  # fmt: skip


def test_a_page_of_levels_is_one_statement_and_reads_a_page_by_index(shelf: Bench, database: Databases) -> None:
    database.run(
        "inventory", "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || n, 5 FROM generate_series(1, 3000) AS n"
    )
    for filled in (
        "recipes (sku, changed_by) SELECT 'made-' || n, 'a'",
        "recipe_lines (sku, component, quantity) SELECT 'made-' || n, 'sku-' || n, 2",
        "stock_rules (sku, low_at) SELECT 'sku-' || n, 5",
        "stock_signals (sku, sold_out, version) SELECT 'sku-' || n, false, 1",
    ):
        database.run("inventory", f"INSERT INTO {filled} FROM generate_series(1, 3000) AS n")
    database.run(
        "inventory",
        "WITH bought AS (INSERT INTO purchase_orders (po_id, supplier_id, status, made_by) SELECT gen_random_uuid(),"
        " supplier_id, 'RECEIVED', 'a' FROM generate_series(1, 1000), suppliers RETURNING po_id)"
        " INSERT INTO purchase_order_lines (po_id, sku, quantity, received) SELECT po_id, 'flour', 1, 1 FROM bought",
    )
    database.run("inventory", "ANALYZE")
    with statements(shelf) as sent:
        page = shelf.service.stock_levels(50)
    assert len(page["items"]) == 50
    assert len(sent) == 1
    with statements(shelf) as sent:
        shelf.service.stock_levels(50, page["next_cursor"])
    assert_read_by_index(shelf, sent, most=150)


def test_a_cursor_of_levels_is_of_its_filters(shelf: Bench) -> None:
    cursor = shelf.service.stock_levels(1, None, {"low": True})["next_cursor"]
    with pytest.raises(InvalidCursor):
        shelf.service.stock_levels(1, cursor, {"low": False})


# What has moved


def test_movements_are_filtered_by_sku_cause_and_period_and_paged(inventory: Bench, database: Databases) -> None:
    take_in(inventory, lamp=100, desk=50)
    orders = [order_created(skus=("lamp",)) for _ in range(3)]
    inventory.handle_batch(CREATED, [emitted(order) for order in orders])
    inventory.handle_batch(COMMITS, [emitted(CommitRequested(order.order_id)) for order in orders])
    inventory.handle_batch(RELEASES, [emitted(ReleaseRequested(orders[0].order_id, "order_cancelled"))])
    take_out(inventory, lamp=1)

    def causes(**filters: Any) -> Counter[str]:
        return Counter(item[3] for item in moved(inventory, **filters))

    assert causes() == {"stock_in": 2, "stock_out": 1}
    assert causes(sku="lamp") == {"stock_in": 1, "sale": 3, "return": 1, "stock_out": 1}
    for cause in ("sale", "return", "stock_in"):
        assert causes(sku="lamp", cause=cause).keys() == {cause}
    assert causes(cause="stock_in") == {"stock_in": 2}
    assert causes(sku="desk", cause="sale") == {}
    (returned,) = inventory.service.stock_movements(10, None, {"sku": "lamp", "cause": "return"})["items"]
    assert (returned["order_id"], returned["on_hand_after"]) == (str(orders[0].order_id), 98)

    page = inventory.service.stock_movements(4, None, {"sku": "lamp"})
    rest = inventory.service.stock_movements(4, page["next_cursor"], {"sku": "lamp"})
    ids = [item["id"] for item in page["items"] + rest["items"]]
    assert (len(ids), ids, rest["next_cursor"]) == (6, sorted(ids, reverse=True), None)


@pytest.mark.parametrize("cause", ["sale", "return"])
def test_movements_of_orders_are_listed_of_one_sku_alone(inventory: Bench, cause: str) -> None:
    with pytest.raises(ValidationFailed):
        inventory.service.stock_movements(10, None, {"cause": cause})


def an_hour_each(database: Databases, sku: str, number: int, cause: str = "sale", every: int = 1) -> None:
    """Movements of a sku, one an hour, of which one in `every` has this cause."""
    database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES (:sku, 0) ON CONFLICT DO NOTHING", sku=sku)
    database.run(
        "inventory",
        "INSERT INTO stock_movements (sku, change, cause, moved_by, trace_id, moved_at)"
        " SELECT :sku, 0, CASE WHEN n % :every = 0 THEN :cause ELSE 'sale' END, 'a', 't', CAST(:first AS timestamptz)"
        "  + make_interval(hours => n)"
        " FROM generate_series(0, :number - 1) AS n",
        sku=sku,
        number=number,
        cause=cause,
        every=every,
        first=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("filters", [{"sku": "lamp"}, {}, {"cause": "put"}], ids=str)
def test_a_period_has_every_movement_of_its_time_and_no_other(
    inventory: Bench, database: Databases, filters: dict[str, str]
) -> None:
    """Also those whose transaction began before that of the movement before them: every third one."""
    first = datetime(2026, 1, 1, tzinfo=UTC)
    seconds = {place: 30 * place - 50 * (place % 3 == 0) for place in range(40)}
    database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES ('lamp', 0)")
    database.run(
        "inventory",
        "INSERT INTO stock_movements (sku, change, cause, moved_by, trace_id, moved_at)"
        " SELECT 'lamp', place, 'put', 'a', 't', CAST(:first AS timestamptz) + make_interval(secs => after)"
        " FROM unnest(CAST(:places AS integer[]), CAST(:seconds AS integer[])) AS given (place, after) ORDER BY place",
        first=first,
        places=list(seconds),
        seconds=list(seconds.values()),
    )

    def found(since: int | None, until: int | None) -> list[int]:
        asked = {"from": since, "to": until}
        period = {name: (first + timedelta(seconds=at)).isoformat() for name, at in asked.items() if at is not None}
        return [item["change"] for item in inventory.service.stock_movements(200, None, filters | period)["items"]]

    newest_first = sorted(seconds, reverse=True)
    for at in range(-100, 1300, 10):
        assert found(at, None) == [place for place in newest_first if seconds[place] >= at]
        assert found(None, at) == [place for place in newest_first if seconds[place] < at]
        assert found(at, at + 70) == [place for place in newest_first if at <= seconds[place] < at + 70]


@pytest.mark.parametrize(
    "filters",
    [
        {"sku": "lamp"},
        {"sku": "lamp", "cause": "sale"},
        {"sku": "lamp", "cause": "put"},
        {"sku": "desk", "cause": "return"},
        {},
        {"cause": "put"},
        {"cause": "counted"},
        {"sku": "lamp", "from": "2026-03-01T00:00:00Z", "to": "2026-03-01T05:00:00Z"},
        {"from": "2026-03-01T00:00:00Z", "to": "2026-03-01T05:00:00Z"},
        {"sku": "lamp", "to": "2025-03-01T00:00:00Z"},
    ],
    ids=str,
)
def test_each_list_of_movements_reads_what_it_answers_by_an_index(
    inventory: Bench, database: Databases, filters: dict[str, Any]
) -> None:
    an_hour_each(database, "lamp", 6000, MovementCause.PUT, every=100)
    an_hour_each(database, "desk", 6000, MovementCause.RETURN, every=100)
    an_hour_each(database, "sofa", 6000, MovementCause.COUNTED)
    database.run("inventory", "ANALYZE stock_movements")

    with statements(inventory) as sent:
        inventory.service.stock_movements(20, None, filters)

    assert len(sent) == 1 + len({"from", "to"} & filters.keys())
    assert_read_by_index(inventory, sent, most=60)
    statement, values = sent[-1]
    with inventory.sessions.read() as session:
        plan = session.connection().exec_driver_sql(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", values)
        removed = re.findall(r"Rows Removed by Filter: ([0-9]+)", "".join(row[0] for row in plan))
    assert sum(map(int, removed)) <= 60, "it reads what it does not answer"


# How much is available


def test_how_much_of_many_skus_is_available_takes_two_statements(shelf: Bench) -> None:
    shelf.called_by(CUSTOMER)
    asked = ["wish", "lomp", "apple", "cake", "apple"]
    with statements(shelf) as sent:
        found = shelf.service.availability(asked)

    assert found == {
        "items": [
            {"sku": "wish", "available": None, "sold_out": False},
            {"sku": "apple", "available": 5, "sold_out": False},
            {"sku": "cake", "available": 0, "sold_out": True},
        ],
        "unknown": ["lomp"],
    }
    assert len(sent) == 2


def test_a_customer_neither_moves_stock_nor_reads_the_books(inventory: Bench) -> None:
    inventory.called_by(CUSTOMER)
    for call in (
        lambda: take_in(inventory, lamp=1),
        lambda: inventory.service.stock_levels(10),
        lambda: inventory.service.stock_movements(10),
    ):
        with pytest.raises(RoleMissing):
            call()
