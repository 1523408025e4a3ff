"""Running an action until the service is able to do it: repeated after a conflict, paused during an outage."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

from shared.edge import green
from shared.edge.broker import backoff, in_brief
from shared.errors import HeldUp
from shared.logs import in_a_line
from shared.metrics import PAUSES
from shared.outcomes import Outcome, outcome_of

log = logging.getLogger(__name__)

# Transactions in each other's way repeat at once. Those that meet each time are not in each other's way by chance.
MOST_REPEATS = 20

T = TypeVar("T")


class Stopping(BaseException):
    """The service stops while its consumer is paused: the messages it holds go back to the queue.

    It is no Exception, because that would count as the failure of a message.
    """


class Pausing:
    """The pauses of one queue's consumer."""

    def __init__(self, queue: str, stopping: Callable[[], bool]) -> None:
        self.queue = queue
        self.stopping = stopping
        self.not_ready_reason: str | None = None  # why the consumer is paused, for /readyz

    def until_able(self, action: Callable[[], T]) -> T:
        """Do it; repeat it after a conflict between transactions, and pause while the service cannot work.

        Raises what `action` raised for another reason, HeldUp after MOST_REPEATS conflicts, and Stopping.
        """
        waits = backoff()
        repeats = 0
        while True:
            try:
                result = action()
                self.not_ready_reason = None
                return result
            except Exception as error:
                match outcome_of(error):
                    case Outcome.REPEAT:
                        repeats += 1
                        if repeats > MOST_REPEATS:
                            raise HeldUp(f"transactions were in its way {repeats} times: {in_a_line(error)}") from error
                        if self.stopping():
                            raise Stopping from error
                        green.sleep(random.uniform(0.001, 0.05))
                    case Outcome.PAUSE:
                        self._pause(error, next(waits))
                    case _:
                        raise

    def _pause(self, error: Exception, wait_s: float) -> None:
        if self.not_ready_reason is None:
            log.warning("%s is paused: %s", self.queue, in_a_line(error))
            PAUSES.labels(self.queue).inc()
        self.not_ready_reason = f"{self.queue} is paused: {in_brief(getattr(error, 'orig', error))}"
        green.sleep(wait_s)
        if self.stopping():
            raise Stopping
