"""The life of a batch: decode, ask, claim, handle, emit, commit. Failed messages leave it and the others run again.

The messages waiting in a queue are handled together in one transaction (group commit): that is several times as fast
as a transaction for each message. A poison message costs only itself, and so does one that a lock holds up.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from shared.decoding import read_event
from shared.edge import green
from shared.edge.attempt import Attempt, Handled, Limits, log_failure
from shared.edge.database import Sessions
from shared.edge.fair_calls import OpenCall
from shared.edge.hold_ups import UNKNOWN, HoldUps, Look
from shared.edge.pausing import Pausing
from shared.edge.postgres import STATEMENT_TIMEOUT_MS
from shared.edge.publisher import Publisher
from shared.edge.sending_on import SendingOn
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.errors import DeadMessage, Forged, HeldUp, OverShare
from shared.failures import Delivery, FailedDelivery
from shared.metrics import EVENTS, FORGED
from shared.outcomes import Outcome, outcome_of
from shared.senders import SenderRules, is_by_hand, known
from topology.table import BY_NAME

log = logging.getLogger(__name__)

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

SLOW_CALLS = "slow calls for the same customers"


class Incoming(NamedTuple):
    """A delivery and the event in it."""

    delivery: Delivery
    event: Envelope


class Unsettled(NamedTuple):
    """A delivery whose batch has gone on without it, and the call that it waits for."""

    delivery: Delivery
    call: OpenCall


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
        *,
        senders: SenderRules,
    ) -> None:
        self.service = BY_NAME[queue].service
        self.queue = queue
        self.source = f"{self.service}_service"
        self.sessions = sessions
        self.publisher = publisher
        self.handle = handle
        self.ask = ask
        self.senders = senders
        self.pausing = Pausing(queue, stopping)
        self.hold_ups = HoldUps(queue)
        self.over_share = HoldUps(queue)
        self.sending_on = SendingOn(queue, self.service, sessions, publisher, self.pausing)

    def handle_batch(self, deliveries: Sequence[Delivery]) -> list[Unsettled]:
        """Handle them. On return each has taken effect, was a duplicate, or is safe in its next queue.

        Returns those for which that is not so: they still wait for a call, and are to be handled again when it has
        ended. Raises Stopping when the service was asked to stop while it could not work; then nothing may be acked.
        """
        incoming, refused = self._decode(deliveries)
        answers = self._ask_for([item.event for item in incoming.values()])
        going_on = {key: answer for key, answer in answers.items() if isinstance(answer, OpenCall)}
        unanswered = {key: answer for key, answer in answers.items() if isinstance(answer, Exception)}
        ready = [item for key, item in incoming.items() if key not in unanswered and key not in going_on]
        handled = self._handle(ready, answers)
        errors = unanswered | handled.failed
        failed = refused + [FailedDelivery(*incoming[key], error) for key, error in errors.items()]
        sent_on = self.sending_on.send_on(failed)
        duplicates = handled.seen_before + len(deliveries) - len(incoming) - len(refused)
        done = len(deliveries) - len(failed) - duplicates - len(going_on)
        settled = [("done", done), ("duplicate", duplicates), *sent_on.items()]
        for outcome, count in settled:
            EVENTS.labels(self.service, self.queue, outcome).inc(count)
        locked_out = self._note_held_up(failed)
        green.sleep(self.hold_ups.settle(len(deliveries) - locked_out, locked_out))
        return [Unsettled(incoming[key].delivery, call) for key, call in going_on.items()]

    def warnings(self) -> list[str]:
        """What holds up some messages while the others go on, for people."""
        return self.hold_ups.sentences() + self.over_share.sentences()

    def held_up_since(self) -> float | None:
        """Since when the oldest message is held up, in Unix seconds."""
        moments = (self.hold_ups.oldest(), self.over_share.oldest())
        return min((moment for moment in moments if moment is not None), default=None)

    def _note_held_up(self, failed: Sequence[FailedDelivery]) -> int:
        """Take note of the messages that are held up; how many of them by a lock or a slow statement."""
        locked_out = 0
        for item in failed:
            if isinstance(item.error, OverShare):
                self.over_share.note(SLOW_CALLS, item.delivery.unsettled_since)
            elif outcome_of(item.error) is Outcome.LATER:
                locked_out += 1
                reason = str(item.error) if isinstance(item.error, HeldUp) else UNKNOWN
                self.hold_ups.note(reason, item.delivery.unsettled_since)
        return locked_out

    def _decode(self, deliveries: Sequence[Delivery]) -> tuple[dict[UUID, Incoming], list[FailedDelivery]]:
        """The events by message_id, each once, and the deliveries that cannot be read or are forged."""
        incoming: dict[UUID, Incoming] = {}
        refused = []
        for delivery in deliveries:
            event, sender = None, delivery.sender(self.service)
            try:
                event = read_event(self.queue, delivery.body, delivery.original_routing_key)
                self.senders.check_event(sender, event.type, is_by_hand(event.source, event.type, delivery.routing_key))
            except DeadMessage as error:
                if isinstance(error, Forged):
                    FORGED.labels(self.queue, known(sender)).inc()
                refused.append(FailedDelivery(delivery, event, error))
            else:
                incoming.setdefault(event.message_id, Incoming(delivery, event))
        return incoming, refused

    def _ask_for(self, events: list[Envelope]) -> dict[UUID, Any]:
        """The answers by message_id. When asking for all events raises, each is asked for alone to find the culprit.

        A repeat asks only for those for which the service could not work. A pause is not over as long as the calls for
        them have no answer.
        """
        answers: dict[UUID, Any] = {}
        waiting = events
        away: Exception | None = None  # why the service cannot work

        def ask_for_the_rest(ask: Callable[[Events], dict[UUID, Any]]) -> None:
            nonlocal waiting, away
            found = ask(Events(waiting))
            unable = [answer for answer in found.values() if _says_pause(answer)]
            answered = any(not _says_pause(answer) and not isinstance(answer, OpenCall) for answer in found.values())
            away = unable[0] if unable else None if answered else away
            again = {key for key, answer in found.items() if _says_pause(answer) or (away and not answered)}
            waiting = [event for event in waiting if event.message_id in again]
            answers.update({key: answer for key, answer in found.items() if key not in again})
            if away and waiting:
                raise away

        if self.ask is None or not events:
            return answers
        try:
            self.pausing.until_able(partial(ask_for_the_rest, self.ask))
        except Exception as error:
            if len(waiting) == 1:
                return {**answers, waiting[0].message_id: error}
            log.warning("asking for %d messages failed, they are asked for singly", len(waiting), exc_info=True)
            began = time.monotonic()
            for event in waiting:
                late = outcome_of(error) is Outcome.LATER and time.monotonic() - began > MOST_WAITED_S
                answers |= {event.message_id: HeldUp(UNKNOWN)} if late else self._ask_for([event])
        return answers

    def _handle(self, incoming: Sequence[Incoming], answers: dict[UUID, Any]) -> Handled:
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
        return Attempt(self.queue, self.source, self.sessions, self.handle, events, answers, limits)


def _set_aside(events: list[Envelope], reason: str | None = None) -> Handled:
    return Handled(0, {event.message_id: HeldUp(reason or UNKNOWN) for event in events})


def _says_pause(answer: object) -> bool:
    """Whether an answer says that the service cannot work, so that nothing is wrong with the message."""
    return isinstance(answer, Exception) and outcome_of(answer) is Outcome.PAUSE
