"""The rules of recipes: what orders of made skus hold, and what a recipe may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service import domain
from inventory_service.domain import Outcome, Reservation, State, Stock
from inventory_service.recipes import domain as recipes
from inventory_service.recipes.domain import Recipe
from shared.errors import Contradiction, EcomError, HasStock, ValidationFailed, VersionMoved
from shared.events import OrderCreated, OrderedItem, ReservationFailed, Reserved, Shortage

ORDER, RESERVATION = uuid4(), uuid4()

MENU = {"pizza": {"flour": 250, "cheese": 100}, "bread": {"flour": 500}, "blessing": {}}
SKUS = ("lamp", "flour", "cheese", *MENU)


def order(**quantities: int) -> OrderCreated:
    return OrderCreated(ORDER, "EUR", 5, tuple(OrderedItem(sku, n, 1) for sku, n in quantities.items()), "mock_ok")


def stock(**on_hand: int) -> dict[str, Stock]:
    return {sku: Stock(sku, n, 0) for sku, n in on_hand.items()}


def reserve(have: Mapping[str, Stock], menu: domain.Recipes = MENU, **quantities: int) -> Outcome:
    return domain.reserve(have, menu, order(**quantities), RESERVATION)


def test_an_order_of_made_skus_holds_their_components_and_answers_with_its_own_lines() -> None:
    outcome = reserve(stock(flour=2000, cheese=300, lamp=1), pizza=2, bread=1, lamp=1)

    assert outcome.reservation.quantities == {"cheese": 200, "flour": 1000, "lamp": 1}
    assert list(outcome.reservation.quantities) == ["cheese", "flour", "lamp"]
    assert {item.sku: item.reserved for item in outcome.stock} == {"cheese": 200, "flour": 1000, "lamp": 1}
    (event,) = outcome.emits
    assert isinstance(event, Reserved)
    assert event.items == order(pizza=2, bread=1, lamp=1).items


@pytest.mark.parametrize(
    ("have", "wanted", "short"),
    [
        # Each alone could be made: both are named, since both take what is short.
        ({"flour": 600, "cheese": 900}, {"pizza": 1, "bread": 1}, [("bread", 1, 1), ("pizza", 1, 2)]),
        ({"flour": 750, "cheese": 900}, {"pizza": 1, "bread": 1}, []),
        # Only pizza takes cheese.
        ({"flour": 9000, "cheese": 199}, {"pizza": 2, "bread": 1}, [("pizza", 2, 1)]),
        ({"flour": 9000, "cheese": 99}, {"pizza": 1, "bread": 1}, [("pizza", 1, 0)]),
        # A component that is also ordered by itself.
        ({"flour": 500, "cheese": 900}, {"bread": 1, "flour": 1}, [("bread", 1, 1), ("flour", 1, 500)]),
        ({"flour": 0, "cheese": 0}, {"blessing": 10_000}, []),
        ({"flour": 0, "cheese": 0}, {"blessing": 1, "bread": 1}, [("bread", 1, 0)]),
    ],
)
def test_every_ordered_sku_that_takes_something_short_is_named_with_what_there_would_be_of_it_alone(
    have: dict[str, int], wanted: dict[str, int], short: list[tuple[str, int, int]]
) -> None:
    outcome = reserve(stock(**have), **wanted)

    failed = tuple(Shortage(*item) for item in short)
    assert [event.shortages for event in outcome.emits if isinstance(event, ReservationFailed)] == [failed] * bool(
        short
    )
    assert outcome.reservation.state == (State.REFUSED if short else State.RESERVED)
    assert bool(outcome.stock) == (not short and wanted.keys() != {"blessing"})


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [({"ghost": 1, "bread": 1}, "unknown_sku"), ({"bread": 100}, "out_of_stock"), ({"lamp": 9}, "out_of_stock")],
)
def test_a_sku_is_unknown_that_is_neither_stocked_nor_made(wanted: dict[str, int], reason: str) -> None:
    (event,) = reserve(stock(flour=1000, cheese=1, lamp=1), **wanted).emits

    assert isinstance(event, ReservationFailed)
    assert event.reason == reason


def test_a_reservation_by_hand_holds_components_too() -> None:
    held = domain.hold_manually(stock(flour=1000), MENU, ORDER, RESERVATION, {"bread": 2})
    short = domain.hold_manually(stock(flour=999), MENU, ORDER, RESERVATION, {"bread": 2})

    assert isinstance(held, Outcome)
    assert held.reservation.quantities == {"flour": 1000}
    assert short == (Shortage("bread", 2, 1),)


def test_a_repeat_is_compared_with_what_was_asked_whatever_the_recipe_has_become() -> None:
    held = reserve(stock(flour=1000, cheese=1000), pizza=2).reservation

    assert not domain.repeat_reserve(held, order(pizza=2)).changed
    for lie in ({"pizza": 1}, {"pizza": 2, "bread": 1}, {"flour": 500, "cheese": 200}, {"bread": 1}):
        with pytest.raises(Contradiction):
            domain.repeat_reserve(held, order(**lie))


def test_a_repeat_of_an_order_that_holds_nothing_is_compared_too() -> None:
    free = reserve({}, blessing=1).reservation
    refused = reserve({}, bread=1).reservation

    for held, asked in ((free, {"blessing": 1}), (refused, {"bread": 1})):
        domain.repeat_reserve(held, order(**asked))
        with pytest.raises(Contradiction):
            domain.repeat_reserve(held, order(lamp=1))


def test_a_repeat_of_what_an_older_version_held_is_compared_with_what_is_held() -> None:
    held = Reservation(ORDER, RESERVATION, State.RESERVED, {"lamp": 2})

    domain.repeat_reserve(held, order(lamp=2))
    with pytest.raises(Contradiction, match=r"known is {'lamp': 2}"):
        domain.repeat_reserve(held, order(lamp=1))


def test_the_fingerprint_of_what_was_asked_never_changes() -> None:
    """Rows that were written long ago are compared with it."""
    assert domain.fingerprint({"lamp": 2, "desk": 1}) == UUID("8a17dbe0-d860-cb53-789c-5168fd46e7da")
    assert domain.fingerprint({"desk": 1, "lamp": 2}) == domain.fingerprint({"lamp": 2, "desk": 1})


quantities = st.dictionaries(st.sampled_from(SKUS), st.integers(1, 20), min_size=1)


@given(st.dictionaries(st.sampled_from(("lamp", "flour", "cheese")), st.integers(0, 20_000)), quantities)
def test_an_order_is_held_whole_or_what_is_short_is_named_and_nothing_is_held(
    have: dict[str, int], wanted: dict[str, int]
) -> None:
    outcome = reserve(stock(**have), **wanted)

    # Counted piece by piece.
    taken: dict[str, int] = {}
    for sku, quantity in wanted.items():
        for _ in range(quantity):
            for component, each in MENU.get(sku, {sku: 1}).items():
                taken[component] = taken.get(component, 0) + each
    short = {sku for sku in taken if taken[sku] > have.get(sku, 0)}
    if short:
        (event,) = outcome.emits
        assert isinstance(event, ReservationFailed)
        assert {item.sku for item in event.shortages} == {
            sku for sku in wanted if short & MENU.get(sku, {sku: 1}).keys()
        }
        assert outcome.stock == ()
    else:
        assert outcome.reservation.quantities == taken
        assert {item.sku: item.reserved for item in outcome.stock} == taken


def line(sku: str, quantity: int = 1) -> dict[str, Any]:
    return {"sku": sku, "quantity": quantity}


def test_the_components_of_a_recipe_are_different_skus() -> None:
    assert recipes.components_of([line("flour", 250), line("cheese", 100)]) == {"flour": 250, "cheese": 100}
    with pytest.raises(ValidationFailed) as refused:
        recipes.components_of([line("flour"), line("cheese"), line("flour")])
    assert refused.value.details == {"components": {"2": {"sku": ["Is in another line already."]}}}


@pytest.mark.parametrize(
    ("present", "version", "moved"),
    [
        (None, None, None),
        (None, 0, None),
        (None, 7, 0),
        (Recipe("pizza", {}, 7), None, None),
        (Recipe("pizza", {}, 7), 7, None),
        (Recipe("pizza", {}, 7), 6, 7),
        (Recipe("pizza", {}, 7), 0, 7),
    ],
)
def test_a_recipe_is_changed_as_it_was_read(present: Recipe | None, version: int | None, moved: int | None) -> None:
    if moved is None:
        recipes.check_version(present, version)
        return
    with pytest.raises(VersionMoved) as refused:
        recipes.check_version(present, version)
    assert refused.value.details == {"version": moved}


@pytest.mark.parametrize(
    ("sku", "components", "error", "wrong"),
    [
        ("cake", ["flour", "cheese"], None, {}),
        ("cake", [], None, {}),
        ("flour", [], HasStock, {}),
        ("cake", ["flour", "ghost"], ValidationFailed, {"1": "Is unknown"}),
        ("cake", ["pizza", "flour", "ghost"], ValidationFailed, {"0": "Is made", "2": "Is unknown"}),
        ("cake", ["cake"], ValidationFailed, {"0": "Is made"}),
    ],
)
def test_a_recipe_takes_stocked_skus_and_is_of_none(
    sku: str, components: list[str], error: type[EcomError] | None, wrong: dict[str, str]
) -> None:
    stocked, made = {"flour", "cheese"}, {"pizza"}
    if error is None:
        recipes.check(sku, components, stocked, made)
        return
    with pytest.raises(error) as refused:
        recipes.check(sku, components, stocked, made)
    if wrong:
        found = refused.value.details["components"]
        assert {place: found[place]["sku"][0].split(":")[0][: len(wrong[place])] for place in found} == wrong
