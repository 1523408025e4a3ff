"""The dead-letter engine on a real broker and real databases: nothing is lost or done twice, all is recorded."""

import errno
import io
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest
from sqlalchemy import make_url

from ops import models
from ops.dlq import census, dlq_reader, files, operator_session, overview, selection
from ops.dlq import replay as replays
from ops.dlq.census import Census
from ops.dlq.dead_messages import dead_letter_of, from_line
from ops.dlq.dlq_reader import DlqReader
from ops.dlq.operator_session import Actor, OperatorSession, Run, Watch
from ops.dlq.replay import plan
from ops.dlq.replay_request import ReplayRequest
from ops.domain import CRASH, UNKNOWN, Fate, Filter, Kind, Pace, Status
from shared.config import Settings
from shared.edge.publisher import Outgoing
from shared.envelope import Envelope
from shared.errors import CannotWork, Conflict, NotFound, UnexpectedEvent, ValidationFailed
from shared.events import OrderCancelled
from shared.failures import Delivery
from tests.databases import Databases
from tests.integration.support import Bench, Mail, Wire, emitted, headers_of, until
from topology.table import DELIVERY_LIMIT, QUEUES, dead_letter_queue, failed_exchange

QUEUE = "q.payment.order-cancelled"
DLQ = dead_letter_queue(QUEUE)
FAST = Pace()
ALL = Filter()


def cancellations(count: int) -> list[Envelope]:
    return [emitted(OrderCancelled(uuid4(), "deadline")) for _ in range(count)]


def ids_of(events: list[Envelope]) -> set[UUID]:
    return {event.message_id for event in events}


def die(events: Any, tx: Any) -> None:
    """A handler for which nothing is right."""
    for event in events:
        tx.fail(event, UnexpectedEvent("not now"))


@pytest.fixture
def payment(bench: Callable[..., Bench]) -> Bench:
    return bench("payment")


@pytest.fixture
def kill(payment: Bench, mail: Mail) -> Callable[[list[Envelope]], list[Envelope]]:
    """Let messages die as in a service: classified, recorded, sent to the DLQ."""

    def kill(events: list[Envelope]) -> list[Envelope]:
        before = mail.waiting(DLQ)
        payment.handle_batch(QUEUE, events, handle=die)
        until(lambda: mail.waiting(DLQ) == before + len(events))
        return events

    return kill


@pytest.fixture
def open_operator(settings: Settings, database: Databases) -> Iterator[Callable[..., OperatorSession]]:
    made: list[OperatorSession] = []

    def make(name: str = "ann", watch: Watch | None = None, changed: Settings | None = None) -> OperatorSession:
        made.append(OperatorSession(changed or settings, Actor(name, "to see"), watch or Watch()))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def operator(open_operator: Callable[..., OperatorSession]) -> OperatorSession:
    return open_operator()


@pytest.fixture
def stranger(mail: Mail) -> Callable[..., UUID]:
    """Puts a message into the DLQ that no service has classified."""

    def put(
        body: bytes = b"{}", headers: dict[str, Any] | None = None, message_id: str = "", **properties: Any
    ) -> UUID:
        message_id = message_id or str(uuid4())
        mail.send([Outgoing("", DLQ, body, message_id, "", headers or {}, properties=properties)])
        return UUID(message_id)

    return put


class Consumer:
    """The consumer of the main queue: hands what comes to the batch, in chunks, and may be slow or wrong."""

    def __init__(self, settings: Settings, payment: Bench) -> None:
        self.mail = Mail(settings)
        self.payment = payment
        self.heard: list[tuple[UUID, dict[str, Any]]] = []
        self.handle: Any = None
        self._thread: Any = None

    def start(self, handle: Any = None) -> None:
        self.handle = handle
        self._thread = eventlet.spawn(self._run)

    def _run(self) -> None:
        while True:
            messages = self.mail.all(QUEUE)
            if not messages:
                eventlet.sleep(0.02)
                continue
            self.heard += [(UUID(m.properties["message_id"]), headers_of(m)) for m in messages]
            came = [
                Delivery(
                    tag, bytes(m.body), m.delivery_info["routing_key"], m.properties["message_id"], m.headers or {}
                )
                for tag, m in enumerate(messages, start=1)
            ]
            changed = {"handle": self.handle} if self.handle else {}
            self.payment.batch(QUEUE, **changed).handle_batch(came)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.kill()
        self.mail.close()


@pytest.fixture
def consumer(settings: Settings, payment: Bench, mail: Mail) -> Iterator[Consumer]:
    one = Consumer(settings, payment)
    yield one
    one.close()


def effects(database: Databases) -> Counter[UUID]:
    return Counter(row["order_id"] for row in database.rows("payment", "SELECT order_id FROM payments"))


def row_of(database: Databases, message_id: UUID) -> dict[str, Any]:
    (row,) = database.rows("payment", "SELECT * FROM dead_messages WHERE message_id = :id", id=message_id)
    return row


def left(database: Databases) -> Counter[str | None]:
    """How many dead messages left in which way; None: they are there."""
    return Counter(row["left_how"] for row in database.rows("payment", "SELECT left_how FROM dead_messages"))


def operations(database: Databases) -> list[dict[str, Any]]:
    return database.rows("ops", "SELECT * FROM operations ORDER BY operation_id")


def fates(database: Databases) -> Counter[str]:
    return Counter(row["fate"] for row in database.rows("ops", "SELECT fate FROM operation_messages"))


def replay(operator: OperatorSession, queue: str, chosen: Filter, most: int | None, pace: Pace, **options: bool) -> Run:
    """The replay of the engine, asked for in one line."""
    return replays.replay(operator, queue, ReplayRequest(chosen, most, pace, **options))


def held_ids(operator: OperatorSession, chosen: Filter = ALL) -> list[UUID]:
    with operator.look_into(DLQ, chosen) as chosen_ones:
        return [item.slot.message_id for held in chosen_ones.all(3) for item in held]


def through(wire: Wire, settings: Settings, *databases: str) -> Settings:
    """Settings whose databases are reached through a wire."""
    urls = {name: wire.url(url) if name in databases else url for name, url in settings.database_urls.items()}
    return replace(settings, database_urls=urls)


@pytest.fixture
def broker_wire(settings: Settings) -> Iterator[Wire]:
    uri = make_url(settings.amqp_uri)
    one = Wire(uri.host or "127.0.0.1", uri.port or 5672)
    yield one
    one.close()


def by_wire(wire: Wire, settings: Settings) -> Settings:
    uri = make_url(settings.amqp_uri_of("ops")).set(host="127.0.0.1", port=wire.port)
    return replace(settings, amqp_uris={"ops": uri.render_as_string(hide_password=False)})


def test_each_message_is_read_once_however_many_a_consumer_may_hold(settings, mail, stranger, monkeypatch):
    monkeypatch.setattr(dlq_reader, "PREFETCH", 7)
    put = {stranger() for _ in range(50)}
    with DlqReader(settings.amqp_uri, settings.heartbeat_s, DLQ) as box:
        read = [dead_letter_of(content).message_id for _, content in box.read()]
        assert mail.waiting(DLQ) == 0
        assert list(box.arrivals()) == []
    assert Counter(read) == Counter(put)
    assert until(lambda: mail.waiting(DLQ) == 50)


def test_once_it_is_closed_the_broker_has_everything_back(settings, mail):
    """Whoever reads next must not find half of it. Asked by a connection that is open already: there is no delay."""
    mail.send([Outgoing("", DLQ, b"{}", str(uuid4())) for _ in range(3000)])
    for _ in range(5):
        with DlqReader(settings.amqp_uri, settings.heartbeat_s, DLQ) as box:
            assert sum(1 for _ in box.read()) == 3000
        assert mail.waiting(DLQ) == 3000


def test_an_empty_dlq_is_read_at_once(settings, mail):
    began = time.monotonic()
    with DlqReader(settings.amqp_uri, settings.heartbeat_s, DLQ) as box:
        assert list(box.read()) == []
    assert time.monotonic() - began < dlq_reader.SILENCE_S


def test_looking_very_often_leaves_the_same_messages(operator, kill, mail, stranger, long):
    put = ids_of(kill(cancellations(3))) | {stranger() for _ in range(3)}
    for _ in range(100 if long else DELIVERY_LIMIT + 1):
        assert set(held_ids(operator)) == put
    assert mail.waiting(DLQ) == 6


def test_messages_that_arrive_after_an_ack_made_room_are_seen(settings, mail, stranger, monkeypatch):
    """What fills the room beyond what was counted must not hide all that comes later."""
    monkeypatch.setattr(dlq_reader, "PREFETCH", 4)
    for _ in range(2):
        stranger()
    with DlqReader(settings.amqp_uri, settings.heartbeat_s, DLQ) as box:
        tags = [tag for tag, _ in box.read()]
        box.ack(tags)
        later = {stranger() for _ in range(4)}  # all the room there is, and 2 more than was counted
        until(lambda: box.waiting() == 0)
        later |= {stranger() for _ in range(5)}
        seen: list[UUID] = []
        until(lambda: seen.extend(dead_letter_of(c).message_id for _, c in box.arrivals()) or len(seen) == 9)
    assert set(seen) == later


def test_a_queue_that_is_not_there_is_named(settings):
    with pytest.raises(CannotWork, match="ecom topology apply"), DlqReader(settings.amqp_uri, 10, "q.nope.dlq") as box:
        list(box.read())


DAY_0 = datetime.now(UTC) - timedelta(50)


def dated(days: int) -> dict[str, Any]:
    return {"x-first-failed-at": (DAY_0 + timedelta(days)).isoformat(), "x-reason": "exhausted"}


def test_the_oldest_come_first_whatever_the_order_of_the_queue(operator, stranger):
    put = {day: stranger(headers=dated(day)) for day in (5, 1, 9, 3)}
    assert held_ids(operator) == [put[1], put[3], put[5], put[9]]


def test_a_filter_chooses_and_the_others_stay(operator, mail, stranger):
    put = {day: stranger(headers=dated(day)) for day in (5, 1, 9, 3)}
    assert held_ids(operator, Filter(since=DAY_0 + timedelta(3), until=DAY_0 + timedelta(9))) == [
        put[3],
        put[5],
    ]
    assert until(lambda: mail.waiting(DLQ) == 4)


def test_reading_anew_hands_out_each_once_and_nothing_that_nobody_chose(operator, mail, stranger, monkeypatch):
    monkeypatch.setattr(dlq_reader, "HOLD_S", 0)
    put = [stranger(headers=dated(day)) for day in range(10, 17)]
    stranger(headers=dated(20), message_id=str(put[-1]))  # a copy
    seen: list[UUID] = []
    with operator.look_into(DLQ, ALL) as chosen:
        assert chosen.count == 7
        while held := chosen.take(2):
            seen += [item.slot.message_id for item in held]
            held_last = held[-1].slot
            stranger(headers=dated(1))  # older than all, and in no plan
    assert seen == put
    assert len(held_last.tags) == 2
    assert until(lambda: mail.waiting(DLQ) == 8 + 4)


def test_a_message_that_returns_after_it_was_handed_out_is_seen_in_the_next_reading(
    operator, mail, stranger, monkeypatch
):
    first, second = (stranger(headers=dated(day)) for day in (1, 2))
    with operator.look_into(DLQ, ALL) as chosen:
        (item,) = chosen.take(1)
        chosen.reader.ack(item.slot.tags)
        stranger(headers=dated(1), message_id=str(first))
        monkeypatch.setattr(dlq_reader, "HOLD_S", 0)
        assert [item.slot.message_id for item in chosen.take(1)] == [second]
        monkeypatch.setattr(dlq_reader, "HOLD_S", 600)
        assert {item.slot.message_id for item in chosen.arrivals()} == {first}


class Full(io.BytesIO):
    """A disk without room."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_without_room_holds_nothing_back(operator, mail, stranger, monkeypatch):
    """A connection left open would keep every message from everybody until its process ends."""
    monkeypatch.setattr(selection.tempfile, "TemporaryFile", lambda **how: Full())
    for _ in range(3):
        stranger()
    with pytest.raises(CannotWork, match=r"no room in .*No space left"), operator.look_into(DLQ, ALL):
        pass
    assert until(lambda: mail.waiting(DLQ) == 3)


def test_a_replay_takes_effect_once_and_is_written_down(operator, kill, consumer, mail, database):
    events = kill(cancellations(5))
    assert left(database) == {None: 5}
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert (run.status, run.tally.as_dict()) == (Status.DONE, {"chosen": 5, "applied": 5})
    assert effects(database) == Counter(event.payload.order_id for event in events)
    assert {message_id for message_id, _ in consumer.heard} == ids_of(events)
    for _, headers in consumer.heard:
        kept = {"x-first-failed-at", "x-original-routing-key", "event-contract-version", "traceparent"}
        assert headers.keys() == kept | {"x-replays", "x-publisher"}
        assert headers["x-replays"] == 1
    assert mail.waiting(DLQ) == 0
    assert left(database) == {"replayed": 5}
    (operation,) = operations(database)
    assert operation["operation_id"] == run.operation_id
    told_of = ("kind", "queue", "actor", "why", "status", "outcome", "counts")
    assert [operation[name] for name in told_of] == [
        "replay",
        DLQ,
        "ann",
        "to see",
        "done",
        "5 applied",
        {"chosen": 5, "applied": 5},
    ]
    assert operation["finished_at"] >= operation["started_at"]
    assert fates(database) == {"applied": 5}


def test_no_more_than_asked_and_the_oldest_first(operator, stranger, consumer, database, mail):
    events = cancellations(4)
    for event, day in zip(events, (4, 2, 3, 1), strict=True):
        stranger(event.to_json().encode(), dated(day), str(event.message_id))
    consumer.start()
    run = replay(operator, QUEUE, ALL, 2, FAST)
    assert run.tally.as_dict() == {"chosen": 2, "applied": 2}
    assert {message_id for message_id, _ in consumer.heard} == {events[3].message_id, events[1].message_id}
    assert until(lambda: mail.waiting(DLQ) == 2)


def test_copies_of_one_message_take_effect_once_and_are_all_gone(operator, kill, stranger, consumer, mail, database):
    (event,) = kill(cancellations(1))
    stranger(event.to_json().encode(), dated(1), str(event.message_id))
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert (run.status, run.tally.as_dict()) == (Status.DONE, {"chosen": 1, "copies": 1, "applied": 1})
    assert run.outcome == "1 applied (2 messages of 1 id)"
    assert [message_id for message_id, _ in consumer.heard] == [event.message_id]
    assert effects(database) == {event.payload.order_id: 1}
    assert fates(database) == {"applied": 1}
    assert mail.waiting(DLQ) == 0


def test_a_message_takes_effect_once_even_if_it_is_replayed(operator, kill, payment, consumer, database):
    (event,) = kill(cancellations(1))
    payment.handle_batch(QUEUE, [event])
    consumer.start()
    assert replay(operator, QUEUE, ALL, None, FAST).tally.as_dict() == {"chosen": 1, "already_applied": 1}
    assert effects(database) == {event.payload.order_id: 1}
    assert fates(database) == {"already_applied": 1}


def test_a_message_that_dies_again_is_counted_and_stays_written_down(operator, kill, consumer, mail, database):
    (event,) = kill(cancellations(1))
    before = row_of(database, event.message_id)
    consumer.start(die)
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert run.status == Status.DONE
    assert run.tally.as_dict() == {"chosen": 1, "dead_again": 1, "reasons": {"unexpected_event": 1}}
    after = row_of(database, event.message_id)
    assert (after["left_at"], after["replays"]) == (None, 1)
    assert after["died_at"] > before["died_at"]
    assert after["first_failed_at"] == before["first_failed_at"]
    assert fates(database) == {"dead_again": 1}
    assert until(lambda: mail.waiting(DLQ) == 1)


def test_one_that_dies_again_before_it_is_marked_is_not_marked(operator, kill, payment, database, monkeypatch):
    (event,) = kill(cancellations(1))
    publish = operator.publish

    def and_die(messages: list[Outgoing]) -> None:
        publish(messages)
        payment.handle_batch(QUEUE, [event], handle=die)

    monkeypatch.setattr(operator, "publish", and_die)
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert run.tally.fates[Fate.DEAD_AGAIN] == 1
    assert row_of(database, event.message_id)["left_at"] is None


def test_stop_on_redeath_stops_there_and_says_of_what(operator, kill, consumer, mail, database):
    kill(cancellations(5))
    consumer.start(die)
    run = replay(operator, QUEUE, ALL, None, Pace(None, (1,)), stop_on_redeath=True)
    assert run.status == Status.STOPPED
    assert run.outcome == "1 died again, as unexpected_event (not now)"
    assert run.tally.as_dict() == {"chosen": 5, "dead_again": 1, "reasons": {"unexpected_event": 1}}
    assert until(lambda: mail.waiting(DLQ) == 5)
    assert operations(database)[0]["status"] == "stopped"


def sent_by(operator: OperatorSession, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """How many a operator publishes at a time, and when."""
    sent: list[tuple[int, float]] = []
    publish = operator.publish

    def spy(messages: list[Outgoing]) -> None:
        sent.append((len(messages), time.monotonic()))
        publish(messages)

    monkeypatch.setattr(operator, "publish", spy)
    return sent


def test_each_wave_of_a_ramp_waits_until_the_one_before_is_consumed(operator, kill, consumer, database, monkeypatch):
    kill(cancellations(8))
    publish, sent = operator.publish, []

    def spy(messages: list[Outgoing]) -> None:
        sent.append((len(messages), sum(effects(database).values())))
        publish(messages)

    monkeypatch.setattr(operator, "publish", spy)
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, Pace(None, (1, 2, 3)))
    assert sent == [(1, 0), (2, 1), (3, 3), (2, 6)]
    assert run.tally.as_dict() == {"chosen": 8, "applied": 8}


def test_the_rate_is_kept(operator, kill, consumer, monkeypatch):
    kill(cancellations(5))
    sent = sent_by(operator, monkeypatch)
    consumer.start()
    replay(operator, QUEUE, ALL, None, Pace(4.0))
    assert [count for count, _ in sent] == [1] * 5
    assert sent[-1][1] - sent[0][1] >= 0.7  # of 1.0: the first may be late


def test_a_slow_rate_does_not_keep_its_operator_waiting(open_operator, kill, consumer, monkeypatch):
    kill(cancellations(3))
    asked: list[bool] = []
    operator = open_operator(watch=Watch(stopping=lambda: bool(asked)))
    consumer.start()
    eventlet.spawn_after(1.0, asked.append, True)
    began = time.monotonic()
    run = replay(operator, QUEUE, ALL, None, Pace(1 / 3600))
    assert time.monotonic() - began < 60
    assert (run.status, run.outcome) == (Status.STOPPED, "stopped by its operator")
    assert run.tally.as_dict() == {"chosen": 3, "applied": 1}


def test_a_slow_rate_reads_anew_before_the_broker_takes_all_away(operator, kill, consumer, mail, monkeypatch):
    """The broker ends a channel that holds a message for half an hour."""
    monkeypatch.setattr(dlq_reader, "HOLD_S", 0.2)
    opened: list[float] = []
    open_ = operator.open
    monkeypatch.setattr(operator, "open", lambda dlq: opened.append(time.monotonic()) or open_(dlq))
    kill(cancellations(2))
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, Pace(0.25))
    assert (run.status, run.tally.as_dict()) == (Status.DONE, {"chosen": 2, "applied": 2})
    assert max(later - earlier for earlier, later in pairwise(opened)) < 3  # the pause is of 4 s
    assert mail.waiting(DLQ) == 0


def test_no_more_are_out_than_a_consumer_can_take(operator, kill, mail, monkeypatch):
    monkeypatch.setattr(replays, "IN_FLIGHT", 2)
    monkeypatch.setattr(replays, "CHUNK", 2)
    monkeypatch.setattr(replays, "TIMEOUT_S", 0.5)
    kill(cancellations(9))
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert run.status == Status.STOPPED
    assert (mail.waiting(QUEUE), mail.waiting(DLQ)) == (4, 5)


def test_no_wave_follows_one_that_is_not_consumed(operator, kill, mail, monkeypatch):
    monkeypatch.setattr(replays, "TIMEOUT_S", 0.5)
    kill(cancellations(5))
    run = replay(operator, QUEUE, ALL, None, Pace(None, (2,)))
    assert run.status == Status.STOPPED
    assert (mail.waiting(QUEUE), mail.waiting(DLQ)) == (2, 3)


def test_a_replay_that_nobody_consumes_ends_and_says_so(operator, kill, mail, database, monkeypatch):
    monkeypatch.setattr(replays, "TIMEOUT_S", 0.5)
    kill(cancellations(3))
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert run.status == Status.STOPPED
    assert "3 were sent and not consumed" in run.outcome
    assert "is their service running?" in run.outcome
    assert (mail.waiting(DLQ), mail.waiting(QUEUE)) == (0, 3)
    assert (left(database), fates(database)) == ({"replayed": 3}, {"sent": 3})


def test_an_operator_who_says_stop_is_heard_after_what_is_in_hand(
    open_operator, kill, consumer, mail, database, monkeypatch
):
    monkeypatch.setattr(replays, "CHUNK", 2)
    kill(cancellations(6))
    asked: list[bool] = []
    operator = open_operator(watch=Watch(stopping=lambda: bool(asked)))
    publish = operator.publish
    monkeypatch.setattr(operator, "publish", lambda messages: asked.append(True) or publish(messages))
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert (run.status, run.outcome) == (Status.STOPPED, "stopped by its operator")
    assert run.tally.as_dict() == {"chosen": 6, "sent": 2}
    assert until(lambda: mail.waiting(DLQ) == 4)
    assert left(database) == {"replayed": 2, None: 4}


GUARDED = [
    ({"x-replays": 3}, "replayed 3 times before"),
    ({"x-first-failed-at": "2025-01-01T00:00:00Z"}, "older than the 90 days that the inbox remembers"),
]


@pytest.mark.parametrize(("headers", "why"), GUARDED)
def test_a_guard_refuses_and_force_overrules_it(operator, stranger, consumer, mail, database, headers, why):
    (event,) = cancellations(1)
    stranger(event.to_json().encode(), {"x-reason": "exhausted", **headers}, str(event.message_id))
    assert plan(operator, QUEUE, ALL, None)["refused"] == {why: 1}
    assert plan(operator, QUEUE, ALL, None, force=True)["refused"] == {}
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert run.tally.as_dict() == {"chosen": 1, "refused": 1, "reasons": {why: 1}}
    assert until(lambda: mail.waiting(DLQ) == 1)
    assert (fates(database), consumer.heard) == ({"refused": 1}, [])
    assert replay(operator, QUEUE, ALL, None, FAST, force=True).tally.as_dict() == {"chosen": 1, "applied": 1}


def test_a_plan_counts_and_changes_nothing(operator, kill, stranger, mail, database):
    kill(cancellations(2))
    stranger()
    assert plan(operator, DLQ, Filter(reasons=frozenset({"unexpected_event"})), None) == {
        "queue": DLQ,
        "in_queue": 3,
        "ids": 3,
        "chosen": 2,
        "reasons": {"unexpected_event": 2},
        "refused": {},
    }
    assert plan(operator, QUEUE, ALL, 1)["chosen"] == 1
    assert operations(database) == []
    assert until(lambda: mail.waiting(DLQ) == 3)


def everything(mail: Mail) -> set[UUID]:
    """The ids in main queue and DLQ, which are emptied."""
    return {UUID(m.properties["message_id"]) for queue in (QUEUE, DLQ) for m in mail.all(queue)}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_cut_in_the_middle_loses_nothing(
    open_operator, settings, broker_wire, kill, mail, database, monkeypatch, moment
):
    monkeypatch.setattr(replays, "CHUNK", 2)
    events = kill(cancellations(6))
    operator = open_operator(changed=by_wire(broker_wire, settings))
    publish, calls = operator.publish, []

    def cut(messages: list[Outgoing]) -> None:
        calls.append(1)
        if len(calls) == 2 and moment == "before":
            broker_wire.cut()
        publish(messages)
        if len(calls) == 2 and moment == "after":
            broker_wire.cut()

    monkeypatch.setattr(operator, "publish", cut)
    with pytest.raises(CannotWork, match="broker"):
        replay(operator, QUEUE, ALL, None, FAST)
    until(lambda: mail.waiting(DLQ) == 4)
    assert mail.waiting(QUEUE) == (4 if moment == "after" else 2)
    assert everything(mail) == ids_of(events)
    (operation,) = operations(database)
    assert operation["status"] == "failed"
    assert "the broker" in operation["outcome"]
    assert operation["counts"] == {"chosen": 6, "sent": 2}
    assert fates(database) == {"sent": 2, "started": 2}
    assert left(database) == {"replayed": 2, None: 4}


@pytest.mark.parametrize("name", ["ops", "payment"])
def test_a_database_that_is_away_stops_it_before_anything_is_taken(
    open_operator, settings, wire, kill, mail, database, monkeypatch, name
):
    kill(cancellations(3))
    operator = open_operator(watch=Watch(report_for_s=0), changed=through(wire, settings, name))
    select = operator.select

    def and_away(dlq: str, chosen: Filter) -> Any:
        held = select(dlq, chosen)
        wire.close()
        return held

    monkeypatch.setattr(operator, "select", and_away)
    with pytest.raises(CannotWork, match=f"the database of {name} cannot be used"):
        replay(operator, QUEUE, ALL, None, FAST)
    assert until(lambda: mail.waiting(DLQ) == 3)
    assert mail.waiting(QUEUE) == 0
    assert left(database) == {None: 3}
    (operation,) = operations(database)
    assert operation["status"] == ("started" if name == "ops" else "failed")


def test_a_ledger_that_is_away_changes_nothing_at_all(open_operator, settings, wire, kill, mail):
    kill(cancellations(1))
    operator = open_operator(changed=through(wire, settings, "ops"))
    wire.close()
    with pytest.raises(CannotWork, match="the database of ops"):
        replay(operator, QUEUE, ALL, None, FAST)
    assert (mail.waiting(DLQ), mail.waiting(QUEUE)) == (1, 0)


def test_a_message_that_the_broker_returns_stays_in_the_dlq(operator, kill, mail, database):
    """A binding is missing: nothing would be at the other end."""
    kill(cancellations(2))
    exchange = failed_exchange("payment")
    mail.channel.queue_unbind(QUEUE, exchange, QUEUE)
    try:
        with pytest.raises(CannotWork, match=r"did not take 2 of 2: unroutable"):
            replay(operator, QUEUE, ALL, None, FAST)
    finally:
        mail.channel.queue_bind(QUEUE, exchange, QUEUE)
    assert until(lambda: mail.waiting(DLQ) == 2)
    assert (left(database), fates(database)) == ({None: 2}, {"started": 2})


@pytest.fixture
def file(tmp_path):
    return tmp_path / "dead.jsonl"


def test_an_export_holds_all_and_takes_nothing(operator, kill, mail, database, file):
    events = kill(cancellations(3))
    run = files.export(operator, QUEUE, file, ALL)
    assert {dead_letter_of(from_line(line)).message_id for line in file.read_bytes().splitlines()} == ids_of(events)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert until(lambda: mail.waiting(DLQ) == 3)
    (operation,) = operations(database)
    assert (operation["kind"], operation["file"], operation["sha256"]) == ("export", str(file), files.checksum(file))
    assert (operation["outcome"], run.sha256) == ("3 messages", files.checksum(file))
    assert left(database) == {None: 3}


def test_a_discard_is_in_its_file_before_it_is_gone_and_comes_back_from_it(
    operator, kill, consumer, mail, database, file
):
    events = kill(cancellations(5))
    run = files.discard(operator, QUEUE, file, ALL, None)
    assert run.tally.as_dict() == {"chosen": 5, "discarded": 5}
    assert (mail.waiting(DLQ), left(database), fates(database)) == (0, {"discarded": 5}, {"discarded": 5})
    rows = {event.message_id: row_of(database, event.message_id) for event in events}

    (back,) = files.put_back(operator, file)
    assert back.tally.as_dict() == {"chosen": 5, "imported": 5}
    assert until(lambda: mail.waiting(DLQ) == 5)
    assert left(database) == {None: 5}
    for event in events:
        before, after = rows[event.message_id], row_of(database, event.message_id)
        assert {**after, "left_at": 0, "left_how": 0, "died_at": 0} == {
            **before,
            "left_at": 0,
            "left_how": 0,
            "died_at": 0,
        }
    (again,) = files.put_back(operator, file)
    assert again.tally.as_dict() == {"chosen": 5, "already_there": 5}
    assert until(lambda: mail.waiting(DLQ) == 5)

    consumer.start()
    assert replay(operator, QUEUE, ALL, None, FAST).tally.as_dict() == {"chosen": 5, "applied": 5}
    assert effects(database) == Counter(event.payload.order_id for event in events)


def test_a_discard_takes_the_oldest_it_was_asked_for(operator, stranger, mail, file):
    put = {day: stranger(headers=dated(day)) for day in (3, 1, 2)}
    files.discard(operator, QUEUE, file, ALL, 2)
    assert [dead_letter_of(from_line(line)).message_id for line in file.read_bytes().splitlines()] == [put[1], put[2]]
    assert until(lambda: mail.waiting(DLQ) == 1)
    assert UUID(mail.all(DLQ)[0].properties["message_id"]) == put[3]


def test_a_discard_that_reads_anew_takes_nothing_that_is_not_in_its_file(operator, stranger, mail, file, monkeypatch):
    put = {stranger(headers=dated(day)) for day in (10, 11)}
    write, newer = files.write, []

    def slowly(*given: Any) -> None:
        write(*given)
        newer.append(stranger(headers=dated(1)))
        monkeypatch.setattr(dlq_reader, "HOLD_S", 0)

    monkeypatch.setattr(files, "write", slowly)
    run = files.discard(operator, QUEUE, file, ALL, None)
    assert run.tally.as_dict() == {"chosen": 2, "discarded": 2}
    assert {dead_letter_of(from_line(line)).message_id for line in file.read_bytes().splitlines()} == put
    assert until(lambda: mail.waiting(DLQ) == 1)
    assert [UUID(m.properties["message_id"]) for m in mail.all(DLQ)] == newer


def full(descriptor: int) -> None:
    """What fsync says of a file there is no room for; its directory is in order."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOSPC, "No space left on device")


def no_disk(error: OSError) -> Callable[..., Any]:
    def fail(*given: Any, **named: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "breaks",
    [
        lambda patch: patch.setattr(files.os, "fsync", full),
        lambda patch: patch.setattr(files.os, "link", no_disk(OSError(errno.EPERM, "Operation not permitted"))),
        lambda patch: patch.setattr(files, "checksum", lambda file: "another"),
        lambda patch: patch.setattr(files.hashlib, "file_digest", no_disk(OSError(errno.EIO, "Input/output error"))),
    ],
    ids=["disk full", "no links", "reads otherwise", "cannot be read"],
)
def test_a_file_that_is_not_safe_leaves_every_message_where_it_is(
    operator, kill, mail, database, file, monkeypatch, breaks
):
    kill(cancellations(2))
    breaks(monkeypatch)
    with pytest.raises(CannotWork, match=r"dead\.jsonl"):
        files.discard(operator, QUEUE, file, ALL, None)
    assert until(lambda: mail.waiting(DLQ) == 2)
    assert left(database) == {None: 2}
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []
    (operation,) = operations(database)
    assert (operation["status"], operation["counts"].get("discarded")) == ("failed", None)


def test_no_file_is_ever_written_over(operator, kill, mail, database, file, monkeypatch):
    kill(cancellations(2))
    file.write_text("mine")
    with pytest.raises(Conflict, match="is there already"):
        files.discard(operator, QUEUE, file, ALL, None)
    assert operations(database) == []
    monkeypatch.setattr(files, "refuse_existing", lambda file: None)  # it came meanwhile
    with pytest.raises(Conflict, match="is there already"):
        files.discard(operator, QUEUE, file, ALL, None)
    assert file.read_text() == "mine"
    assert until(lambda: mail.waiting(DLQ) == 2)


def test_the_ledger_knows_the_file_of_a_discard_that_broke_off(operator, kill, mail, database, file, monkeypatch):
    """What it took is in that file alone."""
    monkeypatch.setattr(files, "CHUNK", 2)
    kill(cancellations(4))
    ack, calls = DlqReader.ack, []

    def broken(box: DlqReader, tags: list[int]) -> None:
        calls.append(tags)
        if len(calls) == 2:
            raise CannotWork("the broker is away")
        ack(box, tags)

    monkeypatch.setattr(DlqReader, "ack", broken)
    with pytest.raises(CannotWork):
        files.discard(operator, QUEUE, file, ALL, None)
    (operation,) = operations(database)
    assert (operation["status"], operation["sha256"]) == ("failed", files.checksum(file))
    assert operation["counts"] == {"chosen": 4, "discarded": 2}
    monkeypatch.undo()
    (back,) = files.put_back(operator, file)
    assert back.tally.as_dict() == {"chosen": 4, "already_there": 2, "imported": 2}
    assert until(lambda: mail.waiting(DLQ) == 4)


def test_the_ledger_knows_the_file_before_anything_is_taken(operator, kill, database, file, monkeypatch):
    monkeypatch.setattr(operator_session, "PROGRESS_EVERY_S", float("inf"))
    kill(cancellations(2))
    ack, seen = DlqReader.ack, []
    monkeypatch.setattr(DlqReader, "ack", lambda box, tags: seen.extend(operations(database)) or ack(box, tags))
    files.discard(operator, QUEUE, file, ALL, None)
    assert [(row["status"], row["sha256"]) for row in seen] == [("started", files.checksum(file))]


def test_an_import_goes_by_what_is_in_the_queue_and_not_by_what_is_written_down(operator, kill, mail, stranger, file):
    """A purge by hand is written down nowhere yet, nor is a crash."""
    purged = kill(cancellations(2))
    files.export(operator, QUEUE, file, ALL)
    until(lambda: mail.waiting(DLQ) == 2)
    mail.all(DLQ)
    (run,) = files.put_back(operator, file)
    assert run.tally.as_dict() == {"chosen": 2, "imported": 2}
    assert until(lambda: mail.waiting(DLQ) == len(purged))

    unwritten = stranger()
    crash = file.with_name("crash.jsonl")
    files.export(operator, QUEUE, crash, Filter(ids=frozenset({unwritten})))
    (run,) = files.put_back(operator, crash)
    assert run.tally.as_dict() == {"chosen": 1, "already_there": 1}
    assert until(lambda: mail.waiting(DLQ) == 3)


def test_a_line_that_is_there_twice_is_put_back_once(operator, kill, mail, file):
    kill(cancellations(1))
    files.discard(operator, QUEUE, file, ALL, None)
    file.write_bytes(file.read_bytes() * 2)
    (run,) = files.put_back(operator, file)
    assert run.tally.as_dict() == {"chosen": 2, "already_there": 1, "imported": 1}
    assert until(lambda: mail.waiting(DLQ) == 1)


def test_a_file_with_one_bad_line_is_refused_whole(operator, kill, mail, database, file):
    kill(cancellations(2))
    files.discard(operator, QUEUE, file, ALL, None)
    good, _ = file.read_bytes().splitlines()
    bad = json.dumps({**json.loads(good), "properties": {"priority": "high"}}).encode()
    file.write_bytes(good + b"\n\n" + bad + b"\n{}\n")
    with pytest.raises(ValidationFailed, match=r"line 3: AMQP cannot.*line 4: not a line.*nothing was put back"):
        files.put_back(operator, file)
    assert mail.waiting(DLQ) == 0
    assert [row["kind"] for row in operations(database)] == ["discard"]


def test_a_corrected_file_makes_messages_of_their_own_the_same_at_each_run(
    operator, kill, consumer, mail, database, file
):
    (event,) = kill(cancellations(1))
    files.discard(operator, QUEUE, file, ALL, None)
    file.write_bytes(file.read_bytes().replace(b"deadline", b"order_cancelled"))
    (one,) = files.put_back(operator, file, corrected=True)
    assert one.tally.as_dict() == {"chosen": 1, "imported": 1}
    (two,) = files.put_back(operator, file, corrected=True)
    assert two.tally.as_dict() == {"chosen": 1, "already_there": 1}
    consumer.start()
    assert replay(operator, QUEUE, ALL, None, FAST).tally.as_dict() == {"chosen": 1, "applied": 1}
    ((corrected, _),) = consumer.heard
    assert corrected != event.message_id
    (three,) = files.put_back(operator, file, corrected=True)
    assert three.tally.as_dict() == {"chosen": 1, "imported": 1}
    assert replay(operator, QUEUE, ALL, None, FAST).tally.as_dict() == {"chosen": 1, "already_applied": 1}
    assert effects(database) == {event.payload.order_id: 1}


def test_a_crash_is_found_and_written_down(operator, stranger, mail, database):
    (event,) = cancellations(1)
    body = event.to_json().encode()
    stranger(body, {"x-death": [{"reason": "delivery_limit", "time": datetime(2026, 1, 14), "queue": QUEUE}]})
    count = Census()
    assert count.run_once(operator) == 0  # it may be on its way
    assert count.run_once(operator) == 1
    row = row_of(database, event.message_id)
    assert (row["reason"], row["order_id"], row["left_at"]) == (CRASH, event.payload.order_id, None)
    assert row["died_at"] == datetime(2026, 1, 14, tzinfo=UTC)
    assert until(lambda: mail.waiting(DLQ) == 1)
    assert count.run_once(operator) == count.run_once(operator) == 0


def test_nonsense_in_a_message_does_not_stop_the_census(operator, stranger, database):
    body = json.dumps({"message_id": str(uuid4()), "type": "\ud800", "trace_id": "a\0b"}).encode()
    stranger(
        body,
        {
            "x-attempt": 2**62,
            "x-replays": 2**62,
            "x-error-message": "\ud800\0",
            "x-last-failed-at": "9999-01-01T00:00:00Z",
        },
    )
    assert census.reconcile(operator, QUEUE) == 1
    (row,) = database.rows("payment", "SELECT *, died_at <= now() AS past FROM dead_messages")
    assert (row["reason"], row["trace_id"], row["past"]) == (UNKNOWN, "a?b", True)


def test_messages_removed_by_other_tools_are_marked_gone(operator, kill, mail, database):
    kill(cancellations(3))
    database.run("payment", "UPDATE dead_messages SET died_at = died_at - interval '61 s'")
    mail.all(DLQ)
    assert census.reconcile(operator, QUEUE) == 3
    assert left(database) == {"gone": 3}


def test_a_death_on_its_way_to_the_dlq_is_not_marked_gone(operator, kill, mail, database):
    kill(cancellations(1))
    mail.all(DLQ)
    assert census.reconcile(operator, QUEUE) == 0
    assert left(database) == {None: 1}


def test_the_census_writes_under_the_lock(operator, open_operator, stranger, monkeypatch):
    """Or what an operator did to a message just then would be written over."""
    stranger()
    monkeypatch.setattr(operator_session, "LOCK_TIMEOUT_S", 0.1)
    other, refused = open_operator("bob"), []
    enter = operator.databases.enter

    def and_try(*given: Any) -> None:
        with pytest.raises(Conflict), other.look_into(DLQ, ALL):
            pass
        refused.append(1)
        enter(*given)

    monkeypatch.setattr(operator.databases, "enter", and_try)
    assert census.reconcile(operator, QUEUE) == 1
    assert refused


def test_a_second_operator_is_refused_by_the_name_of_the_first(open_operator, kill, mail, monkeypatch, file):
    monkeypatch.setattr(operator_session, "LOCK_TIMEOUT_S", 0.2)
    kill(cancellations(2))
    first, second = open_operator("ann"), open_operator("bob")
    with first.operation(Kind.REPLAY, DLQ, ALL, {}):
        for work in (
            lambda: replay(second, QUEUE, ALL, None, FAST),
            lambda: files.discard(second, QUEUE, file, ALL, None),
            lambda: plan(second, QUEUE, ALL, None),
            lambda: overview.full_message(second, QUEUE, uuid4()),
        ):
            with pytest.raises(Conflict, match=f"{DLQ} is being worked on by ann"):
                work()
        others = overview.overview(second)
        assert {one["dlq"]: one["busy"] for one in others if one["busy"]} == {DLQ: "ann"}
    assert plan(second, QUEUE, ALL, None)["chosen"] == 2


def test_another_dlq_is_free(open_operator):
    with open_operator("ann").operation(Kind.REPLAY, DLQ, ALL, {}):
        assert plan(open_operator("bob"), QUEUES[0].name, ALL, None)["chosen"] == 0


def test_the_operation_of_a_dead_process_is_interrupted(open_operator, database):
    with open_operator("ann").ledger() as ledger:
        began = models.start(ledger, models.NewOperation(Kind.REPLAY, DLQ, "ann", "", ALL, {}))
        other = models.start(
            ledger, models.NewOperation(Kind.REPLAY, dead_letter_queue(QUEUES[0].name), "ann", "", ALL, {})
        )
    plan(open_operator("bob"), QUEUE, ALL, None)
    rows = {row["operation_id"]: row for row in operations(database)}
    assert (rows[began]["status"], rows[began]["outcome"]) == ("interrupted", models.DIED)
    assert rows[began]["finished_at"] is not None
    assert rows[other]["status"] == "started"


def test_the_ledger_has_it_as_started_before_anything_is_sent(operator, kill, consumer, database, monkeypatch):
    (event,) = kill(cancellations(1))
    publish, seen = operator.publish, []

    def spy(messages: list[Outgoing]) -> None:
        seen.append(
            (operations(database)[0]["status"], fates(database), row_of(database, event.message_id)["left_how"])
        )
        publish(messages)

    monkeypatch.setattr(operator, "publish", spy)
    consumer.start()
    replay(operator, QUEUE, Filter(ids=frozenset(ids_of([event]))), None, Pace(5.0, (1,)))
    assert seen == [("started", {"started": 1}, None)]
    (operation,) = operations(database)
    assert operation["filter"] == {"ids": [str(event.message_id)]}
    assert operation["options"] == {"max": None, "rate": 5.0, "ramp": [1], "force": False, "stop_on_redeath": False}
    (message,) = database.rows("ops", "SELECT * FROM operation_messages")
    assert (message["message_id"], message["order_id"]) == (event.message_id, event.payload.order_id)
    assert (message["trace_id"], message["event_type"]) == (event.trace_id, "order.cancelled")


def test_the_overview_counts_what_is_there_and_what_is_written_down(operator, kill, stranger):
    kill(cancellations(2))
    stranger()
    (one,) = [one for one in overview.overview(operator) if one["messages"]]
    assert (one["dlq"], one["messages"], one["recorded"], one["note"]) == (DLQ, 3, 2, "2 recorded")
    assert one["reasons"] == [{"reason": "unexpected_event", "count": 2}]
    (one,) = [one for one in overview.overview(operator, scan=True) if one["messages"]]
    assert one["reasons"] == [{"reason": "unexpected_event", "count": 2}, {"reason": UNKNOWN, "count": 1}]
    assert one["oldest"] <= one["newest"]


def test_groups_are_the_same_by_the_books_and_by_the_queue(operator, kill, mail):
    kill(cancellations(3))
    (written,), (scanned,) = overview.groups(operator, QUEUE), overview.groups(operator, QUEUE, scan=True)
    for name in ("reason", "error_class", "event_type", "count", "example_error"):
        assert written[name] == scanned[name]
    assert written["count"] == 3


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff", b"1234", b'{"a": "\\ud800"}', b""])
def test_any_message_can_be_shown(operator, stranger, body):
    message_id = stranger(body, {"x-error-message": "\x1b[2J"})
    shown = overview.full_message(operator, QUEUE, message_id)
    json.dumps(shown)
    assert shown["message"]["message_id"] == str(message_id)
    with pytest.raises(NotFound):
        overview.full_message(operator, QUEUE, uuid4())
