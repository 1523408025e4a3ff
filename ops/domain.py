"""The rules of dead messages: which are chosen, which are refused, and in what waves they are replayed.

Plain values in, plain values out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from shared.enumerations import OperationKind, OperationStatus
from shared.errors import Forged, ValidationFailed
from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, CUSTOMER, OPERATOR, has_role
from topology.table import BY_NAME, dead_letter_queue, main_queue

T = TypeVar("T")

# After this many replays a message is refused: another replay would not help.
MAX_REPLAYS = 3

# The reason of a message that the broker moved to the DLQ itself, because its consumer died on it again and again.
CRASH = "crash"
# The reason of a message that another program put into the DLQ without one.
UNKNOWN = "unknown"

# No message at all is known to be older than this.
NEVER = datetime.min.replace(tzinfo=UTC)


Kind = OperationKind
Status = OperationStatus


class Fate(StrEnum):
    """The result of an operation for one message."""

    STARTED = "started"  # about to be sent; still so after a crash: it may be in both queues, which the inbox absorbs
    SENT = "sent"  # safe in its main queue and gone from the DLQ; not consumed yet
    APPLIED = "applied"  # its consumer has it in its inbox, and was expected to act on it
    ALREADY_APPLIED = "already_applied"  # its consumer had it in its inbox before it was sent
    WITHOUT_EFFECT = "without_effect"  # its consumer has it in its inbox; it was stale, so nothing changed
    DEAD_AGAIN = "dead_again"
    REFUSED = "refused"  # by a guard: it is still in the DLQ
    DISCARDED = "discarded"
    IMPORTED = "imported"
    THERE = "already_there"  # not imported: the DLQ holds it


# A message that was sent and now has one of these is no longer on its way.
CONSUMED = (Fate.APPLIED, Fate.ALREADY_APPLIED, Fate.WITHOUT_EFFECT, Fate.DEAD_AGAIN)


@dataclass(frozen=True)
class DeadLetter:
    """The facts of a dead message by which a filter chooses. `born_at` is when the event occurred, if it is known."""

    message_id: UUID
    reason: str
    error_class: str = ""
    error_message: str = ""
    event_type: str = ""
    order_id: UUID | None = None
    trace_id: str = ""
    attempts: int = 0
    replays: int = 0
    first_failed_at: datetime = NEVER
    last_failed_at: datetime = NEVER
    born_at: datetime = NEVER


@dataclass(frozen=True)
class Filter:
    """Chooses dead messages. An empty field lets everything pass; `error` is searched in the error's class and text."""

    ids: frozenset[UUID] = frozenset()
    reasons: frozenset[str] = frozenset()
    error: str = ""
    types: frozenset[str] = frozenset()
    order_id: UUID | None = None
    trace_id: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def matches(self, dead_letter: DeadLetter) -> bool:
        """Whether the filter chooses a dead message. Times are compared with its first failure: since <= it < until."""
        return (
            (not self.ids or dead_letter.message_id in self.ids)
            and (not self.reasons or dead_letter.reason in self.reasons)
            and (
                not self.error
                or self.error.lower() in f"{dead_letter.error_class}: {dead_letter.error_message}".lower()
            )
            and (not self.types or dead_letter.event_type in self.types)
            and (self.order_id is None or dead_letter.order_id == self.order_id)
            and (not self.trace_id or dead_letter.trace_id == self.trace_id)
            and (self.since is None or dead_letter.first_failed_at >= self.since)
            and (self.until is None or dead_letter.first_failed_at < self.until)
        )

    def as_dict(self) -> dict[str, object]:
        """The fields that are set, as plain values for the ledger."""
        return {
            name: sorted(map(str, value)) if isinstance(value, frozenset) else str(value)
            for name, value in self.__dict__.items()
            if value
        }


@dataclass(frozen=True)
class Pace:
    """The pace of a replay: so many a second (None: as fast as the broker confirms), in waves of these sizes."""

    per_second: float | None = None
    ramp: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """As plain values for the ledger."""
        return {"rate": self.per_second, "ramp": list(self.ramp)}


@dataclass
class Tally:
    """The results of an operation, counted by message: copies of a message count as one."""

    chosen: int = 0
    copies: int = 0  # messages that had the same id and body as one of these, and went with it
    vouched: int = 0  # replayed although they do not say who published them: the operator vouches for them
    fates: Counter[Fate] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # why they were refused, or are dead again

    def as_dict(self) -> dict[str, object]:
        """As plain values for the ledger."""
        fates = {fate.value: count for fate, count in self.fates.items() if count}
        besides = {name: count for name in ("copies", "vouched") if (count := getattr(self, name))}
        reasons = {"reasons": dict(self.reasons)} if self.reasons else {}
        return {"chosen": self.chosen, **besides, **fates, **reasons}


def dlq_of(queue: str) -> tuple[str, str]:
    """The main queue and DLQ of either's name. Raises ValidationFailed for a name that is not in the table."""
    main = main_queue(queue)
    if main not in BY_NAME:
        raise ValidationFailed(f"there is no queue {queue!r}; one of {', '.join(BY_NAME)}")
    return main, dead_letter_queue(main)


def refusal(dead_letter: DeadLetter, now: datetime, inbox_days: int) -> str | None:
    """Why a dead message must not be replayed without force, or None.

    The inbox absorbs what has taken effect already for as long as it remembers; an older message could act twice.
    """
    if dead_letter.reason == Forged.code:
        return "forged"
    if dead_letter.replays >= MAX_REPLAYS:
        return f"replayed {dead_letter.replays} times before"
    born = min(
        (moment for moment in (dead_letter.born_at, dead_letter.first_failed_at) if moment != NEVER), default=None
    )
    if born is None:
        return "of unknown age"
    if now - born > timedelta(days=inbox_days):
        return f"older than the {inbox_days} days that the inbox remembers"
    return None


def turns(items: Iterable[T], group: Callable[[T], object | None]) -> list[list[T]]:
    """The items in their order, in as few lists as it takes for no list to have two of one group. None is no group."""
    found: list[list[T]] = []
    before: Counter[object] = Counter()
    for item in items:
        key = group(item)
        turn = before[key] if key is not None else 0
        before[key] += 1
        if turn == len(found):
            found.append([])
        found[turn].append(item)
    return found


def counted(messages: int, ids: int, noun: str = "") -> str:
    """`3` with a noun, or `109 messages of 99 ids` where some have copies."""
    if messages == ids:
        return f"{messages} {noun}".rstrip()
    return f"{messages} messages of {ids} {'id' if ids == 1 else 'ids'}"


def waves(ramp: Iterable[int]) -> Iterator[int]:
    """The sizes of waves: those of the ramp, then its last again and again."""
    size = 0
    for size in ramp:
        yield size
    while size:
        yield size


def require_choice(ids: object, most: int | None, everything: bool, names: tuple[str, str, str]) -> None:
    """Raise ValidationFailed unless a request chooses messages by ids, a maximum, or all of them.

    `names` are the caller's words for the three.
    """
    if most is not None and everything:
        raise ValidationFailed(f"{names[1].partition(' ')[0]} or {names[2]}, not both")
    if most is None and not everything and not ids:
        raise ValidationFailed(f"say which: {names[0]}, {names[1]} or {names[2]} (with filters: all that match)")


# From one a day to more than any broker takes.
SLOWEST_PER_S, FASTEST_PER_S = 1 / 86_400, 1_000_000
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/(s|m|min|h)")
_SIZE = re.compile(r"[0-9]{1,7}")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def parse_rate(text: str) -> float | None:
    """`10/s`, `30/m`, or `max` for no limit, as messages a second. Raises ValidationFailed."""
    if text == "max":
        return None
    match = _RATE.fullmatch(text)
    rate = float(match[1]) / _SECONDS[match[2]] if match else 0.0
    if not SLOWEST_PER_S <= rate <= FASTEST_PER_S:
        raise ValidationFailed(f"a rate reads 10/s, 30/m, 100/h or max, not {text!r}")
    return rate


def parse_ramp(text: str) -> tuple[int, ...]:
    """`1,2,5,20` as sizes of waves. Raises ValidationFailed."""
    sizes = [part.strip() for part in text.split(",")]
    if not all(_SIZE.fullmatch(size) and 0 < int(size) <= 1_000_000 for size in sizes):
        raise ValidationFailed(f"a ramp reads 1,2,5,20, not {text!r}")
    return tuple(map(int, sizes))


def may_read_queues(caller: Identity) -> bool:
    """Whether someone may count waiting messages and read dead ones."""
    return has_role(caller, OPERATOR, ADMIN)


def may_replay(caller: Identity) -> bool:
    """Whether someone may replay dead messages and see what became of a replay."""
    return has_role(caller, OPERATOR, ADMIN)


def may_read_deaths_of_order(caller: Identity) -> bool:
    """Whether someone may read which messages of an order are dead. Who owns an order, only order_service knows:
    whoever calls for a customer asks it first.
    """
    return has_role(caller, CUSTOMER, OPERATOR, AUDITOR, ADMIN)


def may_read_audit(caller: Identity) -> bool:
    """Whether someone may read the ledger of the release audit, and what operators did to orders."""
    return has_role(caller, AUDITOR, ADMIN)
