"""Nameko's web server, bounded where the stock one hangs, dies or leaks.

A request is read whole, head and body, within a deadline and a size, or refused, before a worker is asked for: slow
clients cost a connection and never a worker. No fault of a client, and no shortage of file descriptors, kills the
container.
"""

from __future__ import annotations

import email.errors
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import eventlet
import nameko.web.server
from eventlet import wsgi
from eventlet.greenio import shutdown_safe
from nameko.web.server import HttpOnlyProtocol
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    LengthRequired,
    RequestEntityTooLarge,
    RequestTimeout,
    ServiceUnavailable,
    default_exceptions,
)
from werkzeug.routing import Map
from werkzeug.wrappers import Request, Response

from shared.errors import ConfigurationFault
from shared.metrics import REQUEST_SECONDS, REQUESTS

log = logging.getLogger(__name__)

Environ = dict[str, Any]

MAX_BODY_BYTES = 64 * 1024
# Silence between two requests, and the time to send a request's head, and then its body.
IDLE_S = 5.0
HEAD_S = 5.0
BODY_S = 5.0
# One read or write: only a client that takes no answer meets it, reads have the shorter limits above.
SOCKET_S = 10.0
# After a refusal the client may still be sending; closing on unread bytes would throw the answer away.
LINGER_S = 1.0
# A call to another service may take 10 s; past this a connection is cut when the service stops.
DRAIN_S = 15.0
BACKLOG = 512
ACCEPT_AGAIN_S = 0.1
MAX_TURNING_AWAY = 64

BODY = "ecom.body"
REFUSED = "ecom.refused"
UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# How a refusal looks; a service's routes may give another one.
Refusal = Callable[[HTTPException, Environ], Response]


def plain_refusal(error: HTTPException, environ: Environ) -> Response:
    """A refusal as one line of text."""
    return Response(f"{error.name}\n", error.code, mimetype="text/plain")


def max_connections() -> int:
    """Half of the process's file descriptors: the rest is for its database, its broker and its files."""
    return min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def linger(sock: socket.socket) -> None:
    """End our side and read on until the client ends its own, for a moment."""
    with suppress(OSError), eventlet.Timeout(LINGER_S, False):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MAX_BODY_BYTES):
            pass


class Connection(HttpOnlyProtocol):
    """One client's connection. States are eventlet's: idle, request, close."""

    server: Server
    capitalize_response_headers = False

    def handle_one_request(self) -> None:
        self.refused: HTTPException | None = None
        super().handle_one_request()

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
            raise BadRequest("One Content-Length in digits is allowed.")
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

    def __init__(self, sock: socket.socket, app: App) -> None:
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

    def as_bytes(self, error: HTTPException) -> bytes:
        """A refusal for a connection that has no request to answer."""
        response = self.app.refuse(error, {"REQUEST_METHOD": "GET"})
        response.headers["Connection"] = "close"
        response.headers["Content-Length"] = str(len(response.data))
        return f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1") + response.data


class WebServer(nameko.web.server.WebServer):
    """One for each service: listens alone on its port, serves the providers, drains when the service stops."""

    _starting: bool
    _is_accepting: bool

    def __init__(self) -> None:
        super().__init__()
        self.refusal: Refusal = plain_refusal
        self._connections: dict[Any, list[Any]] = {}
        self._turning_away = 0

    def start(self) -> None:
        """Listen and serve. Raises ConfigurationFault when the port is taken."""
        if self._starting:
            return
        self._starting = True
        host, port = self.bind_addr
        try:
            # With SO_REUSEPORT, eventlet's default, a second process would silently take half of the requests.
            self._sock = eventlet.listen((host, port), backlog=BACKLOG, reuse_port=False)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationFault(f"port {port} on {host} is taken by another process") from error
            raise ConfigurationFault(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        self._serv = Server(self._sock, self.get_wsgi_app())
        self._max_connections = max_connections()
        self._gt = self.container.spawn_managed_thread(self.run, identifier=f"web server on {host}:{port}")

    def run(self) -> None:
        """Accept until the service stops."""
        while self._is_accepting:
            try:
                sock, address = self._sock.accept()
            except OSError as error:  # no file descriptors left, or a client that has gone already
                log.warning("a connection could not be accepted: %s", error)
                eventlet.sleep(ACCEPT_AGAIN_S)
                continue
            serve = self.process_request if len(self._connections) < self._max_connections else self._turn_away
            sock.settimeout(SOCKET_S)
            # Not a managed thread: its faults are the client's, and must not kill the container.
            eventlet.spawn_n(serve, sock, address)

    def process_request(self, sock: Any, address: Any) -> None:
        """Serve one connection until either side ends it."""
        connection = self._connections[sock] = [address, sock, wsgi.STATE_IDLE]
        try:
            self._serv.process_request(connection)
        except OSError as error:
            log.debug("a client has gone: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._connections.pop(sock, None)
            sock.close()

    def _turn_away(self, sock: Any, address: Any) -> None:
        self._turning_away += 1
        try:
            sock.sendall(self._serv.as_bytes(ServiceUnavailable("Too many connections.")))
            if self._turning_away <= MAX_TURNING_AWAY:
                linger(sock)
        except OSError as error:
            log.debug("a client that was turned away has gone: %s", error)
        finally:
            self._turning_away -= 1
            sock.close()

    def drain(self) -> None:
        """Take no new connection, end the idle ones, wait for the answers under way. Any number may call."""
        if self._is_accepting and self._gt is not None:
            self._is_accepting = False
            self._gt.kill()
            self._sock.close()
            for connection in self._connections.values():
                was, connection[2] = connection[2], wsgi.STATE_CLOSE
                if was == wsgi.STATE_IDLE:
                    shutdown_safe(connection[1])
        deadline = time.monotonic() + DRAIN_S
        while self._connections and time.monotonic() < deadline:
            eventlet.sleep(0.02)

    def stop(self) -> None:
        self.drain()

    def kill(self) -> None:
        if self._gt is not None:
            self._is_accepting = False
            self._gt.kill()
            self._sock.close()

    def get_wsgi_app(self) -> App:
        return App(self)

    def make_url_map(self) -> Map:
        url_map = Map(merge_slashes=False)
        for provider in self._providers:
            for rule in provider.url_rules():
                rule.endpoint = provider
                url_map.add(rule)
        return url_map


class App:
    """The WSGI application: finds the route, asks it, measures it."""

    def __init__(self, server: WebServer) -> None:
        self.server = server
        self.service = server.container.service_name
        self.routes = server.make_url_map().bind("")

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        began = time.perf_counter()
        route, response = self.respond(environ)
        method = environ["REQUEST_METHOD"]
        REQUESTS.labels(self.service, method if method in METHODS else "OTHER", route, response.status_code).inc()
        REQUEST_SECONDS.labels(self.service, route).observe(time.perf_counter() - began)
        return response(environ, start_response)

    def respond(self, environ: Environ) -> tuple[str, Response]:
        """The template of the route that was met, and its answer."""
        if REFUSED in environ:
            return UNMATCHED, self.refuse(environ[REFUSED], environ)
        try:
            provider, values = self.routes.match(path_of(environ), environ["REQUEST_METHOD"])
        except HTTPException as error:
            return UNMATCHED, self.refuse(error, environ)
        request = Request(environ, populate_request=False)
        request.path_values = values  # type: ignore[attr-defined]  # Nameko's name for it
        try:
            return provider.label, provider.handle_request(request)
        except Exception:
            log.exception("%s failed", provider.label)
            return provider.label, self.refuse(InternalServerError(), environ)

    def refuse(self, error: HTTPException, environ: Environ) -> Response:
        """Every answer that no route gave looks as the service's routes want it."""
        return self.server.refusal(error, environ)


def path_of(environ: Environ) -> str:
    """The path as text; what is no UTF-8 matches no route."""
    raw = environ.get("RAW_PATH_INFO")
    path = environ["PATH_INFO"].encode("latin-1") if raw is None else unquote_to_bytes(raw)
    return path.decode("utf-8", "replace")
