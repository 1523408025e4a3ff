"""The messages of an operation: read from the DLQ, kept in a file, handed out oldest first.

Only what sorting needs stays in memory, so a DLQ may hold any number of messages.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import BinaryIO
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


@dataclass(frozen=True, slots=True)
class Slot:
    """A message that is held: when it first failed, its id, its tag, and its place in the file."""

    first_failed: float
    message_id: UUID
    tag: int
    place: int


@dataclass(frozen=True)
class Held:
    """A message in hand."""

    slot: Slot
    content: Content
    dead_letter: DeadLetter


class Selection:
    """The messages of a DLQ that a filter chooses, oldest first. While it is open no other reader gets any of them.

    Everything not acked goes back to the DLQ when it is closed, or its process ends.
    """

    def __init__(self, open_reader: Callable[[], DlqReader], chosen: Filter, seen: Seen = lambda read, total: None):
        self._open_reader = open_reader
        self._report = seen
        self._slots: deque[Slot] = deque()
        self._out: set[UUID] = set()  # handed out
        self._again: list[Slot] = []  # handed out, and found in the DLQ when it was read anew
        self._stack = ExitStack()
        self.total = 0  # in the DLQ, whether chosen or not
        self._read(chosen.matches)
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

    def lines(self, most: int | None = None) -> Iterator[bytes]:
        """The lines of the oldest, or of all, which stay there to be taken."""
        for slot in islice(self._slots, most):
            yield self._spool.line(slot.place)

    def arrivals(self) -> list[Held]:
        """Messages that arrived in the DLQ since it was read; after a new reading, those handed out that are back."""
        self._refresh()
        came = self._again + [self._keep(tag, content) for tag, content in self.reader.arrivals()]
        self._again = []
        return [self._held(slot) for slot in came]

    def _refresh(self) -> None:
        """Put all back before the broker takes it, and read again what is still to be handed out, and no other.

        A message that arrived meanwhile was not chosen, and is in no file that a discard has written.
        """
        if not self.reader.is_expired:
            return
        left = Counter(slot.message_id for slot in self._slots)

        def is_left(dead_letter: DeadLetter) -> bool:
            left[dead_letter.message_id] -= 1
            return left[dead_letter.message_id] >= 0

        self._stack.close()
        self._read(is_left)

    def _read(self, chosen: Callable[[DeadLetter], bool]) -> None:
        try:
            self._slots = deque(sorted(self._chosen(chosen), key=lambda slot: (slot.first_failed, slot.message_id)))
        except BaseException:
            # There is no Selection yet that would do it, and the messages read would stay held.
            self._stack.__exit__(*sys.exc_info())
            raise

    def _chosen(self, chosen: Callable[[DeadLetter], bool]) -> Iterator[Slot]:
        self._spool = Spool()
        self._stack.callback(self._spool.close)
        self.reader = self._stack.enter_context(self._open_reader())
        self.total = total = self.reader.waiting()
        for number, (tag, content) in enumerate(self.reader.read(), start=1):
            dead_letter = dead_letter_of(content)
            if chosen(dead_letter):
                yield self._keep(tag, content, dead_letter)
            elif dead_letter.message_id in self._out:
                self._again.append(self._keep(tag, content, dead_letter))
            if number % REPORT_EVERY == 0 and number < total:
                self._report(number, total)
        self._report(total, total)

    def _keep(self, tag: int, content: Content, dead_letter: DeadLetter | None = None) -> Slot:
        dead_letter = dead_letter or dead_letter_of(content)
        return Slot(dead_letter.first_failed_at.timestamp(), dead_letter.message_id, tag, self._spool.add(content))

    def _held(self, slot: Slot) -> Held:
        content = from_line(self._spool.line(slot.place))
        return Held(slot, content, dead_letter_of(content))
