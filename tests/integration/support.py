"""Helpers of the integration tests: events, a consumer without its loop, access to the broker, a wire to cut."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import amqp
import eventlet
import pytest
from alembic.config import Config
from amqp import spec
from eventlet.green import socket
from nameko.containers import ServiceContainer
from sqlalchemy import Connection, create_engine, event, make_url, text

from ops.local.servers import Broker
from payment_service.breaker import Breaker, Guarded
from payment_service.mock_provider import MockProvider
from payment_service.provider import Provider
from shared.config import Settings
from shared.edge import postgres
from shared.edge.batch import Batch
from shared.edge.broker import BrokerConnection
from shared.edge.consumer import Handles
from shared.edge.context import RequestContext
from shared.edge.database import Database
from shared.edge.fair_calls import FairCalls
from shared.edge.postgres import connect
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.runner import nameko_config, service_class
from shared.edge.settings import sender_rules
from shared.envelope import Envelope, envelope
from shared.errors import ServiceUnavailable
from shared.events import Identity, OrderCreated, OrderedItem, Payload, Reserved
from shared.failures import Delivery
from shared.ids import new_trace_id
from shared.revisions import ROOT
from tests.databases import Databases
from topology.services import POOL_SPARE
from topology.table import BY_NAME, CONSUMERS, EVENTS_EXCHANGE, queue_arguments

CUSTOMER = Identity("customer", ("customer",))
ADMIN = Identity("admin", ("admin",))
OPERATOR = Identity("operator", ("operator",))
SYSTEM = Identity("system:watch", ("system",))
SERVICES: dict[str, Any] = {service: service_class(service) for service in (*CONSUMERS, "auth")}

# The sessions of a database that wait for a lock.
WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

T = TypeVar("T")

# Long enough for a machine that does other things too: it is waited out only where something fails.
TIMEOUT_S = 20.0
# To create or drop a database writes and deletes files, which a busy disk delays by many seconds.
ADMINISTRATION_LIMIT_S = 60.0


def administer(databases: Databases, service: str, statement: str) -> None:
    """Create or drop a database, and wait for the server longer than the services do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "SILENT_SERVER_S", ADMINISTRATION_LIMIT_S)
        databases.run(service, statement)


def until(found: Callable[[], T], within_s: float = TIMEOUT_S, every_s: float = 0.02) -> T:
    """Call `found` until its result is true, and return it. The test fails when the time is over."""
    deadline = time.monotonic() + within_s
    while not (result := found()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {inspect.getsource(found).strip()}"
        eventlet.sleep(every_s)
    return result


def comes_true(holds: Callable[[], bool], within_s: float) -> bool:
    """Whether something holds within a time: it is known as soon as it does."""
    deadline = time.monotonic() + within_s
    while not (held := holds()) and time.monotonic() < deadline:
        eventlet.sleep(0.05)
    return held


def throughout(holds: Callable[[], bool], for_s: float) -> None:
    """Fail as soon as something that must hold for a while does not."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        assert holds(), inspect.getsource(holds).strip()
        eventlet.sleep(0.02)


def emitted(
    payload: Payload, source: str = "order_service", trace_id: str | None = None, by: str = CUSTOMER.user_id
) -> Envelope:
    """An event as a service emits it, caused by a customer."""
    return envelope(source, payload, trace_id or new_trace_id(), Identity(by, CUSTOMER.roles))


def order_created(
    order_id: UUID | None = None,
    skus: Sequence[str] = ("apple",),
    quantity: int = 1,
    method: str = "mock_ok",
    unit_price: int = 100,
) -> OrderCreated:
    """An order of the same quantity of some skus."""
    items = tuple(OrderedItem(sku, quantity, unit_price) for sku in skus)
    return OrderCreated(order_id or uuid4(), "EUR", unit_price * quantity * len(items), items, method)


def reserved_event(
    order_id: UUID | None = None, method: str = "mock_ok", unit_price: int = 100, customer: str = "customer"
) -> Envelope:
    """An order's items are held: payment_service charges for this event."""
    order = order_created(order_id, method=method, unit_price=unit_price)
    payload = Reserved(order.order_id, uuid4(), order.items, order.total, order.currency, method)
    return emitted(payload, source="inventory_service", by=customer)


def delivery(event: Envelope, tag: int = 1, headers: Mapping[str, Any] | None = None, queue: str = "") -> Delivery:
    """An event as the broker hands it over; one that was tried before comes with its queue for its key."""
    return Delivery(tag, event.to_json().encode(), queue or event.type, str(event.message_id), headers or {})


def deliveries(events: Iterable[Envelope]) -> list[Delivery]:
    """Events as the broker hands them over, tags in order."""
    return [delivery(event, tag) for tag, event in enumerate(events, start=1)]


def handler_of(queue: str) -> Handles:
    """The entrypoint of a queue, as its service declares it; `method_name` is its method."""
    for name, method in inspect.getmembers(SERVICES[BY_NAME[queue].service], inspect.isfunction):
        for entrypoint in getattr(method, "nameko_entrypoints", ()):
            if isinstance(entrypoint, Handles) and entrypoint.queue == queue:
                entrypoint.method_name = name
                return entrypoint
    raise LookupError(queue)


class _Container:
    """The part of a container that extensions need; Nameko keeps only a weak reference to it."""

    def __init__(self, service_name: str, config: dict[str, Any], max_workers: int) -> None:
        self.service_name = service_name
        self.config = config
        self.max_workers = max_workers


LIST = (
    "INSERT INTO offers (sku, version, item_id, name, sellable, prices) VALUES (:sku, CAST(extract(epoch FROM"
    " clock_timestamp()) * 1000000 AS bigint), gen_random_uuid(), :sku, :sellable, CAST(:prices AS jsonb))"
    " ON CONFLICT (sku) DO UPDATE SET version = excluded.version, sellable = excluded.sellable,"
    " prices = excluded.prices"
)


def offer_rows(prices: Mapping[str, int], currency: str = "EUR", sellable: bool = True) -> Iterator[dict[str, Any]]:
    """The values of LIST for skus at prices."""
    for sku, price in prices.items():
        row = {"currency": currency, "min_quantity": 1, "unit_price": price, "valid_from": "2026-01-01T00:00:00.000Z"}
        yield {"sku": sku, "sellable": sellable, "prices": json.dumps([row])}


class NoCatalog:
    """The catalog service, which is away."""

    def __getattr__(self, method: str) -> Any:
        raise ServiceUnavailable("there is no catalog here")


class Bench:
    """A service and its database, with no container around them; `batch(queue)` handles the deliveries of a test."""

    def __init__(
        self, settings: Settings, service: str, url: str = "", pool_size: int = 15, lists: bool = True
    ) -> None:
        config = nameko_config(settings, service)
        if url:
            config["DB_URIS"] = dict.fromkeys(config["DB_URIS"], url)
        self._container = _Container(f"{service}_service", config, pool_size - POOL_SPARE)
        self.name = service
        self.settings = settings
        self.database = Database().bind(self._container, "db")
        self.database.setup()
        self.sessions = self.database.sessions
        self.service = SERVICES[service]()
        self.service.db = self.sessions
        self.service.settings = settings
        self.service.admission = SimpleNamespace(is_full=lambda: False)
        self.called_by(CUSTOMER if service == "order" else ADMIN)
        self.ledger = connect(settings.database_url("payment"), "provider", pool_size=20).execution_options(
            isolation_level="AUTOCOMMIT"
        )
        self.service.provider = self.provider(settings.payment_mode)
        for fair_calls in ("charges", "refunds", "questions"):
            setattr(self.service, fair_calls, FairCalls(patience_s=TIMEOUT_S))
        self.publisher = Publisher(settings.amqp_uri, settings.heartbeat_s)
        self.listed: dict[str, int] = {}
        self._lister = create_engine(settings.database_url("order"), pool_size=1)
        if service == "order":
            self.service.catalog = NoCatalog()
            if lists:
                for name in ("create_order", "create_orders", "place_order", "place_orders"):
                    setattr(self.service, name, self._listing(getattr(self.service, name)))

    def _listing(self, post: Callable[..., Any]) -> Callable[..., Any]:
        """The method, before which each sku of its orders is listed at the price that the order names."""

        def listed(posts: Any, *more: Any) -> Any:
            for order in [posts] if isinstance(posts, dict) else [one["order"] for one in posts]:
                self.list_offers({item["sku"]: item["unit_price"] for item in order["items"]}, order["currency"])
            return post(posts, *more)

        return listed

    def list_offers(self, prices: Mapping[str, int], currency: str = "EUR", sellable: bool = True) -> None:
        """Put skus at prices into the copy of the offers, as if the catalog had just told of them."""
        new = {sku: price for sku, price in prices.items() if self.listed.get(sku) != price}
        if new:
            with self._lister.begin() as connection:
                for row in offer_rows(new, currency, sellable):
                    connection.execute(text(LIST), row)
            self.listed |= new

    def called_by(self, identity: Identity) -> None:
        """From here on this user calls the service."""
        self.service.context = RequestContext(new_trace_id(), identity)

    def provider(self, mode: str, open_s: float = 0.2) -> Provider:
        """The provider behind its guard; it gives up soon."""
        return Guarded(MockProvider(self.ledger, mode, timeout_s=0.05), Breaker(open_s), self.service.name)

    def batch(self, queue: str, **changed: Any) -> Batch:
        """The queue's batch with the service's own handler; `changed` replaces what a test wants otherwise."""
        entrypoint = handler_of(queue)
        parts: dict[str, Any] = {
            "publisher": self.publisher,
            "handle": getattr(self.service, entrypoint.method_name),
            "ask": getattr(self.service, entrypoint.ask) if entrypoint.ask else None,
            "senders": sender_rules(self.settings),
            **changed,
        }
        return Batch(queue, lambda: self.sessions, **parts)

    def handle_batch(self, queue: str, events: Iterable[Envelope], **changed: Any) -> None:
        """Handle these events as one batch."""
        self.batch(queue, **changed).handle_batch(deliveries(events))

    def close(self) -> None:
        """Let go of every connection."""
        self.publisher.close()
        self.database.stop()
        self.ledger.dispose()
        self._lister.dispose()


@contextmanager
def statements(bench: Bench) -> Iterator[list[tuple[str, Any]]]:
    """The statements sent to the service's database, with their values."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        sent.append((statement, values))

    event.listen(bench.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(bench.database.engine, "before_cursor_execute", note)


def assert_read_by_index(bench: Bench, sent: Iterable[tuple[str, Any]], most: int) -> None:
    """Each statement reads by an index, and at most so many rows."""
    for statement, values in sent:
        with bench.sessions.read() as session:
            session.execute(text("SET enable_seqscan = off"))  # so few rows are read faster without an index
            plan = session.connection().exec_driver_sql(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", values)
            lines = "\n".join(row[0] for row in plan)
            session.execute(text("RESET enable_seqscan"))
        assert "Seq Scan" not in lines, lines
        assert re.search(r"Index.*Scan", lines), lines
        assert max(int(rows) for rows in re.findall(r"actual rows=(\d+)", lines)) <= most, lines


class Mail:
    """Puts messages into queues and takes them out."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.publisher = Publisher(settings.amqp_uri, heartbeat_s=30)
        self.open()

    def open(self) -> None:
        """Connect, also again."""
        self.line = BrokerConnection(self.settings.amqp_uri, heartbeat_s=30)
        self.channel = self.line.channel

    @property
    def broker_version(self) -> tuple[int, ...]:
        """The broker's version, as (3, 10, 8)."""
        said = self.channel.connection.server_properties["version"]
        return tuple(int(number) for number in re.findall(r"\d+", said))

    def empty(self) -> None:
        """Throw away what is in any queue of the table."""
        for name in self.depths():  # a purge of a queue without messages costs as much as one with
            self.channel.queue_purge(name)

    def depths(self) -> dict[str, int]:
        """How many messages are ready in each queue of the table that has any; asked for all together."""
        for name in queue_arguments():
            passive = (0, name, True, False, False, False, False, None)
            self.channel.send_method(spec.Queue.Declare, "BsbbbbbF", passive)
        answers = [self.channel.wait(spec.Queue.DeclareOk, returns_tuple=True) for _ in queue_arguments()]
        return {name: count for name, count, _ in answers if count}

    def get(self, queue: str) -> amqp.Message | None:
        """The next message of a queue, or None."""
        return self.channel.basic_get(queue, no_ack=True)

    def take(self, queue: str, within_s: float = TIMEOUT_S) -> amqp.Message:
        """The next message of a queue, waited for."""
        return until(lambda: self.get(queue), within_s)

    def all(self, queue: str) -> list[amqp.Message]:
        """Everything that is in a queue now."""
        return list(iter(lambda: self.get(queue), None))

    def waiting(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def publish(self, events: Iterable[Envelope]) -> None:
        """Publish events as the relay does."""
        self.send([Outgoing(EVENTS_EXCHANGE, e.type, e.to_json(), str(e.message_id), e.type) for e in events])

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Publish messages; each must be taken."""
        assert self.publisher.publish_all(messages, deadline_s=30) == [None] * len(messages)

    def put(self, queue: str, body: str | bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Put one message into one queue, past all bindings."""
        self.send([Outgoing("", queue, body, str(uuid4()), "", headers or {})])

    def close(self) -> None:
        """Let go of the connections."""
        self.publisher.close()
        self.line.abort()


def headers_of(message: amqp.Message) -> dict[str, Any]:
    """A message's headers without those that the broker adds itself."""
    ours = message.headers or {}
    added = ("x-death", "x-first-death", "x-last-death", "x-delivery-count")
    return {name: value for name, value in ours.items() if not name.startswith(added)}


def body_of(message: amqp.Message) -> dict[str, Any]:
    """A message's body."""
    return dict(json.loads(message.body))


def container_of(settings: Settings, service: Any, replica: int = 0, **config: Any) -> ServiceContainer:
    """A service as its process runs it, not started. `service` is one of ours by its short name, or a class."""
    short = service if isinstance(service, str) else service.name.removesuffix("_service")
    chosen = nameko_config(settings, short, replica) | config
    return ServiceContainer(SERVICES[service] if isinstance(service, str) else service, chosen)


def extension(container: ServiceContainer, kind: type[T], **attributes: Any) -> T:
    """The container's extension of a kind."""
    return next(
        item
        for item in container.extensions
        if isinstance(item, kind) and all(getattr(item, name) == value for name, value in attributes.items())
    )


def alembic(service: str, connection: Connection) -> Config:
    """Alembic's configuration for one service's migrations, run on this connection."""
    config = Config(str(ROOT / "setup.cfg"), ini_section=service)
    migrations = ROOT / str(config.get_main_option("script_location"))
    config.set_section_option(service, "script_location", str(migrations))
    config.attributes["connection"] = connection
    return config


class Wire:
    """A TCP proxy: counts PostgreSQL's completed statements, and can go silent, refuse or be cut.

    `overheard` gets what the clients send.
    """

    def __init__(self, host: str, port: int, overheard: Callable[[bytes], None] = lambda data: None) -> None:
        self.target = (host, port)
        self._overheard = overheard
        self.silent = False
        self.completed: list[str] = []  # the command tag of each statement: SELECT 3, INSERT 0 50, BEGIN, COMMIT
        self._sockets: list[Any] = []
        self._forgotten: set[Any] = set()
        self._listener = eventlet.listen(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [eventlet.spawn(self._accept)]

    def url(self, url: str) -> str:
        """A database URL that leads through this wire, unencrypted, so that it can be read."""
        through = make_url(url).set(host="127.0.0.1", port=self.port)
        return through.update_query_dict({"sslmode": "disable", "gssencmode": "disable"}).render_as_string(False)

    def amqp_uri(self, uri: str) -> str:
        """A broker's URI that leads through this wire."""
        return uri.replace("{}:{}".format(*self.target), f"127.0.0.1:{self.port}")

    def statements(self) -> list[str]:
        """The completed statements, without BEGIN, COMMIT and ROLLBACK."""
        return [tag for tag in self.completed if tag not in ("BEGIN", "COMMIT", "ROLLBACK")]

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(self.target)
            self._sockets += [near, far]
            self._threads += [
                eventlet.spawn(self._forward, near, far, self._overheard),
                eventlet.spawn(self._forward, far, near, _Tags(self.completed)),
            ]

    def _forward(self, source: Any, sink: Any, heard: Callable[[bytes], None]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                heard(data)
                while self.silent or source in self._forgotten:
                    eventlet.sleep(0.01)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def forget(self) -> None:
        """Let nothing pass on the open connections, without closing them; new connections work."""
        self._forgotten.update(self._sockets)

    def cut(self) -> None:
        """Close every connection."""
        for thread in self._threads[1:]:
            thread.kill()
        for end in self._sockets:
            end.close()
        self._sockets.clear()

    def close(self) -> None:
        """Cut every connection and take no more."""
        self._threads[0].kill()
        self._listener.close()
        self.cut()


def wire_to_broker(settings: Settings, overheard: Callable[[bytes], None] = lambda data: None) -> Wire:
    """A wire to the broker."""
    host, port = settings.amqp_uri.rpartition("@")[2].partition("/")[0].split(":")
    return Wire(host, int(port), overheard)


class Frames:
    """Counts the frames that an AMQP client sends on one connection, without heartbeats."""

    def __init__(self) -> None:
        self.count = 0
        self._buffer, self._greeted = b"", False

    def __call__(self, data: bytes) -> None:
        """Take what the client sends next."""
        self._buffer += data
        if not self._greeted and len(self._buffer) >= 8:  # the protocol's name and version
            self._buffer, self._greeted = self._buffer[8:], True
        while self._greeted and len(self._buffer) >= 7:
            size = 8 + int.from_bytes(self._buffer[3:7], "big")  # type, channel and size before, and an end mark
            if len(self._buffer) < size:
                return
            self.count += self._buffer[0] != 8  # a heartbeat
            self._buffer = self._buffer[size:]


class _Tags:
    """Reads the command tags from the answers of PostgreSQL's server."""

    def __init__(self, completed: list[str]) -> None:
        self.completed = completed
        self.buffer = b""

    def __call__(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 5:
            size = 1 + int.from_bytes(self.buffer[1:5], "big")
            if len(self.buffer) < size:
                return
            if self.buffer[:1] == b"C":
                self.completed.append(self.buffer[5 : size - 1].decode())
            self.buffer = self.buffer[size:]


@contextmanager
def memory_alarm(broker: Broker) -> Iterator[None]:
    """The broker takes nothing from who publishes."""
    broker.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        yield
    finally:
        broker.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1GB")
