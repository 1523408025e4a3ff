"""py-amqp, changed where it would lose a message or a frame, hide an alarm of the broker, or wait for a silent one.

It also reads and writes the socket once for many frames, where py-amqp reads three times for each frame and writes
once for each message.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import amqp
from amqp import serialization, spec
from amqp.exceptions import RecoverableConnectionError, UnexpectedFrame
from amqp.transport import SSLTransport, TCPTransport

from shared.edge.frames import frames
from shared.edge.green import Semaphore
from shared.errors import IN_ALARM
from shared.logs import Reminder, in_a_line
from topology.broker_uri import TlsFiles
from topology.tls import client_context

log = logging.getLogger(__name__)


Frame = tuple[int, int, bytes]  # type, channel, payload


def _decode_properties(frame: Any, offset: int) -> tuple[dict[str, Any], int]:
    """Decode the properties and headers of a message; return none when they cannot be read.

    py-amqp expects UTF-8 text and times within Python's calendar. For a message with other values it raises in the
    middle of the connection: the message would return and end each connection that delivers it.
    """
    try:
        properties: tuple[dict[str, Any], int] = serialization.decode_properties_basic(frame, offset)
    except Exception as error:
        log.warning("a message came whose properties cannot be read: %s", in_a_line(error))
        return {}, offset
    return properties


serialization.PROPERTY_CLASSES[amqp.spec.Basic.CLASS_ID] = _decode_properties


# How much is read from the socket at once.
READ_BYTES = 64 * 1024

_FRAME_HEAD = struct.Struct(">BHI")  # type, channel, size of the payload
_FRAME_END = 0xCE


class _InPieces:
    """A transport that reads and writes many frames at once, and that any greenlet may write to.

    Each piece is written whole before the next begins. A write that the broker does not take in at once waits. A
    heartbeat that another greenlet then sent would stand in the middle of the frame, and TLS would refuse it.
    """

    def _setup_transport(self) -> None:
        super()._setup_transport()  # type: ignore[misc]
        self._turn = Semaphore()
        self._gathered: bytearray | None = None
        self._received, self._place = b"", 0

    def write(self, piece: bytes | memoryview) -> None:
        if self._gathered is not None:
            self._gathered += piece  # a copy: py-amqp uses the memory of the piece again
            return
        with self._turn:
            super().write(piece)  # type: ignore[misc]

    @contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """Write at the end, at once, what is written meanwhile. Nothing in between may wait."""
        if self._gathered is not None:
            yield  # it is part of a piece that has begun
            return
        self._gathered = bytearray()
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            if gathered:
                self.write(memoryview(gathered))

    def next_frame(self) -> Frame | None:
        """The next frame, if all of it was received. Raises UnexpectedFrame when it does not end as frames do."""
        if len(self._received) - self._place < _FRAME_HEAD.size:
            return None
        kind, channel, size = _FRAME_HEAD.unpack_from(self._received, self._place)
        begin = self._place + _FRAME_HEAD.size
        end = begin + size
        if len(self._received) <= end:
            return None
        if self._received[end] != _FRAME_END:
            raise UnexpectedFrame(f"a frame ends with {self._received[end]:#04x} instead of {_FRAME_END:#04x}")
        self._place = end + 1
        return kind, channel, self._received[begin:end]

    def read_frame(self) -> Frame:
        """The next frame, however long it takes. What had come of it stays when the wait is broken off.

        Raises OSError when the broker has closed the connection, TimeoutError when the socket has a limit.
        """
        while (frame := self.next_frame()) is None:
            piece = self._quick_recv(READ_BYTES)  # type: ignore[attr-defined]
            if not piece:
                raise OSError("the broker closed the connection")
            self._received, self._place = self._received[self._place :] + piece, 0
        return frame


class _TcpTransport(_InPieces, TCPTransport):
    """In clear text."""


class _TlsTransport(_InPieces, SSLTransport):
    """TLS as we ask for it: with a context of ours, without a limit after the handshake, closed at once."""

    def _setup_transport(self) -> None:
        super()._setup_transport()
        self.sock.settimeout(None)  # its users bound their waits themselves, as they do without TLS

    def _wrap_socket(self, sock: Any, files: TlsFiles) -> Any:
        context = client_context(files)
        return context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)

    def _shutdown_transport(self) -> None:
        """Leave out TLS's own farewell: it waits for the broker's, and a frozen broker sends none."""


_alarms = Reminder()  # of the whole process: an alarm reaches each connection that publishes


class Channel(amqp.Channel):
    """A channel whose messages say who sent them, if its connection has a user to name."""

    def signed(self, properties: dict[str, Any]) -> dict[str, Any]:
        """The properties of a message, changed to say who sent it.

        The broker refuses any other user than the connection's own, so that a receiver can rely on it.
        """
        if self.connection is not None and self.connection.sender is not None:
            properties["user_id"] = self.connection.sender
        return properties

    def publish(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Publish a message of which all is serialized. Raises one of BROKER_ERRORS."""
        if self.connection is None:
            raise RecoverableConnectionError("the channel is closed")
        connection = self.connection
        connection.transport.write(frames(self.channel_id, connection.frame_max, method, properties, body))

    def _basic_publish(self, msg: amqp.Message, *args: Any, **kwargs: Any) -> Any:
        self.signed(msg.properties)
        return super()._basic_publish(msg, *args, **kwargs)

    basic_publish = _basic_publish


class Connection(amqp.Connection):
    """A connection that hears of the broker's alarms, and from which only its reader reads.

    `sender` is the user_id of all that is published on it, or None.
    """

    Channel = Channel

    # py-amqp does not pass on the reason of an alarm, such as `low on memory`.
    _METHODS: ClassVar[dict[Any, Any]] = {
        **amqp.Connection._METHODS,
        spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s"),
    }
    sender: str | None = None
    alarm: str | None = None
    on_alarm: Callable[[str | None], None] | None = None

    def Transport(self, host: str, connect_timeout: float, ssl: Any = False, *unset: None, socket_settings: Any) -> Any:
        """The transport for a connection; `ssl` has the TlsFiles as `files`. Limits to a read or write are not set."""
        kind = _TlsTransport if ssl else _TcpTransport
        return kind(host, connect_timeout=connect_timeout, ssl=ssl, socket_settings=socket_settings)

    @property
    def transport(self) -> Any:
        """The socket's side. Raises RecoverableConnectionError once the connection is closed.

        py-amqp would connect again by itself, in whatever greenlet came too late.
        """
        if self._transport is None:
            raise RecoverableConnectionError("the connection is closed")
        return self._transport

    @transport.setter
    def transport(self, transport: Any) -> None:
        self._transport = transport

    def connect(self, callback: Any = None) -> Any:
        super().connect(callback)
        # The broker knows by now that we hear of alarms. py-amqp would also read from the connection before each
        # publish, in the publishing greenlet: a frame that arrives then never reaches the reader that waits for it.
        self.client_properties.get("capabilities", {})["connection.blocked"] = False

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Handle the next frame. Raises TimeoutError when the rest of it does not come in time."""
        frame = self.transport.next_frame()
        if frame is None:
            with self.transport.having_timeout(timeout):
                frame = self.transport.read_frame()
        return self.on_inbound_frame(frame)

    def in_one_piece(self) -> AbstractContextManager[None]:
        """Write at the end, at once, what is sent meanwhile. Nothing in between may wait."""
        gathering: AbstractContextManager[None] = self.transport.in_one_piece()
        return gathering

    def _on_blocked(self, reason: str) -> None:
        self._set_alarm(f"{IN_ALARM}: {reason.removeprefix('low on ')}")
        if _alarms.due(str(self.alarm)):
            log.warning("%s; it takes no message until it has more", self.alarm)

    def _on_unblocked(self) -> None:
        self._set_alarm(None)
        if _alarms.due("over"):
            log.info("the alarm of the broker is over")

    def _set_alarm(self, alarm: str | None) -> None:
        self.alarm = alarm
        if self.on_alarm is not None:
            self.on_alarm(alarm)
