"""One client's HTTP connection, bounded where eventlet's hangs or leaks.

A request is read whole, head and body, within a deadline and a size, or refused, before a worker is asked for: slow
clients cost a connection and never a worker.
"""

from __future__ import annotations

import email.errors
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import eventlet
from eventlet import wsgi
from nameko.web.server import HttpOnlyProtocol
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    LengthRequired,
    RequestEntityTooLarge,
    RequestTimeout,
    default_exceptions,
)
from werkzeug.wrappers import Response

log = logging.getLogger(__name__)

Environ = dict[str, Any]
Refuse = Callable[[HTTPException, Environ], Response]

MAX_BODY_BYTES = 64 * 1024
# Silence between two requests, and the time to send a request's head, and then its body.
IDLE_S = 5.0
HEAD_S = 5.0
BODY_S = 5.0
# One read or write: only a client that takes no answer meets it, reads have the shorter limits above.
SOCKET_S = 10.0
# After a refusal the client may still be sending; closing on unread bytes would throw the answer away.
LINGER_S = 1.0

# What the application finds in its environ: the whole body, or why there is none.
BODY = "ecom.body"
REFUSED = "ecom.refused"


class Connection(HttpOnlyProtocol):
    """One client's connection. States are eventlet's: idle, request, close."""

    server: Server
    refused: HTTPException | None = None

    def _read_request_line(self) -> bytes:
        with eventlet.Timeout(IDLE_S, TimeoutError("idle")):
            return cast(bytes, super()._read_request_line())

    def parse_request(self) -> bool:
        with eventlet.Timeout(HEAD_S, TimeoutError("the head did not arrive")):
            return super().parse_request()

    def handle_one_response(self) -> None:
        try:
            self.environ[BODY] = self._body()
        except HTTPException as refused:
            self.refused = self.environ[REFUSED] = refused
            self.close_connection = True
        if self.conn_state[2] == wsgi.STATE_CLOSE:
            self.close_connection = True
        super().handle_one_response()

    def _body(self) -> bytes:
        """The whole body. Raises the HTTPException that refuses it, or OSError when the client has gone."""
        if any(isinstance(defect, email.errors.MissingHeaderBodySeparatorDefect) for defect in self.headers.defects):
            raise BadRequest("A header line is malformed.")
        if self.headers.get("Transfer-Encoding") is not None:
            raise LengthRequired
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths:
            return b""
        # Python's int() takes "+5" and "5_0", a proxy in front of us may not: two readings smuggle requests.
        digits = lengths[0].strip(" \t")
        if len(lengths) > 1 or not (digits.isascii() and digits.isdecimal()):
            raise BadRequest("One Content-Length, in digits, is allowed.")
        length = int(digits)
        if length > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        with eventlet.Timeout(BODY_S, RequestTimeout()):
            body = cast(bytes, self.environ["wsgi.input"].read(length))
        if len(body) < length:
            raise ConnectionResetError(errno.ECONNRESET, "the client left before its body was complete")
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The standard library could not read the head."""
        self.close_connection = True
        self.refused = default_exceptions.get(code, BadRequest)()
        self.wfile.write(self.server.as_bytes(self.refused))
        self.wfile.flush()

    def finish(self) -> None:
        if self.refused is not None:
            linger(self.connection)
        super().finish()


class Server(wsgi.Server):
    """eventlet's WSGI server with our connections and without its access log: /metrics counts requests."""

    def __init__(self, sock: socket.socket, app: Any, refuse: Refuse) -> None:
        super().__init__(
            sock,
            sock.getsockname(),
            app,
            protocol=Connection,
            socket_timeout=SOCKET_S,
            debug=False,
            log_output=False,
            log=log,
        )
        self.capitalize_response_headers = False
        self._refuse = refuse

    def as_bytes(self, error: HTTPException) -> bytes:
        """A refusal for a connection that has no request to answer."""
        response = self._refuse(error, {"REQUEST_METHOD": "GET"})
        response.headers["Connection"] = "close"
        response.headers["Content-Length"] = str(len(response.data))
        return f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1") + response.data


def linger(sock: socket.socket) -> None:
    """End our side and read on until the client ends its own, for a moment."""
    with suppress(OSError), eventlet.Timeout(LINGER_S, False):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MAX_BODY_BYTES):
            pass
