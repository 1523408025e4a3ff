"""The catalog on PostgreSQL: what is listed, what it costs, who hears of it, and what anyone may read."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest

from catalog_service import menu
from shared.errors import Conflict, NotFound, RoleMissing, ValidationFailed, VersionMoved
from shared.events import AvailabilityChanged
from shared.times import timestamp
from tests.databases import Databases
from tests.integration.support import ADMIN, CUSTOMER, Bench, emitted, statements

Benches = Callable[..., Bench]

DRAFT: dict[str, Any] = {
    "name": "Pizza",
    "description": "With <b>cheese</b>",
    "category": None,
    "images": [{"url": "https://pictures.example/pizza.jpg", "alt": "A pizza"}],
    "position": 1,
    "variants": [
        {"sku": "pizza-s", "name": "small", "position": 1, "on_sale": True},
        {"sku": "pizza-l", "name": "large", "position": 2, "on_sale": True},
    ],
}


@pytest.fixture
def catalog(bench: Benches) -> Bench:
    made = bench("catalog")
    made.called_by(ADMIN)
    return made


@pytest.fixture
def told(database: Databases) -> Callable[[], list[dict[str, Any]]]:
    """Reads the payloads of the events since the last time, in order."""
    seen = 0

    def read() -> list[dict[str, Any]]:
        nonlocal seen
        rows = database.rows("catalog", "SELECT id, body FROM outbox WHERE id > :seen ORDER BY id", seen=seen)
        seen = rows[-1]["id"] if rows else seen
        return [json.loads(row["body"])["payload"] for row in rows]

    return read


Told = Callable[[], list[dict[str, Any]]]


def soon(seconds: float) -> str:
    return timestamp(datetime.now(UTC) + timedelta(seconds=seconds))


def publish(catalog: Bench, draft: dict[str, Any] = DRAFT, key: str = "k") -> dict[str, Any]:
    made = catalog.service.create_item(draft, key)["body"]
    return catalog.service.put_item(made["item_id"], {**draft, "status": "published", "version": 1})


def prices(catalog: Bench, sku: str) -> dict[str, Any]:
    (offer,) = catalog.service.get_offers([sku])["offers"]
    return dict(offer["prices"])


def test_an_unknown_sku_is_listed_the_short_way_and_told(catalog: Bench, told: Told) -> None:
    answer = catalog.service.put_offer("lamp", 1999)

    assert answer["created"]
    assert answer["offer"]["prices"] == {"EUR": [{"min_quantity": 1, "unit_price": 1999}]}
    (event,) = told()
    assert (event["sku"], event["name"], event["sellable"], event["changed"]) == ("lamp", "lamp", True, ["listed"])
    assert [(price["currency"], price["unit_price"]) for price in event["prices"]] == [("EUR", 1999)]


def test_the_same_listing_again_changes_and_tells_nothing(catalog: Bench, told: Told, database: Databases) -> None:
    dated = {"sku": "lamp", "unit_price": 900, "valid_from": soon(60)}
    for listing in ({"sku": "lamp", "unit_price": 1999, "name": "A lamp"}, dated):
        catalog.service.put_offers([listing])
    told()

    again = catalog.service.put_offers([{"sku": "lamp", "unit_price": 1999, "name": "A lamp"}, dated])

    assert (again["created"], again["changed"], told()) == (0, 0, [])
    assert database.rows("catalog", "SELECT count(*) AS n FROM prices")[0]["n"] == 2
    assert database.rows("catalog", "SELECT count(*) AS n FROM item_versions")[0]["n"] == 1


def test_each_change_of_an_offer_is_told_with_a_greater_version(catalog: Bench, told: Told) -> None:
    catalog.service.put_category("lamps", "Lamps", 1)
    for change in (
        {"unit_price": 5},
        {"unit_price": 6},
        {"unit_price": 6, "name": "A lamp"},
        {"unit_price": 6, "category": "lamps"},
        {"unit_price": 6, "on_sale": False},
        {"unit_price": None},
    ):
        catalog.service.put_offer("lamp", **change)

    events = told()
    assert [event["changed"] for event in events] == [
        ["listed"],
        ["price"],
        ["name"],
        ["name"],
        ["availability"],
        ["price"],
    ]
    versions = [event["version"] for event in events]
    assert versions == sorted(set(versions))
    assert [event["sellable"] for event in events] == [True, True, True, True, False, False]


def test_a_version_also_grows_when_the_clock_is_behind_it(catalog: Bench, told: Told, database: Databases) -> None:
    catalog.service.put_offer("lamp", 5)
    ahead = 2**52
    database.run("catalog", "UPDATE variants SET offer_version = :ahead", ahead=ahead)
    told()

    catalog.service.put_offer("lamp", 6)

    assert [event["version"] for event in told()] == [ahead + 1]


def test_a_draft_is_told_to_nobody_until_it_is_published(catalog: Bench, told: Told) -> None:
    draft = catalog.service.create_item(DRAFT, "k")["body"]
    assert not catalog.service.put_offer("pizza-s", 700)["offer"]["sellable"]

    assert told() == []
    assert catalog.service.get_offers(["pizza-s"]) == {"offers": [], "unknown": ["pizza-s"]}
    assert catalog.service.offers_of(["pizza-s"])["unknown"] == ["pizza-s"]
    assert catalog.service.offer_versions("", 10)["versions"] == {}
    with pytest.raises(NotFound):
        catalog.service.get_item(draft["item_id"])

    catalog.service.put_item(draft["item_id"], {**DRAFT, "status": "published", "version": 1})
    assert [(event["name"], event["changed"]) for event in told()] == [
        ("Pizza, small", ["listed"]),
        ("Pizza, large", ["listed"]),
    ]


def test_a_draft_is_made_once_for_each_key(catalog: Bench) -> None:
    first = catalog.service.create_item(DRAFT, "k")
    again = catalog.service.create_item(DRAFT, "k")

    assert again == {**first, "replayed": True}
    assert catalog.service.editor_item(first["body"]["item_id"]) == first["body"]


def test_a_withdrawn_item_is_told_once_for_each_sku_and_shows_no_prices(catalog: Bench, told: Told) -> None:
    item = publish(catalog)
    catalog.service.put_offer("pizza-s", 700)
    told()

    catalog.service.delete_item(item["item_id"])
    catalog.service.delete_item(item["item_id"])

    events = told()
    assert [(event["sku"], event["sellable"], event["changed"]) for event in events] == [
        ("pizza-s", False, ["withdrawn"]),
        ("pizza-l", False, ["withdrawn"]),
    ]
    shown = catalog.service.get_item(item["item_id"])
    assert (shown["status"], [variant["prices"] for variant in shown["variants"]]) == ("withdrawn", [{}, {}])
    assert catalog.service.list_items(10)["items"] == []


def withdrawn_by_its_editor(catalog: Bench, draft: dict[str, Any]) -> None:
    catalog.service.put_item(draft["item_id"], {**DRAFT, "status": "withdrawn", "version": 1})


def deleted_with_a_price(catalog: Bench, draft: dict[str, Any]) -> None:
    catalog.service.put_offer("pizza-s", 900)
    catalog.service.delete_item(draft["item_id"])


@pytest.mark.parametrize("withdraw", [withdrawn_by_its_editor, deleted_with_a_price])
def test_a_draft_that_was_withdrawn_stays_unseen(
    catalog: Bench, told: Told, withdraw: Callable[[Bench, dict[str, Any]], None]
) -> None:
    draft = catalog.service.create_item(DRAFT, "k")["body"]
    withdraw(catalog, draft)

    assert catalog.service.editor_item(draft["item_id"])["status"] == "withdrawn"
    with pytest.raises(NotFound):
        catalog.service.get_item(draft["item_id"])
    assert catalog.service.get_offers(["pizza-s"]) == {"offers": [], "unknown": ["pizza-s"]}
    assert catalog.service.list_items(10, None, {"sku": "pizza-s"})["items"] == []
    assert told() == []


def test_a_draft_without_a_price_is_thrown_away_and_its_skus_are_free(catalog: Bench) -> None:
    draft = catalog.service.create_item(DRAFT, "k")["body"]
    catalog.service.delete_item(draft["item_id"])

    with pytest.raises(NotFound):
        catalog.service.editor_item(draft["item_id"])
    assert catalog.service.put_offer("pizza-s", 1)["created"]


def test_an_edit_of_a_version_that_moved_is_refused(catalog: Bench) -> None:
    item = publish(catalog)
    document = {**DRAFT, "status": "published"}
    catalog.service.put_item(item["item_id"], {**document, "name": "Pizza!", "version": item["version"]})

    with pytest.raises(VersionMoved) as moved:
        catalog.service.put_item(item["item_id"], {**document, "version": item["version"]})
    assert moved.value.details == {"version": item["version"] + 1}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"status": "draft"}, ValidationFailed),
        ({"variants": DRAFT["variants"][:1]}, ValidationFailed),
        ({"variants": [*DRAFT["variants"], DRAFT["variants"][0]]}, ValidationFailed),
        ({"variants": [{**DRAFT["variants"][0], "sku": f"pizza-{n}"} for n in range(21)]}, ValidationFailed),
        ({"variants": [*DRAFT["variants"], {**DRAFT["variants"][0], "sku": "lamp"}]}, Conflict),
        ({"category": "nowhere"}, ValidationFailed),
    ],
)
def test_what_a_published_item_may_not_become(catalog: Bench, change: dict[str, Any], error: type[Exception]) -> None:
    catalog.service.put_offer("lamp", 1)
    item = publish(catalog)

    with pytest.raises(error):
        catalog.service.put_item(
            item["item_id"], {**DRAFT, "status": "published", "version": item["version"], **change}
        )
    assert catalog.service.editor_item(item["item_id"]) == item


def test_a_revert_makes_a_new_version_of_an_old_one(catalog: Bench, told: Told) -> None:
    item = publish(catalog)
    more = [*DRAFT["variants"], {"sku": "pizza-xl", "name": "huge", "position": 3, "on_sale": True}]
    changed = {**DRAFT, "name": "Pie", "variants": more, "status": "published", "version": item["version"]}
    catalog.service.put_item(item["item_id"], changed)
    told()

    reverted = catalog.service.revert_item(item["item_id"], item["version"], item["version"] + 1)

    assert (reverted["name"], reverted["version"]) == ("Pizza", item["version"] + 2)
    assert [(variant["sku"], variant["on_sale"]) for variant in reverted["variants"]] == [
        ("pizza-s", True),
        ("pizza-l", True),
        ("pizza-xl", False),
    ]
    assert {event["sku"] for event in told()} == {"pizza-s", "pizza-l", "pizza-xl"}
    versions = catalog.service.item_versions(item["item_id"], 2)
    assert [version["version"] for version in versions["items"]] == [4, 3]
    rest = catalog.service.item_versions(item["item_id"], 2, versions["next_cursor"])
    assert [version["document"]["name"] for version in rest["items"]] == ["Pizza", "Pizza"]


def test_a_price_from_a_date_waits_for_it_and_one_of_the_past_is_refused(catalog: Bench) -> None:
    catalog.service.put_offers(
        [{"sku": "lamp", "unit_price": 10}, {"sku": "lamp", "unit_price": 12, "valid_from": soon(60)}]
    )

    assert prices(catalog, "lamp") == {"EUR": [{"min_quantity": 1, "unit_price": 10}]}
    (offer,) = catalog.service.offers_of(["lamp"])["offers"]
    assert [price["unit_price"] for price in offer["prices"]] == [10, 12]
    with pytest.raises(ValidationFailed):
        catalog.service.put_offer("lamp", 11, valid_from=soon(-60))


def test_all_of_a_list_or_none_of_it(catalog: Bench, told: Told) -> None:
    with pytest.raises(ValidationFailed):
        catalog.service.put_offers(
            [{"sku": "lamp", "unit_price": 1}, {"sku": "desk", "unit_price": 1, "category": "x"}]
        )

    assert catalog.service.get_offers(["lamp"])["unknown"] == ["lamp"]
    assert told() == []


def test_a_sku_has_at_most_fifty_prices_in_force_and_to_come(catalog: Bench) -> None:
    listing = [{"sku": "lamp", "unit_price": 100 - n, "min_quantity": n} for n in range(1, 51)]
    catalog.service.put_offers(listing)

    with pytest.raises(ValidationFailed):
        catalog.service.put_offer("lamp", 1, min_quantity=51)
    catalog.service.put_offer("lamp", 1, min_quantity=50)


def test_who_set_which_price_when_and_the_lowest_of_thirty_days(catalog: Bench, database: Databases) -> None:
    for unit_price in (10, 7, 9):
        catalog.service.put_offer("lamp", unit_price)
    item_id = catalog.service.get_offers(["lamp"])["offers"][0]["item_id"]

    page = catalog.service.item_prices(item_id, 2)
    rest = catalog.service.item_prices(item_id, 2, page["next_cursor"])
    assert [price["unit_price"] for price in page["items"] + rest["items"]] == [9, 7, 10]
    assert {price["set_by"] for price in page["items"]} == {"admin"}
    assert page["lowest_30d"] == [{"sku": "lamp", "currency": "EUR", "unit_price": 7}]

    database.run("catalog", "UPDATE prices SET valid_from = valid_from - interval '40 days' WHERE unit_price <> 9")
    assert catalog.service.item_prices(item_id, 2)["lowest_30d"] == [
        {"sku": "lamp", "currency": "EUR", "unit_price": 7}
    ]
    database.run("catalog", "UPDATE prices SET valid_from = valid_from - interval '40 days' WHERE unit_price = 9")
    assert catalog.service.item_prices(item_id, 2)["lowest_30d"][0]["unit_price"] == 9


def test_nobody_but_an_admin_edits_and_nobody_else_but_an_auditor_sees_drafts(catalog: Bench) -> None:
    item = publish(catalog)
    catalog.called_by(CUSTOMER)

    for call in (
        lambda: catalog.service.put_offer("lamp", 1),
        lambda: catalog.service.put_category("lamps", "Lamps", 1),
        lambda: catalog.service.create_item(DRAFT, "k2"),
        lambda: catalog.service.delete_item(item["item_id"]),
        lambda: catalog.service.editor_items(10),
        lambda: catalog.service.item_prices(item["item_id"], 10),
    ):
        with pytest.raises(RoleMissing):
            call()
    assert catalog.service.list_items(10)["items"]


def test_a_category_with_items_stays(catalog: Bench) -> None:
    assert catalog.service.put_category("lamps", "Lamps", 1)["created"]
    catalog.service.put_offer("lamp", 1, category="lamps")

    with pytest.raises(Conflict):
        catalog.service.delete_category("lamps")
    with pytest.raises(VersionMoved):
        catalog.service.put_category("lamps", "Lights", 1, version=7)
    assert not catalog.service.put_category("lamps", "Lights", 2, version=1)["created"]
    assert catalog.service.list_categories()["items"] == [
        {"slug": "lamps", "name": "Lights", "position": 2, "version": 2}
    ]
    catalog.service.put_category("empty", "Empty", 3)
    catalog.service.delete_category("empty")
    with pytest.raises(NotFound):
        catalog.service.delete_category("empty")


@pytest.mark.parametrize("most_sorted", [menu.MOST_SORTED, 2, 0])
def test_the_menu_is_read_in_pages_by_category_words_and_availability(
    catalog: Bench, monkeypatch: pytest.MonkeyPatch, most_sorted: int
) -> None:
    monkeypatch.setattr(menu, "MOST_SORTED", most_sorted)
    catalog.service.put_category("lamps", "Lamps", 1)
    catalog.service.put_offers(
        [{"sku": f"lamp-{n}", "unit_price": n, "name": f"Lamp number{n}", "category": "lamps"} for n in range(1, 6)]
        + [{"sku": "desk", "unit_price": 9, "name": "A wooden desk"}]
    )
    learn(catalog, AvailabilityChanged("lamp-2", False, 3, 1), AvailabilityChanged("lamp-3", True, None, 1))

    def names(**filters: Any) -> list[str]:
        found, cursor = [], None
        while True:
            page = catalog.service.list_items(2, cursor, filters)
            found += [item["name"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return sorted(found)

    assert len(names()) == 6
    assert names(category="lamps") == [f"Lamp number{n}" for n in range(1, 6)]
    assert names(category="nowhere") == []
    assert names(q="wood") == ["A wooden desk"]
    assert names(q="desk a") == ["A wooden desk"]
    assert names(q="lamp number4") == ["Lamp number4"]
    assert names(q="lam") == names(q="lamp", category="lamps") == names(category="lamps")
    assert names(q="lam", available=True) == ["Lamp number2"]
    assert names(q="it's & | ! ( :* --") == []
    assert names(sku="lamp-5") == ["Lamp number5"]
    assert names(available=True) == ["Lamp number2"]
    assert len(names(available=False)) == 5
    (variant,) = catalog.service.list_items(1, None, {"sku": "lamp-2"})["items"][0]["variants"]
    assert (variant["sold_out"], variant["few"]) == (False, 3)


def learn(catalog: Bench, *heard: AvailabilityChanged) -> None:
    catalog.handle_batch(
        "q.catalog.stock-availability", [emitted(event, source="inventory_service") for event in heard]
    )


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_availability_heard_in_any_order_ends_in_the_newest(
    catalog: Bench, database: Databases, order: tuple[int, ...]
) -> None:
    said = {1: AvailabilityChanged("lamp", True, None, 1), 2: AvailabilityChanged("lamp", False, 2, 2)}
    said[3] = AvailabilityChanged("lamp", False, None, 3)
    for number in order:
        learn(catalog, said[number])
        learn(catalog, said[number])

    assert database.rows("catalog", "SELECT * FROM availability") == [
        {"sku": "lamp", "sold_out": False, "few": None, "version": 3}
    ]


@contextmanager
def counted(catalog: Bench) -> Iterator[list[int]]:
    found: list[int] = []
    with statements(catalog) as sent:
        yield found
    found.append(len(sent))


@pytest.mark.parametrize("size", [1, 200])
def test_a_listing_costs_the_same_statements_whatever_its_length(catalog: Bench, size: int) -> None:
    catalog.service.put_category("lamps", "Lamps", 1)
    rows = [{"sku": f"sku-{uuid4().hex[:8]}", "unit_price": 5, "category": "lamps"} for _ in range(size)]
    with counted(catalog) as new:
        catalog.service.put_offers(rows)
    with counted(catalog) as changed:
        catalog.service.put_offers([{**row, "unit_price": 6, "name": "Another"} for row in rows])
    with counted(catalog) as same:
        catalog.service.put_offers([{**row, "unit_price": 6, "name": "Another"} for row in rows])

    assert (new, changed, same) == ([13], [13], [7])


def test_a_page_is_three_statements_and_offers_are_two(catalog: Bench) -> None:
    publish(catalog)
    with counted(catalog) as page:
        catalog.service.list_items(50)
    with counted(catalog) as offers:
        catalog.service.get_offers(["pizza-s", "pizza-l", "none"])

    assert (page, offers) == ([3], [2])
