"""The life of a batch: decode, ask, once, handle, tell, commit; what failed is set apart and the others run again.

The messages waiting in a queue are handled together in one transaction (group commit): several times the messages
a second of one transaction each. A poison message costs only itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from shared import inbox, outbox
from shared.edge import green
from shared.edge.broker import backoff
from shared.edge.database import Sessions, is_conflict, is_outage
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope, decode
from shared.errors import CannotWork, DeadMessage, UnknownType
from shared.failures import Delivery, FailedDelivery, Failure, classify_failure, exchange_of, record_deaths
from shared.logs import in_a_line
from shared.metrics import EVENTS, PAUSES
from topology.table import BY_NAME, hears

log = logging.getLogger(__name__)

# After so many culprits in one batch it is quicker to run the rest one by one.
ROUNDS = 3

T = TypeVar("T")


class Stopping(BaseException):
    """The service stops while its consumer is paused: what it holds goes back to the queue.

    No Exception, or it would be taken for the failure of a message.
    """


class Batch:
    """Settles deliveries of one queue. `handle` and `ask` run the service's methods, and return or raise as they do."""

    def __init__(
        self,
        service: str,
        queue: str,
        sessions: Callable[[], Sessions],
        publisher: Publisher,
        handle: Callable[[Events, Tx], None],
        ask: Callable[[Events], dict[UUID, Any]] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.service = service
        self.queue = queue
        self.source = f"{service}_service"
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
        apart: list[FailedDelivery] = []
        incoming: dict[UUID, FailedDelivery] = {}
        duplicates = 0
        for delivery in deliveries:
            try:
                event = self._read(delivery)
            except DeadMessage as error:
                apart.append(FailedDelivery(delivery, None, error))
            else:
                duplicates += event.message_id in incoming
                incoming.setdefault(event.message_id, FailedDelivery(delivery, event, CannotWork()))
        answers = self._answers([item.event for item in incoming.values() if item.event])
        failed = {message_id: answer for message_id, answer in answers.items() if isinstance(answer, Exception)}
        ready = [item.event for message_id, item in incoming.items() if item.event and message_id not in failed]
        seen, more = self._together(ready, answers)
        failed |= more
        apart += [replace(incoming[message_id], error=error) for message_id, error in failed.items()]
        retried, dead = self._send_on(apart)
        done = len(deliveries) - len(apart) - seen - duplicates
        for outcome, count in (("done", done), ("duplicate", seen + duplicates), ("retry", retried), ("dead", dead)):
            EVENTS.labels(self.service, self.queue, outcome).inc(count)

    def _read(self, delivery: Delivery) -> Envelope:
        event = decode(delivery.body, delivery.original_routing_key)
        if not hears(BY_NAME[self.queue], event.type):
            raise UnknownType(f"{self.queue} does not take {event.type}")
        return event

    def _answers(self, unanswered: list[Envelope]) -> dict[UUID, Any]:
        answers: dict[UUID, Any] = {}
        if self.ask is None or not unanswered:
            return answers
        try:
            self._patiently(lambda: self._ask_for(unanswered, answers))
        except Exception as error:
            if len(unanswered) == 1:
                return {**answers, unanswered[0].message_id: error}
            log.warning("asking for %d messages failed, they are asked for singly", len(unanswered), exc_info=True)
            for event in unanswered:
                answers |= self._answers([event])
        return answers

    def _ask_for(self, events: list[Envelope], answers: dict[UUID, Any]) -> None:
        """Ask for them, and take those that are answered from the list: a repeat must not ask for them again."""
        found = self.ask(Events(events))  # type: ignore[misc]
        events[:] = [event for event in events if _is_ours(found.get(event.message_id))]
        troubles = [found.pop(event.message_id) for event in events]
        answers.update(found)
        if troubles:
            raise troubles[0]

    def _together(self, events: list[Envelope], answers: dict[UUID, Any]) -> tuple[int, dict[UUID, Exception]]:
        """Run the events in as few transactions as it takes; how many were seen before, and what failed with what."""
        failed: dict[UUID, Exception] = {}
        for _ in range(ROUNDS):
            if not events:
                return 0, failed
            at: list[Envelope | None] = [None]
            try:
                seen, apart = self._patiently(lambda: self._transact(events, answers, at))  # noqa: B023
                return seen, failed | apart
            except Exception as error:
                culprit = at[0] if len(events) > 1 else events[0]
                if culprit is None:
                    break
                self._log_failure(culprit, error)
                failed[culprit.message_id] = error
                events = [event for event in events if event is not culprit]
        seen_before = 0
        for event in events:
            try:
                seen, apart = self._patiently(lambda: self._transact([event], answers, [None]))  # noqa: B023
                seen_before, failed = seen_before + seen, failed | apart
            except Exception as error:
                self._log_failure(event, error)
                failed[event.message_id] = error
        return seen_before, failed

    def _transact(
        self, batch: list[Envelope], answers: dict[UUID, Any], at: list[Envelope | None]
    ) -> tuple[int, dict[UUID, Exception]]:
        """One transaction: once, handle, tell. `at` learns which event the handler was at when it raised."""
        with self.sessions().begin() as session:
            new = inbox.claim(session, self.queue, [event.message_id for event in batch])
            events = Events([event for event in batch if event.message_id in new])
            tx = Tx(session, self.source, answers)
            try:
                if events:
                    self.handle(events, tx)
            except Exception:
                at[0] = events.in_work
                raise
            if tx.failed:
                inbox.forget(session, self.queue, list(tx.failed))
            outbox.emit(session, tx.outgoing_events())
        for event in events:
            if event.message_id in tx.failed:
                self._log_failure(event, tx.failed[event.message_id])
        return len(batch) - len(events), tx.failed

    def _send_on(self, apart: list[FailedDelivery]) -> tuple[int, int]:
        """Publish what was set apart to its retry level or DLQ, confirmed; how many of each."""
        failures = [classify_failure(item, self.service, self.queue) for item in apart]
        dead = [failure for failure in failures if failure.dead]
        if dead:
            self._patiently(lambda: self._record(dead))
        unsafe = list(failures)
        if unsafe:
            self._patiently(lambda: self._publish(unsafe))
        return len(failures) - len(dead), len(dead)

    def _record(self, dead: list[Failure]) -> None:
        with self.sessions().begin() as session:
            record_deaths(session, dead)

    def _publish(self, failures: list[Failure]) -> None:
        """Publish them, and take those that are safe from the list: a repeat must not send them again."""
        outcomes = self.publisher.publish_all(
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
        failures[:] = [failure for failure, refused in zip(failures, outcomes, strict=True) if refused]
        if failures:
            raise CannotWork(f"{len(failures)} failed messages could not be sent on: {next(filter(None, outcomes))}")

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it; repeat it after a conflict between transactions, and pause while the service cannot work."""
        waits = backoff()
        while True:
            try:
                result = action()
                self.not_ready_reason = None
                return result
            except Exception as error:
                if is_conflict(error):
                    if self.stopping():  # somebody may hold that lock for ever
                        raise Stopping from error
                    green.sleep(random.uniform(0.001, 0.05))
                elif _is_ours(error):
                    self._pause(error, next(waits))
                else:
                    raise

    def _pause(self, error: Exception, wait: float) -> None:
        if self.not_ready_reason is None:
            log.warning("%s is paused: %s", self.queue, in_a_line(error))
            PAUSES.labels(self.queue).inc()
        self.not_ready_reason = f"{self.queue} is paused: {type(error).__name__}"
        green.sleep(wait)
        if self.stopping():
            raise Stopping

    def _log_failure(self, event: Envelope, error: Exception) -> None:
        log.warning(
            "%s could not handle %s %s (trace %s): %s: %s",
            self.queue,
            event.type,
            event.message_id,
            event.trace_id,
            type(error).__name__,
            error,
            exc_info=None if isinstance(error, DeadMessage) else error,
        )


def _is_ours(outcome: object) -> bool:
    """Whether it says that the service itself cannot work, so that nothing is wrong with any message."""
    return isinstance(outcome, CannotWork) or (isinstance(outcome, Exception) and is_outage(outcome))
