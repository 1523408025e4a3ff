"""The transactions over a batch: as few as it takes. A message that fails or waits for a lock costs only itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from uuid import UUID

from shared.edge.attempt import Attempt, Handled, Limits, log_failure
from shared.edge.database import Sessions
from shared.edge.hold_ups import UNKNOWN, HoldUps, Look
from shared.edge.pausing import Pausing
from shared.edge.postgres import STATEMENT_TIMEOUT_MS
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.errors import HeldUp
from shared.failures import Delivery
from shared.outcomes import Outcome, outcome_of
from topology.table import BY_NAME

# After so many culprits in one batch it is quicker to run the rest one by one.
ROUNDS = 3

# The limits of a try while something holds up messages of the queue, so that others wait for it as short as possible.
# Transactions of our own hold a row for some milliseconds.
TOGETHER = Limits(lock_ms=50, statement_ms=1000)
ALONE = Limits(lock_ms=10, statement_ms=1000)
# Long enough to ask PostgreSQL meanwhile who holds the lock.
LOOKING = Limits(lock_ms=200, statement_ms=1000)
# Each so many tries a message has the full time for its statements: it may need it on its own account.
PATIENT_TRY = 5
PATIENT = Limits(lock_ms=10, statement_ms=STATEMENT_TIMEOUT_MS)

# When the tries of a batch have waited so long in vain, the rest is set aside untried: of new messages, and of those
# that were held up before.
MOST_WAITED_S, MOST_WAITED_AGAIN_S = 2.0, 0.2


class Incoming(NamedTuple):
    """A delivery and the event in it."""

    delivery: Delivery
    event: Envelope


class Handling:
    """Runs a service's handler of one queue in transactions."""

    def __init__(
        self,
        queue: str,
        sessions: Callable[[], Sessions],
        handle: Callable[[Events, Tx], None],
        pausing: Pausing,
        hold_ups: HoldUps,
    ) -> None:
        self.queue = queue
        self.source = f"{BY_NAME[queue].service}_service"
        self.sessions = sessions
        self.handler = handle
        self.pausing = pausing
        self.hold_ups = hold_ups

    def handle(self, incoming: Sequence[Incoming], answers: dict[UUID, Any]) -> Handled:
        """Handle the events: first those that no lock has held up, so that they do not wait for a lock."""
        fresh = [item.event for item in incoming if not item.delivery.locked_out_before]
        returned = [item for item in incoming if item.delivery.locked_out_before]
        handled = self._handle_together(fresh, answers)
        if not returned:
            return handled
        if self.hold_ups.resting():
            return handled + _set_aside([item.event for item in returned])
        random.shuffle(returned)  # when there is no time for all of them, each has its turn sooner or later
        patient = [item.event for item in returned if item.delivery.held_up_before % PATIENT_TRY == 0][:1]
        others = [item.event for item in returned if item.event not in patient]
        handled += self._handle_singly(patient, answers, MOST_WAITED_AGAIN_S, PATIENT)
        return handled + self._handle_singly(others, answers, MOST_WAITED_AGAIN_S)

    def _handle_together(self, events: list[Envelope], answers: dict[UUID, Any]) -> Handled:
        """Handle the events in as few transactions as it takes: without those that failed, the others run again."""
        failed: dict[UUID, Exception] = {}
        for _ in range(ROUNDS):
            if not events:
                return Handled(0, failed)
            attempt = self._attempt(events, answers, TOGETHER if self.hold_ups.any() else None)
            try:
                return Handled(0, failed) + self.pausing.until_able(attempt.run)
            except Exception as error:
                if outcome_of(error) is Outcome.LATER:
                    return Handled(0, failed) + self._handle_singly(events, answers, MOST_WAITED_S)
                culprit = attempt.in_work if len(events) > 1 else events[0]
                if culprit is None:
                    break  # the error names no message, as at commit
                log_failure(self.queue, culprit, error)
                failed[culprit.message_id] = error
                events = [event for event in events if event is not culprit]
        return Handled(0, failed) + self._handle_singly(events, answers, MOST_WAITED_S)

    def _handle_singly(
        self,
        events: list[Envelope],
        answers: dict[UUID, Any],
        most_waited_s: float,
        limits: Limits | None = None,
    ) -> Handled:
        """Handle each event in a transaction of its own, and set aside those that wait for a lock or a slow statement.

        When they have waited for `most_waited_s`, the rest is set aside untried. Now and then it is found out who holds
        up one of them. `limits` are instead of the usual ones.
        """
        handled, waited_s = Handled(0, {}), 0.0
        for place, event in enumerate(events):
            if waited_s > most_waited_s:
                handled += _set_aside(events[place:])
                break
            began = time.monotonic()
            looks = limits is None and self.hold_ups.look_due()
            attempt = self._attempt([event], answers, LOOKING if looks else limits or ALONE)
            with Look(self.sessions(), attempt) if looks else nullcontext() as look:
                outcome = self._run_alone(event, attempt)
            if outcome_of(outcome.failed.get(event.message_id)) is Outcome.LATER:
                waited_s += time.monotonic() - began
                outcome = _set_aside([event], look.found if look else None)
            handled += outcome
        self.hold_ups.rest_after(waited_s)
        return handled

    def _run_alone(self, event: Envelope, attempt: Attempt) -> Handled:
        try:
            return self.pausing.until_able(attempt.run)
        except Exception as error:
            if outcome_of(error) is not Outcome.LATER:
                log_failure(self.queue, event, error)
            return Handled(0, {event.message_id: error})

    def _attempt(self, events: list[Envelope], answers: dict[UUID, Any], limits: Limits | None = None) -> Attempt:
        return Attempt(self.queue, self.source, self.sessions, self.handler, events, answers, limits)


def _set_aside(events: list[Envelope], reason: str | None = None) -> Handled:
    return Handled(0, {event.message_id: HeldUp(reason or UNKNOWN) for event in events})
