"""The messages of an operation: read from the DLQ, kept in a file, handed out oldest first.

Only what sorting needs stays in memory, so a DLQ may hold any number of messages.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from types import TracebackType
from typing import Any, BinaryIO
from uuid import UUID

from ops.dlq.dead_messages import Content, dead_letter_of, from_line, to_line
from ops.dlq.dlq_reader import DlqReader
from ops.domain import DeadLetter, Filter
from shared.errors import CannotWork

# While a DLQ is read, progress is reported after each of so many messages.
REPORT_EVERY = 1000

Seen = Callable[[int, int], None]  # how many were read of how many


class Spool:
    """Messages in an unnamed file, as the lines of an export."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="ecom-dlq-")  # noqa: SIM115
        self._end = 0

    def add(self, content: Content) -> int:
        """Save a message; returns its place."""
        place = self._end
        try:
            self._file.seek(place)
            self._end += self._file.write(to_line(content))
        except OSError as error:
            raise CannotWork(f"no room in {tempfile.gettempdir()} for what is read: {error.strerror}") from error
        return place

    def line(self, place: int) -> bytes:
        """The line of a message."""
        self._file.seek(place)
        return self._file.readline()

    def close(self) -> None:
        """Let go of the file, and so of the messages."""
        self._file.close()


@dataclass(slots=True)
class Slot:
    """A message that is held, with the tags of all its copies.

    Copies have the same id and the same body: their consumer lets only one of them take effect.
    """

    message_id: UUID
    key: bytes  # equal for copies
    first_failed: float  # the earliest of its copies
    tags: list[int]
    place: int | None = None  # in the file; None when it was not chosen


@dataclass(frozen=True)
class Held:
    """A message in hand, with its copies."""

    slot: Slot
    content: Content
    dead_letter: DeadLetter


class Selection:
    """The messages of a DLQ that a filter chooses, oldest first; copies of one message are one.

    A message is chosen with all its copies if the filter chooses one of them. While the selection is open no other
    reader gets any message of the DLQ. Everything not acked goes back to the DLQ when it is closed, or its process
    ends. `check` is called again and again and may raise to end the reading.
    """

    def __init__(
        self,
        open_reader: Callable[[], DlqReader],
        chosen: Filter,
        seen: Seen = lambda read, total: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_reader = open_reader
        self._report = seen
        self._check = check
        self._slots: deque[Slot] = deque()
        self._out: set[UUID] = set()  # handed out
        self._again: list[Slot] = []  # handed out, and found in the DLQ when it was read anew
        self._stack = ExitStack()
        self.total = 0  # messages in the DLQ, whether chosen or not
        self.ids = 0  # and how many different ids they have
        self._read(lambda slot, dead_letter: chosen.matches(dead_letter), _oldest_first)
        self.count = len(self._slots)

    def __enter__(self) -> Selection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)

    def take(self, most: int) -> list[Held]:
        """The next messages, at most so many; none when all have been handed out."""
        self._refresh()
        slots = [self._slots.popleft() for _ in range(min(most, len(self._slots)))]
        self._out.update(slot.message_id for slot in slots)
        return [self._held(slot) for slot in slots]

    def all(self, chunk: int) -> Iterator[list[Held]]:
        """All of them, in chunks."""
        while held := self.take(chunk):
            yield held
            self._check()

    def lines(self, most: int | None = None) -> Iterator[tuple[bytes, int]]:
        """The lines of the oldest, or of all, each with its number of copies; they stay there to be taken."""
        for slot in islice(self._slots, most):
            yield self._line(slot), len(slot.tags)

    def counts(self) -> Counter[UUID]:
        """How many messages of each id are still to be handed out."""
        found: Counter[UUID] = Counter()
        for slot in self._slots:
            found[slot.message_id] += len(slot.tags)
        return found

    def keep(self, ids: Collection[UUID]) -> None:
        """Hand out only messages with these ids from now on."""
        self._slots = deque(slot for slot in self._slots if slot.message_id in ids)

    def arrivals(self) -> list[Held]:
        """Messages that arrived in the DLQ since it was read; after a new reading, those handed out that are back."""
        self._refresh()
        came = self._again
        self._again = []
        for tag, content in self.reader.arrivals():
            dead_letter = dead_letter_of(content)
            slot = _slot(content, dead_letter)
            slot.tags.append(tag)
            slot.place = self._spool.add(content)
            came.append(slot)
        return [self._held(slot) for slot in came]

    def _refresh(self) -> None:
        """Put all back before the broker takes it, and read again what is still to be handed out, and no other.

        A message that arrived meanwhile was not chosen, and is in no file that a discard has written; a copy of one
        that was chosen is.
        """
        if not self.reader.is_expired:
            return
        order = {slot.key: number for number, slot in enumerate(self._slots)}
        self._stack.close()
        self._read(lambda slot, dead_letter: slot.key in order, lambda slot: order[slot.key])

    def _read(self, is_chosen: Callable[[Slot, DeadLetter], bool], order: Callable[[Slot], Any]) -> None:
        try:
            self._slots = deque(sorted(self._chosen(is_chosen), key=order))
        except BaseException:
            # There is no Selection yet that would do it, and the messages read would stay held.
            self._stack.__exit__(*sys.exc_info())
            raise

    def _chosen(self, is_chosen: Callable[[Slot, DeadLetter], bool]) -> list[Slot]:
        self._spool = Spool()
        self._stack.callback(self._spool.close)
        self.reader = self._stack.enter_context(self._open_reader())
        self.total = total = self.reader.waiting()
        slots: dict[bytes, Slot] = {}
        chosen: list[Slot] = []
        for number, (tag, content) in enumerate(self.reader.read(), start=1):
            dead_letter = dead_letter_of(content)
            new = _slot(content, dead_letter)
            slot = slots.setdefault(new.key, new)
            slot.tags.append(tag)
            slot.first_failed = min(slot.first_failed, new.first_failed)
            if slot.place is None:
                into = chosen if is_chosen(slot, dead_letter) else self._again if slot.message_id in self._out else None
                if into is not None:
                    slot.place = self._spool.add(content)
                    into.append(slot)
            if number % REPORT_EVERY == 0 and number < total:
                self._check()
                self._report(number, total)
        self._check()
        self._report(total, total)
        self.ids = len({slot.message_id for slot in slots.values()})
        return chosen

    def _line(self, slot: Slot) -> bytes:
        assert slot.place is not None, "it was not chosen"
        return self._spool.line(slot.place)

    def _held(self, slot: Slot) -> Held:
        content = from_line(self._line(slot))
        return Held(slot, content, dead_letter_of(content))


def _slot(content: Content, dead_letter: DeadLetter) -> Slot:
    """A message without tags and place."""
    digest = blake2b(content.body, key=dead_letter.message_id.bytes, digest_size=16).digest()
    return Slot(dead_letter.message_id, digest, dead_letter.first_failed_at.timestamp(), [])


def _oldest_first(slot: Slot) -> tuple[float, UUID, bytes]:
    return slot.first_failed, slot.message_id, slot.key
