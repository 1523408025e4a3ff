"""Calls at the same time cross as one, and each caller gets what it would get alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import eventlet
import pytest
from nameko.exceptions import MethodNotFound, RemoteError

from shared.edge.gathered_calls import MOST, GatheredCalls
from shared.edge.rpc import serialized
from shared.errors import CannotWork, IdempotencyInProgress, ServiceUnavailable, ValidationFailed


class Gathering:
    """Waits for a moment, or not at all."""

    def __init__(self) -> None:
        self.wait = 0.0
        self.noted = 0

    def note(self, count: int) -> None:
        self.noted += count

    def wait_s(self, waiting: int, at_once: bool) -> float:
        return self.wait


class Orders:
    """Stands in for the broker and order_service behind it: every number is doubled, and 13 is refused."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.contexts: list[Any] = []
        self.timeouts: list[float] = []
        self.fails_with: Exception | None = None
        self.forgets_one = False
        self.before: Callable[[], None] = eventlet.sleep

    def call(self, method: str, args: Any, kwargs: Any, context: dict[str, Any], timeout_s: float) -> Any:
        name = method.removeprefix("order_service.")
        self.calls.append((name, len(args[0]) if args else 1))
        self.contexts.append(context)
        self.timeouts.append(timeout_s)
        self.before()
        if name == "make":
            return self._double(kwargs["number"])
        if self.fails_with:
            raise self.fails_with
        replies = []
        for post in args[0]:
            assert post["user_id"] == f"user-{post['number']}"
            try:
                replies.append({"result": self._double(post["number"]), "error": None})
            except ValidationFailed as error:
                replies.append({"result": None, "error": serialized(error)})
        return replies[1:] if self.forgets_one else replies

    def _double(self, number: int) -> int:
        if number == 13:
            raise ValidationFailed("Thirteen.", {"number": 13})
        return 2 * number


@pytest.fixture
def orders() -> Orders:
    return Orders()


@pytest.fixture
def calls(orders: Orders) -> Any:
    made = GatheredCalls("order_service", "make", "make_many")
    made.replies = orders
    made._gathering = Gathering()
    made._gathering.wait = 0.05
    return made


def start(calls: Any, number: int) -> Any:
    """A caller that waits in a greenlet of its own."""
    context = {"user_id": f"user-{number}"}
    worker = SimpleNamespace(data=context, context_data={**context, "call_id_stack": []})
    return eventlet.spawn(lambda: calls.get_dependency(worker).make(number=number))


def ends(caller: Any) -> Any:
    """What a caller gets: a result, or an error."""
    with eventlet.Timeout(5):
        try:
            return caller.wait()
        except Exception as error:
            return error


def test_a_call_that_has_no_company_crosses_as_it_is_and_waits_for_nothing(calls: Any, orders: Orders) -> None:
    calls._gathering.wait = 0.0
    assert [ends(start(calls, number)) for number in (1, 2)] == [2, 4]
    assert orders.calls == [("make", 1)] * 2
    assert orders.contexts[0] == {"user_id": "user-1", "call_id_stack": []}, "it is the caller's own call"


def test_calls_at_the_same_time_cross_as_one_and_each_gets_its_own_answer(calls: Any, orders: Orders) -> None:
    found = [ends(caller) for caller in [start(calls, number) for number in (7, 13, 9)]]
    assert orders.calls == [("make_many", 3)]
    assert orders.contexts[0]["roles"] == ["system"]
    assert (found[0], found[2]) == (14, 18)
    assert isinstance(found[1], ValidationFailed)
    assert (found[1].message, found[1].details) == ("Thirteen.", {"number": 13})
    assert calls._gathering.noted == 3


def test_a_list_that_is_full_does_not_wait_and_the_next_call_begins_another(calls: Any, orders: Orders) -> None:
    calls._gathering.wait = 3600.0
    callers = [start(calls, number) for number in range(100, 100 + MOST)]
    assert [ends(caller) for caller in callers] == [2 * number for number in range(100, 100 + MOST)]
    calls._gathering.wait = 0.0
    assert ends(start(calls, 3)) == 6
    assert orders.calls == [("make_many", MOST), ("make", 1)]


def test_the_next_list_does_not_wait_for_the_answer_to_the_one_before(calls: Any, orders: Orders) -> None:
    answer = eventlet.Event()
    orders.before = answer.wait
    first = [start(calls, number) for number in (1, 2)]
    until_called(orders, 1)
    second = [start(calls, number) for number in (3, 4)]
    until_called(orders, 2)
    answer.send()
    assert [ends(caller) for caller in first + second] == [2, 4, 6, 8]
    assert orders.calls == [("make_many", 2)] * 2


def until_called(orders: Orders, times: int) -> None:
    with eventlet.Timeout(5):
        while len(orders.calls) < times:
            eventlet.sleep(0.005)


@pytest.mark.parametrize(
    "error",
    [
        CannotWork("another transaction is in the way"),
        IdempotencyInProgress(),
        MethodNotFound("make_many"),  # order_service is of an older version
        RemoteError("TypeError", "a fault of one call"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_list_that_fails_is_repeated_call_by_call_side_by_side(calls: Any, orders: Orders, error: Exception) -> None:
    orders.fails_with = error
    answer = eventlet.Event()
    callers = [start(calls, number) for number in (7, 13, 9)]
    until_called(orders, 1)
    orders.before = answer.wait  # none waits for the answer to another
    until_called(orders, 4)
    answer.send()
    found = [ends(caller) for caller in callers]
    assert (found[0], type(found[1]), found[2]) == (14, ValidationFailed, 18)
    assert sorted(orders.calls[1:]) == [("make", 1)] * 3
    assert {str(context["user_id"]) for context in orders.contexts[1:]} == {"user-7", "user-13", "user-9"}
    assert all(0 < timeout_s < calls.timeout_s for timeout_s in orders.timeouts), "one deadline for all attempts"


def test_a_list_with_an_answer_missing_is_repeated_call_by_call(calls: Any, orders: Orders) -> None:
    orders.forgets_one = True  # so nobody can tell which answer belongs to whom
    assert [ends(caller) for caller in [start(calls, number) for number in (7, 8, 9)]] == [14, 16, 18]
    assert orders.calls == [("make_many", 3)] + [("make", 1)] * 3


def test_a_list_that_nobody_answers_in_time_is_unavailable_for_each_and_not_repeated(
    calls: Any, orders: Orders
) -> None:
    orders.fails_with = ServiceUnavailable("order_service did not answer")
    found = [ends(caller) for caller in [start(calls, number) for number in (7, 8, 9)]]
    assert [type(error) for error in found] == [ServiceUnavailable] * 3
    assert orders.calls == [("make_many", 3)]


def test_a_caller_that_is_killed_leaves_the_others_their_answers(calls: Any, orders: Orders) -> None:
    answer = eventlet.Event()
    orders.before = answer.wait
    callers = [start(calls, number) for number in (7, 8, 9)]
    until_called(orders, 1)
    callers[1].kill()
    answer.send()
    assert [ends(callers[0]), ends(callers[2])] == [14, 18]


def test_the_others_of_a_list_hear_it_when_the_caller_that_leads_it_is_killed(calls: Any, orders: Orders) -> None:
    orders.before = eventlet.Event().wait  # no answer ever comes
    callers = [start(calls, number) for number in (7, 8, 9)]
    until_called(orders, 1)
    callers[0].kill()
    assert [type(ends(caller)) for caller in callers[1:]] == [ServiceUnavailable] * 2


def test_a_call_joins_no_list_whose_leader_was_killed_while_it_gathered(calls: Any, orders: Orders) -> None:
    calls._gathering.wait = 3600.0
    callers = [start(calls, number) for number in (7, 8)]
    with eventlet.Timeout(5):
        while calls._gathering.noted < len(callers):
            eventlet.sleep()
    callers[0].kill()
    assert isinstance(ends(callers[1]), ServiceUnavailable)
    calls._gathering.wait = 0.0
    assert ends(start(calls, 9)) == 18
