"""What an operator asks first: how long the working queues are, and what an order waits for. No service runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from ops import queues as queues_module
from ops.dlq import overview
from ops.dlq.dlq_reader import QueueCounter
from ops.dlq.operator_session import Actor, OperatorSession
from ops.dlq.service_databases import ServiceDatabases
from ops.orders import order_now
from ops.queues import measure
from shared.config import Settings
from shared.edge.broker import BrokerConnection, BrokerSilent, Channel
from shared.errors import CannotWork
from shared.ids import new_trace_id
from shared.metrics import QUEUE_CONSUMERS, QUEUE_MESSAGES
from shared.times import timestamp
from tests.commands import Ended, ecom_here
from tests.databases import Databases
from tests.integration.support import Mail, until, wire_to_broker
from topology.table import QUEUES, dead_letter_queue, retry_queues

QUEUE = "q.payment.order-cancelled"
DEADLINE_S = 600


def waiting(mail: Mail, queue: str, count: int) -> None:
    for _ in range(count):
        mail.put(queue, "{}", {})
    until(lambda: mail.waiting(queue) == count)


def queues(*words: str) -> Ended:
    return ecom_here("queues", "ls", *words, code=1)  # no consumer runs here


@pytest.fixture
def counter(settings: Settings) -> Iterator[QueueCounter]:
    with closing(QueueCounter(settings.amqp_uri, settings.heartbeat_s)) as one:
        yield one


def test_the_messages_and_consumers_of_each_working_queue_are_counted(mail: Mail) -> None:
    waiting(mail, QUEUE, 2)
    told = {one["queue"]: one for one in queues("--json").answer["queues"]}
    assert list(told) == [queue.name for queue in QUEUES]
    assert (told[QUEUE]["service"], told[QUEUE]["ready"], told[QUEUE]["consumers"]) == ("payment", 2, 0)
    assert [level["wait_s"] for level in told[QUEUE]["retrying"]] == [1, 2, 4]
    said = queues().out
    (row,) = [line.split() for line in said.splitlines() if line.startswith(f" {QUEUE} ")]
    assert row == [QUEUE, "2", "0"]
    assert f"{QUEUE} has no consumer: is payment running?\n" in said


def test_messages_that_wait_to_be_retried_are_counted(mail: Mail) -> None:
    *_, longest = retry_queues(QUEUE)

    def shown() -> bool:
        mail.put(longest, "{}", {})  # it leaves this level after 4 s
        (row,) = [line for line in queues().out.splitlines() if line.startswith(f" {QUEUE} ")]
        return row.rstrip().endswith(" for 4 s")

    until(shown)


def test_the_gauges_have_one_value_for_each_working_and_retry_queue(mail: Mail, counter: QueueCounter) -> None:
    waiting(mail, QUEUE, 3)
    measure(counter)
    messages = {sample.labels["queue"]: sample.value for sample in next(iter(QUEUE_MESSAGES.collect())).samples}
    consumers = {sample.labels["queue"] for sample in next(iter(QUEUE_CONSUMERS.collect())).samples}
    assert messages[QUEUE] == 3
    assert messages.keys() == {name for queue in QUEUES for name in (queue.name, *retry_queues(queue.name))}
    assert consumers == {queue.name for queue in QUEUES}


def test_the_gauges_keep_their_values_until_the_queues_are_counted_again(
    mail: Mail, counter: QueueCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples() -> list[int]:
        return [len(next(iter(gauge.collect())).samples) for gauge in (QUEUE_MESSAGES, QUEUE_CONSUMERS)]

    measure(counter)
    shown_before, shown_meanwhile = samples(), []
    monkeypatch.setattr(queues_module, "working_queues", lambda *given: shown_meanwhile.append(samples()) or [])
    measure(counter)
    assert [shown_before] == shown_meanwhile != [[0, 0]]


def test_the_gauges_have_no_value_while_the_broker_is_away(
    mail: Mail, counter: QueueCounter, settings: Settings
) -> None:
    measure(counter)
    with pytest.raises(CannotWork):
        measure(QueueCounter("amqp://guest:guest@127.0.0.1:1/", settings.heartbeat_s))
    for gauge in (QUEUE_MESSAGES, QUEUE_CONSUMERS):
        assert next(iter(gauge.collect())).samples == []


def test_timers_count_queues_over_connections_that_are_kept(
    mail: Mail, settings: Settings, counter: QueueCounter, connections: list[BrokerConnection]
) -> None:
    for _ in range(2):
        measure(counter)
    assert len(connections) == 1
    with closing(OperatorSession(settings, Actor("system:census"))) as operator:
        for _ in range(2):
            overview.count(operator)
    assert len(connections) == 2


def test_queues_are_counted_again_after_the_broker_ended_the_idle_connection(mail: Mail, settings: Settings) -> None:
    wire = wire_to_broker(settings)
    with closing(wire), closing(QueueCounter(wire.amqp_uri(settings.amqp_uri), settings.heartbeat_s)) as counter:
        counter.count([QUEUE])
        wire.cut()
        waiting(mail, QUEUE, 1)
        assert counter.count([QUEUE])[QUEUE].messages == 1


def test_nothing_more_is_asked_over_a_connection_whose_answer_did_not_come_in_time(
    mail: Mail, counter: QueueCounter, connections: list[BrokerConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer may come later, and would be taken for that to the next question."""

    def in_vain(*given: Any, **named: Any) -> None:
        raise BrokerSilent("the broker did not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Channel, "queue_declare", in_vain)
        with pytest.raises(CannotWork, match="did not answer"):
            counter.count([QUEUE])
    assert counter.count([QUEUE]).keys() == {QUEUE}
    assert len(connections) == 2


@pytest.fixture
def order(database: Databases) -> UUID:
    """An order that has been RESERVED for a minute, and one of whose messages is dead."""
    order_id, trace_id = uuid4(), new_trace_id()
    database.run(
        "order",
        "INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key,"
        " fingerprint, created_at) VALUES (:id, 'ann', 'RESERVED', 'EUR', 900, 'mock_ok', :trace, 'key', '',"
        " now() - interval '61 s')",
        id=order_id,
        trace=trace_id,
    )
    database.run(
        "order",
        "INSERT INTO order_events (order_id, at, type, from_status, to_status, source, user_id, details) VALUES"
        " (:id, now() - interval '61 s', 'order.created', NULL, 'PENDING', 'order_service', 'ann', '{}'),"
        " (:id, now() - interval '60 s', 'inventory.reserved', 'PENDING', 'RESERVED', 'inventory_service', 'ann',"
        " '{}')",
        id=order_id,
    )
    database.run(
        "payment",
        "INSERT INTO dead_messages (message_id, queue, service, event_type, order_id, reason, error_class,"
        " error_message, attempts, replays, first_failed_at, died_at) VALUES (gen_random_uuid(),"
        " 'q.payment.inventory-reserved', 'payment', 'inventory.reserved', :id, 'exhausted', 'E', 'no', 4, 0, now(),"
        " now())",
        id=order_id,
    )
    return order_id


def show(order_id: Any, *words: str, code: int = 1, **environment: str) -> Ended:
    return ecom_here("order", "show", order_id, *words, code=code, ORDER_DEADLINE_S=str(DEADLINE_S), **environment)


def test_an_order_says_what_it_waits_for_and_until_when(order: UUID) -> None:
    told = show(order, "--json").answer
    assert (told["order_id"], told["status"], told["user_id"], told["total"]) == (str(order), "RESERVED", "ann", 900)
    assert [step["event"] for step in told["steps"]] == ["order.created", "inventory.reserved"]
    assert told["awaits"]["from"] == "payment_service"
    assert 60 <= told["awaits"]["for_s"] < 120
    created = datetime.fromisoformat(told["created_at"])
    assert told["deadline"] == timestamp(created + timedelta(seconds=DEADLINE_S))
    (dead,) = told["dead_messages"]
    assert (dead["queue"], dead["reason"]) == ("q.payment.inventory-reserved", "exhausted")
    said = show(order).out
    assert "waits for payment.succeeded or payment.failed from payment_service for 6" in said
    assert f"cancelled by itself at {told['deadline']} if it is not paid by then" in said
    assert dead["message_id"] in said


def test_a_dead_message_is_shown_with_its_order_as_the_order_itself_is_shown(order: UUID, mail: Mail) -> None:
    message_id = str(uuid4())
    mail.put(dead_letter_queue(QUEUE), json.dumps({"order_id": str(order), "message_id": message_id}), {})
    until(lambda: mail.waiting(dead_letter_queue(QUEUE)) == 1)
    words = ("dlq", "show", QUEUE, "--id", message_id, "--json")
    shown, itself = ecom_here(*words, code=0).answer["order_now"], show(order, "--json").answer
    for part in ("user_id", "total", "steps"):
        assert shown[part] == itself[part]
    assert shown.keys() == itself.keys() - {"dead_messages"}


def test_an_order_that_waits_for_nothing_has_no_deadline(order: UUID, database: Databases) -> None:
    database.run("payment", "UPDATE dead_messages SET left_at = now()")
    database.run("order", "UPDATE orders SET status = 'PAID'")
    told = show(order, "--json", code=0).answer
    assert (told["deadline"], told["awaits"], told["dead_messages"]) == (None, None, [])
    said = show(order, code=0).out
    assert "waits for" not in said
    assert "cancelled by itself" not in said


def test_an_order_that_is_not_there_is_a_finding(database: Databases) -> None:
    nobodys = uuid4()
    assert show(nobodys).err == f"ecom: there is no order {nobodys}\n"


def test_a_database_that_is_away_does_not_hide_the_order(order: UUID) -> None:
    said = show(order, code=3, PAYMENT_DATABASE_URL="postgresql://a:b@127.0.0.1:1/c")
    assert "inventory.reserved" in said.out
    assert said.err.startswith("ecom: the database of payment cannot be used")
    told = show(order, "--json", code=3, PAYMENT_DATABASE_URL="postgresql://a:b@127.0.0.1:1/c").answer
    assert told["dead_messages"] is None


def test_to_show_an_order_takes_few_statements(order: UUID, settings: Settings) -> None:
    databases = ServiceDatabases(settings, "test")
    said: list[str] = []
    with databases.read("order") as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *parts: said.append(parts[2]))
    order_now(databases, order, DEADLINE_S)
    databases.close()
    assert len(said) == 4  # the order, its items, its steps, the time


def test_empty_tables_say_so(database: Databases, mail: Mail) -> None:
    said = {
        words: ecom_here(*words, code=0).out
        for words in (("dlq", "groups", QUEUE), ("dlq", "history"), ("dlq", "peek", QUEUE), ("audit", "history"))
    }
    assert list(said.values()) == [
        "no dead messages\n",
        "no operation\n",
        f"0 of 0 that match, 0 in {dead_letter_queue(QUEUE)}\n",
        "no verification and no export\n",
    ]
