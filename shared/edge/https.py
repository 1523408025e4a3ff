"""TLS of a server that clients call: its certificate may be renewed while it serves."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from contextlib import suppress
from typing import Any

from shared.errors import ConfigurationFault
from shared.logs import Reminder, in_a_line

log = logging.getLogger(__name__)

# The first byte of Linux's tcp_info, and its value for a connection that neither side has ended.
ESTABLISHED = 1


class Certificate:
    """A certificate and its key, as PEM files. A pair that was renewed serves the connections that come after."""

    def __init__(self, certificate: str, key: str) -> None:
        """Raises ConfigurationFault when the files cannot be read or do not fit."""
        self.certificate, self.key = certificate, key
        self._reminder = Reminder()
        self._version = self._seen()
        try:
            self._context = self._load()
        except OSError as error:
            raise ConfigurationFault(f"the certificate {certificate} cannot be used: {in_a_line(error)}") from error

    def wrap(self, sock: Any) -> Any:
        """The same connection, in TLS; the handshake is still to come. Raises OSError when the client has gone."""
        return self._current().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def _current(self) -> ssl.SSLContext:
        # Two calls of stat take microseconds, a new context a millisecond.
        seen = self._seen()
        if seen != self._version:
            try:
                self._context = self._load()
                self._version = seen
                log.info("the certificate %s was renewed", self.certificate)
            except OSError as error:  # of the two files only one is there as yet, or one is half written
                if self._reminder.due(in_a_line(error)):
                    log.warning("the renewed certificate cannot be used, the old one stays: %s", in_a_line(error))
        return self._context

    def _seen(self) -> tuple[object, ...]:
        """What changes when a file is replaced or written anew."""
        found: list[object] = []
        for path in (self.certificate, self.key):
            with suppress(OSError):
                now = os.stat(path)
                found.append((now.st_ino, now.st_mtime_ns, now.st_size))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(self.certificate, self.key)
        return context


def say_goodbye(sock: Any) -> None:
    """Tell a TLS client that nothing follows, so that it can tell the end from a cut. Waits for nothing."""
    if isinstance(sock, ssl.SSLSocket):
        with suppress(OSError):
            sock.setblocking(False)
            sock.unwrap()
        sock.setblocking(True)


def has_ended(sock: ssl.SSLSocket) -> bool:
    """Whether the client has ended its side. What it sent before that cannot be looked at without taking it."""
    info = getattr(socket, "TCP_INFO", None)  # Linux; elsewhere a long wait ends by its own limit
    return info is not None and sock.getsockopt(socket.IPPROTO_TCP, info, 1)[0] != ESTABLISHED
