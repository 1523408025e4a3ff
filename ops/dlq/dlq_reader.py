"""Reads a DLQ without loss: a message stays in the broker until it is acknowledged.

Messages that are read are held unacknowledged. When the reader closes, normally or by a crash, the broker takes back
all that were not acknowledged. Holding them also lets one pass see each message once: a message that is returned
early would be delivered again at once. 100,000 held messages cost the reader a tag each.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from ops.dlq.dead_messages import Content, content_of
from shared.edge import green
from shared.edge.broker import BROKER_ERRORS, BrokerConnection, Channel, Message, NoSuchQueue
from shared.errors import CannotWork

# A consumer that has so many is replaced by a new one, on a channel of its own, which gets the next: the broker looks
# for what is acked from the oldest on that the channel holds. On one channel, 100,000 acks in another order than that
# of the deliveries took RabbitMQ 3.10 minutes of its processor.
PREFETCH = 2000
# RabbitMQ gives a connection 2047 channels. A reader that needs more reuses them in turn.
CHANNELS = 1000
# The count at the start is the number to read. A message that another reader is returning is awaited this long.
SILENCE_S = 2.0
# The broker ends a channel that holds a message for 30 minutes (its consumer_timeout): long before, all is put back
# and read again.
HOLD_S = 600.0
# The broker takes back 100,000 in a fraction of a second; another consumer that takes them meanwhile must not delay us.
PUT_BACK_S = 5.0
PUT_BACK_AGAIN_S = 0.01

log = logging.getLogger(__name__)


@contextmanager
def broker_faults() -> Iterator[None]:
    """Turn errors of the broker into CannotWork: nothing is lost, and the operator may try again."""
    try:
        yield
    except NoSuchQueue as error:
        raise CannotWork(f"the broker has no such queue ({error.reply_text}); see: ecom topology apply") from error
    except BROKER_ERRORS as error:
        raise CannotWork(f"the broker is away: {type(error).__name__} {error}") from error


@dataclass(frozen=True)
class Counted:
    """A queue by the broker's count: the messages that no consumer holds, and the consumers."""

    messages: int
    consumers: int


class QueueCounter:
    """Counts queues over a connection of its own: opened when first used, kept, opened again after any fault.

    Only one greenlet may use it at a time. Close it when done.
    """

    def __init__(self, uri: str, heartbeat_s: float) -> None:
        self.uri = uri
        self.heartbeat_s = heartbeat_s
        self._connection: BrokerConnection | None = None

    def count(self, queues: Sequence[str]) -> dict[str, Counted]:
        """The counts of each queue. Raises CannotWork."""
        with broker_faults():
            if self._connection is not None:
                try:
                    return self._count(self._connection, queues)
                except BROKER_ERRORS as error:
                    log.debug("queues are counted over a new connection: %s", error)  # the old one broke while idle
            self._connection = BrokerConnection(self.uri, self.heartbeat_s)
            return self._count(self._connection, queues)

    def _count(self, connection: BrokerConnection, queues: Sequence[str]) -> dict[str, Counted]:
        try:
            with connection.bounded():
                declared = {name: connection.channel.queue_declare(name, passive=True) for name in queues}
        except BaseException:
            self.close()  # its answer may still come, and would be taken for that to the next question
            raise
        return {name: Counted(int(one.message_count), int(one.consumer_count)) for name, one in declared.items()}

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


class DlqReader:
    """One DLQ, opened for reading. Every method raises CannotWork when the broker is away; then all is put back."""

    def __init__(self, uri: str, heartbeat_s: float, dlq: str) -> None:
        self.dlq = dlq
        self._opened = time.monotonic()
        self._came: deque[tuple[int, Content]] = deque()
        self._room = 0
        self._held = 0
        self._consumers = 0
        self._failed = False  # the broker did not answer
        with broker_faults():
            self._connection = BrokerConnection(uri, heartbeat_s)
        self._channels: list[Channel] = [self._connection.channel]

    def __enter__(self) -> DlqReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The next reader finds all of them also after an error, unless the broker is the reason or somebody is in a
        # hurry (KeyboardInterrupt and the like): then the broker takes them back when it sees the connection end.
        try:
            if not self._failed and (kind is None or issubclass(kind, Exception)):
                self._put_back()
        except BROKER_ERRORS:
            log.debug("%s is put back by the broker itself", self.dlq, exc_info=True)
        finally:
            self._connection.abort()

    def _put_back(self) -> None:
        """Return when the broker has taken back every message, so that the next reader finds all of them."""
        if not self._held:
            return
        until = time.monotonic() + PUT_BACK_S
        self._connection.reset_silence()
        self._unsubscribe()
        expected = self._count() + self._held
        for channel in self._channels:
            with self._connection.bounded():
                channel.basic_recover(requeue=True)
        while self._count() < expected and time.monotonic() < until:
            green.sleep(PUT_BACK_AGAIN_S)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            with broker_faults():
                yield
        except CannotWork:
            self._failed = True
            raise

    @property
    def is_expired(self) -> bool:
        """Whether it has been open for so long that it should be opened anew."""
        return time.monotonic() - self._opened > HOLD_S

    def waiting(self) -> int:
        """How many messages no consumer holds."""
        with self._faults():
            return self._count()

    def _count(self) -> int:
        with self._connection.bounded():
            return int(self._connection.channel.queue_declare(self.dlq, passive=True).message_count)

    def read(self) -> Iterator[tuple[int, Content]]:
        """Each message that is there when it begins, with the tag to ack it by."""
        for _ in range(self.waiting()):
            if not self._came and not self._fetch(SILENCE_S):
                return
            yield self._came.popleft()

    def arrivals(self) -> Iterator[tuple[int, Content]]:
        """The messages that have arrived since, without waiting."""
        while self._came or self._fetch(0):
            yield self._came.popleft()

    def ack(self, tags: Sequence[int]) -> None:
        """Remove these from the DLQ, and return when the broker has confirmed it."""
        with self._faults():
            self._connection.reset_silence()
            for tag in tags:
                delivery, place = divmod(tag, CHANNELS)
                self._channels[place].basic_ack(delivery)
            self._held -= len(tags)
            with self._connection.bounded():
                for place in {tag % CHANNELS for tag in tags}:
                    # The broker answers in order: this answer shows that it has processed the acks before it.
                    self._channels[place].basic_qos(0, PREFETCH, False)

    def _fetch(self, patience_s: float) -> bool:
        """Read what is on its way; whether there is anything."""
        with self._faults():
            self._connection.reset_silence()
            if self._room <= 0:  # what was acked makes room again, and may have been filled beyond the count
                self._subscribe()
            deadline = time.monotonic() + patience_s
            while not self._came:
                left = deadline - time.monotonic()
                if not self._connection.read(timeout_s=max(left, 0)) and left <= 0:
                    break
        return bool(self._came)

    def _unsubscribe(self) -> None:
        """Stop the consumer; the messages that it has delivered stay with this reader."""
        if self._consumers:
            with self._connection.bounded():
                self._channels[(self._consumers - 1) % CHANNELS].basic_cancel(self.dlq)

    def _subscribe(self) -> None:
        with self._connection.bounded():
            self._unsubscribe()
            place = self._consumers % CHANNELS
            if place == len(self._channels):
                self._channels.append(self._connection.open())
            channel = self._channels[place]
            channel.basic_qos(0, PREFETCH, False)
            channel.basic_consume(
                self.dlq, consumer_tag=self.dlq, callback=lambda message: self._receive(place, message)
            )
        self._consumers += 1
        self._room = PREFETCH

    def _receive(self, place: int, message: Message) -> None:
        self._room -= 1
        self._held += 1
        tag = message.delivery_info["delivery_tag"] * CHANNELS + place
        self._came.append((tag, content_of(self.dlq, message)))
