"""The census: compares the messages in each DLQ with the rows that the services wrote about them.

The two can differ. If a process dies on a message again and again, the broker moves the message to the DLQ and no
service is left to write a row. If a message is removed by other tools, its row still says that it is there.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from ops.dlq.dlq_reader import depths
from ops.dlq.operator_session import CHUNK, OperatorSession
from ops.dlq.service_databases import GONE
from ops.domain import DeadLetter, Filter
from shared.errors import Conflict
from shared.metrics import DEAD_LETTERS
from topology.table import BY_NAME, QUEUES, dead_letter_queue

log = logging.getLogger(__name__)

# A service writes the row before it sends the message to the DLQ: the message may arrive this much later.
ON_ITS_WAY = timedelta(seconds=60)


class Census:
    """Counts periodically. A queue that differs twice in a row is reconciled."""

    def __init__(self) -> None:
        self._differed: set[str] = set()

    def run_once(self, operator: OperatorSession) -> int:
        """Count every DLQ, and reconcile those that differ; returns the number of rows written. Raises CannotWork."""
        settings = operator.settings
        counts = depths(settings.amqp_uri, settings.heartbeat_s, [dead_letter_queue(queue.name) for queue in QUEUES])
        recorded = {queue.name: 0 for queue in QUEUES}
        for service in dict.fromkeys(queue.service for queue in QUEUES):
            for row in operator.databases.deaths(service):
                recorded[row["queue"]] = recorded.get(row["queue"], 0) + row["count"]
        for queue in QUEUES:
            DEAD_LETTERS.labels(dead_letter_queue(queue.name)).set(counts[dead_letter_queue(queue.name)])
        differ = {name for name in BY_NAME if counts[dead_letter_queue(name)] != recorded[name]}
        again, self._differed = differ & self._differed, differ
        written = 0
        for name in sorted(again):
            try:
                written += reconcile(operator, name)
            except Conflict:
                log.info("%s differs from what is written down; somebody works on it", dead_letter_queue(name))
        return written


def reconcile(operator: OperatorSession, queue: str) -> int:
    """Write rows for the messages of a DLQ that have none, and mark rows whose message has gone; returns their number.

    Raises Conflict if an operator works on the DLQ, CannotWork.
    """
    began = operator.databases.now(queue)
    unwritten: list[DeadLetter] = []
    present = set()
    with operator.look_into(queue, Filter()) as selection:
        recorded = operator.databases.recorded(queue)
        for held in selection.all(CHUNK):
            present |= {item.slot.message_id for item in held}
            unwritten += [item.dead_letter for item in held if item.slot.message_id not in recorded]
        # Still under the lock: otherwise this could overwrite what an operator does next.
        for dead_letter in unwritten:
            log.warning(
                "%s was in the DLQ of %s and written nowhere: %s", dead_letter.message_id, queue, dead_letter.reason
            )
        for first in range(0, len(unwritten), CHUNK):
            operator.databases.enter(queue, unwritten[first : first + CHUNK])
        gone = sorted(recorded - present)
        left = 0
        for first in range(0, len(gone), CHUNK):
            left += operator.databases.leave(queue, gone[first : first + CHUNK], GONE, began - ON_ITS_WAY)
    return len(unwritten) + left
