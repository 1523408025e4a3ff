"""Views of the DLQs: counts, groups, and one message with everything known about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ops.dlq.dead_messages import to_line
from ops.dlq.operator_session import CHUNK, OperatorSession
from ops.dlq.selection import Held
from ops.domain import NEVER, Filter, counted, dlq_of
from ops.locks import Holder, holders
from ops.orders import order_now
from shared.errors import NotFound
from shared.times import timestamp
from topology.table import BY_NAME, QUEUES, dead_letter_queue


@dataclass(frozen=True)
class Count:
    """The messages in the DLQ of a main queue, as the broker counts and as recorded, and who works on it."""

    queue: str
    ready: int  # by the broker, without what a consumer holds
    deaths: list[dict[str, Any]]  # recorded, by reason
    holder: Holder | None

    @property
    def ids(self) -> int:
        """How many different messages are recorded."""
        return sum(row["ids"] for row in self.deaths)

    @property
    def recorded(self) -> int:
        """How many messages are recorded, with copies."""
        return sum(row["count"] for row in self.deaths)

    @property
    def messages(self) -> int:
        """How many messages are there. An operator who works on a DLQ holds them, and the broker counts none."""
        return max(self.ready, self.recorded) if self.holder else self.ready

    @property
    def note(self) -> str:
        """What an operator should know of the numbers."""
        notes = [self.holder.sentence()] if self.holder else []
        if self.messages != self.recorded:
            notes.append(f"{self.ids} recorded")
        elif self.recorded != self.ids:
            notes.append(counted(self.recorded, self.ids))
        return "; ".join(notes)


def count(operator: OperatorSession) -> list[Count]:
    """Count what lies in every DLQ. Raises CannotWork."""
    dlqs = [dead_letter_queue(queue.name) for queue in QUEUES]
    with operator.ledger() as ledger:
        # Before and after: the broker's count is too low if somebody works on the DLQ at that moment.
        before = holders(ledger, dlqs)
        counts = operator.counter.count(dlqs)
        held = before | holders(ledger, dlqs)
    deaths: dict[str, list[dict[str, Any]]] = {queue.name: [] for queue in QUEUES}
    for service in dict.fromkeys(queue.service for queue in QUEUES):
        for row in operator.databases.deaths(service):
            deaths.setdefault(row["queue"], []).append(row)
    return [
        Count(queue.name, counts[dlq].messages, deaths[queue.name], held.get(dlq))
        for queue, dlq in zip(QUEUES, dlqs, strict=True)
    ]


def overview(operator: OperatorSession, scan: bool = False) -> list[dict[str, Any]]:
    """Every DLQ: {queue, dlq, service, messages, recorded, copies, oldest, newest, reasons, busy, holder, note}.

    `messages` is what the broker counts, or what is recorded while somebody works on the DLQ; `recorded` is how many
    different messages the services recorded, `copies` how many copies of them are there; `scan` reads the queues
    instead. Raises CannotWork.
    """
    found = []
    for one in count(operator):
        known = _scanned(operator, one.queue) if scan and one.ready and not one.holder else one.deaths
        found.append(
            {
                "queue": one.queue,
                "dlq": dead_letter_queue(one.queue),
                "service": BY_NAME[one.queue].service,
                "messages": one.messages,
                "recorded": one.ids,
                "copies": one.recorded - one.ids,
                "oldest": min((row["oldest"] for row in known if row["oldest"]), default=None),
                "newest": max((row["newest"] for row in known if row["newest"]), default=None),
                "reasons": [{"reason": row["reason"], "count": row["count"]} for row in known],
                "busy": one.holder.actor if one.holder else None,
                "holder": one.holder.as_dict() if one.holder else None,
                "note": one.note,
            }
        )
    return found


def _scanned(operator: OperatorSession, queue: str) -> list[dict[str, Any]]:
    """Count the messages of a DLQ by reason, most frequent first."""
    rows: dict[str, dict[str, Any]] = {}
    for item in _held(operator, queue):
        reason = item.dead_letter.reason
        _add(rows.setdefault(reason, {"reason": reason, **_NOTHING}), item)
    return sorted(rows.values(), key=lambda row: (-row["count"], row["reason"]))


def groups(operator: OperatorSession, queue: str, scan: bool = False) -> list[dict[str, Any]]:
    """Group the messages of a DLQ by reason, error and event type, most frequent first, each with an example.

    `count` has the copies in it, `ids` has each message once.

    Raises ValidationFailed for a queue that is not in the table, Conflict (of a scan), CannotWork.
    """
    main, _ = dlq_of(queue)
    if not scan:
        return operator.databases.groups(main)
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for item in _held(operator, queue):
        dead_letter = item.dead_letter
        alike = {
            "reason": dead_letter.reason,
            "error_class": dead_letter.error_class,
            "event_type": dead_letter.event_type,
        }
        example = {"example_id": str(dead_letter.message_id), "example_error": dead_letter.error_message}
        key = (dead_letter.reason, dead_letter.error_class, dead_letter.event_type)
        _add(rows.setdefault(key, {**alike, **_NOTHING, **example}), item)
    return sorted(rows.values(), key=lambda row: -row["count"])


_NOTHING: dict[str, Any] = {"count": 0, "ids": 0, "oldest": None, "newest": None}


def _held(operator: OperatorSession, queue: str) -> Iterator[Held]:
    with operator.look_into(queue, Filter()) as selection:
        yield from (item for held in selection.all(CHUNK) for item in held)


def _add(row: dict[str, Any], item: Held) -> None:
    dead_letter = item.dead_letter
    row["count"] += len(item.slot.tags)
    row["ids"] += 1
    if dead_letter.first_failed_at != NEVER:
        row["oldest"] = min(row["oldest"] or dead_letter.first_failed_at, dead_letter.first_failed_at)
    if dead_letter.last_failed_at != NEVER:
        row["newest"] = max(row["newest"] or dead_letter.last_failed_at, dead_letter.last_failed_at)


def full_message(operator: OperatorSession, queue: str, message_id: UUID) -> dict[str, Any]:
    """One message with its envelope, headers and error, and what its order is now.

    Raises NotFound when it is not in the DLQ, Conflict, CannotWork.
    """
    with operator.look_into(queue, Filter(ids=frozenset({message_id}))) as selection:
        found = selection.take(selection.count)
    if not found:
        raise NotFound(f"there is no message {message_id} in {dlq_of(queue)[1]}")
    item = found[0]
    dead_letter, line = item.dead_letter, json.loads(to_line(item.content))
    event = line.get("body", line.get("body_base64"))
    with suppress(ValueError, RecursionError):  # or it is shown as it is
        event = json.loads(item.content.body)
    order: dict[str, Any] | str = "there is no such order"
    if dead_letter.order_id:
        with suppress(NotFound):
            order = order_now(operator.databases, dead_letter.order_id, operator.settings.order_deadline_s)
    return {
        "message": {
            "message_id": str(message_id),
            "queue": line["queue"],
            "type": dead_letter.event_type,
            "order_id": str(dead_letter.order_id) if dead_letter.order_id else None,
            "trace_id": dead_letter.trace_id,
            "copies": sum(len(item.slot.tags) for item in found),
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
        "order_now": order,
    }
