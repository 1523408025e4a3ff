"""Whatever happens in whatever order, orders come to rest and the books of all three services agree.

Hypothesis drives the services' own handlers (tests/unit/saga.py): it delivers in any order, repeats, loses, buries and
replays messages, freezes replicas, cancels, lets the deadline strike, retries refunds, and lies about amounts,
currencies and ids.

Which messages die as `unexpected_event` in such a history: none, in any of the three services. The rows for that are
for what nobody tells as things are: a provider that changes its mind about a key, or somebody at the shell.
"""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inventory_service import domain as inventory
from order_service import domain
from order_service.domain import ANY, Rule, Status
from shared.errors import Conflict, UnexpectedEvent
from tests.unit.saga import AWAY, DECLINES, FATES, LATE, LIED_ABOUT, SILENT, WILLING, Message, World, on_memory

ORDERS = 4
STOCK = {"lamp": 3, "desk": 2}

# In a list whose length is not known before: taken modulo, so that -1 is the last, which overtakes all others.
somewhere = st.integers(0, 2**16) | st.just(-1)
# More often than not the provider does what it is there for.
fates = st.sampled_from((WILLING, WILLING, WILLING, DECLINES, *FATES))
how_far = st.sampled_from((0, 1, 3, 4, 8))
# Some orders cost nothing.
prices = st.sampled_from((100, 100, 0))
basket = st.dictionaries(st.sampled_from(sorted(STOCK)), st.integers(1, 2), min_size=1)

# What no history comes to, since a provider never changes its mind about a key and payment gives back once.
NEVER = {
    (Status.CANCELLED, "payment.refunded"),
    (Status.REFUND_FAILED, "payment.refunded"),
    *((at, "payment.refund_failed") for at in ANY - {Status.REFUND_PENDING}),
}


class Saga(RuleBasedStateMachine):
    """Everything that can happen to orders."""

    reached: ClassVar[set[tuple[Status, str]]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(STOCK)
        self.seed = 0
        self.late = False

    def _pick(self, among: list[Any], where: int) -> Any:
        return among[where % len(among)]

    def _asking(self) -> list[Message]:
        """What waits for the provider to be asked."""
        return [message for message in self.world.waiting if self.world.handlers[message.queue][2]]

    @initialize(seed=somewhere, late=st.booleans(), items=basket, price=prices, far=how_far, fate=fates)
    def begin(self, seed: int, late: bool, items: dict[str, int], price: int, far: int, fate: str) -> None:
        self.seed, self.late = seed, late
        self.place(items, price, far, fate)

    @precondition(lambda self: len(self.world.order.orders) < ORDERS)
    @rule(items=basket, price=prices, far=how_far, fate=fates)
    def place(self, items: dict[str, int], price: int, far: int, fate: str) -> None:
        """An order that gets so far before anything else happens; `fate` is what its charge meets."""
        self.world.place(items, price)
        for _ in range(far):
            if self.world.waiting:
                self.world.deliver(self.world.waiting[0], fate)

    @precondition(lambda self: self.world.waiting)
    @rule(wheres=st.lists(somewhere, min_size=1, max_size=6), fate=fates)
    def deliver(self, wheres: list[int], fate: str) -> None:
        for where in wheres:
            if self.world.waiting:
                self.world.deliver(self._pick(self.world.waiting, where), fate)

    @precondition(lambda self: self.world.waiting)
    @rule(where=somewhere, fate=fates, survives=st.booleans())
    def hang_or_die(self, where: int, fate: str, survives: bool) -> None:
        asking = self._asking()
        if asking:
            self.world.freeze(self._pick(asking, where), fate, survives)

    @precondition(lambda self: self.world.frozen)
    @rule(where=somewhere)
    def thaw(self, where: int) -> None:
        self.world.thaw(where % len(self.world.frozen))

    @rule(where=somewhere)
    def repeat(self, where: int) -> None:
        self.world.repeat(self._pick(self.world.told, where))

    @rule(where=somewhere, which=somewhere)
    def lie(self, where: int, which: int) -> None:
        """A service that was broken into, or is broken, tells what is not so."""
        events = [event for event in self.world.told if event.type in LIED_ABOUT]
        if events:
            event = self._pick(events, where)
            self.world.lie(event, self._pick(LIED_ABOUT[event.type], which))

    @precondition(lambda self: self.world.waiting)
    @rule(where=somewhere)
    def bury(self, where: int) -> None:
        self.world.bury(self._pick(self.world.waiting, where))

    @precondition(lambda self: self.world.dead)
    @rule(where=somewhere)
    def replay(self, where: int) -> None:
        self.world.replay(self._pick(self.world.dead, where))

    @rule(where=somewhere, key=st.sampled_from("ab"))
    def cancel(self, where: int, key: str) -> None:
        self.world.cancel(self._pick(list(self.world.order.orders), where), key)

    @rule(wheres=st.lists(somewhere, min_size=1, max_size=2))
    def deadline(self, wheres: list[int]) -> None:
        orders = list(self.world.order.orders)
        self.world.deadline(list({self._pick(orders, where): None for where in wheres}))

    @rule(where=somewhere)
    def retry_refund(self, where: int) -> None:
        self.world.retry_refund(self._pick(list(self.world.order.orders), where))

    @rule(
        fate=st.sampled_from((WILLING, WILLING, SILENT, AWAY)),
        where=st.none() | somewhere,
        its_fate=st.sampled_from((LATE, WILLING)),
    )
    def settle(self, fate: str, where: int | None, its_fate: str) -> None:
        asking = self._asking() if where is not None else []
        self.world.recover_unknown(fate, self._pick(asking, where or 0) if asking else None, its_fate)

    @precondition(lambda self: self.world.bank.under_way)
    @rule(willing=st.booleans())
    def arrive(self, willing: bool) -> None:
        self.world.bank.arrive(willing)

    @rule(seed=somewhere, late=st.booleans())
    def drain(self, seed: int, late: bool) -> None:
        self.world.drain(Random(seed), late)
        self.world.check_rest()

    @invariant()
    def the_books_agree(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.drain(Random(self.seed), self.late)
        self.world.check_rest()
        Saga.reached |= self.world.reached


def drive(examples: int, **how: Any) -> None:
    """Run the machine; the same way each time unless told otherwise."""
    chosen = {"derandomize": True, "stateful_step_count": 20, **how}
    run_state_machine_as_test(
        Saga,
        settings=settings(
            max_examples=examples,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            **chosen,
        ),
    )


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    on_memory(monkeypatch)


@pytest.mark.timeout(1800)
def test_orders_come_to_rest_and_the_books_agree_whatever_happens(long: bool) -> None:
    Saga.reached.clear()

    drive(5_000, derandomize=False, stateful_step_count=50) if long else drive(500)

    unreached = [row for row in domain.TABLE if not any((at, row.hears) in Saga.reached for at in row.states)]
    assert [row for row in unreached if not NEVER.issuperset((at, row.hears) for at in row.states)] == []
    assert Saga.reached & NEVER == set()


def test_a_charge_that_is_asked_for_while_settle_waits_to_hear_of_it_is_not_void() -> None:
    world = World(STOCK)
    order_id = world.place({"lamp": 1})
    world.deliver(world.waiting[0])
    (charge,) = [message for message in world.waiting if world.handlers[message.queue][2]]
    world.deliver(charge, SILENT)
    world.cancel(order_id, "a")
    (ended,) = [message for message in world.waiting if message.event.type == "order.cancelled"]
    world.deliver(ended)

    world.recover_unknown(WILLING, charge, its_fate=LATE)

    assert world.payment.payments[order_id].status == "PENDING"
    world.bank.arrive(willing=True)
    world.drain(Random(0), late=False)
    world.check_rest()


@pytest.mark.parametrize("fate", [DECLINES, SILENT, LATE, AWAY])
def test_an_order_with_nothing_to_pay_is_paid_and_cancelled_whatever_the_provider_does(fate: str) -> None:
    world = World(STOCK)
    order_id = world.place({"lamp": 2}, unit_price=0)
    while world.waiting:
        world.deliver(world.waiting[0], fate)
    assert world.order.orders[order_id].status == Status.PAID

    world.cancel(order_id, "a")
    while world.waiting:
        world.deliver(world.waiting[0], fate)

    assert world.order.orders[order_id].status == Status.CANCELLED
    assert world.payment.payments[order_id].status == "REFUNDED"
    assert world.bank.ledger == {}
    world.check_rest()


def breaks() -> None:
    """The machine finds fault, and is spared looking for the smallest history that shows it.

    Which histories come first depends on the constants of all modules that are loaded: Hypothesis tries them too.
    """
    with pytest.raises((AssertionError, UnexpectedEvent, Conflict)):
        drive(10_000, phases=[Phase.generate], report_multiple_bugs=False)


def is_needed(row: Rule) -> bool:
    return any((at, row.hears) not in NEVER for at in row.states) and not row.older_refund


def name_of(row: Rule) -> str:
    return f"{row.hears} in {' '.join(sorted(row.states))}"


@pytest.mark.parametrize("row", [row for row in domain.TABLE if is_needed(row)], ids=name_of)
def test_without_any_one_row_of_an_order_the_machine_finds_fault(row: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "TABLE", tuple(other for other in domain.TABLE if other is not row))

    breaks()


@pytest.mark.parametrize("row", [row for row in inventory.TABLE if row[1] != inventory.RESERVE], ids=" ".join)
def test_without_any_one_row_of_a_reservation_the_machine_finds_fault(
    row: tuple[inventory.State, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(inventory.TABLE, row)

    breaks()
