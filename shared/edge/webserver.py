"""Nameko's web server, for services that must live: it listens alone, turns away the surplus, drains when it stops.

No fault of a client, and no shortage of file descriptors, kills the container.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import nameko.web.server
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map
from werkzeug.wrappers import Response

from shared.config import bracketed
from shared.edge import green
from shared.edge.connection import HEAD_S, SOCKET_S, Environ, Refuse, Server, linger
from shared.edge.green import shutdown_safe, wsgi
from shared.edge.https import Certificate
from shared.edge.listening import listen, waiting
from shared.edge.settings import settings_of
from shared.edge.shares import Client, Connections, max_connections
from shared.edge.wsgi_app import App
from shared.logs import Reminder, in_a_line

log = logging.getLogger(__name__)

# A call to another service may take 10 s; past this a connection is cut when the service stops.
DRAIN_S = 15.0
# So long clients wait for a service that has just started; then it tells them what it lacks.
START_S = 3.0
LOOK_EVERY_S = 0.05
# A client that has just connected sends its request within this time. A stop waits so long before it ends connections
# on which nothing has arrived: a proxy may not repeat a POST that it has sent.
ARRIVING_S = 0.1
# After so many new connections in a row, those that are open get their turn.
ACCEPTS_IN_A_ROW = 128
ACCEPT_AGAIN_S = 0.1
# Of those that are turned away, so many at once are given time to read why.
MAX_LINGERING = 16

# Security headers of every answer of every service; a page has a Content-Security-Policy of its own.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def plain_refusal(error: HTTPException, environ: Environ) -> Response:
    """A refusal as one line of text; a service's routes may give it another look."""
    response = Response(f"{error.name}\n", error.code, mimetype="text/plain")
    response.headers.extend(allowed(error))
    return response


def allowed(error: HTTPException) -> list[tuple[str, str]]:
    """The Allow header, which RFC 9110 requires with every 405."""
    return [(name, value) for name, value in error.get_headers() if name == "Allow"]


def protect(response: Response, environ: Environ) -> None:
    """Give an answer the headers that all have; those it has stay."""
    given = {name.lower() for name, _ in response.headers}
    for name, value in SECURITY_HEADERS.items():
        if name.lower() not in given:
            response.headers.add(name, value)


class WebServer(nameko.web.server.WebServer):
    """One for each service."""

    # The setting of the container that says where it listens.
    address_in = "WEB_SERVER_ADDRESS"
    # The paths of a certificate and its key, with which it speaks HTTPS and nothing else.
    tls_in = "WEB_SERVER_TLS"
    _starting: bool
    _is_accepting: bool

    def __init__(self) -> None:
        super().__init__()
        # By what the path begins with: how that is refused which no route answers. The longest that fits decides.
        self.refusals: dict[str, Refuse] = {"": plain_refusal}
        self.finish: Callable[[Response, Environ], None] = protect
        # Whether a peer is a proxy, which speaks for many clients.
        self.is_proxy: Callable[[str], bool] = lambda address: False
        # Whether the service can work. Until then no client is accepted, for START_S at most.
        self.can_work: Callable[[], bool] = lambda: True
        self._turning_away = 0

    @property
    def bind_addr(self) -> nameko.web.server.BindAddress:
        """The host and port on which it listens. Nameko's own reading does not know IPv6."""
        # Nameko looks at every attribute before it has read the configuration.
        host, _, port = self.container.config.get(self.address_in, "127.0.0.1:0").rpartition(":")
        return nameko.web.server.BindAddress(host.strip("[]"), int(port))

    @property
    def port(self) -> int:
        """Where it listens, also when any free port was asked for."""
        return int(self._sock.getsockname()[1])

    def limits(self) -> Connections:
        """Its connections, none so far, with their limits."""
        return Connections(max_connections(), settings_of(self.container).connections_per_address)

    def not_ready_reason(self) -> str | None:
        """Why no request can come in now."""
        return None if self._is_accepting else "the service is stopping"

    def start(self) -> None:
        """Listen and serve. Raises ConfigurationFault when the port is taken."""
        if self._starting:
            return
        self._starting = True
        host, port = self.bind_addr
        self._sock = listen(host, port)
        app = App(self)
        self.connections = self.limits()
        files = self.container.config.get(self.tls_in)
        self._certificate = Certificate(*files) if files else None
        self._serv = Server(self._sock, app, app.refuse_unread, self.connections, encrypted=bool(files))
        self._gt = self.container.spawn_managed_thread(self.run, identifier=f"web server on {bracketed(host)}:{port}")

    def run(self) -> None:
        """Accept until the service stops."""
        begun = time.monotonic()
        while not self.can_work() and time.monotonic() < begun + START_S:
            green.sleep(LOOK_EVERY_S)
        reminder = Reminder()
        accepted = 0
        while self._is_accepting:
            try:
                sock, address = self._sock.accept()
            except OSError as error:  # no file descriptors left, or a client that has gone already
                if reminder.due(in_a_line(error)):
                    log.warning("a connection could not be accepted: %s", error)
                green.sleep(ACCEPT_AGAIN_S)
                continue
            self._let_in(sock, address)
            accepted += 1
            if accepted % ACCEPTS_IN_A_ROW == 0:  # eventlet goes on without a pause while clients wait
                green.sleep(0)

    def _let_in(self, sock: Any, address: Any) -> None:
        sock.settimeout(SOCKET_S)
        client = Client(address, sock)
        # Not managed threads: their faults are the clients', and must not kill the container.
        try:
            self.connections.add(client, self.is_proxy(client[0][0]))
        except HTTPException as refused:
            self._turning_away += 1
            green.spawn_n(self._turn_away, client, refused)
        else:
            green.spawn_n(self._serve, client)

    def _serve(self, client: Client) -> None:
        """Serve one connection until either side ends it."""
        try:
            self._encrypt(client)
            self._serv.process_request(client)
        except OSError as error:
            log.debug("a client has gone: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self.connections.remove(client)
            client[1].close()

    def _encrypt(self, client: Client) -> None:
        """Agree with the client on TLS, if we speak it. Raises OSError: for one that does not, or takes too long."""
        if self._certificate is not None:
            client[1] = self._certificate.wrap(client[1])
            with green.Timeout(HEAD_S, TimeoutError("the TLS handshake did not end")):
                client[1].do_handshake()

    def _turn_away(self, client: Client, refused: HTTPException) -> None:
        lingers = self._turning_away <= MAX_LINGERING
        try:
            if lingers:
                self._encrypt(client)
            if lingers or self._certificate is None:  # a handshake for each of a flood would cost too much
                client[1].sendall(self._serv.as_bytes(refused))
            if lingers:
                linger(client[1])
        except OSError as error:
            log.debug("a client that was turned away has gone: %s", error)
        finally:
            self._turning_away -= 1
            client[1].close()

    def refusal(self, error: HTTPException, environ: Environ) -> Response:
        """Refuse a request that no route takes, in the format of the routes under the same path."""
        path = environ.get("PATH_INFO", "")
        fitting = [begin for begin in self.refusals if path == begin or path.startswith(f"{begin}/") or not begin]
        return self.refusals[max(fitting, key=len)](error, environ)

    def drain(self) -> None:
        """Take no new connection, end the idle ones, wait for the answers under way. Any number may call."""
        if self._is_accepting and self._gt is not None:
            self._is_accepting = False
            self._gt.kill()
            for sock, address in waiting(self._sock):
                self._let_in(sock, address)
            self._sock.close()
            green.sleep(ARRIVING_S)
            for client in self.connections:
                was, client[2] = client[2], wsgi.STATE_CLOSE
                if was == wsgi.STATE_IDLE:
                    shutdown_safe(client[1])
        deadline = time.monotonic() + DRAIN_S
        while self.connections and time.monotonic() < deadline:
            green.sleep(0.02)

    def stop(self) -> None:
        self.drain()

    def kill(self) -> None:
        if self._gt is not None:
            self._is_accepting = False
            self._gt.kill()
            self._sock.close()

    def make_url_map(self) -> Map:
        url_map = Map(merge_slashes=False)
        for provider in self._providers:
            for rule in provider.url_rules():
                rule.endpoint = provider
                url_map.add(rule)
        return url_map
