"""One connection to the broker, on bare py-amqp, that never hangs for ever.

kombu waits for a close-ok from a broker that is frozen, and its reconnect backoff grows to 30 s. A
BrokerConnection drops its transport instead, and its user reconnects after at most `MAX_BACKOFF_S`.
"""

from __future__ import annotations

import logging
import math
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import amqp
from amqp.exceptions import AccessRefused, NotAllowed, NotFound, PreconditionFailed
from amqp.exceptions import AMQPError as AMQPError

from shared.config import bracketed
from shared.edge import green
from shared.edge.amqp_client import Connection
from shared.edge.green import GreenThread
from shared.errors import BrokerInAlarm
from shared.logs import Reminder, in_a_line
from shared.senders import USERS
from topology import broker_uri

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
# Several waits add up on the way of an order, which is to be paid within 10 s after an outage.
MAX_BACKOFF_S = 3.0

# How long a graceful stop waits for the broker to have taken in what was sent last.
LEAVE_S = 1.0

# For those outside the edge who read and write messages.
Channel = amqp.Channel
Message = amqp.Message
NoSuchQueue = NotFound

# amqp's own ConnectionError is not the builtin one: a broken pipe arrives as OSError.
BROKER_ERRORS = (AMQPError, OSError)
# The broker answered, and waiting alone will not change its answer.
REFUSALS = (AccessRefused, NotAllowed, NotFound, PreconditionFailed)


class BrokerSilent(OSError):
    """The broker sent nothing, not even a heartbeat, for two heartbeat intervals."""


class BrokerConnection:
    """An open connection with a channel, or several. Only one greenlet may read from it; any may write.

    `on_alarm` is called with words when the broker has a memory or disk alarm and takes no more from this connection,
    and with None when the alarm is over. The broker tells it only to connections that publish.
    """

    def __init__(self, uri: str, heartbeat_s: float, on_alarm: Callable[[str | None], None] | None = None) -> None:
        """Connect within CONNECT_TIMEOUT_S. Raises one of BROKER_ERRORS."""
        address = broker_uri.parse(uri)
        self.heartbeat_s = heartbeat_s
        self.connection = Connection(
            host=f"{bracketed(address.host)}:{address.port}",
            userid=address.user,
            password=address.password,
            login_method="PLAIN",
            virtual_host=address.vhost,
            ssl={"files": address.tls} if address.tls else False,
            heartbeat=int(heartbeat_s),
            connect_timeout=CONNECT_TIMEOUT_S,
            socket_settings={socket.TCP_USER_TIMEOUT: int(heartbeat_s * 2000)},
        )
        # A user that several services share would say nothing about who sends.
        self.connection.sender = address.user if address.user in USERS else None
        self.connection.on_alarm = on_alarm
        self._pulse: GreenThread | None = None
        try:
            with green.Timeout(CONNECT_TIMEOUT_S * 2, TimeoutError("the broker did not finish the handshake")):
                self.connection.connect()
                self.channel = self.open()
        except BaseException:
            self.abort()
            raise
        self._heard = time.monotonic()
        self._bytes_heard = self.connection.bytes_recv
        self._pulse = green.spawn(self._send_heartbeats)

    @property
    def alarm(self) -> str | None:
        """The alarm in words, while the broker takes nothing from this connection; known once it was read."""
        return self.connection.alarm

    def open(self) -> amqp.Channel:
        """A channel; the first is `channel`. Raises one of BROKER_ERRORS."""
        channel = self.connection.channel()
        # Bodies stay bytes: a sender's content_encoding could make text of them that nothing can encode.
        channel.auto_decode = False
        return channel

    def read(self, timeout_s: float) -> bool:
        """Handle what the broker sends next; False when nothing came in time. Raises one of BROKER_ERRORS."""
        try:
            self.connection.drain_events(timeout=timeout_s)
            return True
        except TimeoutError:  # also socket.timeout
            return False
        finally:
            self._listen()

    def in_one_piece(self) -> AbstractContextManager[None]:
        """Write at the end, at once, what is sent meanwhile. Nothing in between may wait."""
        return self.connection.in_one_piece()

    @contextmanager
    def bounded(self, until: float = math.inf) -> Iterator[None]:
        """Bound a wait for the broker's answer: a frozen broker gives none. Raises BrokerSilent.

        `until` is a moment of the monotonic clock: the wait ends then at the latest.
        """
        limit = max(0.0, min(2 * self.heartbeat_s, until - time.monotonic()))
        with green.Timeout(limit, BrokerSilent(f"the broker did not answer in {limit:.0f} s")):
            yield

    def reset_silence(self) -> None:
        """Count the broker's silence from now: nothing was read for a while."""
        self._heard = time.monotonic()

    def _listen(self) -> None:
        now = time.monotonic()
        if self.connection.bytes_recv != self._bytes_heard:
            self._bytes_heard, self._heard = self.connection.bytes_recv, now
        elif now - self._heard > 2 * self.heartbeat_s:
            raise BrokerSilent(f"the broker has been silent for {now - self._heard:.0f} s")

    def _send_heartbeats(self) -> None:
        while True:
            green.sleep(self.heartbeat_s / 2)
            try:
                self.connection.send_heartbeat()
            except BROKER_ERRORS:
                return  # the reader meets the same fault and reconnects

    def close(self) -> None:
        """Close cleanly: return when the broker has read all that was sent. Raises one of BROKER_ERRORS.

        A connection that breaks off may lose its last acks, and the messages are delivered again: seen 5 times in 900
        on a busy machine with RabbitMQ 3.10, which presumably ends the channel before it has read the acks.
        """
        with self.bounded(time.monotonic() + LEAVE_S):
            self.connection.close()

    def abort(self) -> None:
        """Drop the transport at once, without a word to a broker that may not answer."""
        if self._pulse is not None:
            self._pulse.kill()
            self._pulse = None
        # A frozen broker never answers close-ok. Closing the socket requeues all messages that were not acked.
        self.connection.collect()


def run_connected(
    uri: str,
    heartbeat_s: float,
    serve: Callable[[BrokerConnection], None],
    stopping: Callable[[], bool],
    not_ready_reason: Callable[[str | None], None],
    name: str,
) -> None:
    """Run `serve(connection)` until stopping, over as many connections as it takes; each old one is dropped first.

    `serve` returns when the service stops. `not_ready_reason` is called with the reason while there is no connection
    or the broker takes nothing from it, and with None when an alarm is over; `serve` calls it with None when it is
    ready.
    """
    waits, reminder = backoff(), Reminder()

    def hear_of_alarm(alarm: str | None) -> None:
        not_ready_reason(f"{name}: {alarm}" if alarm else None)

    while not stopping():
        connection = None
        opened = time.monotonic()
        try:
            connection = BrokerConnection(uri, heartbeat_s, hear_of_alarm)
            opened = time.monotonic()
            serve(connection)
            connection.close()
        except BROKER_ERRORS as error:
            if connection is not None and time.monotonic() - opened > MAX_BACKOFF_S:
                waits = backoff()
                reminder.forget()
            reason = why(error)
            not_ready_reason(f"{name}: {reason}")
            if reminder.due(reason):
                log.warning("%s: %s: %s; trying again until it works", name, reason, in_a_line(error))
            # The old socket goes first: what it had prefetched would be stranded otherwise.
            if connection is not None:
                connection.abort()
            if not stopping():
                green.sleep(next(waits))
        finally:
            if connection is not None:
                connection.abort()


def why(error: Exception) -> str:
    """One of BROKER_ERRORS in a few words, and what to do where waiting does not help."""
    if isinstance(error, NotFound) and "no queue" in str(error):
        return "a queue is not there; `ecom topology apply` declares what is missing"
    if isinstance(error, REFUSALS):
        return f"the broker refuses ({type(error).__name__})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the broker is not accepted ({error.verify_message.rstrip('.')})"
    if isinstance(error, ssl.SSLError):
        return f"TLS with the broker fails ({error.reason or type(error).__name__})"
    return f"the broker is away ({type(error).__name__})"


def in_brief(error: BaseException) -> str:
    """What /readyz says of an error: the words of an alarm, the class of any other."""
    return str(error) if isinstance(error, BrokerInAlarm) else type(error).__name__


def backoff() -> Iterator[float]:
    """Seconds to wait before each next try: 0.1 growing to MAX_BACKOFF_S, with jitter so replicas spread."""
    wait = 0.1
    while True:
        yield wait * random.uniform(0.7, 1.0)
        wait = min(wait * 2, MAX_BACKOFF_S)
