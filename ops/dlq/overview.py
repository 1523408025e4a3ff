"""What lies in the DLQs: counted, grouped, and one message with all that is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from ops import models
from ops.dlq.desk import Desk
from ops.dlq.letters import to_line
from ops.dlq.mailbox import depths
from ops.domain import NEVER, Filter, Letter, dlq_of
from shared.errors import NotFound
from shared.times import timestamp
from topology.table import QUEUES, dead_letter_queue

CHUNK = 500


def overview(desk: Desk, scan: bool = False) -> list[dict[str, Any]]:
    """Every DLQ: {queue, dlq, service, messages, recorded, oldest, newest, reasons, busy, note}.

    `messages` is what the broker counts, `recorded` what the services wrote down; `scan` reads the queues instead.
    While somebody works on a DLQ its messages are in his hands and the broker counts none of them.
    Raises CannotWork.
    """
    settings = desk.settings
    counts = depths(settings.amqp_uri, settings.heartbeat_s, [dead_letter_queue(queue.name) for queue in QUEUES])
    deaths = [row for service in dict.fromkeys(queue.service for queue in QUEUES) for row in desk.books.deaths(service)]
    found = []
    with desk.ledger() as ledger:
        for queue in QUEUES:
            dlq = dead_letter_queue(queue.name)
            busy = models.holder(ledger, dlq)
            known = [row for row in deaths if row["queue"] == queue.name]
            recorded = sum(row["count"] for row in known)
            if scan and counts[dlq] and not busy:
                known = _scanned(desk, queue.name)
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


def _scanned(desk: Desk, queue: str) -> list[dict[str, Any]]:
    """What is in a DLQ by reason, most first."""
    rows: dict[str, dict[str, Any]] = {}
    for letter in _letters(desk, queue):
        _add(
            rows.setdefault(letter.reason, {"reason": letter.reason, "count": 0, "oldest": None, "newest": None}),
            letter,
        )
    return sorted(rows.values(), key=lambda row: (-row["count"], row["reason"]))


def groups(desk: Desk, queue: str, scan: bool = False) -> list[dict[str, Any]]:
    """What lies in a DLQ by reason, error and event type, most first, each with an example.

    Raises ValidationFailed for a queue that is not in the table, Conflict (of a scan), CannotWork.
    """
    main, _ = dlq_of(queue)
    if not scan:
        return desk.books.groups(main)
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for letter in _letters(desk, queue):
        alike = {"reason": letter.reason, "error_class": letter.error_class, "event_type": letter.event_type}
        example = {"example_id": str(letter.message_id), "example_error": letter.error_message}
        key = (letter.reason, letter.error_class, letter.event_type)
        _add(rows.setdefault(key, {**alike, "count": 0, "oldest": None, "newest": None, **example}), letter)
    return sorted(rows.values(), key=lambda row: -row["count"])


def _letters(desk: Desk, queue: str) -> Iterator[Letter]:
    with desk.look_into(queue, Filter()) as selection:
        yield from (item.letter for held in selection.all(CHUNK) for item in held)


def _add(row: dict[str, Any], letter: Letter) -> None:
    row["count"] += 1
    if letter.first_failed_at != NEVER:
        row["oldest"] = min(row["oldest"] or letter.first_failed_at, letter.first_failed_at)
    if letter.last_failed_at != NEVER:
        row["newest"] = max(row["newest"] or letter.last_failed_at, letter.last_failed_at)


def whole(desk: Desk, queue: str, message_id: UUID) -> dict[str, Any]:
    """One message with its envelope, headers and error, and what its order is now.

    Raises NotFound when it is not in the DLQ, Conflict, CannotWork.
    """
    with desk.look_into(queue, Filter(ids=frozenset({message_id}))) as selection:
        found = selection.take(1)
    if not found:
        raise NotFound(f"there is no message {message_id} in {dlq_of(queue)[1]}")
    (item,) = found
    letter, line = item.letter, json.loads(to_line(item.content))
    event = line.get("body", line.get("body_base64"))
    with suppress(ValueError, RecursionError):  # or it is shown as it is
        event = json.loads(item.content.body)
    order = desk.books.order_now(letter.order_id) if letter.order_id else None
    return {
        "message": {
            "message_id": str(message_id),
            "queue": line["queue"],
            "type": letter.event_type,
            "order_id": str(letter.order_id) if letter.order_id else None,
            "trace_id": letter.trace_id,
            "consumed": bool(desk.books.consumed(dlq_of(queue)[0], [message_id])),
        },
        "error": {
            "reason": letter.reason,
            "class": letter.error_class,
            "message": letter.error_message,
            "tries": letter.attempts,
            "replays": letter.replays,
            "first_failed_at": timestamp(letter.first_failed_at) if letter.first_failed_at != NEVER else None,
            "last_failed_at": timestamp(letter.last_failed_at) if letter.last_failed_at != NEVER else None,
        },
        "properties": line["properties"],
        "headers": line["headers"],
        "event": event,
        "order_now": order or "there is no such order",
    }
