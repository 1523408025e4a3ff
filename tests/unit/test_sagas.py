"""docs/sagas.md agrees with the rules, and the services' handlers emit the same events as each saga in it."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from inventory_service.domain import State
from ops.docs import diagrams
from ops.docs.diagrams import Simulation, moves, sagas, sequence, states
from order_service import domain
from order_service.domain import CANCEL, REFUND_RETRY, Status
from payment_service.domain import Status as PaymentStatus
from shared.order_states import AT_REST, has_ended
from tests.unit.saga import DECLINES, WILLING, World, on_memory

STREAMS = Path(__file__).resolve().parents[2] / "docs" / "streams.md"

CANCELLED_ORDER = (Status.CANCELLED, State.RELEASED, PaymentStatus.REFUNDED)
# How the order, its reservation and its payment end.
ENDS = {
    "Paid": (Status.PAID, State.COMMITTED, PaymentStatus.COMPLETED),
    "Out of stock": (Status.CANCELLED, State.REFUSED, PaymentStatus.VOID),
    "Payment failed": (Status.CANCELLED, State.RELEASED, PaymentStatus.FAILED),
    "Cancelled after payment": CANCELLED_ORDER,
    "Refund failed, and retried by an operator": CANCELLED_ORDER,
}


def test_the_document_agrees_with_the_rules() -> None:
    assert diagrams.FILE.read_text(encoding="utf-8") == diagrams.document(), "run: python -m ops.docs.contracts"


def test_every_row_of_the_table_is_drawn_or_listed() -> None:
    assert len(moves()) == sum(len(row.states) for row in domain.TABLE)
    drawn, listed = "\n".join(states()), "\n".join(diagrams.unchanged())
    for before, words, after, emits in moves():
        shown = f"{before} --> {after}: {words}" in drawn
        assert shown == (before != after or bool(emits))
        assert shown or f"| {words} |" in listed
        assert all(type_ in drawn for type_ in emits)


def test_each_saga_is_drawn() -> None:
    assert sagas().keys() == ENDS.keys()
    for simulation in sagas().values():
        drawn = "\n".join(sequence(simulation))
        assert all(type_ in drawn for type_ in simulation.emitted)


@pytest.mark.parametrize("title", ENDS)
def test_each_saga_ends_as_its_title_says(title: str) -> None:
    simulation = sagas()[title]

    assert simulation.reservation is not None
    assert simulation.payment is not None
    assert (simulation.order.status, simulation.reservation.state, simulation.payment.status) == ENDS[title]
    assert simulation.answers == []


class Acted:
    """The same saga, run by the services' own handlers. Messages arrive in the order in which they were emitted."""

    def __init__(self, on_hand: int) -> None:
        self.world = World({"lamp": on_hand})
        self.order_id = self.world.place({"lamp": 2})

    def run(self, fate: str = WILLING) -> None:
        while self.world.waiting:
            self.world.deliver(self.world.waiting[0], fate)


def acted(title: str) -> World:
    saga = Acted(on_hand=0 if title == "Out of stock" else 10)
    saga.run(DECLINES if title == "Payment failed" else WILLING)
    if "Cancelled" in title:
        saga.world.cancel(saga.order_id, "a")
        saga.run()
    if "retried" in title:
        saga.world.cancel(saga.order_id, "a")
        saga.run(DECLINES)
        saga.world.retry_refund(saga.order_id)
        saga.run()
    return saga.world


@pytest.mark.parametrize("title", ENDS)
def test_the_handlers_emit_what_is_drawn_in_the_same_order(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_memory(monkeypatch)
    simulation: Simulation = sagas()[title]

    world = acted(title)

    assert [event.type for event in world.told] == simulation.emitted
    (order,) = world.order.orders.values()
    (reservation,) = world.inventory.reservations.values()
    (payment,) = world.payment.payments.values()
    assert (order.status, reservation.state, payment.status) == ENDS[title]
    assert Counter(simulation.emitted)["order.cancelled"] == (order.status == Status.CANCELLED)


@pytest.mark.parametrize("title", ENDS)
def test_an_order_has_ended_only_when_no_step_follows_until_a_person_asks_for_one(
    title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_memory(monkeypatch)

    steps = list(acted(title).order.steps.values())

    heard = [type_ for type_, _, _ in steps]
    ended = [has_ended(after.status, heard[: place + 1]) for place, (_, _, after) in enumerate(steps)]
    followed_by = [*heard[1:], None]
    assert ended == [following in (None, CANCEL, REFUND_RETRY) for following in followed_by]


@pytest.mark.parametrize(
    ("first", "follow"),
    [("order.created", ["inventory.reserved", "inventory.released"]), ("inventory.release.requested", [])],
    ids=["the order reaches inventory first", "the cancel reaches inventory first"],
)
def test_a_cancel_at_once_ends_the_order_since_inventory_may_never_answer(
    first: str, follow: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_memory(monkeypatch)
    saga = Acted(on_hand=10)
    saga.world.cancel(saga.order_id, "a")
    status = saga.world.order.orders[saga.order_id].status
    assert has_ended(status, saga.world.heard_by(saga.order_id))

    saga.world.deliver(next(message for message in saga.world.waiting if message.event.type == first))
    saga.run()

    assert saga.world.heard_by(saga.order_id) == [CANCEL, *follow]
    assert has_ended(status, saga.world.heard_by(saga.order_id))


def a_history(random: Random) -> list[tuple[str, Status]]:
    """The steps of one order and its status after each: messages in any order, and at some moment a cancel."""
    saga = Acted(on_hand=random.choice((0, 10)))
    uncancelled = True
    while saga.world.waiting or uncancelled:
        if uncancelled and (random.random() < 0.2 or not saga.world.waiting):
            saga.world.cancel(saga.order_id, "a")
            uncancelled = False
        else:
            saga.world.deliver(random.choice(saga.world.waiting), random.choice((WILLING, DECLINES)))
    return [(type_, after.status) for type_, _, after in saga.world.order.steps.values()]


def test_after_the_end_nothing_follows_but_a_persons_doing_and_what_the_page_of_streams_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_memory(monkeypatch)
    found = set()
    for seed in range(600):
        steps = a_history(Random(seed))
        for place, (following, _) in enumerate(steps[1:], start=1):
            status = steps[place - 1][1]
            if following != CANCEL and has_ended(status, [type_ for type_, _ in steps[:place]]):
                found.add((status.value, following))

    text = STREAMS.read_text(encoding="utf-8").partition("| state at `end` |")[2]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (`.+?`) \|", text, re.M)
    assert found == {(status, type_) for status, types in rows for type_ in re.findall(r"`(.+?)`", types)}


def test_an_order_in_progress_has_not_ended_whatever_it_heard() -> None:
    everything = {rule.hears for rule in domain.TABLE}
    assert {status for status in Status if has_ended(status, everything)} == AT_REST
