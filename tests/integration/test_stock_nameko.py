"""Why shared/edge exists: each fault of Nameko's stock classes, seen in them and not in ours, in every run.

The same service runs twice, each in a process of its own: once of our classes, once of the stock ones. Both go through
the same trouble side by side, and an observation in words says what became of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import eventlet
import kombu.utils.functional
import pytest
from nameko.containers import ServiceContainer
from nameko.messaging import QueueConsumer

from ops.local.servers import Broker, Servers, free_port
from shared.config import Settings
from shared.edge import broker as edge_broker
from shared.edge import green
from shared.errors import ConfigurationFault
from tests.databases import Databases
from tests.integration.stock import services
from tests.integration.stock.services import QUEUES, SIDES, SILENT, SINK, TIMEOUT_S, queue_of
from tests.integration.stock.subject import Nursery, Subject
from tests.integration.support import Mail, Wire, body_of, comes_true, memory_alarm, until, wire_to_broker
from topology.table import retry_queues

Probe = Callable[[Subject], Any]

HANGS_AFTER_S = 4 * TIMEOUT_S
QUICK_HEARTBEAT = {"AMQP_HEARTBEAT_S": "1"}
FILES = 100
WORKS_S = {"ours": 3.0, "stock": 6.0}  # within the time in which ours finish; while the stock one closes its connection
# What is to come is waited for patiently, on a busy machine too; what never comes no longer than tells it from that.
COMES_S = 30.0
SOON_S = {"ours": COMES_S, "stock": 2.0}
SILENT_S = {"ours": COMES_S, "stock": 6.0}  # three times what a quick heartbeat allows
STOPS_S = {"ours": COMES_S, "stock": 6.0}  # the stock one takes most of a minute; of it no more need be seen
AGAIN_S = {"ours": 2.0, "stock": COMES_S}


def poison(side: Subject) -> dict[str, str]:
    """The fate of messages that cannot be handled."""
    sent = {
        "is no JSON": side.put(b"{"),
        "has an unknown content type": side.put(b"1", content_type="application/x-unheard"),
        "makes its handler raise": side.order("raise"),
    }
    assert side.handles()
    assert side.handles()  # by then what was done with the others is done
    side.kill()
    queues = [side.queue] if side.which == "stock" else [side.queue, *retry_queues(side.queue), f"{side.queue}.dlq"]
    found: set[bytes] = set()

    def kept() -> bool:
        found.update(message.body for queue in queues for message in side.mail.all(queue))
        return set(sent.values()) <= found

    comes_true(kept, SOON_S[side.which])
    return {what: "kept" if body in found else "lost" for what, body in sent.items()}


def stopped_at_work(side: Subject) -> str:
    """Whether what it finished while it stopped is delivered again."""
    before = side.told("began")
    side.order(f"sleep {WORKS_S[side.which]}")
    until(lambda: side.told("began") - before)
    side.ends(within_s=10)
    done, waiting = until(lambda: side.told("done") - before, within_s=30), set[str]()
    side.kill()  # in many a stop the stock container hangs

    def again() -> bool:
        waiting.update(body_of(message)["payload"]["order_id"] for message in side.mail.all(side.queue))
        return bool(done & waiting)

    return "again" if comes_true(again, AGAIN_S[side.which]) else "acked"


def pipe_broken_at_ack(side: Subject) -> str:
    """What a connection that breaks while handlers work does to the process."""
    for _ in range(3):
        side.order("block")
    until(lambda: side.told("blocks"))
    side.wire.cut()
    return "lives" if side.handles(SILENT_S[side.which]) else "dead"


def keeps_connections(side: Subject) -> str:
    """Whether it lets go of connections on which nothing comes any more."""
    old = side.to_broker()
    return "drops them" if comes_true(lambda: not old & side.to_broker(), SILENT_S[side.which]) else "holds on to them"


def path_forgotten(side: Subject) -> str:
    """Whether messages are handled that were on their way on a connection which the network forgot."""
    assert side.handles()
    side.wire.forget()
    return "handled" if side.handles(SILENT_S[side.which]) else "stranded"


def answers(path: str) -> Probe:
    """What a request is answered that cannot be fulfilled."""

    def ask(side: Subject) -> str:
        status = side.get(path, {"ours": COMES_S, "stock": HANGS_AFTER_S}[side.which])
        return "hangs" if status is None else "done" if status < 400 else "an error"

    return ask


def backend_lost(side: Subject) -> str:
    """What the death of a database backend in use does to the process."""
    side.get("/lose-backend")
    return "dead" if comes_true(lambda: side.get("/ping", COMES_S) != 200, AGAIN_S[side.which]) else "lives"


def query_abandoned(side: Subject) -> str:
    """Whether an abandoned query goes on at the server."""
    active = f"SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(8) AS {side.which}'"
    asking = eventlet.spawn(side.get, "/query", within_s=HANGS_AFTER_S)
    until(lambda: side.database.rows("inventory", active))
    asking.wait()
    return (
        "ended"
        if comes_true(lambda: not side.database.rows("inventory", active), {"ours": 5.0, "stock": 2.5}[side.which])
        else "goes on"
    )


def too_many_connections(side: Subject) -> str:
    """Whether it serves again after more connections than it has file descriptors."""
    with ExitStack() as connections, suppress(OSError):
        for _ in range(FILES * 2):
            connections.enter_context(side.dial())
        eventlet.sleep(0.5)
    comes_true(lambda: side.get("/ping") == 200 or not side.runs(), COMES_S)
    return "lives" if side.get("/ping") == 200 else "dead"


def slow_bodies(side: Subject) -> str:
    """Whether it answers others while more clients than it has workers take their time."""
    with ExitStack() as connections:
        for _ in range(4):
            slow = connections.enter_context(side.dial())
            slow.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nab")
        eventlet.sleep(0.3)
        return "serves" if side.get("/ping", SOON_S[side.which]) == 200 else "stands still"


def idle_stop(side: Subject) -> str:
    """How long an idle service takes to stop."""
    eventlet.sleep(1)  # nothing to wait for: it is to be idle
    return "soon" if side.ends(STOPS_S[side.which]) else "late"


@contextmanager
def frozen(broker: Broker) -> Iterator[None]:
    """The broker is silent."""
    broker.pause()
    try:
        yield
    finally:
        broker.resume()


@dataclass(frozen=True, eq=False)
class Fault:
    """A trouble, and what is observed of our classes and of the stock ones in it."""

    name: str
    probe: Probe
    ours: Any
    stock: Any
    kind: str = ""
    consumes: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def awaited(self) -> dict[str, Any]:
        """What is to be observed of each side."""
        return {"ours": self.ours, "stock": self.stock}


def of_each_kind(word: str) -> dict[str, str]:
    return dict.fromkeys(("is no JSON", "has an unknown content type", "makes its handler raise"), word)


# Those of one round disturb nobody and go through their troubles side by side.
CONSUMING = [
    Fault(
        "a message that cannot be handled is acked",
        poison,
        of_each_kind("kept"),
        of_each_kind("lost"),
        consumes=True,
    ),
    Fault("acks are lost on SIGTERM", stopped_at_work, "acked", "again", consumes=True),
    Fault("a broken pipe at an ack kills the container", pipe_broken_at_ack, "lives", "dead", consumes=True),
]
SERVING = [
    Fault("a call without an answer hangs", answers("/call"), "an error", "hangs", kind="Caller"),
    Fault("a dead database backend kills the container", backend_lost, "lives", "dead"),
    Fault("a query outlives its timeout", query_abandoned, "ended", "goes on"),
    Fault(
        "running out of file descriptors kills the container",
        too_many_connections,
        "lives",
        "dead",
        kind="Web",
        environment={"SUBJECT_FILES": str(FILES)},
    ),
    Fault("slow bodies take the workers", slow_bodies, "serves", "stands still"),
    Fault("an idle service of HTTP alone is slow to stop", idle_stop, "soon", "late", kind="Web"),
]
FORGOTTEN = [
    Fault(
        "an old connection keeps what it had prefetched",
        path_forgotten,
        "handled",
        "stranded",
        consumes=True,
        environment=QUICK_HEARTBEAT,
    ),
]
FROZEN = [
    Fault(
        "a frozen broker holds its clients",
        keeps_connections,
        "drops them",
        "holds on to them",
        consumes=True,
        environment=QUICK_HEARTBEAT,
    ),
    Fault("a publisher hangs on a frozen broker", answers("/publish"), "an error", "hangs"),
]
ALARMED = [Fault("a publisher hangs on a memory alarm", answers("/publish"), "an error", "hangs")]
ROUNDS = {
    "what is consumed": (CONSUMING, lambda broker: nullcontext()),
    "what is asked": (SERVING, lambda broker: nullcontext()),
    "a path that the network forgot": (FORGOTTEN, lambda broker: nullcontext()),
    "a frozen broker": (FROZEN, frozen),
    "a memory alarm": (ALARMED, memory_alarm),
}


@pytest.fixture
def wired(settings: Settings) -> Iterator[Callable[[], Wire]]:
    """Makes wires to the broker."""
    wires: list[Wire] = []

    def wire() -> Wire:
        wires.append(wire_to_broker(settings))
        return wires[-1]

    yield wire
    for each in wires:
        each.close()


@pytest.fixture(scope="module")
def nursery(settings: Settings) -> Iterator[Nursery]:
    """Where every process of these tests comes from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


Start = Callable[..., dict[str, Subject]]


@pytest.fixture
def start(
    settings: Settings,
    database: Databases,
    mail: Mail,
    wired: Callable[[], Wire],
    nursery: Nursery,
    tmp_path: Path,
) -> Iterator[Start]:
    """Starts both sides; whatever is left of them at the end is killed."""
    sides: list[Subject] = []
    queues = [*(queue_of("stock", queue) for queue in QUEUES), SINK, f"rpc-{SILENT}"]
    for queue in queues:
        mail.channel.queue_declare(queue, durable=True, auto_delete=False)
    mail.channel.exchange_declare("nameko-rpc", "topic", durable=True, auto_delete=False)
    mail.channel.queue_bind(f"rpc-{SILENT}", "nameko-rpc", f"{SILENT}.*")

    def both(kind: str, queue: str = "", environment: Mapping[str, str] | None = None) -> dict[str, Subject]:
        directory = tmp_path / str(len(sides))
        directory.mkdir()
        pair = {
            which: Subject(nursery, which, kind, queue, settings, database, wired(), directory, environment or {})
            for which in SIDES
        }
        sides.extend(pair.values())
        return pair

    yield both
    for side in sides:
        side.kill()
        side.mail.close()
    for queue in queues:
        mail.channel.queue_delete(queue)


@pytest.mark.parametrize("name", ROUNDS)
def test_our_classes_do_not_have_the_fault_and_the_stock_ones_do(
    name: str, start: Start, servers_of_this_run: Servers
) -> None:
    faults, trouble = ROUNDS[name]
    assert servers_of_this_run.broker
    queues = iter(QUEUES)
    pairs = {fault: start(fault.kind, next(queues) if fault.consumes else "", fault.environment) for fault in faults}
    for pair in pairs.values():
        for side in pair.values():
            side.wait_ready()
    with trouble(servers_of_this_run.broker):
        probes = {
            (fault.name, which): eventlet.spawn(fault.probe, side)
            for fault, pair in pairs.items()
            for which, side in pair.items()
        }
        observed = {about: probe.wait() for about, probe in probes.items()}

    assert observed == {(fault.name, which): awaited for fault in faults for which, awaited in fault.awaited().items()}


TRIES = 20


class Enough(Exception):
    """So many tries were made."""


def test_our_reconnecting_waits_at_most_five_seconds_and_the_stock_consumers_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = "amqp://guest:guest@127.0.0.1:1//"
    ours: list[float] = []
    stock: list[float] = []

    ask, sleep = eventlet.getcurrent(), green.sleep

    def wait(seconds: float) -> None:
        if eventlet.getcurrent() is ask:
            ours.append(seconds)
        else:  # a line of the fixtures beats its heart: without its pauses it would never let go
            sleep(seconds)

    monkeypatch.setattr(green, "sleep", wait)
    edge_broker.run_connected(nobody, 1, lambda line: None, lambda: len(ours) == TRIES, lambda trouble: None, "test")
    monkeypatch.undo()

    def note(consumer: QueueConsumer, error: Exception, seconds: float) -> None:
        stock.append(seconds)
        if len(stock) == TRIES:
            raise Enough

    monkeypatch.setattr(kombu.utils.functional, "sleep", lambda seconds: None)
    monkeypatch.setattr(QueueConsumer, "on_connection_error", note)
    container = ServiceContainer(services.consumer("stock", next(iter(QUEUES))), {"AMQP_URI": nobody})
    consumer = next(each for each in container.extensions if isinstance(each, QueueConsumer))
    with pytest.raises(Enough), consumer.establish_connection():
        pass

    assert len(ours) == len(stock) == TRIES
    assert max(ours) <= 5 < max(stock)


def test_our_second_server_on_a_port_is_refused_and_the_stock_one_shares_it_silently(settings: Settings) -> None:
    assert listens_twice(services.OursWeb, settings) == "refused"
    assert listens_twice(services.StockWeb, settings) == "shared"


def listens_twice(service: Any, settings: Settings) -> str:
    config = {"WEB_SERVER_ADDRESS": f"127.0.0.1:{free_port()}", "settings": settings}
    first, second = ServiceContainer(service, config), ServiceContainer(service, config)
    first.start()
    try:
        second.start()
        return "shared"
    except (ConfigurationFault, OSError):
        return "refused"
    finally:
        first.kill()
        second.kill()


@pytest.mark.long
def test_an_idle_stock_service_of_http_alone_takes_a_minute_to_stop(start: Start) -> None:
    stock = start("Web")["stock"]
    stock.wait_ready()
    eventlet.sleep(1)  # nothing to wait for: it is to be idle
    began = time.monotonic()

    assert stock.ends(within_s=90)
    assert time.monotonic() - began > 40
