"""Calls to the provider: a customer whose calls are slow neither delays another's nor takes all places."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest
from eventlet.event import Event

from shared.edge import fair_calls
from shared.edge.fair_calls import MOST_WAITING, PLACES, Call, FairCalls, OpenCall, in_turn
from shared.errors import OverShare

PATIENCE_S = 10.0


class Clock:
    """A clock that goes on when somebody waits in vain. It is also what `FairCalls` waits with."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits = 0
        self._sent = False

    def __call__(self) -> float:
        return self.now

    def send(self) -> None:
        self._sent = True

    def wait(self, seconds: float) -> None:
        self.waits += 1
        for _ in range(3):
            eventlet.sleep(0)
            if self._sent:
                self._sent = False
                return
        self.now += seconds + 0.001


class System:
    """Another system that answers each call at once, but those of some customers only when `answer_all` is called."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fair_calls = FairCalls(PATIENCE_S, self.clock)
        self.fair_calls._one_ended = self.clock  # type: ignore[assignment]
        self.hanging: set[str] = set()
        self.under_way: dict[UUID, str] = {}
        self.made: list[UUID] = []
        self._answers = Event()

    def calls(self, customer: str, number: int = 1) -> dict[UUID, Call]:
        """So many new calls of a customer."""
        keys = [uuid4() for _ in range(number)]
        return {key: Call(customer, lambda key=key: self._call(key, customer)) for key in keys}  # type: ignore[misc]

    def ask(self, calls: dict[UUID, Call]) -> dict[UUID, Any]:
        return self.fair_calls.ask(calls)

    def make_slow(self, *customers: str, number: int = PLACES) -> dict[UUID, Any]:
        """Let calls of some customers hang; the outcome of these calls."""
        self.hanging |= set(customers)
        wanted = {key: call for customer in customers for key, call in self.calls(customer, number).items()}
        return self.ask(wanted)

    def answer_all(self) -> None:
        """Answer every call that hangs, and those to come."""
        self.hanging.clear()
        self._answers.send()
        while self.under_way:
            eventlet.sleep(0)
        self._answers = Event()

    def _call(self, key: UUID, customer: str) -> str:
        self.made.append(key)
        self.under_way[key] = customer
        if customer in self.hanging:
            self._answers.wait()
        del self.under_way[key]
        return f"answer for {customer}"


@pytest.fixture
def system() -> Iterator[System]:
    system = System()
    yield system
    system.fair_calls.stop()
    system.answer_all()


def test_an_answer_is_not_kept_waiting_by_a_call_that_hangs(system: System) -> None:
    system.hanging.add("mallory")
    slow, quick = system.calls("mallory"), system.calls("ann")

    outcomes = system.ask(slow | quick)

    assert [outcomes[key] for key in quick] == ["answer for ann"]
    assert [type(outcomes[key]) for key in slow] == [OpenCall]
    assert list(system.under_way.values()) == ["mallory"]


def test_an_error_of_a_call_is_its_outcome(system: System) -> None:
    def fail() -> None:
        raise ValueError("no")

    bad, good = uuid4(), system.calls("ann")
    outcomes = system.ask({bad: Call("ann", fail)} | good)

    assert str(outcomes[bad]) == "no"
    assert [outcomes[key] for key in good] == ["answer for ann"]


def test_an_answer_that_comes_late_is_there_when_it_is_asked_for_again_and_no_second_call_is_made(
    system: System,
) -> None:
    system.hanging.add("mallory")
    calls = system.calls("mallory")
    (going_on,) = system.ask(calls).values()
    assert not going_on.ended

    system.answer_all()

    assert going_on.ended
    assert list(system.ask(calls).values()) == ["answer for mallory"]
    assert system.made == list(calls)


def test_nobody_waits_for_the_calls_of_a_customer_who_is_known_to_be_slow(system: System) -> None:
    system.make_slow("mallory", number=1)
    waits = system.clock.waits

    (outcome,) = system.ask(system.calls("mallory")).values()

    assert isinstance(outcome, OpenCall)
    assert system.clock.waits == waits


def test_one_customer_alone_takes_half_of_the_places(system: System) -> None:
    outcomes = system.make_slow("mallory")

    assert len(system.under_way) == PLACES // 2
    assert sum(isinstance(outcome, OpenCall) and not outcome.ended for outcome in outcomes.values()) == PLACES // 2


def test_the_calls_of_a_slow_customer_without_a_place_are_not_made(system: System) -> None:
    system.make_slow("mallory")
    made = list(system.made)

    refused = system.fair_calls.over_share(dict.fromkeys(more := system.calls("mallory", 3), "mallory"))
    outcomes = system.ask(more)

    assert [type(refused[key]) for key in more] == [OverShare] * 3
    assert [type(outcomes[key]) for key in more] == [OverShare] * 3
    assert system.made == made


def test_calls_that_wait_for_a_place_wait_no_longer_once_their_customer_is_slow(system: System) -> None:
    system.hanging.add("mallory")
    calls = system.calls("mallory", PLACES)
    system.ask(calls)

    outcomes = system.ask({key: call for key, call in calls.items() if key not in system.under_way})

    assert len(outcomes) == PLACES // 2
    assert {type(outcome) for outcome in outcomes.values()} == {OverShare}


def test_slow_customers_leave_the_places_of_the_others_free(system: System) -> None:
    system.make_slow(*(f"mallory {number}" for number in range(10)))
    at_most = 2 * PLACES
    assert len(system.under_way) <= at_most

    for number in range(3):
        outcomes = system.ask(system.calls(f"ann {number}", 50))
        assert list(outcomes.values()) == [f"answer for ann {number}"] * 50
    for number in range(10, 20):
        system.make_slow(f"mallory {number}")
        assert len(system.under_way) <= at_most


def test_two_slow_customers_leave_a_place_for_a_third(system: System) -> None:
    customers = ("mallory", "trudy", "oscar")
    system.make_slow(*customers, number=1)
    system.answer_all()

    for customer in ("mallory", "trudy", "mallory", "trudy", "oscar"):
        system.make_slow(customer)
        eventlet.sleep(0)

    taken = [list(system.under_way.values()).count(customer) for customer in customers]
    assert taken == [PLACES // 2, PLACES // 4, PLACES // 8 + 1]


def test_a_customer_is_slow_no_more_after_a_quick_answer(system: System) -> None:
    system.make_slow("mallory")
    system.answer_all()
    assert all(isinstance(outcome, OpenCall) for outcome in system.ask(system.calls("mallory")).values())

    eventlet.sleep(0)

    assert list(system.ask(system.calls("mallory")).values()) == ["answer for mallory"]


def test_a_customer_with_a_call_that_hangs_stays_slow_whatever_else_is_answered(system: System) -> None:
    system.make_slow("mallory", number=1)
    system.hanging.clear()
    system.ask(system.calls("mallory"))
    eventlet.sleep(0)

    (outcome,) = system.ask(system.calls("mallory")).values()

    assert isinstance(outcome, OpenCall)


def test_the_calls_of_a_batch_are_made_in_turns_of_their_customers(system: System) -> None:
    many, few = system.calls("mallory", 3), system.calls("ann", 1)

    system.ask(many | few)

    first, second, third = many
    assert system.made == [first, *few, second, third]
    assert in_turn({1: "a", 2: "a", 3: "b"}) == [1, 3, 2]  # type: ignore[dict-item]


def test_no_customer_has_more_calls_waiting_for_a_place_than_a_batch_has_messages(system: System) -> None:
    system.hanging.add("mallory")
    wanted = system.calls("mallory", PLACES // 2 + MOST_WAITING + 1)

    refused = system.fair_calls.over_share(dict.fromkeys(wanted, "mallory"))

    assert list(refused) == [list(wanted)[-1]]


def test_an_answer_that_nobody_takes_is_forgotten(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = system.calls("mallory")
    system.hanging.add("mallory")
    system.ask(calls)
    system.answer_all()
    monkeypatch.setattr(fair_calls, "KEEP_S", 0.0)

    system.ask(calls)
    eventlet.sleep(0)

    assert system.made == list(calls) * 2


def test_after_a_stop_no_call_begins(system: System) -> None:
    system.hanging.add("mallory")
    asking = eventlet.spawn(system.ask, system.calls("mallory", PLACES))
    while len(system.made) < PLACES // 2:
        eventlet.sleep(0)

    system.fair_calls.stop()
    system.answer_all()

    assert len(system.made) == PLACES // 2
    asking.kill()
