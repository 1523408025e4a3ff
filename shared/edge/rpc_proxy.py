"""Calling another service: `orders = RpcProxy("order_service")`. Every call has a timeout and carries its deadline."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import amqp
from nameko.containers import WorkerContext
from nameko.exceptions import deserialize, serialize
from nameko.extensions import DependencyProvider

from shared.edge import green
from shared.edge.broker import BROKER_ERRORS, BrokerConnection
from shared.edge.green import Event
from shared.edge.rpc import DEADLINE, HEADER_PREFIX, RPC_EXCHANGE, TRANSIENT, ConnectedExtension
from shared.edge.settings import own_name, sender_rules, settings_of
from shared.errors import ServiceUnavailable
from shared.metrics import REFUSED_CALLS
from shared.senders import known
from topology.users import reply_key

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0


class Waiting(NamedTuple):
    """A caller that waits for an answer, and the service that it has called."""

    answered: Event
    service: str


class Replies(ConnectedExtension):
    """Sends calls and hands each reply to its waiting caller. There is one for each calling service."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, Waiting] = {}
        self._connection: BrokerConnection | None = None
        self._reply_to = ""

    def setup(self) -> None:
        self._senders = sender_rules(settings_of(self.container))

    def stop(self) -> None:
        self.kill()

    def _serve(self, connection: BrokerConnection) -> None:
        channel = connection.channel
        # New for each connection: the broker may still hold the queue of the old one.
        self._reply_to = reply_key(own_name(self.container), str(uuid.uuid4()))
        with connection.bounded():
            channel.queue_declare(self._reply_to, exclusive=True, auto_delete=True)
            channel.queue_bind(self._reply_to, RPC_EXCHANGE, self._reply_to)
            channel.basic_consume(self._reply_to, callback=self._receive, no_ack=True)
        channel.events["basic_return"].add(self._on_return)
        self._connection, self._not_ready_reason = connection, None
        try:
            while not self._stopping:
                connection.read(timeout_s=0.5)
        finally:
            self._connection = None
            # The reply queue is gone with its connection: no awaited reply can arrive any more.
            lost = {"error": serialize(ServiceUnavailable("the broker went away")), "result": None}
            for correlation_id in list(self._waiting):
                self._answer(correlation_id, lost)

    def _receive(self, message: amqp.Message) -> None:
        user, waiting = message.properties.get("user_id"), self._waiting.get(message.properties.get("correlation_id"))
        if waiting is not None and not self._senders.believes_answer(user, waiting.service):
            # It must not end the wait: the true answer may still come.
            REFUSED_CALLS.labels(self.container.service_name, known(user)).inc()
            log.warning("a reply by %s was ignored: %s was called", user or "nobody", waiting.service)
            return
        try:
            body = json.loads(message.body)
        except ValueError:
            log.warning("a reply that is no JSON was ignored: its caller times out")
        else:
            self._answer(message.properties.get("correlation_id"), body)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        nobody = ServiceUnavailable(f"there is no service for {routing_key}")
        self._answer(message.properties.get("correlation_id"), {"error": serialize(nobody), "result": None})

    def _answer(self, correlation_id: str | None, body: dict[str, Any]) -> None:
        waiting = self._waiting.pop(correlation_id or "", None)
        if waiting is not None:
            waiting.answered.send(body)

    def call(self, routing_key: str, args: Any, kwargs: Any, context: dict[str, Any], timeout_s: float) -> Any:
        """The result of one call. Raises what the callee raised, or ServiceUnavailable when no answer came."""
        if self._connection is None:
            raise ServiceUnavailable(f"no connection for {routing_key}")
        if self._connection.alarm:
            raise ServiceUnavailable(self._connection.alarm)
        correlation_id = uuid.uuid4().hex
        waiting = Waiting(Event(), routing_key.partition(".")[0])
        self._waiting[correlation_id] = waiting
        context = {**context, DEADLINE: str(time.time() + timeout_s)}
        message = amqp.Message(
            json.dumps({"args": args, "kwargs": kwargs}),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=TRANSIENT,
            reply_to=self._reply_to,
            correlation_id=correlation_id,
            expiration=str(int(timeout_s * 1000)),
            application_headers={HEADER_PREFIX + key: value for key, value in context.items() if value is not None},
        )
        try:
            with green.Timeout(timeout_s):
                self._connection.channel.basic_publish(message, RPC_EXCHANGE, routing_key, mandatory=True)
                body = waiting.answered.wait()
        except (*BROKER_ERRORS, green.Timeout) as error:
            alarm = self._connection and self._connection.alarm
            raise ServiceUnavailable(alarm or f"{routing_key} did not answer") from error
        finally:
            self._waiting.pop(correlation_id, None)
        if body.get("error"):
            raise deserialize(body["error"])
        return body["result"]


class RpcProxy(DependencyProvider):
    """Injects another service: `self.orders.get_order(order_id)`, with trace, identity and a deadline."""

    replies = Replies()

    def __init__(self, service: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.service = service
        self.timeout_s = timeout_s

    def get_dependency(self, worker_ctx: WorkerContext) -> Proxy:
        return Proxy(
            lambda method, args, kwargs: self.replies.call(
                f"{self.service}.{method}", args, kwargs, worker_ctx.context_data, self.timeout_s
            )
        )


class Proxy:
    """Turns attribute access into calls."""

    def __init__(self, call: Callable[[str, Any, Any], Any]) -> None:
        self._call = call

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._call(method, args, kwargs)
