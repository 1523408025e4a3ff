"""Messages that were not handled leave their batch: each is published to a retry level or to the DLQ, confirmed.

No fault of a message can hold up the others here. One that cannot be classified goes to the DLQ with its bytes as they
came, and one whose death cannot be recorded goes there all the same: the census of the DLQs writes the record later.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from shared.deaths import record_deaths
from shared.edge.database import Sessions
from shared.edge.pausing import Pausing
from shared.edge.publisher import Outgoing, Publisher, with_publishers
from shared.errors import UNREADABLE, CannotWork, Poison
from shared.failures import FailedDelivery, Failure, classify_failure, exchange_of
from shared.metrics import DEATHS
from shared.outcomes import Outcome, outcome_of

log = logging.getLogger(__name__)


class SendingOn:
    """Sends on what the consumer of one queue has not handled."""

    def __init__(
        self, queue: str, service: str, sessions: Callable[[], Sessions], publisher: Publisher, pausing: Pausing
    ) -> None:
        self.queue = queue
        self.service = service
        self.sessions = sessions
        self.publisher = publisher
        self.pausing = pausing
        for reason in UNREADABLE:
            DEATHS.labels(queue, reason)  # there from the start, as 0: Prometheus cannot see a first step from nothing

    def send_on(self, failed: list[FailedDelivery]) -> Counter[Outcome]:
        """On return each message is safe in its next queue; how many of them were RETRY, LATER and DEAD."""
        failures = [self._classify(item) for item in failed]
        dead = [failure for failure in failures if failure.dead]
        if dead:
            self._record(dead)
        refused = [_outgoing(failure) for failure in failures]

        def publish_the_rest() -> None:
            nonlocal refused
            reasons = self.publisher.publish_all(refused)
            refused = [message for message, reason in zip(refused, reasons, strict=True) if reason]
            if refused:
                reason = next(filter(None, reasons))
                raise CannotWork(f"{len(refused)} failed messages could not be sent on: {reason}")

        if refused:
            self.pausing.until_able(publish_the_rest)
        for failure in dead:
            DEATHS.labels(self.queue, failure.reason).inc()
            _log_death(failure)
        return Counter(failure.outcome for failure in failures)

    def _classify(self, failed: FailedDelivery) -> Failure:
        try:
            return classify_failure(failed, self.service, self.queue)
        except Exception as error:
            log.exception("%s: a failed message cannot be classified; it goes to the DLQ as it came", self.queue)
            event = failed.event
            bare = failed.delivery.stripped(str(event.message_id) if event else failed.delivery.message_id)
            poison = Poison(f"it cannot be classified: {type(error).__name__}")
            return classify_failure(FailedDelivery(bare, None, poison), self.service, self.queue)

    def _record(self, dead: list[Failure]) -> None:
        """Write them to `dead_messages` together or, when that fails, one by one."""

        def write(failures: list[Failure]) -> None:
            with self.sessions().begin() as session:
                record_deaths(session, failures)

        try:
            self.pausing.until_able(lambda: write(dead))
        except Exception as error:
            if len(dead) > 1 and outcome_of(error) is not Outcome.LATER:
                for failure in dead:
                    self._record([failure])
                return
            log.exception("%s: %d deaths are not recorded; the census of the DLQs will", self.queue, len(dead))


def _outgoing(failure: Failure) -> Outgoing:
    message = Outgoing(
        exchange_of(failure), failure.target, failure.body, str(failure.message_id), failure.type, failure.headers
    )
    return with_publishers(message, failure.publishers.headers, failure.publishers.properties)


def _log_death(failure: Failure) -> None:
    log.warning(
        "%s: message %s is dead and lies in %s: %s: %s (%s, order %s, trace %s, attempt %d)",
        failure.queue,
        failure.message_id,
        failure.target,
        failure.reason,
        failure.said,
        failure.type or "no known type",
        failure.order_id,
        failure.trace_id,
        failure.headers["x-attempt"],
    )
