"""The life of a batch: decode, ask, claim, handle, emit, commit. Failed messages leave it and the others run again.

The messages waiting in a queue are handled together in one transaction (group commit): that is several times as fast
as a transaction for each message. A poison message costs only itself, and so does one that a lock holds up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from shared.decoding import read_event
from shared.edge import green
from shared.edge.database import Sessions
from shared.edge.fair_calls import OpenCall
from shared.edge.handling import MOST_WAITED_S, Handling, Incoming
from shared.edge.hold_ups import UNKNOWN, HoldUps
from shared.edge.pausing import Pausing
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

SLOW_CALLS = "slow calls for the same customers"


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
        self.publisher = publisher
        self.ask = ask
        self.senders = senders
        self.pausing = Pausing(queue, stopping)
        self.hold_ups = HoldUps(queue)
        self.over_share = HoldUps(queue)
        self.handling = Handling(queue, sessions, handle, self.pausing, self.hold_ups)
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
        handled = self.handling.handle(ready, answers)
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


def _says_pause(answer: object) -> bool:
    """Whether an answer says that the service cannot work, so that nothing is wrong with the message."""
    return isinstance(answer, Exception) and outcome_of(answer) is Outcome.PAUSE
