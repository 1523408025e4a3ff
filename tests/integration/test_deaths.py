"""Every way in which a message can fail, on the real broker: where it goes, what is written down, and its way back."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import amqp
import pytest
from nameko.containers import ServiceContainer
from prometheus_client import REGISTRY

from inventory_service import queries
from inventory_service.domain import State
from ops.dlq.census import Census
from ops.dlq.dlq_reader import DlqReader
from ops.dlq.files import discard, put_back
from ops.dlq.operator_session import Actor, OperatorSession
from ops.domain import Fate, Filter
from ops.local.processes import Process, spawn
from shared.config import Settings
from shared.edge.consumer import handles
from shared.edge.database import Database
from shared.edge.publisher import Outgoing
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.events import CommitRequested
from shared.ids import uuid7
from tests.commands import ROOT, ecom_here, started
from tests.databases import Databases
from tests.integration.support import Bench, Mail, container_of, emitted, order_created, until
from topology.table import DELIVERY_LIMIT, EVENTS_EXCHANGE, failed_exchange, retry_queues

QUEUE = "q.inventory.order-created"
DLQ = f"{QUEUE}.dlq"
COMMITS = "q.inventory.commit-requested"

RETRIES_WITHIN_S = 30.0  # 7 s of waiting, on a machine that does other things too
DEATHS_WITHIN_S = 90.0


class Tiny:
    """A service with one handler, whose effect is a reservation for each order; `fault` raises what a test wants."""

    name = "inventory_service"
    db = Database()
    fault: Callable[[Envelope], None] = staticmethod(lambda event: None)

    @handles(QUEUE)
    def reserve(self, events: Events, tx: Tx) -> None:
        for event in events:
            type(self).fault(event)
        ids = {event.payload.order_id: uuid7() for event in events}
        assert queries.claim_reservations(tx.session, ids, State.RESERVED) == set(ids), "an effect came twice"


class Fault:
    """Raises at one message, so many times. `tried` holds the times of its tries."""

    def __init__(self, event: Envelope, times: int) -> None:
        self.message_id = event.message_id
        self.times = times
        self.tried: list[float] = []

    def __call__(self, event: Envelope) -> None:
        if event.message_id == self.message_id:
            self.tried.append(time.monotonic())
            if len(self.tried) <= self.times:
                raise ConnectionError("the printer is out of paper")


Start = Callable[..., ServiceContainer]


@pytest.fixture
def start(settings: Settings, database: Databases, mail: Mail) -> Iterator[Start]:
    """Starts a service; it is killed at the end."""
    running: list[ServiceContainer] = []

    def start_one(service: Any = Tiny, fault: Callable[[Envelope], None] = lambda event: None) -> ServiceContainer:
        Tiny.fault = staticmethod(fault)
        running.append(container_of(settings, service))
        running[-1].start()
        return running[-1]

    yield start_one
    for container in running:
        container.kill()


@pytest.fixture
def tap(mail: Mail) -> str:
    """A queue that gets every message of the events exchange from now on."""
    queue = mail.channel.queue_declare("", exclusive=True).queue
    mail.channel.queue_bind(queue, EVENTS_EXCHANGE, "#")
    return str(queue)


def orders(count: int) -> list[Envelope]:
    return [emitted(order_created()) for _ in range(count)]


def ids_of(events: list[Envelope]) -> set[UUID]:
    return {event.message_id for event in events}


def ids_in(messages: list[amqp.Message]) -> list[str]:
    return sorted(message.properties["message_id"] for message in messages)


def applied(database: Databases) -> set[UUID]:
    """The messages that have taken effect, by the inbox; each effect of theirs fails when it comes twice."""
    # Both in one statement: two would see two moments.
    statement = "SELECT message_id, (SELECT count(*) FROM reservations) AS effects FROM consumed_messages"
    rows = database.rows("inventory", statement)
    assert {row["effects"] for row in rows} <= {len(rows)}
    return {row["message_id"] for row in rows}


def written(database: Databases) -> list[dict[str, Any]]:
    return database.rows("inventory", "SELECT queue, message_id, reason, attempts, left_how FROM dead_messages")


def depths(mail: Mail) -> dict[str, int]:
    """Every queue that is not empty. Only the one under test has a consumer: whatever came to another is still there,
    or, where it came to a retry level, in that one's main queue."""
    return mail.depths()


def peek(queue: str) -> list[dict[str, Any]]:
    return list(ecom_here("dlq", "peek", queue, "--max", 1000, "--json").answer["messages"])


def replay(queue: str, *options: object, code: int = 0) -> dict[str, Any]:
    """`ecom dlq replay` of all that is there; the operation."""
    (operation,) = ecom_here("dlq", "replay", queue, "--all", "--yes", "--json", *options, code=code).answer[
        "operations"
    ]
    return dict(operation)


def reject_until_dead(mail: Mail, queue: str) -> None:
    """Give a message back as its dying consumer would, until the broker has had enough."""
    for times in range(DELIVERY_LIMIT + 1):
        message = until(lambda: mail.channel.basic_get(queue))
        assert (message.headers or {}).get("x-delivery-count", 0) == times
        mail.channel.basic_reject(message.delivery_tag, requeue=True)
    until(lambda: depths(mail) == {DLQ: 1})


def test_a_message_that_fails_twice_takes_effect_at_the_third_try(
    start: Start, database: Databases, mail: Mail, tap: str
) -> None:
    events = orders(10)
    fault = Fault(events[4], times=2)
    start(fault=fault)
    mail.publish(events)

    until(lambda: applied(database) == ids_of(events), RETRIES_WITHIN_S)

    first, second, third = fault.tried
    assert second - first > 0.9
    assert third - second > 1.9
    until(lambda: depths(mail) == {})
    assert written(database) == []
    assert ids_in(mail.all(tap)) == sorted(map(str, ids_of(events))), "a retry crosses no exchange that others hear"


def test_a_message_that_died_after_three_retries_is_replayed_to_life(
    start: Start, database: Databases, mail: Mail, tap: str
) -> None:
    events = orders(10)
    ill = events[4]
    fault = Fault(ill, times=1 + len(retry_queues(QUEUE)))
    start(fault=fault)
    mail.publish(events)
    until(lambda: depths(mail) == {DLQ: 1}, RETRIES_WITHIN_S)
    (dead,) = peek(QUEUE)
    assert (dead["reason"], dead["headers"]["x-attempt"]) == ("exhausted", 4)
    assert applied(database) == ids_of(events) - {ill.message_id}
    assert [(row["message_id"], row["reason"]) for row in written(database)] == [(ill.message_id, "exhausted")]

    fault.times += 1  # the fault is not quite repaired: the replayed message has its retries again
    operation = replay(QUEUE)

    assert (operation["status"], operation["applied"]) == ("done", 1)
    assert len(fault.tried) == fault.times + 1
    assert applied(database) == ids_of(events)
    assert depths(mail) == {}
    (row,) = written(database)
    assert row["left_how"] == "replayed"
    assert ids_in(mail.all(tap)) == sorted(map(str, ids_of(events))), "a replay crosses no exchange that others hear"


def unreadable() -> dict[str, tuple[str, bytes]]:
    """Bodies that no try can mend, by what is wrong with them, each with the reason it is to die of."""
    good = json.loads(emitted(order_created()).to_json())
    return {
        "malformed JSON": ("poison", b'{"message_id": 1, '),
        "no JSON object": ("poison", b'"order.created"'),
        "valid JSON of a wrong shape": ("invalid_schema", json.dumps({**good, "payload": {"order_id": "1"}}).encode()),
        "unknown type": ("unknown_type", json.dumps({**good, "type": "order.forgotten"}).encode()),
    }


@pytest.mark.parametrize("wrong", unreadable())
def test_a_hopeless_message_dies_at_once_and_reaches_no_other_queue(
    wrong: str, start: Start, database: Databases, mail: Mail, tap: str
) -> None:
    reason, body = unreadable()[wrong]
    neighbours, message_id = orders(49), str(uuid4())
    start()
    before = deaths_counted(reason)
    outgoing = [Outgoing(EVENTS_EXCHANGE, e.type, e.to_json(), str(e.message_id), e.type) for e in neighbours]
    outgoing.insert(20, Outgoing(EVENTS_EXCHANGE, "order.created", body, message_id))
    mail.send(outgoing)

    until(lambda: depths(mail) == {DLQ: 1}, RETRIES_WITHIN_S)

    until(lambda: applied(database) == ids_of(neighbours))
    (dead,) = peek(QUEUE)
    assert (dead["properties"]["message_id"], dead["reason"]) == (message_id, reason)
    assert dead["body"].encode() == body
    assert dead["headers"]["x-attempt"] == 1
    assert [(str(row["message_id"]), row["reason"]) for row in written(database)] == [(message_id, reason)]
    assert len(mail.all(tap)) == 50
    (listed,) = [one for one in ecom_here("dlq", "ls", "--json", code=1).answer["queues"] if one["messages"]]
    assert (listed["dlq"], listed["messages"], listed["recorded"]) == (DLQ, 1, 1)
    assert listed["reasons"] == [{"reason": reason, "count": 1}]
    assert deaths_counted(reason) == before + 1


def deaths_counted(reason: str) -> float:
    """How many messages the metrics of this process say died of a reason; there before the first one died."""
    counted = REGISTRY.get_sample_value("ecom_dead_messages_total", {"queue": QUEUE, "reason": reason})
    assert counted is not None
    return counted


def test_a_message_that_kills_its_process_ends_in_the_dlq_and_its_neighbours_each_take_effect_once(
    settings: Settings, database: Databases, mail: Mail, tap: str, tmp_path: Path
) -> None:
    first, *events = orders(51)
    killer, neighbours = events[20], [*events[:20], *events[21:]]
    log = tmp_path / "killer.log"
    command = [sys.executable, "-m", "tests.integration.killer", killer.message_id]
    popen = spawn(command, log=log, env=os.environ, cwd=ROOT, dies_with_us=signal.SIGKILL)
    process = Process.of(popen.pid)
    assert process
    try:
        mail.publish([first])
        until(lambda: applied(database) == {first.message_id}, 30)  # from here on it takes a hundred at a time
        process.send_to_family(signal.SIGSTOP)
        mail.publish(events)
        process.send_to_family(signal.SIGCONT)
        until(lambda: depths(mail) == {DLQ: 1}, DEATHS_WITHIN_S)
        until(lambda: applied(database) == {first.message_id} | ids_of(neighbours))
        # The broker hears of the last death before its parent does.
        until(lambda: log.read_text().count("died of SIGKILL") == DELIVERY_LIMIT + 1)
    finally:
        process.send(signal.SIGSTOP)  # or it would start another one while its family is counted
        process.end(signal.SIGKILL)
        popen.wait()

    dead = until(lambda: mail.channel.basic_get(DLQ))
    assert dead.properties["message_id"] == str(killer.message_id)
    assert "x-reason" not in dead.headers
    assert dead.headers["x-first-death-reason"] == "delivery_limit"
    mail.channel.basic_reject(dead.delivery_tag, requeue=True)
    shown = ecom_here("dlq", "show", QUEUE, "--id", killer.message_id, "--json").answer
    assert shown["error"]["reason"] == "crash"
    assert written(database) == [], "nobody was left to write it down"

    until(lambda: depths(mail) == {DLQ: 1})  # who looked at it has given it back
    operator, census = OperatorSession(settings, Actor("census")), Census()
    assert [census.run_once(operator), census.run_once(operator)] == [0, 1], "what is there twice is written down"
    operator.close()
    (row,) = written(database)
    assert (row["queue"], row["message_id"], row["reason"]) == (QUEUE, killer.message_id, "crash")
    (listed,) = [one for one in ecom_here("dlq", "ls", "--json", code=1).answer["queues"] if one["messages"]]
    assert (listed["dlq"], listed["recorded"]) == (DLQ, 1)
    assert listed["reasons"] == [{"reason": "crash", "count": 1}]
    assert len(mail.all(tap)) == 51


def test_a_message_that_died_by_the_delivery_limit_is_replayed_to_life_and_fails_as_any_other(
    start: Start, database: Databases, mail: Mail
) -> None:
    (ill,) = orders(1)
    mail.publish([ill])
    reject_until_dead(mail, QUEUE)
    (dead,) = peek(QUEUE)
    assert dead["reason"] == "crash"

    fault = Fault(ill, times=2)
    start(fault=fault)
    operation = replay(QUEUE)

    assert (operation["status"], operation["applied"]) == ("done", 1)
    assert len(fault.tried) == 3, "it came back from two retry levels"
    assert applied(database) == {ill.message_id}
    assert depths(mail) == {}


def test_a_message_that_failed_once_by_itself_and_then_killed_its_process_is_a_crash_too(mail: Mail) -> None:
    (ill,) = orders(1)
    headers = {"x-attempt": 1, "x-error-class": "ConnectionError", "x-error-message": "out of paper"}
    mail.put(retry_queues(QUEUE)[0], ill.to_json(), headers)
    until(lambda: depths(mail) == {QUEUE: 1})
    reject_until_dead(mail, QUEUE)
    (dead,) = peek(QUEUE)
    assert dead["headers"]["x-first-death-reason"] == "expired"
    assert dead["reason"] == "crash"


def test_a_replayed_message_takes_no_header_of_its_death_with_which_rabbitmq_3_would_drop_it(
    database: Databases, mail: Mail
) -> None:
    (ill,) = orders(1)
    mail.publish([ill])
    reject_until_dead(mail, QUEUE)
    dead = until(lambda: mail.channel.basic_get(DLQ))
    mail.channel.basic_reject(dead.delivery_tag, requeue=True)
    with started("dlq", "replay", QUEUE, "--all", "--yes"):  # without a consumer it would wait for a minute
        until(lambda: database.rows("ops", "SELECT FROM operation_messages WHERE fate = 'sent'"), 30)
    replayed = mail.take(QUEUE)
    assert set(replayed.headers) - {"x-delivery-count"} == {
        "event-contract-version",
        "traceparent",
        "x-publisher",
        "x-replays",
    }

    def send_to_retry(headers: dict[str, Any]) -> None:
        retry = retry_queues(QUEUE)[0]
        mail.send([Outgoing(failed_exchange("inventory"), retry, dead.body, str(ill.message_id), headers=headers)])

    # RabbitMQ 3 takes for a cycle what it dead-letters by itself into a queue that x-death names, and drops it. 4 goes
    # by its own record of deaths, which no publisher can write.
    control_comes_back = mail.broker_version >= (4,)
    send_to_retry({**replayed.headers, "control": "", **dead.headers})
    send_to_retry(replayed.headers)
    if control_comes_back:
        assert "control" in mail.take(QUEUE).headers
    assert "control" not in mail.take(QUEUE).headers
    until(lambda: depths(mail) == {})


def test_a_replay_whose_cause_is_not_mended_stops_after_its_first_wave_and_says_why(
    start: Start, database: Databases, mail: Mail
) -> None:
    start("inventory")
    events = [emitted(CommitRequested(uuid4())) for _ in range(30)]  # of orders that nothing was reserved for
    mail.publish(events)
    until(lambda: depths(mail) == {f"{COMMITS}.dlq": 30}, RETRIES_WITHIN_S)

    operation = replay(COMMITS, "--ramp", "2,5,10", "--stop-on-redeath", code=1)

    assert operation["status"] == "stopped"
    assert re.fullmatch(
        r"[12] died again, as unknown_order \(order .* has no reservation to commit\)", operation["outcome"]
    )
    assert operation["chosen"] == 30
    (counted,) = database.rows("ops", "SELECT count(*) AS sent FROM operation_messages")
    assert counted["sent"] == 2
    until(lambda: depths(mail) == {f"{COMMITS}.dlq": 30})
    assert {row["message_id"] for row in written(database) if row["left_how"] is None} == ids_of(events)
    assert sorted(message["headers"]["x-replays"] for message in peek(COMMITS)) == [0] * 28 + [1] * 2


def test_a_dlq_that_was_looked_at_a_hundred_times_holds_what_it_held(
    settings: Settings, database: Databases, mail: Mail
) -> None:
    events = orders(50)
    for event in events:
        mail.put(DLQ, event.to_json())
    before = {message["body"] for message in peek(QUEUE)}
    operator = OperatorSession(settings, Actor("reader"))

    for _ in range(100):
        with operator.look_into(QUEUE, Filter()) as selection:
            assert len(selection.take(20)) == 20
            assert selection.count == 50

    operator.close()
    assert {message["body"] for message in peek(QUEUE)} == before == {event.to_json() for event in events}
    assert depths(mail) == {DLQ: 50}
    deliveries = [message.headers["x-delivery-count"] for message in mail.all(DLQ)]
    assert min(deliveries) > 100, "each look is a delivery, of which a DLQ allows any number"


def test_messages_of_a_killed_discard_are_put_back_from_its_file(
    settings: Settings, bench: Callable[..., Bench], mail: Mail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stops the process at this point."""

    def ack_and_die(reader: DlqReader, tags: Sequence[int]) -> None:
        ack(reader, tags)
        raise Killed

    bench("inventory").handle_batch(COMMITS, [emitted(CommitRequested(uuid4())) for _ in range(10)])
    operator, ack, file = OperatorSession(settings, Actor("operator")), DlqReader.ack, tmp_path / "discarded.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(DlqReader, "ack", ack_and_die)
        with pytest.raises(Killed):
            discard(operator, COMMITS, file, Filter(), None)
    assert depths(mail) == {}

    (run,) = put_back(operator, file)

    operator.close()
    assert run.tally.fates == {Fate.IMPORTED: 10}
    assert depths(mail) == {f"{COMMITS}.dlq": 10}
