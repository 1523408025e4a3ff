"""Calls of one method that are made at the same time, gathered into one call.

The first caller of a list leads it: it waits for others as long as `Gathering` says, which is not at all while calls
come one at a time, and makes the call for all. The next list need not wait for the answer to this one. A call that has
no company is made as it is.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from nameko.containers import WorkerContext
from nameko.exceptions import deserialize

from shared.edge.gathering import Gathering
from shared.edge.green import Event
from shared.edge.rpc import serialized
from shared.edge.rpc_proxy import CALL_TIMEOUT_S, Proxy, RpcProxy
from shared.edge.settings import settings_of
from shared.edge.wake import Wake
from shared.errors import ServiceUnavailable
from shared.logs import Reminder, in_a_line
from shared.roles import SYSTEM

log = logging.getLogger(__name__)

# As many as a consumer handles at once.
MOST = 50

# Who makes the call for many users. Each of its calls says who makes that.
GATHERER = {"user_id": "system:gathered", "roles": [SYSTEM]}

# The answer to a call of a list that has to be made alone.
ALONE: dict[str, Any] | None = None


class _List:
    """Calls that cross together, and their answers."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.full = Wake()
        self.answered = Event()


class GatheredCalls(RpcProxy):
    """Injects a proxy of one method: `new = GatheredCalls("order_service", "create_order", "create_orders")`.

    Calls of `one` take keyword arguments. `many` gets the list of these, each with the caller's context, and returns
    {result, error} of each. If `many` fails as a whole, or the service has no such method, each caller calls `one`.
    """

    def __init__(self, service: str, one: str, many: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        super().__init__(service, timeout_s)
        self.one = one
        self.many = many
        self._open: _List | None = None
        self._under_way = 0  # lists whose leaders have no answer yet
        self._reminder = Reminder()

    def setup(self) -> None:
        self._gathering = Gathering(settings_of(self.container).batch_wait_ms / 1000)

    def get_dependency(self, worker_ctx: WorkerContext) -> Proxy:
        return Proxy(lambda method, args, kwargs: self._call(worker_ctx, kwargs))

    def _call(self, worker_ctx: WorkerContext, arguments: dict[str, Any]) -> Any:
        """What the method returns. Raises what it raises, and ServiceUnavailable after `timeout_s` in all."""
        deadline = time.monotonic() + self.timeout_s
        self._gathering.note(1)
        if self._open is None:
            self._open = _List()
        gathered, place = self._open, len(self._open.calls)
        gathered.calls.append({**worker_ctx.data, **arguments})
        if place == MOST - 1:
            self._open = None
            gathered.full.send()
        if place:
            return self._result(gathered, place, worker_ctx, arguments, deadline)
        at_once = self._under_way > 0
        self._under_way += 1
        try:
            self._lead(gathered, at_once, deadline)
            return self._result(gathered, place, worker_ctx, arguments, deadline)
        finally:
            self._under_way -= 1

    def _result(
        self, gathered: _List, place: int, worker_ctx: WorkerContext, arguments: dict[str, Any], deadline: float
    ) -> Any:
        """The answer to one call of a list; where it must be made alone, this makes it."""
        answer = gathered.answered.wait()[place]
        if answer is ALONE:
            method, left_s = f"{self.service}.{self.one}", deadline - time.monotonic()
            return self.replies.call(method, [], arguments, worker_ctx.context_data, left_s)
        if answer["error"]:
            raise deserialize(answer["error"])
        return answer["result"]

    def _lead(self, gathered: _List, at_once: bool, deadline: float) -> None:
        answers: list[dict[str, Any] | None] | None = None
        try:
            self._gather(gathered, at_once)
            answers = self._ask(gathered, deadline)
        finally:
            # A caller who is killed must not leave the others waiting.
            gathered.answered.send(answers or _all_refused(gathered, ServiceUnavailable("the service is stopping")))

    def _gather(self, gathered: _List, at_once: bool) -> None:
        """Wait for company. No call is added to the list afterwards."""
        try:
            if wait_s := self._gathering.wait_s(1, at_once):
                gathered.full.wait(wait_s)
        finally:
            if self._open is gathered:
                self._open = None

    def _ask(self, gathered: _List, deadline: float) -> list[dict[str, Any] | None]:
        calls = gathered.calls
        if len(calls) == 1:
            return [ALONE]
        method, left_s = f"{self.service}.{self.many}", deadline - time.monotonic()
        try:
            answers: list[dict[str, Any] | None] = self.replies.call(method, [calls], {}, GATHERER, left_s)
            if len(answers) != len(calls):
                raise ValueError(f"{len(answers)} answers for {len(calls)} calls")
        except ServiceUnavailable as error:  # perhaps they were made: only their callers know whether to repeat them
            return _all_refused(gathered, error)
        except Exception as error:
            if self._reminder.due(type(error).__name__):
                log.warning("%s failed, and each of its calls is made alone: %s", method, in_a_line(error))
            return [ALONE] * len(calls)
        return answers


def _all_refused(gathered: _List, error: ServiceUnavailable) -> list[dict[str, Any] | None]:
    return [{"error": serialized(error)}] * len(gathered.calls)
