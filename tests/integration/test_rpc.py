"""RPC: errors cross as themselves, a call never waits for ever, a stock Nameko client can call."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import amqp
import eventlet
import pytest
from nameko.containers import ServiceContainer
from nameko.exceptions import IncorrectSignature, MethodNotFound, RemoteError
from nameko.standalone.rpc import ClusterRpcProxy
from prometheus_client import REGISTRY

from shared.config import Settings
from shared.edge.broker import BrokerConnection
from shared.edge.context import Context
from shared.edge.rpc import RpcServer, rpc
from shared.edge.rpc_proxy import Replies, RpcProxy
from shared.errors import BelowReserved, Conflict, ServiceUnavailable, VersionMoved
from shared.roles import ROLES
from tests.integration.support import TIMEOUT_S, Mail, container_of, extension, until, wire_to_broker
from topology import declare, table

# For calls without an answer.
SHORT_S = 1.0
TRACE_ID = "0123456789abcdef0123456789abcdef"


class Stock:
    """The called service."""

    name = "inventory_service"
    context = Context()
    started = 0
    finished = 0

    @rpc
    def double(self, number: int) -> int:
        return number * 2

    @rpc
    def refuse(self) -> None:
        raise BelowReserved("Too low.", {"reserved": 3, "skus": [{"sku": "apple", "short": 2}], "why": None})

    @rpc
    def moved(self) -> None:
        raise VersionMoved(details={"version": 7})

    @rpc
    def crash(self) -> None:
        raise ZeroDivisionError("by 0")

    @rpc
    def unspeakable(self) -> object:
        return object()

    @rpc
    def sleep(self, seconds: float) -> str:
        Stock.started += 1
        eventlet.sleep(seconds)
        Stock.finished += 1
        return "slept"

    @rpc
    def who(self) -> list[Any]:
        identity = self.context.identity
        return [self.context.trace_id, identity.user_id, list(identity.roles)]


class Caller:
    """The calling service."""

    name = "gateway"
    stock = RpcProxy("inventory_service")


Call = Callable[..., Any]


@pytest.fixture
def stock(settings: Settings, mail: Mail) -> Iterator[ServiceContainer]:
    Stock.started = Stock.finished = 0
    container = container_of(settings, Stock)
    container.start()
    until(lambda: extension(container, RpcServer).not_ready_reason() is None)
    yield container
    container.kill()
    mail.channel.queue_purge("rpc-inventory_service")


@pytest.fixture
def call(settings: Settings) -> Iterator[Call]:
    """Calls from within a service: call("double", 2, service="inventory_service")."""
    container = container_of(settings, Caller)
    container.start()
    replies = extension(container, Replies)
    until(lambda: replies.not_ready_reason() is None)

    def one(
        method: str, *args: Any, service: str = "inventory_service", timeout_s: float = TIMEOUT_S, **context: Any
    ) -> Any:
        with eventlet.Timeout(timeout_s + 3):
            return replies.call(f"{service}.{method}", args, {}, context, timeout_s)

    yield one
    container.kill()


def test_a_call_is_answered(stock: ServiceContainer, call: Call) -> None:
    assert call("double", 21) == 42


def test_many_calls_at_once_each_get_their_own_answer(stock: ServiceContainer, call: Call) -> None:
    pool = eventlet.GreenPool(50)

    assert list(pool.imap(lambda number: call("double", number), range(200))) == [n * 2 for n in range(200)]


def test_an_error_raised_on_purpose_crosses_as_itself_with_its_details(stock: ServiceContainer, call: Call) -> None:
    with pytest.raises(BelowReserved) as raised:
        call("refuse")

    assert raised.value.message == "Too low."
    assert raised.value.details == {"reserved": 3, "skus": [{"sku": "apple", "short": 2}], "why": None}
    assert isinstance(raised.value, Conflict)
    with pytest.raises(VersionMoved) as moved:
        call("moved")
    assert moved.value.details == {"version": 7}, "a number stays a number"


def test_a_crash_crosses_as_a_remote_error_and_the_service_lives(stock: ServiceContainer, call: Call) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        call("crash")

    assert call("double", 1) == 2


def test_a_result_that_is_no_json_is_an_error_and_the_service_lives(stock: ServiceContainer, call: Call) -> None:
    with pytest.raises(RemoteError, match="TypeError"):
        call("unspeakable")

    assert call("double", 1) == 2


def test_an_unknown_method_and_wrong_arguments_are_told(stock: ServiceContainer, call: Call) -> None:
    with pytest.raises(MethodNotFound):
        call("forget")
    with pytest.raises(IncorrectSignature):
        call("double")


def test_calls_are_counted_as_done_refused_or_failed(stock: ServiceContainer, call: Call) -> None:
    def counted() -> list[float | None]:
        sample = REGISTRY.get_sample_value
        labels = [{"service": "inventory_service", "outcome": outcome} for outcome in ("done", "refused", "failed")]
        timed = sample("ecom_rpc_seconds_count", {"service": "inventory_service"})
        return [*(sample("ecom_rpc_calls_total", one) for one in labels), timed]

    before = counted()
    call("double", 1)
    for method, error in (("refuse", BelowReserved), ("crash", RemoteError), ("forget", MethodNotFound)):
        with pytest.raises(error):
            call(method)

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 2, 4]


def test_a_service_that_was_never_there_is_known_at_once(call: Call) -> None:
    began = time.monotonic()
    with pytest.raises(ServiceUnavailable):
        call("double", 1, service="nobody_service")

    assert time.monotonic() - began < TIMEOUT_S / 2


def test_a_service_that_died_is_unavailable_within_the_timeout(stock: ServiceContainer, call: Call) -> None:
    stock.kill()  # its queue is still there
    began = time.monotonic()
    with pytest.raises(ServiceUnavailable):
        call("double", 1, timeout_s=SHORT_S)

    assert SHORT_S * 0.9 < time.monotonic() - began < SHORT_S + 5


def test_a_slow_call_is_given_up_and_its_late_answer_harms_nobody(stock: ServiceContainer, call: Call) -> None:
    with pytest.raises(ServiceUnavailable):
        call("sleep", SHORT_S + 0.3, timeout_s=SHORT_S)
    until(lambda: Stock.finished)

    assert call("double", 1) == 2


def test_a_call_whose_caller_gave_up_is_not_made(stock: ServiceContainer, mail: Mail) -> None:
    reply = f"test.{uuid4()}"
    mail.channel.queue_declare(reply, exclusive=True)
    mail.channel.queue_bind(reply, "nameko-rpc", reply)

    def ask(deadline: float) -> dict[str, Any]:
        message = amqp.Message(
            json.dumps({"args": [0], "kwargs": {}}),
            reply_to=reply,
            correlation_id="1",
            application_headers={"nameko.deadline": str(deadline)},
        )
        mail.channel.basic_publish(message, "nameko-rpc", "inventory_service.sleep")
        return dict(json.loads(mail.take(reply).body))

    refused = ask(time.time() - 0.1)
    assert refused["error"]["exc_path"] == "shared.errors.ServiceUnavailable"
    assert Stock.started == 0
    assert ask(time.time() + TIMEOUT_S)["result"] == "slept"


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"args": []}', b"\xff", b'{"args": 1, "kwargs": 2}'])
def test_a_malformed_call_harms_nobody(body: bytes, stock: ServiceContainer, call: Call, mail: Mail) -> None:
    mail.channel.basic_publish(amqp.Message(body), "nameko-rpc", "inventory_service.double")
    odd = amqp.Message(
        b'{"args": [1], "kwargs": {}}', application_headers={"nameko.deadline": "soon", "nameko.roles": 5}
    )
    mail.channel.basic_publish(odd, "nameko-rpc", "inventory_service.double")

    assert call("double", 1) == 2
    until(lambda: not mail.waiting("rpc-inventory_service"))


def test_a_call_that_cannot_be_answered_is_made_once_and_harms_nobody(
    settings: Settings, call: Call, mail: Mail
) -> None:
    """The broker closes the channel of a server that publishes a key it may not, and delivers its calls again."""
    Stock.started = Stock.finished = 0
    own = container_of(replace(settings, amqp_uri=settings.amqp_uri_of("inventory")), Stock)
    own.start()
    try:
        astray = amqp.Message(b'{"args": [0], "kwargs": {}}', reply_to="auth_service.authenticate", correlation_id="1")
        mail.channel.basic_publish(astray, "nameko-rpc", "inventory_service.sleep")
        until(lambda: Stock.finished)
        assert [call("double", number) for number in range(5)] == [0, 2, 4, 6, 8]
        assert Stock.started == 1
    finally:
        own.kill()


@pytest.mark.parametrize("body", [b"{", b"\xff", b""])
def test_a_malformed_reply_harms_nobody(
    body: bytes, stock: ServiceContainer, settings: Settings, call: Call, mail: Mail
) -> None:
    container = container_of(settings, Caller)
    container.start()
    replies = extension(container, Replies)
    until(lambda: replies.not_ready_reason() is None)
    mail.channel.basic_publish(amqp.Message(body, correlation_id="17"), "nameko-rpc", replies._reply_to)

    assert replies.call("inventory_service.double", (2,), {}, {}, TIMEOUT_S) == 4
    container.kill()


def test_identity_and_trace_arrive(stock: ServiceContainer, call: Call) -> None:
    context = {"trace_id": TRACE_ID, "user_id": "customer", "roles": ["customer", "auditor"]}

    assert call("who", **context) == [TRACE_ID, "customer", ["customer", "auditor"]]


def test_a_stock_nameko_client_can_call_and_is_the_user_shell(stock: ServiceContainer, settings: Settings) -> None:
    config = {"AMQP_URI": settings.amqp_uri, "serializer": "json"}
    with ClusterRpcProxy(config, timeout=TIMEOUT_S) as services:
        assert services.inventory_service.double(4) == 8
        trace_id, user_id, roles = services.inventory_service.who()
        with pytest.raises(BelowReserved):
            services.inventory_service.refuse()

    assert (len(trace_id), user_id, roles) == (32, "shell", list(ROLES)), "in development"


def test_a_proxy_in_a_service_carries_the_context_of_its_worker(stock: ServiceContainer, settings: Settings) -> None:
    class Between:
        name = "order_service"
        stock = RpcProxy("inventory_service")

        @rpc
        def ask(self) -> Any:
            return self.stock.who()

    container = container_of(settings, Between)
    container.start()
    try:
        until(
            lambda: (
                extension(container, RpcServer).not_ready_reason()
                is extension(container, Replies).not_ready_reason()
                is None
            )
        )
        replies = extension(container, Replies)
        context = {"trace_id": TRACE_ID, "user_id": "customer", "roles": ["customer"]}
        answer = replies.call("order_service.ask", (), {}, context, TIMEOUT_S)
    finally:
        container.stop()

    assert answer == [TRACE_ID, "customer", ["customer"]]


def test_a_stop_finishes_the_calls_at_work_and_takes_no_more(stock: ServiceContainer, call: Call) -> None:
    answers = [eventlet.spawn(call, "sleep", 1.0, timeout_s=TIMEOUT_S) for _ in range(5)]
    until(lambda: Stock.started == 5)
    stock.stop()

    assert [answer.wait() for answer in answers] == ["slept"] * 5
    with pytest.raises(ServiceUnavailable):
        call("double", 1, timeout_s=SHORT_S)


def test_a_reply_does_not_steal_frames_from_the_reader(settings: Settings) -> None:
    """The server asks to get no more calls while workers answer on its connection: by one of them the broker's consent
    was read, and the server waited for it until its patience was over."""
    line = BrokerConnection(settings.amqp_uri, heartbeat_s=30)
    asking = eventlet.spawn(line.channel.queue_declare, "", exclusive=True)
    eventlet.sleep(0)  # it has asked
    select = eventlet.patcher.original("select").select  # no other greenlet runs meanwhile
    assert select([line.connection.sock], [], [], TIMEOUT_S)[0], "the broker has not answered"

    line.channel.basic_publish(amqp.Message("answer"), "", "nobody.listens")

    with eventlet.Timeout(TIMEOUT_S):
        assert asking.wait().queue
    line.abort()


@pytest.fixture(params=table.RPC_QUEUE_TYPES)
def queue_of_calls(request: pytest.FixtureRequest, settings: Settings, mail: Mail) -> Iterator[str]:
    """The queue of calls to inventory, of each type; afterwards it is again as it was."""
    queue = table.rpc_queue("inventory_service")
    mail.channel.queue_delete(queue)
    declare.apply(settings.amqp_uri, request.param)
    yield queue
    mail.channel.queue_delete(queue)
    declare.apply(settings.amqp_uri)


def test_a_call_to_a_service_that_has_not_started_is_gone_when_its_caller_has_given_up(
    queue_of_calls: str, settings: Settings, mail: Mail, call: Call
) -> None:
    with pytest.raises(ServiceUnavailable):
        call("sleep", 0, timeout_s=SHORT_S)
    until(lambda: mail.waiting(queue_of_calls) == 0)

    container = container_of(settings, Stock)
    Stock.started = 0
    container.start()
    try:
        assert call("double", 2) == 4
        assert Stock.started == 0
    finally:
        container.kill()


def test_a_service_whose_queue_of_calls_is_replaced_answers_again_by_itself(
    queue_of_calls: str, stock: ServiceContainer, settings: Settings, mail: Mail, call: Call
) -> None:
    assert call("double", 1) == 2
    mail.channel.queue_delete(queue_of_calls)
    until(lambda: "ecom topology apply" in (extension(stock, RpcServer).not_ready_reason() or ""))

    declare.apply(settings.amqp_uri, table.QUORUM)

    until(lambda: extension(stock, RpcServer).not_ready_reason() is None)
    assert call("double", 2) == 4


def test_a_caller_and_a_callee_whose_connections_are_cut_find_each_other_again(settings: Settings, mail: Mail) -> None:
    wire = wire_to_broker(settings)
    through = replace(settings, amqp_uri=wire.amqp_uri(settings.amqp_uri))
    callee, caller = container_of(through, Stock), container_of(through, Caller)
    replies = extension(caller, Replies)

    def answered() -> bool:
        try:
            return bool(replies.call("inventory_service.double", (1,), {}, {}, SHORT_S) == 2)
        except ServiceUnavailable:
            return False

    try:
        callee.start()
        caller.start()
        until(answered)
        wire.cut()
        until(lambda: extension(callee, RpcServer).not_ready_reason() and replies.not_ready_reason())
        until(answered)
    finally:
        callee.kill()
        caller.kill()
        wire.close()
        mail.channel.queue_purge("rpc-inventory_service")
