"""One client's HTTP connection, bounded where eventlet's hangs or leaks.

A request is read whole, head and body, within a deadline and a size, or refused, before a worker is asked for: slow
clients cost a connection and never a worker.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from email.errors import MissingHeaderBodySeparatorDefect
from typing import Any, cast

from nameko.web.server import HttpOnlyProtocol
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    LengthRequired,
    RequestEntityTooLarge,
    RequestHeaderFieldsTooLarge,
    RequestTimeout,
    RequestURITooLarge,
    default_exceptions,
)
from werkzeug.wrappers import Response

from shared.edge import green
from shared.edge.green import wsgi

log = logging.getLogger(__name__)

Environ = dict[str, Any]
Refuse = Callable[[HTTPException, Environ], Response]

MAX_BODY_BYTES = 64 * 1024
# Silence between two requests, and the time to send a request's head, and then its body.
IDLE_S = 5.0
HEAD_S = 5.0
BODY_S = 5.0
# For one read or write. Only a client that does not read its answer reaches it: reads have the shorter limits above.
SOCKET_S = 10.0
# After a refusal the client may still be sending; closing on unread bytes would throw the answer away.
LINGER_S = 1.0

# What the application finds in its environ: the whole body, or why there is none.
BODY = "ecom.body"
REFUSED = "ecom.refused"
# A function that tells a long wait whether the client has gone.
HAS_GONE = "ecom.has_gone"

DIGITS = re.compile(r"[0-9]{1,18}[ \t]*")


class Connection(HttpOnlyProtocol):
    """One client's connection. States are eventlet's: idle, request, close."""

    server: Server
    refused: HTTPException | None = None

    def _read_request_line(self) -> bytes:
        with green.Timeout(IDLE_S, TimeoutError("idle")):
            connection = cast(bytes, super()._read_request_line())
        if len(connection) >= wsgi.MAX_REQUEST_LINE:
            self._refuse(RequestURITooLarge())
            return b""
        return connection

    def parse_request(self) -> bool:
        try:
            with green.Timeout(HEAD_S, TimeoutError("the head did not arrive")):
                if not super().parse_request():
                    return False
            self._check_framing()
        except (wsgi.HeaderLineTooLong, wsgi.HeadersTooLarge):
            self._refuse(RequestHeaderFieldsTooLarge())
        except BadRequest as refused:
            self._refuse(refused)
        return self.refused is None

    def _check_framing(self) -> None:
        """Raises BadRequest when a proxy in front of us could see the request end elsewhere than we do."""
        if any(isinstance(defect, MissingHeaderBodySeparatorDefect) for defect in self.headers.defects):
            raise BadRequest("A header line is malformed.")
        lengths = self.headers.get_all("Content-Length", [])
        if lengths and self.headers.get("Transfer-Encoding") is not None:
            raise BadRequest("Content-Length and Transfer-Encoding do not go together.")
        # Python's int() takes "+5" and "5_0" too.
        if len(lengths) > 1 or not all(DIGITS.fullmatch(length) for length in lengths):
            raise BadRequest("One Content-Length, in digits, is allowed.")

    def handle_one_response(self) -> None:
        self.environ[HAS_GONE] = self.has_gone
        try:
            self.environ[BODY] = self._body()
        except HTTPException as refused:
            self.refused = self.environ[REFUSED] = refused
            self.close_connection = True
        if self.conn_state[2] == wsgi.STATE_CLOSE:
            self.close_connection = True
        super().handle_one_response()

    def has_gone(self) -> bool:
        """Whether the client has closed its side and no longer waits for the answer."""
        try:
            return not self.connection.fd.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _body(self) -> bytes:
        """The whole body. Raises the HTTPException that refuses it, or OSError when the client has gone."""
        if self.headers.get("Transfer-Encoding") is not None:
            raise LengthRequired
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        with green.Timeout(BODY_S, RequestTimeout()):
            body = cast(bytes, self.environ["wsgi.input"].read(length))
        if len(body) < length:
            raise ConnectionResetError(errno.ECONNRESET, "the client left before its body was complete")
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The standard library could not read the head."""
        self._refuse(default_exceptions.get(code, BadRequest)())

    def _refuse(self, error: HTTPException) -> None:
        """Answer a head that could not be read."""
        self.refused = error
        self.close_connection = True
        self.wfile.write(self.server.as_bytes(error))
        self.wfile.flush()

    def finish(self) -> None:
        if self.refused is not None:
            linger(self.connection)
        try:
            super().finish()
        finally:
            # Where the client has gone, closing what could not be written fails, and eventlet closes no more: the file
            # would stay open until the garbage collector comes.
            self.rfile.close()


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
        body: bytes = response.data
        response.headers["Content-Length"] = str(len(body))
        return f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1") + body


def linger(sock: socket.socket) -> None:
    """End our side and read on until the client ends its own, for a moment."""
    with suppress(OSError), green.Timeout(LINGER_S, False):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MAX_BODY_BYTES):
            pass
