"""The letters that an operation is about: read from the DLQ, kept on disk, handed out oldest first.

Only what sorting needs stays in memory, so a DLQ may hold any number.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import BinaryIO
from uuid import UUID

from ops.dlq.letters import Content, from_line, letter_of, to_line
from ops.dlq.mailbox import Mailbox
from ops.domain import Filter, Letter

# Told so often while a DLQ is read.
TELL_EVERY = 1000

Seen = Callable[[int, int], None]  # how many were read of how many


class Spool:
    """Messages in an unnamed file, as the lines of an export."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="ecom-dlq-")  # noqa: SIM115
        self._end = 0

    def add(self, content: Content) -> int:
        """Keep a message; where."""
        place = self._end
        self._file.seek(place)
        self._end += self._file.write(to_line(content))
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
    """A message that is held: when it first failed, its id, its tag, and where it is kept."""

    first_failed: float
    message_id: UUID
    tag: int
    place: int


@dataclass(frozen=True)
class Held:
    """A message in hand."""

    slot: Slot
    content: Content
    letter: Letter


class Selection:
    """What a filter chooses of a DLQ, oldest first. While it is open nobody else is handed any of its messages.

    Everything not acked goes back to the DLQ when it is closed, or its process ends.
    """

    def __init__(self, open_mailbox: Callable[[], Mailbox], chosen: Filter, seen: Seen = lambda read, total: None):
        self._open_mailbox = open_mailbox
        self._filter = chosen
        self._tell = seen
        self._done: set[UUID] = set()
        self._stack = ExitStack()
        self.total = 0  # in the DLQ, whether chosen or not
        try:
            self._read()
        except BaseException:
            self._stack.close()  # or what was read would stay in hand for as long as this process lives
            raise
        self.count = len(self._slots)

    def __enter__(self) -> Selection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def take(self, most: int) -> list[Held]:
        """The next messages, at most so many; none when all have been handed out."""
        if self.mailbox.tired and self._slots:
            self._stack.close()
            self._read()
        slots = [self._slots.popleft() for _ in range(min(most, len(self._slots)))]
        self._done.update(slot.message_id for slot in slots)
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
        """What has come into the DLQ since it was read."""
        came = [self._keep(tag, content) for tag, content in self.mailbox.arrivals()]
        return [self._held(slot) for slot in came]

    def _read(self) -> None:
        self._spool = Spool()
        self._stack.callback(self._spool.close)
        self.mailbox = self._stack.enter_context(self._open_mailbox())
        self.total = total = self.mailbox.waiting()
        slots = []
        for number, (tag, content) in enumerate(self.mailbox.read(), start=1):
            letter = letter_of(content)
            if self._filter.matches(letter) and letter.message_id not in self._done:
                slots.append(self._keep(tag, content, letter))
            if number % TELL_EVERY == 0 or number == total:
                self._tell(number, total)
        slots.sort(key=lambda slot: (slot.first_failed, slot.message_id))
        self._slots = deque(slots)

    def _keep(self, tag: int, content: Content, letter: Letter | None = None) -> Slot:
        letter = letter or letter_of(content)
        return Slot(letter.first_failed_at.timestamp(), letter.message_id, tag, self._spool.add(content))

    def _held(self, slot: Slot) -> Held:
        content = from_line(self._spool.line(slot.place))
        return Held(slot, content, letter_of(content))
