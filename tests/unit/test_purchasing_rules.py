"""The rules of buying: the table of purchase orders, and how much is proposed."""

from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory_service.domain import Stock, check_version
from inventory_service.purchasing import domain
from inventory_service.purchasing.domain import (
    FINAL,
    MAX_LINES,
    MAX_ON_HAND,
    OPEN,
    TABLE,
    Arrival,
    Line,
    Need,
    Proposal,
    PurchaseOrder,
    Row,
    Verb,
)
from shared.enumerations import MovementCause
from shared.enumerations import PurchaseStatus as Status
from shared.errors import Conflict, OverReceived, ValidationFailed, VersionMoved

PROPOSED, ORDERED, RECEIVED, CANCELLED = Status
SUPPLIER, OTHER, PO = uuid4(), uuid4(), uuid4()


def order(status: Status, *lines: Line) -> PurchaseOrder:
    return PurchaseOrder(PO, SUPPLIER, status, 1, {line.sku: line for line in lines})


# Each status and verb, and what becomes of a purchase order of which nothing, some or all has come.
EXPECTED: dict[tuple[Status, Verb], tuple[Status | None, Status | None, Status | None]] = {
    (PROPOSED, Verb.ORDER): (ORDERED, None, None),
    (PROPOSED, Verb.RECEIVE): (None, None, None),
    (PROPOSED, Verb.CLOSE): (None, None, None),
    (PROPOSED, Verb.CANCEL): (CANCELLED, None, None),
    (ORDERED, Verb.ORDER): (None, None, None),
    (ORDERED, Verb.RECEIVE): (ORDERED, ORDERED, RECEIVED),
    (ORDERED, Verb.CLOSE): (RECEIVED, RECEIVED, RECEIVED),
    (ORDERED, Verb.CANCEL): (CANCELLED, None, None),
    (RECEIVED, Verb.ORDER): (None, None, None),
    (RECEIVED, Verb.RECEIVE): (None, None, None),
    (RECEIVED, Verb.CLOSE): (None, None, None),
    (RECEIVED, Verb.CANCEL): (None, None, None),
    (CANCELLED, Verb.ORDER): (None, None, None),
    (CANCELLED, Verb.RECEIVE): (None, None, None),
    (CANCELLED, Verb.CLOSE): (None, None, None),
    (CANCELLED, Verb.CANCEL): (None, None, None),
}
CAME = (0, 1, 2)
# Of a proposal nothing has come.
CASES = [
    (status, verb, came, EXPECTED[status, verb][came])
    for status, verb, came in product(Status, Verb, CAME)
    if not (status == PROPOSED and came)
]


@pytest.mark.parametrize(("status", "verb", "came", "becomes"), CASES)
def test_a_purchase_order_takes_the_steps_of_the_table_and_no_other(
    status: Status, verb: Verb, came: int, becomes: Status | None
) -> None:
    one = order(status, Line("lamp", 2, came))
    if becomes is None:
        with pytest.raises(Conflict) as refusal:
            domain.step(one, verb)
        assert refusal.value.details == {"status": status.value}
    else:
        assert domain.after(one, domain.step(one, verb)) == becomes


def test_what_is_done_on_the_way() -> None:
    assert {key: (row.dates, row.snoozes) for key, row in TABLE.items()} == {
        (PROPOSED, Verb.ORDER): (True, False),
        (PROPOSED, Verb.CANCEL): (False, True),
        (ORDERED, Verb.RECEIVE): (False, False),
        (ORDERED, Verb.CLOSE): (False, False),
        (ORDERED, Verb.CANCEL): (False, False),
    }


def test_every_status_is_either_open_or_final() -> None:
    assert sorted((*OPEN, *FINAL)) == sorted(Status)
    assert {status for status, _ in TABLE} == set(OPEN)


def test_one_line_that_is_open_keeps_a_purchase_order_open() -> None:
    row = Row(ORDERED, when_complete=RECEIVED)
    assert domain.after(order(ORDERED, Line("lamp", 2, 2), Line("bulb", 2, 1)), row) == ORDERED
    assert domain.after(order(ORDERED, Line("lamp", 2, 2), Line("bulb", 2, 2)), row) == RECEIVED


def test_what_comes_is_added_and_a_new_cost_is_kept() -> None:
    before = order(ORDERED, Line("lamp", 10, 2, 100, "EUR"), Line("bulb", 5))
    after = domain.received(before, [Arrival("lamp", 3, 120)])
    assert after.lines == {"lamp": Line("lamp", 10, 5, 120, "EUR"), "bulb": Line("bulb", 5)}
    assert domain.received(after, [Arrival("lamp", 5)]).lines["lamp"] == Line("lamp", 10, 10, 120, "EUR")


def test_every_line_that_receives_too_much_is_named() -> None:
    with pytest.raises(OverReceived) as refusal:
        domain.received(
            order(ORDERED, Line("lamp", 10, 8), Line("bulb", 5)),
            [Arrival("lamp", 3), Arrival("bulb", 5), Arrival("desk", 1)],
        )
    assert refusal.value.details == {
        "lines": [{"sku": "lamp", "quantity": 3, "open": 2}, {"sku": "desk", "quantity": 1, "open": 0}]
    }


def test_what_has_come_is_booked_by_sku() -> None:
    stock = {"lamp": Stock("lamp", 4, 3, 7), "bulb": Stock("bulb", 0, 0, 1)}
    items, movements = domain.booked(stock, PO, [Arrival("lamp", 2), Arrival("bulb", 5)])
    assert items == [Stock("bulb", 5, 0, 2), Stock("lamp", 6, 3, 8)]
    assert [(move.sku, move.change, move.on_hand_after) for move in movements] == [("bulb", 5, 5), ("lamp", 2, 6)]
    assert {(move.cause, move.purchase_order_id) for move in movements} == {(MovementCause.RECEIVED, PO)}


def test_on_hand_stays_within_what_events_can_tell() -> None:
    stock = {"lamp": Stock("lamp", MAX_ON_HAND - 2, 0)}
    assert domain.booked(stock, PO, [Arrival("lamp", 2)])[0][0].on_hand == MAX_ON_HAND
    with pytest.raises(Conflict):
        domain.booked(stock, PO, [Arrival("lamp", 3)])


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ([{"sku": "lamp", "quantity": 1}] * 2, "1"),
        ([{"sku": "lamp", "quantity": 1, "unit_cost": 1}], "0"),
        ([{"sku": "lamp", "quantity": 1, "currency": "EUR", "unit_cost": None}], "0"),
    ],
)
def test_lines_that_contradict_themselves_are_refused(lines: list[dict[str, Any]], place: str) -> None:
    with pytest.raises(ValidationFailed) as refusal:
        domain.lines_of(lines)
    assert [*refusal.value.details["lines"]] == [place]


def test_lines_are_kept_by_sku() -> None:
    given_lines = [{"sku": "lamp", "quantity": 1, "unit_cost": 0, "currency": "EUR"}, {"sku": "bulb", "quantity": 2}]
    assert domain.lines_of(given_lines) == {"bulb": Line("bulb", 2), "lamp": Line("lamp", 1, 0, 0, "EUR")}
    assert [*domain.lines_of(given_lines)] == ["bulb", "lamp"]


def test_a_version_that_nobody_named_is_not_compared() -> None:
    check_version(3, None)
    check_version(3, 3)
    with pytest.raises(VersionMoved) as refusal:
        check_version(3, 2)
    assert refusal.value.details == {"version": 3}


RULE = {"reorder_at": 5, "reorder_to": 20, "supplier_id": str(SUPPLIER)}


@pytest.mark.parametrize("rule", [RULE, RULE | {"reorder_at": None, "reorder_to": None}, dict.fromkeys(RULE)])
def test_a_rule_says_all_that_reordering_needs_or_none_of_it(rule: dict[str, Any]) -> None:
    domain.check_rule(rule)


@pytest.mark.parametrize(
    "changed", [{"reorder_at": 20}, {"reorder_at": None}, {"reorder_to": None}, {"supplier_id": None}]
)
def test_a_rule_that_lacks_something_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed):
        domain.check_rule(RULE | changed)


@pytest.mark.parametrize(
    ("projected", "pack_size", "quantity"), [(0, 1, 20), (5, 1, 15), (5, 6, 18), (0, 20, 20), (19, 20, 20), (0, 50, 50)]
)
def test_a_need_is_rounded_up_to_whole_packs(projected: int, pack_size: int, quantity: int) -> None:
    assert Need("lamp", SUPPLIER, projected, 20, pack_size).quantity == quantity


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(1, 10**6))
def test_what_is_proposed_is_enough_and_less_than_a_pack_too_much(projected: int, lacks: int, pack_size: int) -> None:
    quantity = Need("lamp", SUPPLIER, projected, projected + lacks, pack_size).quantity
    assert quantity % pack_size == 0
    assert lacks <= quantity < lacks + pack_size


def needs(*skus: str, supplier: Any = SUPPLIER) -> list[Need]:
    return [Need(sku, supplier, 0, 10, 1) for sku in skus]


def test_needs_go_to_the_proposal_of_their_supplier() -> None:
    other = uuid4()
    proposals = {SUPPLIER: Proposal(PO, 0, frozenset()), OTHER: Proposal(other, 5, frozenset({"desk"}))}
    found = domain.proposed([*needs("lamp"), *needs("desk", supplier=OTHER)], proposals)
    assert found == [(PO, "lamp", 10), (other, "desk", 10)]


def test_a_need_whose_supplier_has_no_proposal_waits() -> None:
    assert domain.proposed(needs("lamp"), {OTHER: Proposal(PO, 0, frozenset())}) == []


def test_a_full_proposal_takes_no_new_line_and_its_lines_still_grow() -> None:
    proposals = {SUPPLIER: Proposal(PO, MAX_LINES - 1, frozenset({"bulb"}))}
    found = domain.proposed(needs("lamp", "desk", "bulb"), proposals)
    assert found == [(PO, "lamp", 10), (PO, "bulb", 10)]
