"""What the inventory service tells about availability: by comparing what is with what was told."""

import json
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from inventory_service import signals
from inventory_service.models import StockItem
from inventory_service.service import WATCH
from shared.edge.rpc_proxy import CALL_TIMEOUT_S
from shared.errors import RoleMissing
from shared.ids import new_trace_id
from tests.databases import Databases
from tests.integration.support import ADMIN, CUSTOMER, Bench, emitted, order_created, statements

Benches = Callable[..., Bench]


@pytest.fixture
def inventory(bench: Benches) -> Bench:
    made = bench("inventory")
    made.called_by(ADMIN)
    return made


def put(database: Databases, sku: str, on_hand: int, reserved: int = 0) -> None:
    database.run(
        "inventory",
        "INSERT INTO stock_items (sku, on_hand, reserved) VALUES (:sku, :on_hand, :reserved)"
        " ON CONFLICT (sku) DO UPDATE SET on_hand = :on_hand, reserved = :reserved, updated_at = now()",
        sku=sku,
        on_hand=on_hand,
        reserved=reserved,
    )


def told(database: Databases) -> list[dict[str, Any]]:
    rows = database.rows(
        "inventory", "SELECT body FROM outbox WHERE event_type = 'stock.availability_changed' ORDER BY id"
    )
    return [json.loads(row["body"])["payload"] for row in rows]


@pytest.mark.parametrize(
    ("on_hand", "reserved", "sold_out", "few"),
    [
        (0, 0, True, None),
        (1, 0, False, 1),
        (10, 0, False, 10),
        (11, 0, False, None),
        (11, 1, False, 10),
        (5, 5, True, None),
    ],
)
def test_what_is_told_of_a_new_sku(
    inventory: Bench, database: Databases, on_hand: int, reserved: int, sold_out: bool, few: int | None
) -> None:
    put(database, "lamp", on_hand, reserved)
    inventory.service.watch()

    (event,) = told(database)
    assert (event["sku"], event["sold_out"], event["few"]) == ("lamp", sold_out, few)


def test_what_has_not_changed_is_not_told_again(inventory: Bench, database: Databases) -> None:
    put(database, "lamp", 100)
    inventory.service.watch()
    put(database, "lamp", 50)

    with statements(inventory) as sent:
        inventory.service.watch()

    assert len(told(database)) == 1
    assert len(sent) == 1


def test_to_nothing_and_back_is_told_once_each_with_a_greater_version(inventory: Bench, database: Databases) -> None:
    for on_hand in (100, 0, 0, 100, 100):
        put(database, "lamp", on_hand)
        inventory.service.watch()

    events = told(database)
    assert [event["sold_out"] for event in events] == [False, True, False]
    versions = [event["version"] for event in events]
    assert versions == sorted(set(versions))


def test_what_comes_back_between_two_looks_is_not_told(inventory: Bench, database: Databases) -> None:
    for on_hand in (100, 0, 100):
        put(database, "lamp", on_hand)
    inventory.service.watch()

    assert [event["sold_out"] for event in told(database)] == [False]


def test_more_skus_than_a_batch_are_told_in_one_turn(inventory: Bench, database: Databases) -> None:
    database.run(
        "inventory", "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || n, 5 FROM generate_series(1, 1200) AS n"
    )
    inventory.service.watch()

    assert len({event["sku"] for event in told(database)}) == 1200


def test_of_two_that_look_at_once_one_tells(inventory: Bench, database: Databases) -> None:
    put(database, "lamp", 0)
    with inventory.sessions.begin() as first:
        seen = first.execute(signals._CHANGED_OF_ALL).all()
    inventory.service.watch()
    with inventory.sessions.begin() as late:
        assert signals._tell(late, seen, WATCH, new_trace_id()) == 0

    assert len(told(database)) == 1


def test_a_look_that_fails_tells_nothing_and_the_next_one_tells_all(inventory: Bench, database: Databases) -> None:
    put(database, "lamp", 0)

    with inventory.sessions.begin() as session:
        signals.tell_changes(session, True, WATCH, new_trace_id())
        session.rollback()
    assert told(database) == []

    inventory.service.watch()
    assert len(told(database)) == 1


@pytest.mark.parametrize("skus", [None, ["lamp", "unknown"]])
def test_availability_is_told_again_with_a_new_version(
    inventory: Bench, database: Databases, skus: list[str] | None
) -> None:
    put(database, "lamp", 3)
    inventory.service.watch()
    ahead = 2**52
    database.run("inventory", "UPDATE stock_signals SET version = :ahead", ahead=ahead)

    answer = inventory.service.tell_availability(skus)

    assert (answer["told"], answer["left"]) == (1, 0)
    assert [event["version"] for event in told(database)][1:] == [ahead + 1]


def test_all_skus_are_told_again_by_some_calls_that_begin_with_those_told_longest_ago(
    inventory: Bench, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_DUE", text(signals._DUE.text.replace(f"LIMIT {signals.MOST_AT_ONCE}", "LIMIT 600")))
    database.run(
        "inventory",
        "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || lpad(n::text, 4, '0'), 5"
        " FROM generate_series(1, 1300) AS n",
    )
    inventory.service.watch_all()
    # The greatest skus were told longest ago, and one of them has never been told.
    database.run(
        "inventory",
        "UPDATE stock_signals SET since = now() - CAST(substr(sku, 5) AS int) * interval '1 second';"
        "DELETE FROM stock_signals WHERE sku = 'sku-0001'; DELETE FROM outbox",
    )

    answer = inventory.service.tell_availability()
    before = answer["before"]
    assert (answer["told"], answer["left"]) == (600, 700)
    assert {event["sku"] for event in told(database)} == {"sku-0001", *(f"sku-{n:04}" for n in range(702, 1301))}
    answers = [inventory.service.tell_availability(None, before) for _ in range(3)]

    assert [(one["told"], one["left"], one["before"]) for one in answers] == [
        (600, 100, before),
        (100, 0, before),
        (0, 0, before),
    ]
    skus = [event["sku"] for event in told(database)]
    assert (len(skus), len(set(skus))) == (1300, 1300)
    assert inventory.service.tell_availability()["told"] == 600, "a new round begins without a moment"
    assert inventory.service.tell_availability(["sku-0001"], before)["told"] == 0


def test_a_call_for_all_skus_tells_ten_thousand_in_batches(inventory: Bench, database: Databases) -> None:
    database.run(
        "inventory", "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || n, 5 FROM generate_series(1, 10100) AS n"
    )
    with statements(inventory) as sent:
        answer = inventory.service.tell_availability()

    assert (answer["told"], answer["left"]) == (10_000, 100)
    assert len(sent) == 2 + 3 * 20


def test_a_customer_has_nothing_told(inventory: Bench) -> None:
    inventory.called_by(CUSTOMER)
    with pytest.raises(RoleMissing):
        inventory.service.tell_availability()


def test_a_thousand_sales_that_sell_a_sku_out_tell_it_once(inventory: Bench, database: Databases) -> None:
    put(database, "apple", 1000)
    inventory.service.watch()
    for _ in range(20):
        inventory.handle_batch("q.inventory.order-created", [emitted(order_created()) for _ in range(50)])
        inventory.service.watch()

    assert [event["sold_out"] for event in told(database)] == [False, True]


def test_what_was_written_long_ago_is_told_by_the_look_at_all(inventory: Bench, database: Databases) -> None:
    database.run(
        "inventory", "INSERT INTO stock_items (sku, on_hand, updated_at) VALUES ('lamp', 5, now() - interval '1 hour')"
    )
    inventory.service.watch()
    assert told(database) == []
    inventory.service.watch_all()
    assert len(told(database)) == 1


def test_stock_has_no_index_that_a_reservation_would_have_to_change() -> None:
    assert not StockItem.__table__.indexes


# What is made is available as far as its components reach.


def cook(database: Databases, sku: str, **components: int) -> None:
    database.run("inventory", "DELETE FROM recipe_lines WHERE sku = :sku", sku=sku)
    database.run(
        "inventory",
        "INSERT INTO recipes (sku, changed_by) VALUES (:sku, 'admin')"
        " ON CONFLICT (sku) DO UPDATE SET changed_at = now()",
        sku=sku,
    )
    for component, quantity in components.items():
        database.run(
            "inventory",
            "INSERT INTO recipe_lines VALUES (:sku, :component, :n)",
            sku=sku,
            component=component,
            n=quantity,
        )


def told_of(database: Databases, sku: str) -> list[tuple[bool, int | None]]:
    return [(event["sold_out"], event["few"]) for event in told(database) if event["sku"] == sku]


@pytest.mark.parametrize(
    ("flour", "cheese", "sold_out", "few"),
    [
        (10_000, 10_000, False, None),
        (2_750, 10_000, False, None),
        (2_749, 10_000, False, 10),
        (250, 10_000, False, 1),
        (249, 10_000, True, None),
        (10_000, 99, True, None),
        (500, 199, False, 1),
    ],
)
def test_what_is_told_of_a_made_sku_is_what_could_be_made(
    inventory: Bench, database: Databases, flour: int, cheese: int, sold_out: bool, few: int | None
) -> None:
    put(database, "flour", flour)
    put(database, "cheese", cheese)
    cook(database, "pizza", flour=250, cheese=100)
    inventory.service.watch()

    assert told_of(database, "pizza") == [(sold_out, few)]


def test_what_is_made_of_nothing_is_never_sold_out(inventory: Bench, database: Databases) -> None:
    cook(database, "blessing")
    inventory.service.watch()
    assert told_of(database, "blessing") == [(False, None)]

    inventory.service.watch_all()
    assert len(told(database)) == 1


def test_a_component_that_comes_and_goes_is_told_of_what_is_made_of_it_and_of_nothing_else(
    inventory: Bench, database: Databases
) -> None:
    for sku in ("flour", "cheese", "salt"):
        put(database, sku, 10_000)
    cook(database, "pizza", flour=250, cheese=100)
    cook(database, "bread", flour=500)
    cook(database, "brine", salt=30)
    inventory.service.watch()
    # Long ago, but for what is put now.
    for on_hand in (10_000, 400, 400, 200, 10_000):
        database.run("inventory", "UPDATE stock_items SET updated_at = now() - interval '1 hour'")
        database.run("inventory", "UPDATE recipes SET changed_at = now() - interval '1 hour'")
        put(database, "flour", on_hand)
        inventory.service.watch()

    assert told_of(database, "pizza") == [(False, None), (False, 1), (True, None), (False, None)]
    assert told_of(database, "bread") == [(False, None), (True, None), (False, None)]
    assert told_of(database, "brine") == [(False, None)]
    versions = [event["version"] for event in told(database) if event["sku"] == "pizza"]
    assert versions == sorted(set(versions))


def test_a_recipe_that_changes_is_told_and_one_that_is_removed_is_sold_out_once(
    inventory: Bench, database: Databases
) -> None:
    put(database, "flour", 300)
    cook(database, "pizza", flour=1)
    inventory.service.watch()
    # It is the recipe that was written of late, and no component.
    database.run("inventory", "UPDATE stock_items SET updated_at = now() - interval '1 hour'")
    cook(database, "pizza", flour=100)
    inventory.service.watch()
    inventory.service.delete_recipe("pizza")
    for _ in range(2):
        inventory.service.watch()
        inventory.service.watch_all()
    assert told_of(database, "pizza") == [(False, None), (False, 3), (True, None)]

    put(database, "pizza", 100)
    inventory.service.watch()
    assert told_of(database, "pizza")[3:] == [(False, None)]


@pytest.mark.parametrize("skus", [None, ["gone", "flour", "pizza"]])
def test_what_is_made_and_what_is_gone_is_told_again_too(
    inventory: Bench, database: Databases, skus: list[str] | None
) -> None:
    put(database, "flour", 100)
    cook(database, "pizza", flour=20)
    cook(database, "gone")
    inventory.service.watch()
    inventory.service.delete_recipe("gone")

    answer = inventory.service.tell_availability(skus)
    assert (answer["told"], answer["left"]) == (3, 0)
    again = {event["sku"]: (event["sold_out"], event["few"]) for event in told(database)[3:]}
    assert again == {"flour": (False, None), "pizza": (False, 5), "gone": (True, None)}


# What is low.


def rule(database: Databases, sku: str, low_at: int | None, unit: str = "g") -> None:
    database.run(
        "inventory",
        "INSERT INTO stock_rules (sku, low_at, unit) VALUES (:sku, :low_at, :unit)"
        " ON CONFLICT (sku) DO UPDATE SET low_at = :low_at",
        sku=sku,
        low_at=low_at,
        unit=unit,
    )


def crossings(database: Databases) -> list[dict[str, Any]]:
    rows = database.rows("inventory", "SELECT body FROM outbox WHERE event_type = 'stock.level_crossed' ORDER BY id")
    return [json.loads(row["body"])["payload"] for row in rows]


@pytest.mark.parametrize(
    ("low_at", "levels", "lows"),
    [
        (10, [13, 12, 11, 10, 11, 10, 11, 12, 11, 10], [True, False, True]),  # low again at 10, no more at 12
        (10, [11, 9, 11], [True]),
        (11, [12, 11, 13, 11, 14, 13, 12], [True, False]),  # a fifth of 11 is 3, rounded up
        (0, [2, 1, 0, 1, 0], [True, False, True]),
        (1, [2, 1, 2], [True, False]),
        (5, [5], [True]),
        (5, [6, 7], []),
        (None, [0, 5], []),
    ],
)
def test_a_sku_is_low_at_its_level_and_no_more_when_a_fifth_more_is_there(
    inventory: Bench, database: Databases, low_at: int | None, levels: list[int], lows: list[bool]
) -> None:
    put(database, "flour", levels[0])
    rule(database, "flour", low_at)
    for level in levels:
        put(database, "flour", level)
        inventory.service.watch()
        inventory.service.watch_all()

    assert [event["low"] for event in crossings(database)] == lows


def test_a_crossing_says_what_is_there_in_which_unit_and_has_the_version_of_the_row(
    inventory: Bench, database: Databases
) -> None:
    put(database, "flour", 500, reserved=1)
    rule(database, "flour", 500)
    inventory.service.watch()

    (event,), (availability,) = crossings(database), told(database)
    (row,) = database.rows("inventory", "SELECT version, low FROM stock_signals")
    assert event == {
        "sku": "flour",
        "low": True,
        "available": 499,
        "low_at": 500,
        "unit": "g",
        "version": row["version"],
    }
    assert availability["version"] == row["version"]
    assert row["low"]


def test_a_crossing_alone_tells_nothing_of_the_availability(inventory: Bench, database: Databases) -> None:
    put(database, "flour", 600)
    rule(database, "flour", 500)
    inventory.service.watch()
    put(database, "flour", 500)
    inventory.service.watch()

    assert len(told(database)) == 1
    assert len(crossings(database)) == 1


def test_a_rule_that_changes_is_noticed_by_the_look_at_all(inventory: Bench, database: Databases) -> None:
    put(database, "flour", 500)
    rule(database, "flour", 400)
    inventory.service.watch()
    for low_at in (500, None):
        rule(database, "flour", low_at)
        inventory.service.watch_all()

    assert [(event["low"], event["low_at"]) for event in crossings(database)] == [(True, 500), (False, None)]


def test_a_thousand_sales_across_the_level_tell_it_once_and_the_way_back_once(
    inventory: Bench, database: Databases
) -> None:
    put(database, "apple", 1500)
    rule(database, "apple", 1000, unit="piece")
    inventory.service.watch()
    for _ in range(20):
        inventory.handle_batch("q.inventory.order-created", [emitted(order_created()) for _ in range(50)])
        inventory.service.watch()
    assert [(event["low"], event["available"]) for event in crossings(database)] == [(True, 1000)]

    for on_hand in (2_199, 2_200, 2_100):  # 1,000 are reserved: a fifth more than the level is 1,200
        inventory.service.put_stock("apple", on_hand)
        inventory.service.watch()
    assert [event["low"] for event in crossings(database)] == [True, False]
    assert len(told(database)) == 1


def test_a_row_of_an_older_version_was_not_low(inventory: Bench, database: Databases) -> None:
    put(database, "flour", 5)
    database.run("inventory", "INSERT INTO stock_signals (sku, sold_out, few, version) VALUES ('flour', false, 5, 1)")
    rule(database, "flour", 5)
    inventory.service.watch()

    assert told(database) == []
    assert [event["low"] for event in crossings(database)] == [True]


ALL, DISHES, LOOKS, LOOK_S = 100_000, 2_000, 50, 0.05


@pytest.mark.long
def test_a_look_at_100_000_skus_takes_50_ms_of_the_databases_cpu(inventory: Bench, database: Databases) -> None:
    database.run(
        "inventory",
        "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || n, n % 20 FROM generate_series(1, :all) AS n",
        all=ALL,
    )
    database.run(
        "inventory",
        "INSERT INTO stock_rules (sku, low_at) SELECT 'sku-' || n, 5 FROM generate_series(1, :all, 10) AS n",
        all=ALL,
    )
    database.run(
        "inventory",
        "INSERT INTO recipes (sku, changed_by, changed_at) SELECT 'dish-' || n, 'admin', now() - interval '1 hour'"
        " FROM generate_series(1, :dishes) AS n",
        dishes=DISHES,
    )
    # One dish in two takes what is sold just now.
    database.run(
        "inventory",
        "INSERT INTO recipe_lines SELECT 'dish-' || n, 'sku-' || (n + 3 * part) % 10 * 1000 + 1, 1"
        " FROM generate_series(1, :dishes) AS n, generate_series(1, 5) AS part",
        dishes=DISHES,
    )
    database.run("inventory", "UPDATE stock_items SET updated_at = now() - interval '1 hour' WHERE sku <> 'sku-1'")
    database.run("inventory", "VACUUM ANALYZE")
    began = time.monotonic()
    inventory.service.watch_all()
    print(f"\n{ALL} skus are told for the first time: {time.monotonic() - began:.1f} s")
    asked = {"before": None, "left": ALL + DISHES}
    while asked["left"]:
        began = time.monotonic()
        asked = inventory.service.tell_availability(None, asked["before"])
        took = time.monotonic() - began
        assert (0 < asked["told"] <= signals.MOST_AT_ONCE, took < CALL_TIMEOUT_S) == (True, True)
        print(f"{asked['told']} are told again: {took:.1f} s")

    with inventory.sessions.begin() as session:
        server = psutil.Process(session.execute(text("SELECT pg_backend_pid()")).scalar_one())
        before = server.cpu_times()
        for _ in range(LOOKS):
            assert session.execute(signals._CHANGED_OF_LATE).all() == []
        after = server.cpu_times()
    look_s = (after.user + after.system - before.user - before.system) / LOOKS
    print(f"one look, nothing has changed: {look_s * 1000:.0f} ms of CPU")
    assert look_s <= LOOK_S
