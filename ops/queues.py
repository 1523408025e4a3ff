"""The working queues: how many messages wait in each and how many consumers it has, as the broker counts.

A message that a consumer holds and has not acknowledged yet is not among those that wait: AMQP does not tell it.
"""

from __future__ import annotations

from typing import Any

from ops.dlq.dlq_reader import QueueCounter
from shared.errors import CannotWork
from shared.metrics import QUEUE_CONSUMERS, QUEUE_MESSAGES
from topology.table import QUEUES, RETRY_WAITS_S, retry_queues


def working_queues(counter: QueueCounter) -> list[dict[str, Any]]:
    """Every working queue: {queue, service, ready, consumers, retrying: [{queue, wait_s, messages}]}.

    `retrying` has the messages of each retry level, the shortest wait first. Raises CannotWork.
    """
    counted = counter.count([name for queue in QUEUES for name in (queue.name, *retry_queues(queue.name))])
    return [
        {
            "queue": queue.name,
            "service": queue.service,
            "ready": counted[queue.name].messages,
            "consumers": counted[queue.name].consumers,
            "retrying": [
                {"queue": name, "wait_s": wait, "messages": counted[name].messages}
                for name, wait in zip(retry_queues(queue.name), RETRY_WAITS_S, strict=True)
            ],
        }
        for queue in QUEUES
    ]


def measure(counter: QueueCounter) -> None:
    """Set the gauges of the working queues; while the broker is away they have no values. Raises CannotWork."""
    try:
        found = working_queues(counter)
    except CannotWork:
        # Not before: while the queues are counted, the numbers of the last time are still shown.
        QUEUE_CONSUMERS.clear()
        QUEUE_MESSAGES.clear()
        raise
    for one in found:
        QUEUE_CONSUMERS.labels(one["queue"]).set(one["consumers"])
        QUEUE_MESSAGES.labels(one["queue"]).set(one["ready"])
        for level in one["retrying"]:
            QUEUE_MESSAGES.labels(level["queue"]).set(level["messages"])
