"""The rules of the books: every row of the table, and what each line may not do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service.books.domain import BY_ORDERS, BY_PEOPLE, MAX_LINES, MAX_ON_HAND, TABLE, Line, book, check
from inventory_service.domain import Movement, Stock, put
from shared.enumerations import MovementCause as Cause
from shared.errors import BelowReserved, EcomError, HasRecipe, UnknownSku, ValidationFailed, VersionMoved

REASON = "correction"  # every cause knows it


def stock(on_hand: int = 10, reserved: int = 4, sku: str = "lamp") -> dict[str, Stock]:
    return {sku: Stock(sku, on_hand, reserved, version=7)}


@pytest.mark.parametrize(
    ("cause", "quantity", "change"), [(Cause.STOCK_IN, 5, 5), (Cause.STOCK_OUT, 6, -6), (Cause.COUNTED, 7, -3)]
)
def test_a_line_changes_what_is_on_hand_as_its_cause_says(cause: Cause, quantity: int, change: int) -> None:
    booked = book(cause, [Line("lamp", quantity)], stock(), (), REASON, "a note")

    assert booked.stock == (Stock("lamp", 10 + change, 4, version=8),)
    assert booked.movements == (Movement("lamp", change, cause, 10 + change, REASON, "a note"),)


def test_stock_in_makes_a_sku_that_is_new() -> None:
    booked = book(Cause.STOCK_IN, [Line("lamp", 5)], {}, (), "delivery")

    assert booked.stock == (Stock("lamp", 5, 0, version=1),)


@pytest.mark.parametrize("cause", [Cause.STOCK_OUT, Cause.COUNTED])
def test_what_has_no_stock_can_be_neither_taken_nor_counted(cause: Cause) -> None:
    with pytest.raises(UnknownSku) as refused:
        book(cause, [Line("lomp", 1)], stock(), (), REASON)
    assert refused.value.details["sku"] == "lomp"


@pytest.mark.parametrize("cause", TABLE)
def test_what_is_made_by_a_recipe_has_no_stock(cause: Cause) -> None:
    with pytest.raises(HasRecipe) as refused:
        book(cause, [Line("lamp", 5), Line("soup", 5)], stock(), {"soup"}, REASON)
    assert refused.value.details["sku"] == "soup"


@pytest.mark.parametrize(("cause", "quantity"), [(Cause.STOCK_OUT, 7), (Cause.COUNTED, 3)])
def test_nothing_falls_below_what_is_reserved(cause: Cause, quantity: int) -> None:
    with pytest.raises(BelowReserved) as refused:
        book(cause, [Line("lamp", quantity)], stock(), (), REASON)

    details = refused.value.details
    assert (details["sku"], details["reserved"]) == ("lamp", 4)
    assert [(line["sku"], line["problem"]) for line in details["lines"]] == [("lamp", "below_reserved")]


def test_what_is_reserved_may_be_all_that_is_left() -> None:
    assert book(Cause.STOCK_OUT, [Line("lamp", 6)], stock(), (), REASON).stock[0].available == 0
    assert book(Cause.COUNTED, [Line("lamp", 4)], stock(), (), REASON).stock[0].available == 0


def test_a_count_of_an_old_version_is_refused_and_one_of_the_current_is_not() -> None:
    assert book(Cause.COUNTED, [Line("lamp", 9, 7)], stock(), (), REASON).movements
    with pytest.raises(VersionMoved) as refused:
        book(Cause.COUNTED, [Line("lamp", 9, 6)], stock(), (), REASON)
    assert refused.value.details["version"] == 7


def test_a_count_that_finds_no_difference_moves_nothing() -> None:
    booked = book(Cause.COUNTED, [Line("lamp", 10)], stock(), (), REASON)
    assert (booked.stock, booked.movements) == (tuple(stock().values()), ())


def test_more_than_can_be_on_hand_is_a_typing_mistake() -> None:
    assert book(Cause.STOCK_IN, [Line("lamp", MAX_ON_HAND - 10)], stock(), (), REASON).stock[0].on_hand == MAX_ON_HAND
    with pytest.raises(ValidationFailed, match="lamp"):
        book(Cause.STOCK_IN, [Line("lamp", MAX_ON_HAND - 9)], stock(), (), REASON)


def test_the_error_is_that_of_the_first_bad_line_and_names_all_of_them() -> None:
    lines = [Line("lamp", 10), Line("lomp", 1), Line("desk", 3, 1)]
    with pytest.raises(UnknownSku) as refused:
        book(Cause.COUNTED, lines, stock() | stock(sku="desk"), (), REASON)
    problems = [(line["sku"], line["problem"]) for line in refused.value.details["lines"]]
    assert problems == [("lomp", "unknown_sku"), ("desk", "version_moved")]


@pytest.mark.parametrize("cause", TABLE)
@pytest.mark.parametrize(
    ("lines", "reason", "named"),
    [
        ([Line("lamp", 1), Line("desk", 1), Line("lamp", 2)], REASON, "lamp has two lines"),
        ([], REASON, "1 to 100"),
        ([Line(f"sku-{n}", 1) for n in range(MAX_LINES + 1)], REASON, "1 to 100"),
        ([Line("lamp", -1)], REASON, "lamp"),
        ([Line("lamp", 1)], "boredom", "Must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    cause: Cause, lines: list[Line], reason: str, named: str
) -> None:
    with pytest.raises(ValidationFailed) as refused:
        check(cause, lines, reason)
    assert named in str(refused.value.details)


def test_nothing_can_be_counted_but_neither_taken_in_nor_out() -> None:
    check(Cause.COUNTED, [Line("lamp", 0)], REASON)
    for cause in (Cause.STOCK_IN, Cause.STOCK_OUT):
        with pytest.raises(ValidationFailed):
            check(cause, [Line("lamp", 0)], REASON)


REASONS = {
    Cause.STOCK_IN: {"delivery", "found", "production", "correction"},
    Cause.STOCK_OUT: {"waste", "spoiled", "staff_meal", "theft", "production", "correction"},
    Cause.COUNTED: {"count", "correction"},
}


@pytest.mark.parametrize("cause", TABLE)
def test_each_cause_knows_its_own_reasons_alone(cause: Cause) -> None:
    for reason in set().union(*REASONS.values()) - REASONS[cause]:
        with pytest.raises(ValidationFailed):
            check(cause, [Line("lamp", 1)], reason)
    for reason in REASONS[cause]:
        check(cause, [Line("lamp", 1)], reason)


def test_every_cause_is_people_s_or_of_orders() -> None:
    assert set(BY_PEOPLE) | set(BY_ORDERS) == set(Cause)
    assert set(TABLE) < set(BY_PEOPLE)


MOVES = st.tuples(st.sampled_from(sorted(TABLE)), st.integers(0, 30), st.one_of(st.none(), st.integers(0, 5)))


@given(st.lists(MOVES, max_size=30), st.integers(0, 5))
def test_balances_chain_and_nothing_falls_below_what_is_reserved_whatever_people_do(
    moves: list[tuple[Cause, int, Any]], reserved: int
) -> None:
    now = Stock("lamp", 5, reserved, version=1)
    for cause, quantity, version in moves:
        try:
            booked = book(cause, [Line("lamp", quantity, version)], {"lamp": now}, (), REASON)
        except EcomError:
            continue
        (after,) = booked.stock
        moved = sum(movement.change for movement in booked.movements)
        assert after.on_hand == now.on_hand + moved
        assert [movement.on_hand_after for movement in booked.movements] == [after.on_hand] * bool(moved)
        assert after.version == now.version + bool(moved)
        assert after.on_hand >= after.reserved == reserved
        now = after


def test_a_put_of_nothing_makes_the_sku_and_moves_nothing() -> None:
    assert put(Stock("lamp", 0, 0, 0), "lamp", 0, None) == (Stock("lamp", 0, 0, 1), None)
    assert put(Stock("lamp", 0, 0, 1), "lamp", 0, None) == (Stock("lamp", 0, 0, 1), None)
