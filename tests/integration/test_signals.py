"""What the inventory service tells about availability: by comparing what is with what was told."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from inventory_service import signals
from inventory_service.service import WATCH
from shared.errors import RoleMissing
from shared.ids import new_trace_id
from tests.databases import Databases
from tests.integration.support import ADMIN, CUSTOMER, Bench, statements

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
        " ON CONFLICT (sku) DO UPDATE SET on_hand = :on_hand, reserved = :reserved",
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
        seen = first.execute(signals._CHANGED).all()
    inventory.service.watch()
    with inventory.sessions.begin() as late:
        assert signals._tell(late, seen, WATCH, new_trace_id()) == 0

    assert len(told(database)) == 1


def test_a_look_that_fails_tells_nothing_and_the_next_one_tells_all(inventory: Bench, database: Databases) -> None:
    put(database, "lamp", 0)

    with inventory.sessions.begin() as session:
        signals.tell_changes(session, WATCH, new_trace_id())
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

    assert inventory.service.tell_availability(skus) == {"told": 1}

    assert [event["version"] for event in told(database)][1:] == [ahead + 1]


def test_all_skus_are_told_again_in_batches(inventory: Bench, database: Databases) -> None:
    database.run(
        "inventory", "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || n, 5 FROM generate_series(1, 1200) AS n"
    )
    assert inventory.service.tell_availability() == {"told": 1200}


def test_a_customer_has_nothing_told(inventory: Bench) -> None:
    inventory.called_by(CUSTOMER)
    with pytest.raises(RoleMissing):
        inventory.service.tell_availability()
