"""The census: compares the messages in each DLQ with the rows that the services wrote about them.

The two can differ. If a process dies on a message again and again, the broker moves the message to the DLQ and no
service is left to write a row. If a message is removed by other tools, its row still says that it is there. If the
broker crashes before a service has acknowledged a message that dies, the message dies twice, and one row stands for
two messages. To find out, the census must read the DLQ. Then it records what it found: the numbers agree, and it does
not read the DLQ again until something has changed.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from ops.dlq import overview
from ops.dlq.operator_session import CHUNK, OperatorSession
from ops.dlq.service_databases import GONE
from ops.domain import DeadLetter, Filter
from shared.errors import Conflict
from shared.metrics import DEAD_LETTERS
from topology.table import dead_letter_queue

log = logging.getLogger(__name__)

# A service writes the row before it sends the message to the DLQ: the message may arrive this much later.
ON_ITS_WAY = timedelta(seconds=60)

# After it has read a DLQ it leaves it alone for so many times as long as that took: also if the numbers cannot be made
# to agree, the census reads for less than a hundredth of the time.
REST = 100


class Census:
    """Counts periodically. A queue that differs twice in a row is reconciled."""

    def __init__(self) -> None:
        self._differed: set[str] = set()
        self._unrecorded: dict[str, int] = {}  # messages in each DLQ beyond those recorded
        self._rests_until: dict[str, float] = {}

    def run_once(self, operator: OperatorSession) -> int:
        """Count every DLQ, and reconcile those that differ; returns the number of rows written. Raises CannotWork."""
        differ = set()
        for one in overview.count(operator):
            if one.holder is None:
                self._unrecorded[one.queue] = one.ready - one.recorded
                if one.ready != one.recorded:
                    differ.add(one.queue)
            # An operator who works on a DLQ holds its messages, and the broker counts none of them: the records do.
            messages = max(one.ready, one.recorded + self._unrecorded.get(one.queue, 0))
            DEAD_LETTERS.labels(dead_letter_queue(one.queue)).set(messages)
        again, self._differed = differ & self._differed, differ
        return sum(self._reconcile(operator, queue) for queue in sorted(again))

    def _reconcile(self, operator: OperatorSession, queue: str) -> int:
        began = time.monotonic()
        if began < self._rests_until.get(queue, began):
            return 0
        try:
            return reconcile(operator, queue)
        except Conflict:
            log.info("%s differs from what is recorded; somebody works on it", dead_letter_queue(queue))
            return 0
        finally:
            ended = time.monotonic()
            self._rests_until[queue] = ended + REST * (ended - began)


def reconcile(operator: OperatorSession, queue: str) -> int:
    """Write rows for the messages of a DLQ that have none, correct the number of copies, and mark rows whose message
    has gone; returns the number of rows written.

    Raises Conflict if an operator works on the DLQ or begins to wait for it, CannotWork.
    """
    began = operator.databases.now(queue)
    with operator.look_into(queue, Filter()) as selection:
        recorded = operator.databases.recorded(queue)
        present = selection.counts()
        wrong = {message_id for message_id, copies in present.items() if recorded.get(message_id) != copies}
        selection.keep(wrong)
        # Still under the lock: otherwise this could overwrite what an operator does next.
        for held in selection.all(CHUNK):
            dead_letters = [item.dead_letter for item in held]
            for dead_letter in dead_letters:
                _log(queue, dead_letter, recorded.get(dead_letter.message_id), present[dead_letter.message_id])
            operator.databases.enter(queue, dead_letters, present)
        gone = sorted(recorded.keys() - present.keys())
        left = 0
        for first in range(0, len(gone), CHUNK):
            left += operator.databases.leave(queue, gone[first : first + CHUNK], GONE, began - ON_ITS_WAY)
    return len(wrong) + left


def _log(queue: str, dead_letter: DeadLetter, recorded: int | None, copies: int) -> None:
    message_id, dlq = dead_letter.message_id, dead_letter_queue(queue)
    if recorded is None:
        log.warning(
            "%s: message %s is dead and lies in %s: %s, recorded by the census (%s, order %s, trace %s)",
            queue,
            message_id,
            dlq,
            dead_letter.reason,
            dead_letter.event_type or "no known type",
            dead_letter.order_id,
            dead_letter.trace_id or None,
        )
    if copies > 1:
        log.warning("%s is in %s %d times", message_id, dlq, copies)
