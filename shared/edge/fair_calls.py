"""Calls to another system in fair shares: a customer whose calls are slow keeps no other customer waiting.

A batch waits for the answers to its calls, but not for long: then it goes on without the calls that have not ended. A
customer with a call that took longer than that is slow. For some time no batch waits for the calls of slow customers,
and these calls have a lane of their own: they take no place from those of the other customers.

In each lane a customer may begin a call as long as it has fewer open calls than places are free. So one customer alone
takes half of a lane, two take a third each, and there is always a place for the next one.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, NamedTuple
from uuid import UUID

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

from shared.edge import green
from shared.edge.wake import Wake
from shared.errors import OverShare

# How long a batch waits for its calls: short against the time that an order may take, long against the time of a call
# that does not hang.
PATIENCE_S = 1.0

# Places in each of the two lanes: calls at once.
PLACES = 20

# Calls of one customer that wait here for a place: a batch of them. What is more waits in a retry queue, and so does
# every call of a slow customer for which there is no place.
MOST_WAITING = 50

# A customer is slow for so long after a slow call, unless a quick one has followed.
SLOW_FOR_S = 60.0

# An answer for which nobody has come by then belongs to a message that another replica has.
KEEP_S = 60.0


class Call(NamedTuple):
    """A call that is wanted, and the customer whose share it takes."""

    customer: str
    run: Callable[[], Any]


@dataclass
class OpenCall:
    """A call that waits for its turn, is under way, or has ended with `answer`: its result, or what it raised."""

    call: Call
    began_at: float = math.inf  # by the monotonic clock
    ended_at: float = math.inf
    answer: Any = None

    @property
    def ended(self) -> bool:
        """Whether its answer is there."""
        return self.ended_at < math.inf

    def end(self, answer: Any, at: float) -> None:
        """Take note of its answer."""
        self.ended_at, self.answer = at, answer


class Lanes:
    """The open calls of each customer, and the places that are left."""

    def __init__(self, open_calls: Mapping[str, int], is_slow: Callable[[str], bool]) -> None:
        self._open = dict(open_calls)
        self._is_slow = is_slow
        self._taken = {True: 0, False: 0}  # by whether the lane is the slow one
        for customer, count in open_calls.items():
            self._taken[is_slow(customer)] += count

    def take_place(self, customer: str) -> bool:
        """Take a place for a call of this customer, if there is one; whether there was.

        Customers who become slow bring their open calls with them: the slow lane may have more than PLACES.
        """
        slow = self._is_slow(customer)
        free = min(PLACES - self._taken[slow], 2 * PLACES - self._taken[True] - self._taken[False])
        open_calls = self._open.get(customer, 0)
        if open_calls >= free:
            return False
        self._open[customer] = open_calls + 1
        self._taken[slow] += 1
        return True


class FairCalls(DependencyProvider):
    """Injects itself: the calls of one kind in this process, by the id of what they are made for."""

    def __init__(self, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience_s = patience_s
        self.clock = clock
        self._calls: dict[UUID, OpenCall] = {}  # also those that have ended and whose answer nobody has taken yet
        self._waiting: dict[UUID, OpenCall] = {}  # those of them that have not begun
        self._open: Counter[str] = Counter()  # how many calls of a customer are under way
        self._slow_until: dict[str, float] = {}
        self._one_ended = Wake()

    def get_dependency(self, worker_ctx: WorkerContext) -> FairCalls:
        return self

    def stop(self) -> None:
        """Begin no more calls: the messages of those that wait go back to their queue."""
        self._waiting.clear()

    kill = stop

    def over_share(self, customers: Mapping[UUID, str]) -> dict[UUID, OverShare]:
        """The ids for which no call can be made now, as their customers have too many; `customers` is by id.

        Nothing need be prepared for these. The others can be given to `ask`.
        """
        lanes, over = Lanes(self._open, self._is_slow), {}
        waiting = Counter(item.call.customer for item in self._waiting.values())
        for key in in_turn(customers):
            customer = customers[key]
            if key in self._calls:
                continue
            if lanes.take_place(customer):
                continue
            if self._is_slow(customer) or waiting[customer] >= MOST_WAITING:
                over[key] = OverShare()
            else:
                waiting[customer] += 1
        return over

    def ask(self, calls: Mapping[UUID, Call]) -> dict[UUID, Any]:
        """Make the calls side by side; by id the result or the exception, an OpenCall, or OverShare.

        An OpenCall goes on: ask again for its id when it has ended, then its answer is there and no call is made.
        OverShare says that no call was made, because other calls of the customer take too long.
        """
        self._forget()
        new = {key: call.customer for key, call in calls.items() if key not in self._calls}
        over_share = self.over_share(new)
        for key in in_turn({key: customer for key, customer in new.items() if key not in over_share}):
            self._calls[key] = self._waiting[key] = OpenCall(calls[key])
        self._begin()
        give_up_at = self.clock() + self.patience_s
        asked = [self._calls[key] for key in calls if key in self._calls]
        while any(self._is_awaited(item) for item in asked):
            left = give_up_at - self.clock()
            if left <= 0:
                break
            self._one_ended.wait(left)
        self._note_slow_customers()
        return over_share | {key: self._answer(key) for key in calls if key in self._calls}

    def _begin(self) -> None:
        """Make the calls for which there are places; those of slow customers wait no longer."""
        if not self._waiting:
            return
        lanes = Lanes(self._open, self._is_slow)
        for key, item in list(self._waiting.items()):
            customer = item.call.customer
            if lanes.take_place(customer):
                del self._waiting[key]
                item.began_at = self.clock()
                self._open[customer] += 1
                green.spawn_n(self._run, item)
            elif self._is_slow(customer):
                del self._waiting[key]
                item.end(OverShare(), self.clock())

    def _run(self, item: OpenCall) -> None:
        customer = item.call.customer
        try:
            answer = item.call.run()
        except Exception as error:
            answer = error
        item.end(answer, self.clock())
        self._open[customer] -= 1
        if not self._open[customer]:
            del self._open[customer]
        if self._is_late(item):
            self._slow_until[customer] = item.ended_at + SLOW_FOR_S
        elif customer in self._slow_until and not self._has_late_calls(customer):
            self._slow_until.pop(customer, None)
        self._begin()
        self._one_ended.send()

    def _answer(self, key: UUID) -> Any:
        item = self._calls[key]
        return self._calls.pop(key).answer if item.ended else item

    def _is_awaited(self, item: OpenCall) -> bool:
        return not item.ended and not self._is_slow(item.call.customer)

    def _is_slow(self, customer: str) -> bool:
        return customer in self._slow_until and self._slow_until[customer] > self.clock()

    def _is_late(self, item: OpenCall) -> bool:
        """Whether the call took, or takes, longer than a batch waits."""
        return min(item.ended_at, self.clock()) - item.began_at > self.patience_s

    def _has_late_calls(self, customer: str) -> bool:
        return any(
            item.call.customer == customer and not item.ended and self._is_late(item) for item in self._calls.values()
        )

    def _note_slow_customers(self) -> None:
        slow = {item.call.customer for item in self._calls.values() if not item.ended and self._is_late(item)}
        if slow:
            self._slow_until.update(dict.fromkeys(slow, self.clock() + SLOW_FOR_S))
            self._begin()

    def _forget(self) -> None:
        now = self.clock()
        self._slow_until = {customer: until for customer, until in self._slow_until.items() if until > now}
        self._calls = {key: item for key, item in self._calls.items() if now - item.ended_at < KEEP_S}


def in_turn(customers: Mapping[UUID, str]) -> list[UUID]:
    """The ids with one of each customer first, then the second of each, and so on; `customers` is by id."""
    of: dict[str, list[UUID]] = defaultdict(list)
    for key, customer in customers.items():
        of[customer].append(key)
    return [key for key in chain.from_iterable(zip_longest(*of.values())) if key is not None]
