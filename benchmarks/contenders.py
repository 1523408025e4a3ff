"""What is measured: this project, the floor and the peers, each with the way to start and to stop it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from benchmarks.plan import FIRST_PRICE, OTHER_PRICE, SKUS
from benchmarks.rig import Rig
from ops.local.processes import Process, StackFault
from ops.local.server import LOOPBACK, free_port
from shared.config import PORTS_BETWEEN_REPLICAS
from topology.services import START_ORDER

USERS = 200
OFFERS_A_PUT = 200  # the most that one request may have


class Contender(Protocol):
    """A system that takes orders to their end."""

    name: str
    title: str
    urls: list[str]  # where orders are posted; none if it creates its orders itself
    users: list[str]  # header lines that say who posts

    def start(self, rig: Rig) -> None:
        """Start it and return when it takes orders."""

    def stop(self, rig: Rig) -> None:
        """Stop it."""

    def databases(self, rig: Rig) -> dict[str, str]:
        """The name of the database of each service."""


class Ours:
    """This project, as `make up` runs it, with so many processes of each service."""

    name = "ours"
    title = "this project"

    def __init__(self, replicas: int = 1) -> None:
        self.replicas = replicas
        self.urls: list[str] = []
        self.users: list[str] = []

    def start(self, rig: Rig) -> None:
        rig.stack.start_services(rig.progress, rig.ports, self._replicas())
        rig.stock(self.databases(rig)["inventory"])
        first = rig.ports["gateway"]
        _list_skus(f"http://{LOOPBACK}:{first}")
        rig.wait_offers(self.databases(rig)["order"])
        self.urls = [f"http://{LOOPBACK}:{first + PORTS_BETWEEN_REPLICAS * n}" for n in range(self.replicas)]
        self.users = [f"Authorization: Bearer {_token(self.urls[0], f'bench-{n}')}" for n in range(USERS)]

    def _replicas(self) -> Mapping[str, int]:
        # One of each of these: no order passes them.
        return {name: 1 if name in ("auth", "ops", "catalog") else self.replicas for name in START_ORDER}

    def stop(self, rig: Rig) -> None:
        rig.stack.stop_services()

    def databases(self, rig: Rig) -> dict[str, str]:
        names = ("order", "inventory", "payment")
        return {name: urlsplit(rig.stack.environment[f"{name.upper()}_DATABASE_URL"]).path[1:] for name in names}

    @contextmanager
    def without(self, rig: Rig, service: str) -> Iterator[None]:
        """Stop the only process of a service for a while."""
        assert rig.stack.supervisor
        (child,) = [child for child in rig.stack.supervisor.children if child.service == service]
        process = Process.of(child.popen.pid) if child.popen else None
        if child.popen is None or process is None:
            raise StackFault(f"{service} has died")
        process.end()
        child.popen.wait()
        child.popen = None
        yield
        rig.stack.supervisor.run_once()  # starts what does not run


class OnTables:
    """What the floor and the peers have in common: their tables, queues and stock."""

    name: str

    def databases(self, rig: Rig) -> dict[str, str]:
        """The name of the database of each service."""
        return {service: f"{self.name}_{service}" for service in ("order", "inventory", "payment")}

    def stop(self, rig: Rig) -> None:
        """Stop it."""
        rig.stop_processes()


class Floor(OnTables):
    """Raw psycopg2 and py-amqp in batches of 50, without HTTP for customers."""

    name = "floor"
    title = "floor: psycopg2, py-amqp"

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.users: list[str] = []

    def start(self, rig: Rig) -> None:
        """Start the consumers; `create` makes the orders."""
        rig.make_contender(self.name)
        for service in ("order", "inventory", "payment"):
            rig.start_process(service, "-m", "benchmarks.floor", service)
        rig.wait_consumers(self.name)

    def create(self, rig: Rig, count: int) -> float:
        """Create so many orders as fast as possible; the seconds of CPU it took."""
        return rig.run_aside("floor-create", "-m", "benchmarks.floor", "create", str(count))


class Peer(OnTables):
    """A peer: an HTTP front and three workers, all of one module."""

    module: str
    front: str  # what its front is called, in the module and in the tables

    urls: list[str]

    def __init__(self) -> None:
        self.urls = []
        self.users = [f"X-User-Id: bench-{n}" for n in range(USERS)]

    def start(self, rig: Rig) -> None:
        """Start the front and the three workers."""
        rig.make_contender(self.name)
        for service in ("order", "inventory", "payment"):
            rig.start_process(service, "-m", self.module, service)
        port = free_port()
        rig.start_process(self.front, "-m", self.module, self.front, str(port))
        self.urls = [f"http://{LOOPBACK}:{port}"]
        rig.wait_consumers(self.name)
        rig.wait_port(port)


class FastStream(Peer):
    """FastStream, SQLAlchemy's asyncio, FastAPI and uvicorn."""

    name = "faststream"
    title = "FastStream, FastAPI"
    module = "benchmarks.peers.fast"
    front = "api"


class Nameko(Peer):
    """Nameko as its documentation shows it: one message a transaction."""

    name = "nameko"
    title = "plain Nameko"
    module = "benchmarks.peers.plain"
    front = "gateway"


def _list_skus(url: str) -> None:
    """Put every sku on the menu at the price that the load names."""
    admin = {"Authorization": f"Bearer {_token(url, 'bench-admin', 'admin')}"}
    offers = [
        {"sku": f"bench-{n}", "currency": "EUR", "unit_price": FIRST_PRICE if n < SKUS // 2 else OTHER_PRICE}
        for n in range(SKUS)
    ]
    for start in range(0, SKUS, OFFERS_A_PUT):
        _send("PUT", f"{url}/api/menu/offers", {"offers": offers[start : start + OFFERS_A_PUT]}, **admin)


def _token(url: str, user: str, role: str = "customer") -> str:
    answer = _send("POST", f"{url}/api/auth/token", {"user_id": user, "roles": [role]})
    return str(answer["access_token"])


def _send(method: str, url: str, body: Any, **headers: str) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}, method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
