"""Whatever is ordered, cancelled, paid, counted and cooked by whichever recipe, each component is conserved.

Hypothesis drives the rules; beside them stands a plain model of the shelf, which counts piece by piece and knows
nothing of reservations but what was taken for each.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from inventory_service import domain
from inventory_service.domain import COMMIT, RELEASE, Reservation, State, Stock
from shared.errors import BelowReserved
from shared.events import OrderCreated, OrderedItem, ReservationFailed

STOCKED = ("flour", "cheese", "lamp")
MADE = ("pizza", "bread", "set")

recipes = st.dictionaries(st.sampled_from(STOCKED), st.integers(1, 5))
baskets = st.dictionaries(st.sampled_from((*STOCKED, *MADE)), st.integers(1, 4), min_size=1)
somewhere = st.integers(0, 2**16)


class Kitchen(RuleBasedStateMachine):
    """A shelf, recipes that change, and orders."""

    def __init__(self) -> None:
        super().__init__()
        self.stock = {sku: Stock(sku, 30, 0) for sku in STOCKED}
        self.recipes: dict[str, dict[str, int]] = {}
        self.reservations: dict[UUID, Reservation] = {}
        self.orders: dict[UUID, OrderCreated] = {}
        # The model: what lies there, and what of it is put aside for which order.
        self.there = dict.fromkeys(STOCKED, 30)
        self.aside: dict[UUID, dict[str, int]] = {}

    @rule(sku=st.sampled_from(MADE), recipe=recipes)
    def cook_by(self, sku: str, recipe: dict[str, int]) -> None:
        self.recipes[sku] = recipe

    @rule(sku=st.sampled_from(MADE))
    def cook_no_more(self, sku: str) -> None:
        self.recipes.pop(sku, None)

    @rule(basket=baskets)
    def order(self, basket: dict[str, int]) -> None:
        order_id = uuid4()
        order = OrderCreated(order_id, "EUR", 1, tuple(OrderedItem(*line, 1) for line in basket.items()), "mock_ok")
        outcome = domain.reserve(self.stock, self.recipes, order, uuid4())
        self.reservations[order_id], self.orders[order_id] = outcome.reservation, order
        self.stock |= {item.sku: item for item in outcome.stock}

        taken = dict.fromkeys(STOCKED, 0)
        known = all(sku in STOCKED or sku in self.recipes for sku in basket)
        for sku, quantity in basket.items():
            for component, each in self.recipes.get(sku, {sku: 1} if sku in STOCKED else {}).items():
                taken[component] += quantity * each
        fits = known and all(self.free(sku) >= taken[sku] for sku in STOCKED)
        assert (outcome.reservation.state == State.RESERVED) == fits
        if fits:
            self.aside[order_id] = taken
        else:
            (event,) = outcome.emits
            assert isinstance(event, ReservationFailed)
            assert event.shortages
            assert (event.reason == "unknown_sku") == (not known)

    def free(self, sku: str) -> int:
        return self.there[sku] - sum(taken[sku] for taken in self.aside.values())

    @precondition(lambda self: self.orders)
    @rule(which=somewhere)
    def hear_it_again(self, which: int) -> None:
        order_id = list(self.orders)[which % len(self.orders)]
        outcome = domain.repeat_reserve(self.reservations[order_id], self.orders[order_id])
        assert (outcome.changed, outcome.emits) == (False, ())

    @precondition(lambda self: self.orders)
    @rule(which=somewhere, verb=st.sampled_from((COMMIT, RELEASE)))
    def close(self, which: int, verb: str) -> None:
        order_id = list(self.orders)[which % len(self.orders)]
        existing = self.reservations[order_id]
        if (existing.state, verb) not in domain.TABLE:
            return
        outcome = domain.close_reservation(self.stock, existing, verb, order_id, "paid")
        self.reservations[order_id] = outcome.reservation
        self.stock |= {item.sku: item for item in outcome.stock}

        if verb == COMMIT and order_id in self.aside:
            for sku, quantity in self.aside.pop(order_id).items():
                self.there[sku] -= quantity
        elif existing.state == State.COMMITTED and verb == RELEASE:
            for sku, quantity in existing.quantities.items():
                self.there[sku] += quantity
        else:
            self.aside.pop(order_id, None)

    @rule(sku=st.sampled_from(STOCKED), on_hand=st.integers(0, 60))
    def count(self, sku: str, on_hand: int) -> None:
        try:
            self.stock[sku] = domain.put(self.stock[sku], sku, on_hand, None)[0]
        except BelowReserved:
            assert on_hand < self.there[sku] - self.free(sku)
        else:
            self.there[sku] = on_hand

    @invariant()
    def the_shelf_is_as_it_was_counted(self) -> None:
        for sku in STOCKED:
            item = self.stock[sku]
            assert (item.on_hand, item.available) == (self.there[sku], self.free(sku))
            assert 0 <= item.reserved <= item.on_hand


def test_components_are_conserved_whatever_happens(request: pytest.FixtureRequest) -> None:
    examples = 2_000 if request.config.getoption("--long") else 150
    run_state_machine_as_test(
        Kitchen, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None, database=None)
    )
