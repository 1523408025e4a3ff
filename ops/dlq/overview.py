"""Views of the DLQs: counts, groups, and one message with everything known about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from ops import models
from ops.dlq.dead_messages import to_line
from ops.dlq.dlq_reader import depths
from ops.dlq.operator_session import CHUNK, OperatorSession
from ops.domain import NEVER, DeadLetter, Filter, dlq_of
from shared.errors import NotFound
from shared.times import timestamp
from topology.table import QUEUES, dead_letter_queue


def overview(operator: OperatorSession, scan: bool = False) -> list[dict[str, Any]]:
    """Every DLQ: {queue, dlq, service, messages, recorded, oldest, newest, reasons, busy, note}.

    `messages` is what the broker counts, `recorded` what the services wrote down; `scan` reads the queues instead.
    While an operator works on a DLQ they hold its messages, and the broker counts none of them.
    Raises CannotWork.
    """
    settings = operator.settings
    counts = depths(settings.amqp_uri, settings.heartbeat_s, [dead_letter_queue(queue.name) for queue in QUEUES])
    deaths = [
        row
        for service in dict.fromkeys(queue.service for queue in QUEUES)
        for row in operator.databases.deaths(service)
    ]
    found = []
    with operator.ledger() as ledger:
        for queue in QUEUES:
            dlq = dead_letter_queue(queue.name)
            busy = models.holder(ledger, dlq)
            known = [row for row in deaths if row["queue"] == queue.name]
            recorded = sum(row["count"] for row in known)
            if scan and counts[dlq] and not busy:
                known = _scanned(operator, queue.name)
            found.append(
                {
                    "queue": queue.name,
                    "dlq": dlq,
                    "service": queue.service,
                    "messages": counts[dlq],
                    "recorded": recorded,
                    "oldest": min((row["oldest"] for row in known if row["oldest"]), default=None),
                    "newest": max((row["newest"] for row in known if row["newest"]), default=None),
                    "reasons": [{"reason": row["reason"], "count": row["count"]} for row in known],
                    "busy": busy,
                    "note": _note(counts[dlq], recorded, busy),
                }
            )
    return found


def _note(messages: int, recorded: int, busy: str | None) -> str:
    if busy:
        return f"being worked on by {busy.removeprefix(models.SESSION_PREFIX)}"
    return "" if messages == recorded else f"{recorded} written down"


def _scanned(operator: OperatorSession, queue: str) -> list[dict[str, Any]]:
    """Count the messages of a DLQ by reason, most frequent first."""
    rows: dict[str, dict[str, Any]] = {}
    for dead_letter in _letters(operator, queue):
        _add(
            rows.setdefault(
                dead_letter.reason, {"reason": dead_letter.reason, "count": 0, "oldest": None, "newest": None}
            ),
            dead_letter,
        )
    return sorted(rows.values(), key=lambda row: (-row["count"], row["reason"]))


def groups(operator: OperatorSession, queue: str, scan: bool = False) -> list[dict[str, Any]]:
    """Group the messages of a DLQ by reason, error and event type, most frequent first, each with an example.

    Raises ValidationFailed for a queue that is not in the table, Conflict (of a scan), CannotWork.
    """
    main, _ = dlq_of(queue)
    if not scan:
        return operator.databases.groups(main)
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for dead_letter in _letters(operator, queue):
        alike = {
            "reason": dead_letter.reason,
            "error_class": dead_letter.error_class,
            "event_type": dead_letter.event_type,
        }
        example = {"example_id": str(dead_letter.message_id), "example_error": dead_letter.error_message}
        key = (dead_letter.reason, dead_letter.error_class, dead_letter.event_type)
        _add(rows.setdefault(key, {**alike, "count": 0, "oldest": None, "newest": None, **example}), dead_letter)
    return sorted(rows.values(), key=lambda row: -row["count"])


def _letters(operator: OperatorSession, queue: str) -> Iterator[DeadLetter]:
    with operator.look_into(queue, Filter()) as selection:
        yield from (item.dead_letter for held in selection.all(CHUNK) for item in held)


def _add(row: dict[str, Any], dead_letter: DeadLetter) -> None:
    row["count"] += 1
    if dead_letter.first_failed_at != NEVER:
        row["oldest"] = min(row["oldest"] or dead_letter.first_failed_at, dead_letter.first_failed_at)
    if dead_letter.last_failed_at != NEVER:
        row["newest"] = max(row["newest"] or dead_letter.last_failed_at, dead_letter.last_failed_at)


def full_message(operator: OperatorSession, queue: str, message_id: UUID) -> dict[str, Any]:
    """One message with its envelope, headers and error, and what its order is now.

    Raises NotFound when it is not in the DLQ, Conflict, CannotWork.
    """
    with operator.look_into(queue, Filter(ids=frozenset({message_id}))) as selection:
        found = selection.take(1)
    if not found:
        raise NotFound(f"there is no message {message_id} in {dlq_of(queue)[1]}")
    (item,) = found
    dead_letter, line = item.dead_letter, json.loads(to_line(item.content))
    event = line.get("body", line.get("body_base64"))
    with suppress(ValueError, RecursionError):  # or it is shown as it is
        event = json.loads(item.content.body)
    order = operator.databases.order_now(dead_letter.order_id) if dead_letter.order_id else None
    return {
        "message": {
            "message_id": str(message_id),
            "queue": line["queue"],
            "type": dead_letter.event_type,
            "order_id": str(dead_letter.order_id) if dead_letter.order_id else None,
            "trace_id": dead_letter.trace_id,
            "consumed": bool(operator.databases.consumed(dlq_of(queue)[0], [message_id])),
        },
        "error": {
            "reason": dead_letter.reason,
            "class": dead_letter.error_class,
            "message": dead_letter.error_message,
            "tries": dead_letter.attempts,
            "replays": dead_letter.replays,
            "first_failed_at": timestamp(dead_letter.first_failed_at) if dead_letter.first_failed_at != NEVER else None,
            "last_failed_at": timestamp(dead_letter.last_failed_at) if dead_letter.last_failed_at != NEVER else None,
        },
        "properties": line["properties"],
        "headers": line["headers"],
        "event": event,
        "order_now": order or "there is no such order",
    }
