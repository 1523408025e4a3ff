"""The life of a batch: decode, ask, claim, handle, emit, commit. Failed messages leave it and the others run again.

The messages waiting in a queue are handled together in one transaction (group commit): that is several times as fast
as a transaction for each message. A poison message costs only itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from shared.deaths import record_deaths
from shared.edge import green
from shared.edge.attempt import Attempt, Handled, log_failure
from shared.edge.broker import backoff
from shared.edge.database import Sessions
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope, decode
from shared.errors import CannotWork, DeadMessage, UnknownType
from shared.failures import Delivery, FailedDelivery, Failure, classify_failure, exchange_of
from shared.logs import in_a_line
from shared.metrics import EVENTS, PAUSES
from shared.outcomes import Outcome, outcome_of
from topology.table import BY_NAME, hears

log = logging.getLogger(__name__)

# After so many culprits in one batch it is quicker to run the rest one by one.
ROUNDS = 3

T = TypeVar("T")


class Incoming(NamedTuple):
    """A delivery and the event in it."""

    delivery: Delivery
    event: Envelope


class Stopping(BaseException):
    """The service stops while its consumer is paused: the messages it holds go back to the queue.

    It is no Exception, because that would count as the failure of a message.
    """


class Batch:
    """Handles deliveries of one queue. `handle` and `ask` run the service's methods, and return or raise as they do."""

    def __init__(
        self,
        queue: str,
        sessions: Callable[[], Sessions],
        publisher: Publisher,
        handle: Callable[[Events, Tx], None],
        ask: Callable[[Events], dict[UUID, Any]] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.service = BY_NAME[queue].service
        self.queue = queue
        self.source = f"{self.service}_service"
        self.sessions = sessions
        self.publisher = publisher
        self.handle = handle
        self.ask = ask
        self.stopping = stopping
        self.not_ready_reason: str | None = None

    def handle_batch(self, deliveries: Sequence[Delivery]) -> None:
        """Handle them all. On return each has taken effect, was a duplicate, or is safe in its next queue.

        Raises Stopping when the service was asked to stop while it could not work; then nothing may be acked.
        """
        incoming, unreadable = self._decode(deliveries)
        answers = self._ask_for([item.event for item in incoming.values()])
        unanswered = {key: answer for key, answer in answers.items() if isinstance(answer, Exception)}
        ready = [item.event for key, item in incoming.items() if key not in unanswered]
        handled = self._handle_together(ready, answers)
        errors = unanswered | handled.failed
        failed = unreadable + [FailedDelivery(*incoming[key], error) for key, error in errors.items()]
        retried, dead = self._send_on(failed)
        duplicates = handled.seen_before + len(deliveries) - len(incoming) - len(unreadable)
        done = len(deliveries) - len(failed) - duplicates
        for outcome, count in (("done", done), ("duplicate", duplicates), ("retry", retried), ("dead", dead)):
            EVENTS.labels(self.service, self.queue, outcome).inc(count)

    def _decode(self, deliveries: Sequence[Delivery]) -> tuple[dict[UUID, Incoming], list[FailedDelivery]]:
        """The events by message_id, each once, and the deliveries that cannot be read."""
        incoming: dict[UUID, Incoming] = {}
        unreadable = []
        for delivery in deliveries:
            try:
                event = decode(delivery.body, delivery.original_routing_key)
                if not hears(BY_NAME[self.queue], event.type):
                    raise UnknownType(f"{self.queue} does not take {event.type}")
            except DeadMessage as error:
                unreadable.append(FailedDelivery(delivery, None, error))
            else:
                incoming.setdefault(event.message_id, Incoming(delivery, event))
        return incoming, unreadable

    def _ask_for(self, events: list[Envelope]) -> dict[UUID, Any]:
        """The answers by message_id. When asking for all events raises, each is asked for alone to find the culprit.

        A repeat asks only for those for which the service could not work.
        """
        answers: dict[UUID, Any] = {}
        waiting = events

        def ask_for_the_rest(ask: Callable[[Events], dict[UUID, Any]]) -> None:
            nonlocal waiting
            found = ask(Events(waiting))
            waiting = [event for event in waiting if _says_pause(found.get(event.message_id))]
            unable = [found.pop(event.message_id) for event in waiting]
            answers.update(found)
            if unable:
                raise unable[0]

        if self.ask is None or not events:
            return answers
        try:
            self._until_able(partial(ask_for_the_rest, self.ask))
        except Exception as error:
            if len(waiting) == 1:
                return {**answers, waiting[0].message_id: error}
            log.warning("asking for %d messages failed, they are asked for singly", len(waiting), exc_info=True)
            for event in waiting:
                answers |= self._ask_for([event])
        return answers

    def _handle_together(self, events: list[Envelope], answers: dict[UUID, Any]) -> Handled:
        """Handle the events in as few transactions as it takes: without those that failed, the others run again."""
        failed: dict[UUID, Exception] = {}
        for _ in range(ROUNDS):
            if not events:
                return Handled(0, failed)
            attempt = self._attempt(events, answers)
            try:
                handled = self._until_able(attempt.run)
                return Handled(handled.seen_before, failed | handled.failed)
            except Exception as error:
                culprit = attempt.in_work if len(events) > 1 else events[0]
                if culprit is None:
                    break  # the error names no message, as at commit
                log_failure(self.queue, culprit, error)
                failed[culprit.message_id] = error
                events = [event for event in events if event is not culprit]
        one_by_one = self._handle_singly(events, answers)
        return Handled(one_by_one.seen_before, failed | one_by_one.failed)

    def _handle_singly(self, events: list[Envelope], answers: dict[UUID, Any]) -> Handled:
        """Handle each event in a transaction of its own."""
        seen_before, failed = 0, dict[UUID, Exception]()
        for event in events:
            try:
                handled = self._until_able(self._attempt([event], answers).run)
                seen_before, failed = seen_before + handled.seen_before, failed | handled.failed
            except Exception as error:
                log_failure(self.queue, event, error)
                failed[event.message_id] = error
        return Handled(seen_before, failed)

    def _attempt(self, events: list[Envelope], answers: dict[UUID, Any]) -> Attempt:
        return Attempt(self.queue, self.source, self.sessions, self.handle, events, answers)

    def _send_on(self, failed: list[FailedDelivery]) -> tuple[int, int]:
        """Publish failed messages to their retry level or DLQ, confirmed; how many to each."""
        failures = [classify_failure(item, self.service, self.queue) for item in failed]
        dead = [failure for failure in failures if failure.dead]
        if dead:
            self._until_able(lambda: self._record(dead))
        refused = failures

        def publish_the_rest() -> None:
            nonlocal refused
            refused, reason = self._publish(refused)
            if refused:
                raise CannotWork(f"{len(refused)} failed messages could not be sent on: {reason}")

        if failures:
            self._until_able(publish_the_rest)
        return len(failures) - len(dead), len(dead)

    def _record(self, dead: list[Failure]) -> None:
        with self.sessions().begin() as session:
            record_deaths(session, dead)

    def _publish(self, failures: list[Failure]) -> tuple[list[Failure], str | None]:
        """Publish them: those that the broker refused, and why it refused the first of them."""
        reasons = self.publisher.publish_all(
            [
                Outgoing(
                    exchange_of(failure),
                    failure.target,
                    failure.body,
                    str(failure.message_id),
                    failure.type,
                    failure.headers,
                )
                for failure in failures
            ]
        )
        refused = [failure for failure, reason in zip(failures, reasons, strict=True) if reason]
        return refused, next(filter(None, reasons), None)

    def _until_able(self, action: Callable[[], T]) -> T:
        """Do it; repeat it after a conflict between transactions, and pause while the service cannot work."""
        waits = backoff()
        while True:
            try:
                result = action()
                self.not_ready_reason = None
                return result
            except Exception as error:
                match outcome_of(error):
                    case Outcome.REPEAT:
                        if self.stopping():  # another session may hold that lock for ever
                            raise Stopping from error
                        green.sleep(random.uniform(0.001, 0.05))
                    case Outcome.PAUSE:
                        self._pause(error, next(waits))
                    case _:
                        raise

    def _pause(self, error: Exception, wait: float) -> None:
        if self.not_ready_reason is None:
            log.warning("%s is paused: %s", self.queue, in_a_line(error))
            PAUSES.labels(self.queue).inc()
        self.not_ready_reason = f"{self.queue} is paused: {type(error).__name__}"
        green.sleep(wait)
        if self.stopping():
            raise Stopping


def _says_pause(answer: object) -> bool:
    """Whether an answer says that the service cannot work, so that nothing is wrong with the message."""
    return isinstance(answer, Exception) and outcome_of(answer) is Outcome.PAUSE
