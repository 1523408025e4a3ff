"""Run a service on its own port, without broker and database."""

import http.client
import json
import socket
from contextlib import contextmanager

import eventlet
from nameko.containers import ServiceContainer
from nameko.extensions import DependencyProvider

from gateway.api.cursors import Cursors
from shared.config import Settings
from shared.edge.probe_server import ProbeServer
from shared.edge.webserver import WebServer
from shared.errors import InvalidGrant

SECRET = "a-secret-of-more-than-thirty-two-bytes"
KEYS = (("k1", SECRET),)


def signed_cursor(route, cursor):
    """A service's cursor as the gateway under test hands it out."""
    return Cursors(KEYS, route).sign(cursor)


class Fake(DependencyProvider):
    """Injects a fake in place of another service."""

    def __init__(self, stand_in):
        self.stand_in = stand_in

    def get_dependency(self, worker_ctx):
        return self.stand_in.under(worker_ctx.data) if hasattr(self.stand_in, "under") else self.stand_in


@contextmanager
def serving(service, max_workers=4, settings=None, tls=None):
    """Run a service and yield its WebServer; stop the service at the end. `tls`: the paths of certificate and key."""
    config = {
        "WEB_SERVER_ADDRESS": "127.0.0.1:0",
        "max_workers": max_workers,
        "settings": settings or Settings(auth_keys=KEYS),
        "WEB_SERVER_TLS": tls,
    }
    container = ServiceContainer(service, config)
    container.start()
    try:
        yield server_of(container)
    finally:
        container.stop()


def server_of(container, kind=WebServer):
    """The one server of this kind."""
    (server,) = [item for item in container.subextensions if type(item) is kind]
    return server


def probes_of(server):
    """The server of the probes of the same service."""
    return server_of(server.container, ProbeServer)


def ask(server, method, path, body=None, headers=None):
    """Send one request. Returns (status, headers, body); a JSON body is decoded."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        is_json = answer.headers.get("Content-Type") == "application/json"
        return answer.status, answer.headers, json.loads(text) if is_json and text else text.decode()
    finally:
        connection.close()


def dial(server):
    """A raw socket connected to the server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def hear(sock):
    """Everything received until the other side closes or resets the connection."""
    heard = b""
    try:
        while chunk := sock.recv(65536):
            heard += chunk
    except ConnectionResetError:
        pass
    return heard.decode()


def say(server, text):
    """Send raw text; return what the server answers until it closes the connection."""
    with dial(server) as sock:
        sock.sendall(text.encode())
        return hear(sock)


class Changes:
    """A fake of a service that reports changes: states by id, and the calls that asked for them."""

    def __init__(self, key, states):
        self.key = key
        self.states = states
        self.steps = []
        self.asked = []
        self.steps_asked = []
        self.ending = {}
        self.feed = []
        self.feed_asked = []
        self.error = None

    def read(self, id_):
        return dict(self.states[id_])

    def change(self, id_, **what):
        """Make a new version of one state."""
        self.states[id_] = {**self.states[id_], **what, "version": self.states[id_]["version"] + 1}

    def page(self, after, limit):
        """A page of the feed; its positions are `1-n`."""
        read = len(self.feed) if after == "now" else int(after.rpartition("-")[2])
        items = self.feed[read : read + limit]
        return {"items": items, "after": f"1-{read + len(items)}", "more": read + limit < len(self.feed)}

    def call(self, routing_key, args, kwargs, context, timeout_s):
        eventlet.sleep(0)
        if self.error:
            raise self.error
        if routing_key.endswith(".steps"):
            id_, last = args
            self.steps_asked.append(last)
            after = [step for step in self.steps if step["id"] > last]
            return {"version": self.states[id_]["version"], "steps": after, **self.ending}
        if routing_key.endswith(".all_steps"):
            self.feed_asked.append(args)
            return self.page(*args)
        if routing_key.endswith(".next_steps"):
            self.feed_asked.append(args)
            pages = {after: self.page(after, 200) for after in args[0]}
            return [
                {"position": after, "version": args[0][after] + 1, "page": page}
                for after, page in pages.items()
                if page["items"]
            ]
        (known,) = args
        self.asked.append(known)
        return [self.read(id_) for id_, version in known.items() if self.states[id_]["version"] > version]


ORDERS = Changes("order_id", {})


class Revoked:
    """A fake of auth_service, as gateways ask it what is revoked and for the tokens of services' keys."""

    def __init__(self):
        self.items = []
        self.keys = {}
        self.asked = []
        self.error = None

    def call(self, routing_key, args, kwargs, context, timeout_s):
        eventlet.sleep(0)
        self.asked.append((routing_key, args, context))
        if self.error:
            raise self.error
        if routing_key == "auth_service.exchange_key":
            token = self.keys.get(tuple(args))
            if token is None:
                raise InvalidGrant
            return {"access_token": token() if callable(token) else token, "token_type": "Bearer", "expires_in": 900}
        return {"items": self.items, "next": None, "since": "later"}


REVOKED = Revoked()
