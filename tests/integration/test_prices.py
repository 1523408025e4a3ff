"""Orders judged by the copy of the offers, and by the catalog where the copy leaves a doubt."""

import json
from collections.abc import Callable
from itertools import permutations
from typing import Any
from uuid import uuid4

import eventlet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_service import new_orders, offers
from order_service.catching_up import catch_up
from shared.errors import (
    CannotWork,
    Conflict,
    IdempotencyKeyReused,
    NotForSale,
    NotFound,
    PriceChanged,
    RoleMissing,
    ServiceUnavailable,
    UnknownSku,
)
from shared.events import Identity, OfferChanged
from shared.metrics import OFFERS_AHEAD, OFFERS_BEHIND
from shared.prices import Price
from shared.schema import decoder
from tests.databases import Databases
from tests.integration.support import CUSTOMER, OPERATOR, SYSTEM, Bench, emitted

Benches = Callable[..., Bench]
ITEM = uuid4()


class Catalog:
    """The catalog service as order_service calls it: {sku: (version, sellable, unit price)}."""

    def __init__(self) -> None:
        self.offers: dict[str, tuple[int, bool, int]] = {}
        self.is_away = False
        self.asked: list[list[str]] = []

    def offers_of(self, skus: list[str]) -> dict[str, Any]:
        self.asked.append(skus)
        if self.is_away:
            raise ServiceUnavailable("away")
        return {
            "offers": [offer(sku, *self.offers[sku]) for sku in skus if sku in self.offers],
            "unknown": [sku for sku in skus if sku not in self.offers],
        }

    def offer_versions(self, after: str, limit: int) -> dict[str, Any]:
        if self.is_away:
            raise ServiceUnavailable("away")
        skus = [sku for sku in sorted(self.offers) if sku > after]
        return {"versions": {sku: self.offers[sku][0] for sku in skus[:limit]}, "more": len(skus) > limit}


def offer(sku: str, version: int, sellable: bool, unit_price: int) -> dict[str, Any]:
    price = {"currency": "EUR", "min_quantity": 1, "unit_price": unit_price, "valid_from": "2026-01-01T00:00:00.000Z"}
    return {
        "item_id": str(ITEM),
        "sku": sku,
        "version": version,
        "name": f"The {sku}",
        "category": None,
        "sellable": sellable,
        "prices": [price],
    }


def event(sku: str, version: int, sellable: bool, unit_price: int) -> Any:
    fields = offer(sku, version, sellable, unit_price)
    prices = decoder(tuple[Price, ...])(fields["prices"], "")
    changed = OfferChanged(ITEM, sku, version, fields["name"], None, sellable, prices, ("price",))
    return emitted(changed, source="catalog_service")


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def order(bench: Benches, catalog: Catalog) -> Bench:
    offers._KNOWN.clear()  # other tests have given the same versions other contents
    made = bench("order", lists=False)
    made.service.catalog = catalog
    return made


def body(*lines: tuple[str, int | None], **more: Any) -> dict[str, Any]:
    items = [
        {"sku": sku, "quantity": 1} | ({} if unit_price is None else {"unit_price": unit_price})
        for sku, unit_price in lines
    ]
    return {"currency": "EUR", "payment_method": "mock_ok", "items": items, **more}


def learn(order: Bench, *events: Any) -> None:
    order.handle_batch("q.order.catalog-offers", events)


def count(database: Databases, table: str = "orders") -> int:
    return int(database.rows("order", f"SELECT count(*) AS n FROM {table}")[0]["n"])


TAKEN = None


@pytest.mark.parametrize(
    ("copy", "seen", "said", "end", "asks"),
    [
        ((1, True, 10), None, None, TAKEN, False),
        ((1, True, 10), 10, None, TAKEN, False),
        ((1, True, 10), 12, (2, True, 12), TAKEN, True),
        ((1, True, 10), 12, (1, True, 10), PriceChanged, True),
        ((1, True, 10), 9, (1, True, 10), PriceChanged, True),
        (None, None, (1, True, 10), TAKEN, True),
        (None, 10, (1, True, 10), TAKEN, True),
        (None, 10, None, UnknownSku, True),
        ((1, False, 10), 10, (2, True, 10), TAKEN, True),
        ((1, False, 10), 10, (1, False, 10), NotForSale, True),
        ((1, True, 10), 10, (2, True, 12), TAKEN, False),
    ],
    ids=[
        "the copy has a price and the client names none",
        "the client names the price of the copy",
        "the client is ahead of the copy",
        "the client names a higher price",
        "the client names a lower price",
        "a new sku",
        "a new sku whose price the client names",
        "a sku that nobody knows",
        "a sku that is for sale again",
        "a sku that is not for sale",
        "the copy is behind and agrees with the client",
    ],
)
def test_the_copy_may_accept_and_only_the_catalog_refuses(
    order: Bench,
    catalog: Catalog,
    database: Databases,
    copy: tuple[int, bool, int] | None,
    seen: int | None,
    said: tuple[int, bool, int] | None,
    end: type[Exception] | None,
    asks: bool,
) -> None:
    if copy:
        learn(order, event("lamp", *copy))
    if said:
        catalog.offers["lamp"] = said
    events = count(database, "outbox")

    if end is TAKEN:
        answer = order.service.place_order(body(("lamp", seen)), "key")
        price = said[2] if said and asks else 10
        assert (answer["status"], answer["body"]["total"]) == (201, price)
        assert answer["body"]["items"][0]["name"] == "The lamp"
    else:
        with pytest.raises(end):
            order.service.place_order(body(("lamp", seen)), "key")
        assert (count(database), count(database, "outbox")) == (0, events)
        assert count(database, "idempotency_keys") == 0, "a refusal uses up no key"
    assert bool(catalog.asked) == asks
    if asks and said:
        (kept,) = database.rows("order", "SELECT version FROM offers")
        assert kept["version"] == max(said[0], copy[0] if copy else 0)


def test_a_doubt_while_the_catalog_is_away_stores_nothing(order: Bench, catalog: Catalog, database: Databases) -> None:
    catalog.is_away = True
    with pytest.raises(CannotWork):
        order.service.place_order(body(("lamp", 10)), "key")
    assert (count(database), count(database, "idempotency_keys")) == (0, 0)

    learn(order, event("lamp", 1, True, 10))
    assert order.service.place_order(body(("lamp", 10)), "key")["status"] == 201


@pytest.mark.parametrize("now", [(2, True, 99), (2, False, 10)], ids=["a new price", "withdrawn"])
@pytest.mark.parametrize("is_away", [False, True], ids=["catalog there", "catalog away"])
def test_a_repeat_of_a_good_order_has_its_answer_whatever_has_become_of_the_offer(
    order: Bench, catalog: Catalog, now: tuple[int, bool, int], is_away: bool
) -> None:
    learn(order, event("lamp", 1, True, 10))
    first = order.service.place_order(body(("lamp", 10)), "key")
    learn(order, event("lamp", *now))
    catalog.offers["lamp"], catalog.is_away = now, is_away

    assert order.service.place_order(body(("lamp", 10)), "key") == {**first, "replayed": True}
    with pytest.raises(IdempotencyKeyReused):
        order.service.place_order(body(("lamp", 11)), "key")
    assert catalog.asked == []


def test_a_refused_order_that_is_corrected_is_taken_with_the_same_key(order: Bench, catalog: Catalog) -> None:
    catalog.offers["lamp"] = (1, True, 10)
    with pytest.raises(PriceChanged) as refused:
        order.service.place_order(body(("lamp", 9)), "key")

    (line,) = refused.value.details["lines"]
    assert line == {"sku": "lamp", "problem": "price_changed", "unit_price": 10, "seen": 9}
    assert order.service.place_order(body(("lamp", line["unit_price"])), "key")["status"] == 201


def test_a_post_in_doubt_is_to_be_made_alone_and_its_neighbours_are_made_at_once(
    order: Bench, catalog: Catalog, database: Databases
) -> None:
    learn(order, event("lamp", 1, True, 10))
    order.called_by(SYSTEM)

    def post(key: str, sku: str, price: int) -> dict[str, Any]:
        return {"order": body((sku, price)), "key": key, "user_id": "ann", "roles": ["customer"], "trace_id": "0" * 32}

    answers = order.service.place_orders([post("1", "lamp", 10), post("2", "rug", 1), post("3", "lamp", 10)])

    assert [answer and answer["result"]["status"] for answer in answers] == [201, None, 201]
    assert (count(database), catalog.asked) == (2, [])


def test_twenty_equal_posts_in_doubt_have_one_answer(order: Bench, catalog: Catalog, database: Databases) -> None:
    catalog.offers["lamp"] = (1, True, 10)

    def post(_: int) -> Any:
        return order.service.place_order(body(("lamp", 10)), "key")["body"]["order_id"]

    assert len(set(eventlet.GreenPool(10).imap(post, range(20)))) == 1
    assert count(database) == 1


def test_a_caller_of_the_version_before_gets_an_error_that_they_know(order: Bench, catalog: Catalog) -> None:
    catalog.offers["lamp"] = (1, True, 10)
    with pytest.raises(Conflict) as refused:
        order.service.create_order(body(("lamp", 9)), "key")
    assert type(refused.value) is Conflict
    assert refused.value.details["lines"][0]["unit_price"] == 10


def test_what_was_agreed_is_kept_in_the_order(order: Bench, database: Databases) -> None:
    learn(order, event("lamp", 7, True, 10))
    posted = body(("lamp", None), note="Ring twice")
    posted["items"][0]["note"] = "In red"
    made = order.service.place_order(posted, "key")["body"]

    learn(order, event("lamp", 8, True, 99))
    assert order.service.get_order(made["order_id"]) | made == order.service.get_order(made["order_id"])
    (line,) = database.rows("order", "SELECT name, note, unit_price, offer_version FROM order_items")
    assert line == {"name": "The lamp", "note": "In red", "unit_price": 10, "offer_version": 7}
    (row,) = database.rows("order", "SELECT body FROM outbox WHERE event_type = 'order.created'")
    payload = json.loads(row["body"])["payload"]
    assert (payload["note"], payload["order_no"], payload["items"][0]["note"]) == (
        "Ring twice",
        made["order_no"],
        "In red",
    )
    found = order.service.list_orders(10, None, {"order_no": made["order_no"].lower().replace("-", "")})
    assert [one["order_id"] for one in found["items"]] == [made["order_id"]]
    assert order.service.list_orders(10, None, {"sku": "lamp"})["items"] == found["items"]
    assert order.service.list_orders(10, None, {"sku": "rug"})["items"] == []


def test_an_order_whose_number_is_taken_gets_another_one(
    order: Bench, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(order, event("lamp", 1, True, 10))
    numbers = iter(["AAAA-AAAA", "AAAA-AAAA", "BBBB-BBBB"])
    monkeypatch.setattr(new_orders, "new_order_no", lambda: next(numbers))

    made = [order.service.place_order(body(("lamp", 10)), key)["body"]["order_no"] for key in ("1", "2")]

    assert made == ["AAAA-AAAA", "BBBB-BBBB"]
    assert count(database, "outbox") == 2


EVENTS = [(1, True, 10), (2, False, 10), (3, True, 12)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.sampled_from(list(permutations(range(3)))), st.lists(st.integers(0, 2), max_size=4))
def test_offers_heard_in_any_order_and_again_end_in_the_newest(
    order: Bench, database: Databases, first: tuple[int, ...], again: list[int]
) -> None:
    database.run("order", "DELETE FROM offers")
    for number in [*first, *again]:
        learn(order, event("lamp", *EVENTS[number]))

    (kept,) = database.rows("order", "SELECT version, sellable FROM offers")
    assert kept == {"version": 3, "sellable": True}


def test_a_copy_that_was_lost_is_whole_again_after_one_comparison(
    order: Bench, catalog: Catalog, database: Databases
) -> None:
    catalog.offers = {f"sku-{n}": (5, True, n) for n in range(1200)}
    learn(order, event("sku-1", 6, True, 1), event("sku-2", 5, True, 2), event("sku-3", 4, True, 3))

    assert catch_up(order.sessions, catalog) == 1198
    assert catch_up(order.sessions, catalog) == 0

    assert count(database, "offers") == 1200
    (ahead,) = database.rows("order", "SELECT version FROM offers WHERE sku = 'sku-1'")
    assert ahead["version"] == 6
    assert (OFFERS_BEHIND._value.get(), OFFERS_AHEAD._value.get()) == (0, 1)
    catalog.is_away = True
    with pytest.raises(CannotWork):
        catch_up(order.sessions, catalog)


def test_a_customer_alone_posts(order: Bench) -> None:
    order.called_by(CUSTOMER)
    learn(order, event("lamp", 1, True, 10))
    assert order.service.place_order(body(("lamp", 10)), "key")["status"] == 201


def test_an_owner_sees_the_notes_that_are_shown_and_never_who_wrote_them(order: Bench, database: Databases) -> None:
    learn(order, event("lamp", 1, True, 10))
    order_id = order.service.place_order(body(("lamp", 10)), "key")["body"]["order_id"]
    with pytest.raises(RoleMissing):
        order.service.add_note(order_id, "mine", True, "n-0")

    order.called_by(OPERATOR)
    first = order.service.add_note(order_id, "shown", True, "n-1")
    assert order.service.add_note(order_id, "shown", True, "n-1") == {**first, "replayed": True}
    order.service.add_note(order_id, "hidden", False, "n-2")
    seen = order.service.notes(order_id)["items"]
    assert [(note["text"], note["author"]) for note in seen] == [("shown", "operator"), ("hidden", "operator")]

    order.called_by(CUSTOMER)
    assert [(note["text"], note["author"]) for note in order.service.notes(order_id)["items"]] == [("shown", None)]
    order.called_by(Identity("mallory", ("customer",)))
    with pytest.raises(NotFound):
        order.service.notes(order_id)
    assert count(database, "order_notes") == 2
