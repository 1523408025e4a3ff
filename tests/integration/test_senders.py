"""With a broker user for each service: who has sent a message is known, and what another has sent is refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import amqp
import eventlet
import pytest
from nameko.containers import ServiceContainer

from ops.dlq import files
from ops.dlq import replay as replays
from ops.dlq.diagnose import diagnose
from ops.dlq.operator_session import Actor, OperatorSession, Run
from ops.dlq.replay_request import ReplayRequest
from ops.domain import Fate, Filter, Pace
from shared.config import Settings
from shared.edge.broker import BrokerConnection
from shared.edge.context import Context
from shared.edge.deliveries import delivery_of
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.rpc import ConnectedExtension, rpc
from shared.edge.rpc_proxy import Replies, RpcProxy
from shared.envelope import Envelope
from shared.errors import Forbidden, HeldUp, PublishFailed, UnexpectedEvent
from shared.events import OrderCancelled
from shared.metrics import FORGED, REFUSED_CALLS
from shared.senders import PUBLISHER, UNSIGNED, known
from tests.databases import Databases
from tests.integration.support import TIMEOUT_S, Bench, Mail, container_of, emitted, extension, headers_of, until
from tests.integration.users import As
from topology.table import DELIVERY_LIMIT, EVENTS_EXCHANGE, RPC_EXCHANGE, dead_letter_queue, failed_exchange
from topology.users import broker_user

QUEUE = "q.payment.order-cancelled"
DLQ = dead_letter_queue(QUEUE)
ORDER, PAYMENT, GATEWAY = map(broker_user, ("order", "payment", "gateway"))
ALL = Filter()


@pytest.fixture
def hands(as_service: As, settings: Settings) -> Iterator[Mail]:
    """Hands in the vhost of the users, whose queues are empty. They connect as the administrator, unsigned."""
    vhost = as_service("order").amqp_uri.rpartition("/")[2]
    one = Mail(replace(settings, amqp_uri=f"{settings.amqp_uri.rpartition('/')[0]}/{vhost}"))
    one.empty()
    yield one
    one.close()


Send = Callable[..., None]


@pytest.fixture
def send(as_service: As, hands: Mail) -> Iterator[Send]:
    """Publishes an event as a service's user; as "nobody" without user_id."""
    publishers: dict[str, Publisher] = {}

    def one(service: str, event: Envelope, **headers: str) -> None:
        message = Outgoing(EVENTS_EXCHANGE, event.type, event.to_json(), str(event.message_id), event.type, {**headers})
        if service == "nobody":
            hands.send([message])
            return
        if service not in publishers:
            publishers[service] = Publisher(as_service(service).amqp_uri, heartbeat_s=30)
        assert publishers[service].publish_all([message], deadline_s=TIMEOUT_S) == [None]

    yield one
    for publisher in publishers.values():
        publisher.close()


class Consumer:
    """The consumer of the queue, connected as payment: it handles what is in the queue when it is told to."""

    def __init__(self, settings: Settings, hands: Mail) -> None:
        self.bench = Bench(settings, "payment")
        self.hands = hands

    def handle(self, **how: Any) -> amqp.Message:
        """Handle the next message; returns it."""
        message = self.hands.take(QUEUE)
        self.bench.batch(QUEUE, **how).handle_batch([delivery_of(message)])
        return message


MakeConsumer = Callable[..., Consumer]


@pytest.fixture
def consumer_with(as_service: As, hands: Mail, database: Databases) -> Iterator[MakeConsumer]:
    """Makes a consumer with these settings: consumer_with(accept_unsigned=True)."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Consumer:
            one = Consumer(replace(as_service("payment"), **settings), hands)
            stack.callback(one.bench.close)
            return one

        yield make


@pytest.fixture
def consumer(consumer_with: MakeConsumer) -> Consumer:
    return consumer_with()


@pytest.fixture
def operator(as_service: As, database: Databases) -> Iterator[OperatorSession]:
    one = OperatorSession(as_service("ops"), Actor("ann", "to see"))
    yield one
    one.close()


def cancelled() -> Envelope:
    return emitted(OrderCancelled(uuid4(), "deadline"))


def effects(database: Databases) -> list[Any]:
    return [row["order_id"] for row in database.rows("payment", "SELECT order_id FROM payments")]


def fail(events: Any, tx: Any) -> None:
    raise ValueError("not this time")


def die(events: Any, tx: Any) -> None:
    for event in events:
        tx.fail(event, UnexpectedEvent("not now"))


def replay(operator: OperatorSession, consumer: Consumer, force: bool = False) -> Run:
    """Replay the one message of the DLQ, and let the consumer handle it meanwhile."""
    handling = eventlet.spawn(consumer.handle)
    run = replays.replay(operator, QUEUE, ReplayRequest(ALL, None, Pace(), force=force))
    handling.wait()
    return run


def test_an_event_of_its_publisher_takes_effect(send: Send, consumer: Consumer, database: Databases) -> None:
    event = cancelled()
    send("order", event)
    message = consumer.handle()

    assert message.properties["user_id"] == ORDER
    assert effects(database) == [event.payload.order_id]


def test_the_broker_refuses_the_name_of_another(as_service: As, hands: Mail) -> None:
    publisher = Publisher(as_service("payment").amqp_uri, heartbeat_s=30)
    publisher._open().connection.sender = ORDER
    with pytest.raises(
        PublishFailed, match="user_id property set to 'ecom-order' but authenticated user was 'ecom-pay"
    ):
        publisher.publish_all([Outgoing("", QUEUE, "{}", str(uuid4()))])
    publisher.close()


@pytest.mark.parametrize(
    ("service", "claims", "words"),
    [
        ("inventory", None, "order.cancelled was sent by ecom-inventory, and ecom-order publishes it"),
        ("gateway", ORDER, "order.cancelled was sent by ecom-gateway, and ecom-order publishes it"),
        ("payment", None, "order.cancelled was sent by ecom-payment, and ecom-order publishes it"),
        ("ops", None, "order.cancelled was sent by ecom-ops, and ecom-order publishes it"),
        ("nobody", ORDER, "order.cancelled was sent without user_id, and ecom-order publishes it"),
    ],
)
def test_an_event_of_another_is_dead_at_once_and_its_dead_letter_says_who_sent_it(
    send: Send, consumer: Consumer, hands: Mail, database: Databases, service: str, claims: str | None, words: str
) -> None:
    sender = UNSIGNED if service == "nobody" else broker_user(service)
    counted = FORGED.labels(QUEUE, sender)._value.get()
    event = cancelled()
    send(service, event, **({PUBLISHER: claims} if claims else {}))
    consumer.handle()

    dead = hands.take(DLQ)
    headers = headers_of(dead)
    assert (headers["x-reason"], headers["x-error-message"], headers[PUBLISHER]) == ("forged", words, sender)
    assert effects(database) == []
    (row,) = database.rows("payment", "SELECT reason, error_message, event_type, order_id FROM dead_messages")
    assert row == {
        "reason": "forged",
        "error_message": words,
        "event_type": event.type,
        "order_id": event.payload.order_id,
    }
    assert FORGED.labels(QUEUE, sender)._value.get() == counted + 1


def test_a_forged_event_does_not_hide_the_true_one_of_the_same_id(
    send: Send, consumer: Consumer, hands: Mail, database: Databases
) -> None:
    event = cancelled()
    send("inventory", event)
    send("order", event)
    messages = [hands.take(QUEUE), hands.take(QUEUE)]
    consumer.bench.batch(QUEUE).handle_batch([delivery_of(message) for message in messages])

    assert effects(database) == [event.payload.order_id]
    assert headers_of(hands.take(DLQ))["x-reason"] == "forged"


@pytest.mark.parametrize(
    ("how", "message", "accepted"),
    [
        ({}, "event", False),
        ({"accept_unsigned": True}, "event", True),
        ({}, "bare payload", True),  # of a stock nameko shell
        ({"env": "production"}, "bare payload", False),
        ({"env": "production", "accept_unsigned": True}, "event", True),
    ],
)
def test_a_message_without_user_id(
    hands: Mail,
    consumer_with: MakeConsumer,
    database: Databases,
    how: dict[str, Any],
    message: str,
    accepted: bool,
) -> None:
    event = cancelled()
    body = event.to_json() if message == "event" else json.dumps(json.loads(event.to_json())["payload"])
    hands.send([Outgoing(EVENTS_EXCHANGE, event.type, body, str(uuid4()))])
    consumer = consumer_with(**how)
    consumer.handle(handle=fail)
    if accepted:
        returned = hands.take(QUEUE)  # from its retry
        assert (returned.properties["user_id"], headers_of(returned)[PUBLISHER]) == (PAYMENT, UNSIGNED)
        consumer.bench.batch(QUEUE).handle_batch([delivery_of(returned)])
        assert effects(database) == [event.payload.order_id]
    else:
        assert headers_of(hands.take(DLQ))["x-reason"] == "forged"


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_bare_payload_that_came_by_another_key_is_of_no_shell(
    hands: Mail, consumer: Consumer, database: Databases, header: str
) -> None:
    payload = json.dumps(json.loads(cancelled().to_json())["payload"])
    headers = {header: ["order.cancelled"], "x-original-routing-key": "order.cancelled"}
    hands.send([Outgoing(EVENTS_EXCHANGE, "nobody.listens", payload, str(uuid4()), headers=headers)])
    consumer.handle()

    assert headers_of(hands.take(DLQ))["x-reason"] == "forged"
    assert effects(database) == []


@pytest.mark.parametrize("error", [ValueError("not this time"), HeldUp("a lock")], ids=["retry", "hold-up"])
def test_what_is_sent_on_keeps_its_publisher(
    send: Send, consumer: Consumer, hands: Mail, database: Databases, error: Exception
) -> None:
    def not_now(events: Any, tx: Any) -> None:
        tx.fail(events[0], error)

    event = cancelled()
    send("order", event)
    consumer.handle(handle=not_now)
    returned = hands.take(QUEUE)
    assert (returned.properties["user_id"], headers_of(returned)[PUBLISHER]) == (PAYMENT, ORDER)
    consumer.bench.batch(QUEUE).handle_batch([delivery_of(returned)])

    assert effects(database) == [event.payload.order_id]


def crash(hands: Mail, consumer: Consumer) -> None:
    """Let the broker itself move the message to the DLQ, as after a consumer that died of it again and again."""
    for _ in range(DELIVERY_LIMIT + 1):
        message = until(lambda: hands.channel.basic_get(QUEUE))
        hands.channel.basic_reject(message.delivery_info["delivery_tag"], requeue=True)


def dead_of_its_handler(hands: Mail, consumer: Consumer) -> None:
    consumer.handle(handle=die)


@pytest.mark.parametrize("end", [dead_of_its_handler, crash])
def test_a_replay_keeps_the_publisher(
    send: Send,
    consumer: Consumer,
    hands: Mail,
    operator: OperatorSession,
    database: Databases,
    end: Callable[[Mail, Consumer], None],
) -> None:
    event = cancelled()
    send("order", event)
    end(hands, consumer)
    until(lambda: hands.waiting(DLQ) == 1)
    assert replay(operator, consumer).tally.as_dict() == {"chosen": 1, "applied": 1}
    assert effects(database) == [event.payload.order_id]


def test_a_forged_message_stays_forged_whoever_replays_it(
    send: Send, consumer: Consumer, hands: Mail, operator: OperatorSession, database: Databases
) -> None:
    send("inventory", cancelled())
    consumer.handle()
    until(lambda: hands.waiting(DLQ) == 1)
    (group,) = diagnose(operator, QUEUE, ALL).groups
    assert (group.prediction, group.why) == (
        "still poison",
        "forged: order.cancelled was sent by ecom-inventory, and ecom-order publishes it",
    )
    refused = replays.replay(operator, QUEUE, ReplayRequest(ALL, None, Pace()))
    assert refused.tally.as_dict() == {"chosen": 1, "refused": 1, "reasons": {"forged": 1}}
    assert replay(operator, consumer, force=True).tally.fates[Fate.DEAD_AGAIN] == 1
    dead = hands.take(DLQ)
    assert (headers_of(dead)["x-reason"], headers_of(dead)[PUBLISHER]) == ("forged", broker_user("inventory"))
    assert effects(database) == []


def test_an_operator_vouches_for_a_message_that_does_not_say_who_sent_it(
    hands: Mail, consumer: Consumer, operator: OperatorSession, database: Databases
) -> None:
    event = cancelled()  # as the version before there were users left it in the DLQ
    old = Outgoing(
        failed_exchange("payment"), DLQ, event.to_json(), str(event.message_id), event.type, {"x-reason": "exhausted"}
    )
    hands.send([old])
    until(lambda: hands.waiting(DLQ) == 1)
    run = replay(operator, consumer)
    assert run.tally.as_dict() == {"chosen": 1, "vouched": 1, "applied": 1}
    assert run.outcome == "1 applied (1 do not say who published them)"
    (operation,) = database.rows("ops", "SELECT counts FROM operations")
    assert operation["counts"]["vouched"] == 1
    assert effects(database) == [event.payload.order_id]


@pytest.mark.parametrize("corrected", [False, True])
def test_a_file_keeps_the_publisher(
    send: Send,
    consumer: Consumer,
    hands: Mail,
    operator: OperatorSession,
    database: Databases,
    tmp_path: Path,
    corrected: bool,
) -> None:
    send("order", cancelled())
    consumer.handle(handle=die)
    until(lambda: hands.waiting(DLQ) == 1)
    file = tmp_path / "dead.jsonl"
    files.discard(operator, QUEUE, file, ALL, None)
    files.put_back(operator, file, corrected)
    until(lambda: hands.waiting(DLQ) == 1)

    assert replay(operator, consumer).tally.as_dict() == {"chosen": 1, "applied": 1}
    assert len(effects(database)) == 1


def test_a_file_of_a_version_without_users_can_be_put_back(
    hands: Mail, consumer: Consumer, operator: OperatorSession, database: Databases, tmp_path: Path
) -> None:
    event = cancelled()
    line = {
        "message_id": str(event.message_id),
        "queue": DLQ,
        "exchange": failed_exchange("payment"),
        "routing_key": DLQ,
        "properties": {"message_id": str(event.message_id), "type": event.type},
        "headers": {"x-reason": "exhausted"},
        "body": event.to_json(),
    }
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps(line) + "\n")
    files.put_back(operator, file)
    until(lambda: hands.waiting(DLQ) == 1)

    assert replay(operator, consumer).tally.as_dict() == {"chosen": 1, "vouched": 1, "applied": 1}


class Stock:
    """The called service."""

    name = "inventory_service"
    context = Context()
    calls = 0

    @rpc
    def who(self) -> list[Any]:
        Stock.calls += 1
        return [self.context.identity.user_id, list(self.context.identity.roles)]


Ask = Callable[..., Any]
Start = Callable[[Settings, Any], ServiceContainer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a service, and returns when it is connected."""
    with ExitStack() as stack:

        def one(settings: Settings, service: Any) -> ServiceContainer:
            container = container_of(settings, service)
            stack.callback(container.kill)
            container.start()
            connected = [item for item in container.extensions if isinstance(item, ConnectedExtension)]
            until(lambda: not any(item.not_ready_reason() for item in connected))
            return container

        yield one


@pytest.fixture
def stock(as_service: As, start: Start, hands: Mail) -> Iterator[Callable[..., ServiceContainer]]:
    """Starts the called service with these settings: stock(env="production")."""
    Stock.calls = 0
    yield lambda **settings: start(replace(as_service("inventory"), **settings), Stock)
    hands.channel.queue_purge("rpc-inventory_service")


@pytest.fixture
def call_as(as_service: As, start: Start, hands: Mail) -> Ask:
    """Calls `who` as a service's user: call_as("gateway", user_id="ann"); as "nobody" without user_id."""

    def one(service: str, within_s: float = TIMEOUT_S, **context: Any) -> Any:
        class Caller:
            name = "gateway_service"
            stock = RpcProxy("inventory_service")

        settings = hands.settings if service == "nobody" else as_service(service)
        replies = extension(start(settings, Caller), Replies)
        return replies.call("inventory_service.who", [], {}, context, within_s)

    return one


def test_the_gateway_may_call_and_say_for_whom(stock: Callable[..., Any], call_as: Ask) -> None:
    stock(env="production")

    assert call_as("gateway", user_id="ann", roles=["admin"]) == ["ann", ["admin"]]


@pytest.mark.parametrize("service", ["order", "payment", "ops", "auth", "inventory", "shell", "nobody"])
def test_no_other_may_call_in_production(stock: Callable[..., Any], call_as: Ask, service: str) -> None:
    user = UNSIGNED if service == "nobody" else broker_user(service)
    counted = REFUSED_CALLS.labels("inventory_service", user)._value.get()
    stock(env="production")
    with pytest.raises(Forbidden, match=r"may not call inventory_service by inventory_service\.who"):
        call_as(service, user_id="ann", roles=["admin"])

    assert Stock.calls == 0
    assert REFUSED_CALLS.labels("inventory_service", user)._value.get() == counted + 1


@pytest.mark.parametrize(
    ("how", "service", "accepted"),
    [
        ({}, "shell", True),
        ({}, "nobody", True),  # a stock nameko shell
        ({}, "payment", False),
        ({"env": "production", "accept_unsigned": True}, "nobody", True),
        ({"env": "production", "accept_unsigned": True}, "payment", False),
    ],
)
def test_who_else_may_call(
    stock: Callable[..., Any], call_as: Ask, how: dict[str, Any], service: str, accepted: bool
) -> None:
    stock(**how)
    if accepted:
        assert call_as(service)[0] == "shell"
    else:
        with pytest.raises(Forbidden):
            call_as(service)


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_call_that_came_by_another_key_is_of_no_shell(stock: Callable[..., Any], hands: Mail, header: str) -> None:
    stock()
    counted = REFUSED_CALLS.labels("inventory_service", UNSIGNED)._value.get()
    call = amqp.Message('{"args": [], "kwargs": {}}', application_headers={header: ["inventory_service.who"]})
    hands.channel.basic_publish(call, RPC_EXCHANGE, "reply.gateway.1.who")
    until(lambda: REFUSED_CALLS.labels("inventory_service", UNSIGNED)._value.get() == counted + 1)

    assert Stock.calls == 0


@pytest.mark.parametrize("service", ["payment", "nobody"])
def test_a_reply_of_another_does_not_reach_the_caller(as_service: As, start: Start, hands: Mail, service: str) -> None:
    class Caller:
        name = "gateway_service"
        stock = RpcProxy("inventory_service")

    replies = extension(start(as_service("gateway"), Caller), Replies)
    hands.channel.exchange_declare(RPC_EXCHANGE, "topic", durable=True, auto_delete=False)
    hands.channel.queue_declare("rpc-inventory_service", durable=True, auto_delete=False)
    hands.channel.queue_bind("rpc-inventory_service", RPC_EXCHANGE, "inventory_service.*")
    hands.channel.queue_purge("rpc-inventory_service")
    asked = eventlet.spawn(replies.call, "inventory_service.who", [], {}, {}, TIMEOUT_S)
    question = hands.take("rpc-inventory_service")
    assert question.properties["user_id"] == GATEWAY
    counted = REFUSED_CALLS.labels("gateway_service", known(user_of(service)))._value.get()
    answers = {service: "forged", "inventory": "true"}
    for sender, result in answers.items():
        line = BrokerConnection((hands.settings if sender == "nobody" else as_service(sender)).amqp_uri, 30)
        answer = amqp.Message(
            json.dumps({"result": result, "error": None}), correlation_id=question.properties["correlation_id"]
        )
        line.channel.basic_publish(answer, RPC_EXCHANGE, question.properties["reply_to"])
        if sender == service:
            refused = REFUSED_CALLS.labels("gateway_service", known(user_of(service)))._value
            until(lambda: refused.get() == counted + 1)  # noqa: B023
        line.close()

    assert asked.wait() == "true"


def user_of(service: str) -> str | None:
    return None if service == "nobody" else broker_user(service)
