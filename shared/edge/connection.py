"""One client's HTTP connection, bounded where eventlet's hangs or leaks.

A request is read whole, head and body, within a deadline and a size, or refused, before a worker is asked for: slow
clients cost a connection and never a worker.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from email.message import Message
from typing import Any, cast

from nameko.web.server import HttpOnlyProtocol
from werkzeug.exceptions import (
    HTTPException,
    RequestHeaderFieldsTooLarge,
    RequestTimeout,
    RequestURITooLarge,
)
from werkzeug.http import http_date
from werkzeug.wrappers import Response

from shared.edge import framing, green
from shared.edge.green import wsgi
from shared.edge.https import has_ended, say_goodbye
from shared.edge.shares import Connections
from shared.edge.turns import Turns

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
# An ExitStack: what the request holds until its answer has ended.
HELD = "ecom.held"

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(HttpOnlyProtocol):
    """One client's connection. States are eventlet's: idle, request, close."""

    server: Server
    rfile: Any
    headers: Message
    command: str
    path: str
    request_version: str
    requestline: str
    close_connection: bool
    body_framing: framing.Framing
    raw_requestline = b""
    refused: HTTPException | None = None

    def _read_request_line(self) -> bytes:
        self.server.connections.rest(self.conn_state)
        with green.Timeout(IDLE_S, TimeoutError("idle")):
            line = cast(bytes, super()._read_request_line())
            if line == framing.CRLF:  # RFC 9112, section 2.2: some clients send an empty line after a body
                line = cast(bytes, super()._read_request_line())
        if len(line) >= wsgi.MAX_REQUEST_LINE:
            self.raw_requestline = line
            self._refuse(RequestURITooLarge())
            return b""
        return line

    def parse_request(self) -> bool:
        try:
            self.command, self.path, self.request_version = framing.read_request_line(self.raw_requestline)
            self.requestline = self.raw_requestline.decode("latin-1").rstrip("\r\n")
            with green.Timeout(HEAD_S, TimeoutError("the head did not arrive")):
                self.headers = framing.read_fields(self.rfile)
            framing.check_host(self.headers, self.request_version)
            self.body_framing = framing.framing_of(self.headers, self.request_version)
            self.path = framing.origin_form(self.path, self.command, self.headers)
        except (wsgi.HeaderLineTooLong, wsgi.HeadersTooLarge):
            self._refuse(RequestHeaderFieldsTooLarge())
        except HTTPException as refused:
            self._refuse(refused)
        else:
            self.close_connection = framing.ends_connection(self.headers, self.request_version)
        return self.refused is None

    def handle_one_response(self) -> None:
        with ExitStack() as held:
            self.environ[HELD] = held
            self._answer()

    def _answer(self) -> None:
        """Read the body, and answer. Raises OSError when the client has gone."""
        self.environ[HAS_GONE] = self.has_gone
        try:
            self.environ[BODY] = self._body()
        except HTTPException as refused:
            self.refused = self.environ[REFUSED] = refused
            self.close_connection = True
        # Nothing is left to read of this request. eventlet would look for the end of a chunked body once more.
        self.environ["wsgi.input"] = self.environ["eventlet.input"] = wsgi.Input(self.rfile, 0, self.connection)
        if self.conn_state[2] == wsgi.STATE_CLOSE:
            self.close_connection = True
        if not self.server.connections.begin(self.conn_state):
            self.close_connection = True  # it was closed to make room: nobody would hear the answer
            return
        self.server.turns.wait(self.conn_state.address)
        super().handle_one_response()

    def has_gone(self) -> bool:
        """Whether the client has closed its side and no longer waits for the answer."""
        if isinstance(self.connection, ssl.SSLSocket):
            return has_ended(self.connection)
        try:
            return not self.connection.fd.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _body(self) -> bytes:
        """The whole body. Raises the HTTPException that refuses it, or OSError when the client has gone."""
        if self.body_framing.continues and self.body_framing.length <= MAX_BODY_BYTES:
            self.wfile.write(CONTINUE)
            self.wfile.flush()
        with green.Timeout(BODY_S, RequestTimeout()):
            return framing.read_body(self.rfile, self.body_framing, MAX_BODY_BYTES)

    def _refuse(self, error: HTTPException) -> None:
        """Answer a head that could not be read."""
        self.refused = error
        self.close_connection = True
        self.wfile.write(self.server.as_bytes(error, has_body=not self.raw_requestline.startswith(b"HEAD ")))
        self.wfile.flush()

    def finish(self) -> None:
        if self.refused is not None:
            linger(self.connection)
        else:
            say_goodbye(self.connection)
        try:
            super().finish()
        finally:
            # Where the client has gone, closing what could not be written fails, and eventlet closes no more: the file
            # would stay open until the garbage collector comes.
            self.rfile.close()


class Server(wsgi.Server):
    """eventlet's WSGI server with our connections and without its access log: /metrics counts requests."""

    def __init__(
        self,
        sock: socket.socket,
        app: Any,
        refuse: Callable[[HTTPException], Response],
        connections: Connections,
        encrypted: bool = False,
    ) -> None:
        super().__init__(
            sock,
            sock.getsockname(),
            app,
            environ={"wsgi.url_scheme": "https" if encrypted else "http"},
            protocol=Connection,
            socket_timeout=SOCKET_S,
            debug=False,
            log_output=False,
            log=log,
        )
        self.capitalize_response_headers = False
        self._refuse = refuse
        self.connections = connections
        self.turns = Turns()

    def as_bytes(self, error: HTTPException, has_body: bool = True) -> bytes:
        """A refusal for a connection that has no request to answer."""
        response = self._refuse(error)
        response.headers["Connection"] = "close"
        response.headers["Date"] = http_date()
        body: bytes = response.data
        response.headers["Content-Length"] = str(len(body))
        return f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1") + (body if has_body else b"")


def linger(sock: socket.socket) -> None:
    """End our side and read on until the client ends its own, for a moment."""
    say_goodbye(sock)
    with suppress(OSError), green.Timeout(LINGER_S, False):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MAX_BODY_BYTES):
            pass
