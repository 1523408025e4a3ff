"""The same services twice: of our classes, and of the stock ones that ours replace."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import nameko.messaging
import nameko.rpc
import nameko.web.handlers
import nameko_sqlalchemy
from eventlet import Timeout, patcher, sleep, spawn_after
from eventlet.event import Event
from kombu import Queue
from nameko.extensions import DependencyProvider
from sqlalchemy import text
from werkzeug.wrappers import Request, Response

from shared.edge.consumer import handles
from shared.edge.database import Database
from shared.edge.http import BODY, Probes, Route
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.rpc_proxy import RpcProxy
from shared.edge.tx import Events, Tx
from shared.events import CommitRequested, Payload, ReleaseRequested
from shared.tables import Base
from tests.integration.support import order_created

route = Route.decorator

SIDES = ("ours", "stock")
# Of each pair its own, or one would take the other's messages: what ours consume, and the events that come there.
QUEUES: dict[str, Callable[[UUID], Payload]] = {
    "q.inventory.order-created": order_created,
    "q.inventory.release-requested": lambda order_id: ReleaseRequested(order_id, "deadline"),
    "q.inventory.commit-requested": CommitRequested,
}
SINK = "test.stock.sink"  # takes what they publish
SILENT = "silent_service"  # has a queue for calls, and no server

TIMEOUT_S = 1.0
BLOCK_S = 0.7
GATHER_S = 1.0

# Whoever blocks the hub begins when others are there to do the same: between one and the next nothing is read.
gathered = Event()
block_the_hub = patcher.original("time").sleep


def queue_of(side: str, queue: str) -> str:
    """Which queue a side consumes; the stock one is of no kind of ours."""
    return queue if side == "ours" else f"test.stock.{queue}"


def work(what: str, order_id: object) -> None:
    """What a handler does with an event of the user `what`, told on standard output."""
    print(f"began {order_id}", flush=True)
    if what == "raise":
        raise ValueError("no")
    if what.startswith("sleep"):
        sleep(float(what.removeprefix("sleep ")))
    if what == "block":
        spawn_after(GATHER_S, lambda: gathered.ready() or gathered.send())
        gathered.wait()
        print(f"blocks {order_id}", flush=True)
        block_the_hub(BLOCK_S)
    print(f"done {order_id}", flush=True)


class OurPublisher(DependencyProvider):
    """Injects a publisher: `publish_all`."""

    def setup(self) -> None:
        settings = self.container.config["settings"]
        self.publisher = Publisher(settings.amqp_uri, settings.heartbeat_s)

    def get_dependency(self, worker_ctx: object) -> Publisher:
        return self.publisher


class Ours(Probes):
    name = "inventory_service"
    db = Database()
    publisher = OurPublisher()

    @route("GET", "/ping")
    def ping(self, request: Request) -> Response:
        return Response("pong")

    @route("POST", "/echo")
    def echo(self, request: Request) -> Response:
        return Response(request.environ[BODY])

    @route("GET", "/publish")
    def publish(self, request: Request) -> Response:
        self.publisher.publish_all([Outgoing("", SINK, "{}", "1")], deadline_s=TIMEOUT_S)
        return Response()

    @route("GET", "/lose-backend")
    def lose_backend(self, request: Request) -> Response:
        with self.db.begin() as session, self.db.begin() as other:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        return Response()

    @route("GET", "/query")
    def query(self, request: Request) -> Response:
        with self.db.begin() as session:
            session.connection()  # which may take its time
            with Timeout(TIMEOUT_S):
                session.execute(text("SELECT pg_sleep(8) AS ours"))
        return Response()


class Stock:
    name = "stock_service"
    db = nameko_sqlalchemy.Database(Base)
    publish_to = nameko.messaging.Publisher()

    @nameko.web.handlers.http("GET", "/ping")
    def ping(self, request: Request) -> str:
        return "pong"

    @nameko.web.handlers.http("POST", "/echo")
    def echo(self, request: Request) -> str:
        return request.get_data(as_text=True)

    @nameko.web.handlers.http("GET", "/publish")
    def publish(self, request: Request) -> str:
        self.publish_to({}, routing_key=SINK)
        return ""

    @nameko.web.handlers.http("GET", "/lose-backend")
    def lose_backend(self, request: Request) -> str:
        pid = self.db.session.scalar(text("SELECT pg_backend_pid()"))
        other = self.db.get_session()
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        return ""

    @nameko.web.handlers.http("GET", "/query")
    def query(self, request: Request) -> str:
        self.db.session.connection()  # which may take its time
        with Timeout(TIMEOUT_S):
            self.db.session.execute(text("SELECT pg_sleep(8) AS stock"))
        return ""


def consumer(side: str, queue: str) -> type:
    """The same service when it consumes, too."""

    class OursConsumer(Ours):
        @handles(queue)
        def handle(self, events: Events, tx: Tx) -> None:
            for event in events:
                work(event.identity.user_id, event.payload.order_id)

    class StockConsumer(Stock):
        @nameko.messaging.consume(Queue(queue_of("stock", queue), no_declare=True))
        def handle(self, body: dict) -> None:
            work(body["identity"]["user_id"], body["payload"]["order_id"])

    return OursConsumer if side == "ours" else StockConsumer


class OursCaller(Probes):
    """Calls another service. With a consumer it would share a connection in the stock classes, and hide a fault."""

    name = "inventory_service"
    silent = RpcProxy(SILENT, timeout_s=TIMEOUT_S)

    @route("GET", "/call")
    def call(self, request: Request) -> Response:
        return Response(self.silent.anything())

    @route("GET", "/ping")
    def ping(self, request: Request) -> Response:
        return Response("pong")


class StockCaller:
    """Calls another service."""

    name = "stock_service"
    silent = nameko.rpc.RpcProxy(SILENT)

    @nameko.web.handlers.http("GET", "/call")
    def call(self, request: Request) -> str:
        return self.silent.anything()

    @nameko.web.handlers.http("GET", "/ping")
    def ping(self, request: Request) -> str:
        return "pong"


class OursWeb:
    """HTTP and nothing else."""

    name = "web"

    @route("GET", "/ping")
    def ping(self, request: Request) -> Response:
        return Response("pong")


class StockWeb:
    """HTTP and nothing else."""

    name = "web"

    @nameko.web.handlers.http("GET", "/ping")
    def ping(self, request: Request) -> str:
        return "pong"
