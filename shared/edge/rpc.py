"""RPC as Nameko sends it, so that a stock `nameko shell` can call; every wait has a bound, where Nameko's have none.

At most once and transient: no confirms, nothing on disk. The Idempotency-Key of a POST makes a client's retry safe.
A call carries its deadline, and a call past it is refused. `shared.edge.rpc_proxy` is the caller.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from functools import partial
from typing import Any, cast

import amqp
from nameko.exceptions import (
    ContainerBeingKilled,
    MalformedRequest,
    MethodNotFound,
    deserialize_to_instance,
    serialize,
)
from nameko.extensions import Entrypoint, ProviderCollector, SharedExtension

from shared import errors
from shared.edge.broker import BROKER_ERRORS, BrokerConnection, run_connected
from shared.edge.settings import sender_rules, settings_of
from shared.errors import CannotWork, EcomError, Forbidden, ServiceUnavailable
from shared.metrics import CALL_SECONDS, CALLS, REFUSED_CALLS
from shared.senders import known
from topology.table import RPC_EXCHANGE as RPC_EXCHANGE
from topology.table import rpc_queue
from topology.users import may_answer

log = logging.getLogger(__name__)


HEADER_PREFIX = "nameko."
DEADLINE = "deadline"
TRANSIENT = 1
# On a graceful stop the calls at work are finished within this; the relay, which stops after them, needs its time too.
FINISH_S = 6.0

# Errors raised on purpose cross as themselves.
for _error in vars(errors).values():
    if inspect.isclass(_error) and issubclass(_error, EcomError):
        deserialize_to_instance(_error)


class ConnectedExtension(SharedExtension, ProviderCollector):
    """An extension with a connection to the broker of its own, which is opened again after a fault."""

    def __init__(self) -> None:
        super().__init__()
        self._thread: Any = None
        self._stopping = False
        self._not_ready_reason: str | None = "not connected yet"

    def not_ready_reason(self) -> str | None:
        """Why calls cannot cross now, or None."""
        return self._not_ready_reason

    def _set_not_ready_reason(self, not_ready_reason: str | None) -> None:
        self._not_ready_reason = not_ready_reason

    def start(self) -> None:
        if self._thread is None:
            settings = settings_of(self.container)
            name = f"{type(self).__name__} of {self.container.service_name}"
            self._thread = self.container.spawn_managed_thread(
                partial(
                    run_connected,
                    settings.amqp_uri,
                    settings.heartbeat_s,
                    self._serve,
                    lambda: self._stopping,
                    self._set_not_ready_reason,
                    name,
                ),
                identifier=name,
            )

    def _serve(self, connection: BrokerConnection) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        self._stopping = True
        if self._thread is not None:
            self._thread.kill()


class RpcServer(ConnectedExtension):
    """One for each service: takes calls from the service's queue and spawns a worker for each."""

    def __init__(self) -> None:
        super().__init__()
        self._at_work = 0

    def setup(self) -> None:
        self._user = settings_of(self.container).broker_user
        for outcome in CALL_OUTCOMES:
            CALLS.labels(self.container.service_name, outcome)

    def stop(self) -> None:
        """Take no more calls and finish those at work."""
        if not self._stopping:  # each of the service's methods asks for it
            self._stop_by = time.monotonic() + FINISH_S
        self._stopping = True
        if self._thread is not None:
            self._thread.wait()

    def _serve(self, connection: BrokerConnection) -> None:
        self._senders = sender_rules(settings_of(self.container))
        queue = rpc_queue(self.container.service_name)
        channel = connection.channel
        with connection.bounded():
            channel.basic_qos(0, self.container.max_workers, False)
            tag = channel.basic_consume(queue, callback=partial(self._receive, connection))
        self._not_ready_reason = None
        while not self._stopping:
            connection.read(timeout_s=0.5)
        with connection.bounded(self._stop_by):
            channel.basic_cancel(tag)
        while self._at_work and time.monotonic() < self._stop_by:
            connection.read(timeout_s=0.05)

    def _receive(self, connection: BrokerConnection, message: amqp.Message) -> None:
        reply = partial(self._count_and_reply, connection, message, time.perf_counter())
        self._at_work += 1
        try:
            self._check_caller(message)
            method = message.delivery_info["routing_key"].rpartition(".")[2]
            entrypoint = next((item for item in self._providers if item.method_name == method), None)
            if entrypoint is None:
                raise MethodNotFound(method)
            call = json.loads(message.body)
            if not isinstance(call, dict) or not {"args", "kwargs"} <= call.keys():
                raise MalformedRequest("Message missing `args` or `kwargs`")
            context = {key.removeprefix(HEADER_PREFIX): value for key, value in (message.headers or {}).items()}
            if float(context.pop(DEADLINE, "inf")) < time.time():
                raise ServiceUnavailable("the caller does not wait any more")
            entrypoint.check_signature(call["args"], call["kwargs"])
            self.container.spawn_worker(
                entrypoint, call["args"], call["kwargs"], context_data=context, handle_result=reply
            )
        except ContainerBeingKilled:
            self._at_work -= 1  # unacked: another replica takes it
        except Exception as error:
            reply(None, None, (type(error), error, None))

    def _check_caller(self, message: amqp.Message) -> None:
        service, user = self.container.service_name, message.properties.get("user_id")
        try:
            self._senders.check_caller(user, service, message.delivery_info["routing_key"])
        except Forbidden as refusal:
            REFUSED_CALLS.labels(service, known(user)).inc()
            log.warning("%s", refusal)
            raise

    def _count_and_reply(
        self, connection: BrokerConnection, message: amqp.Message, began: float, worker: Any, result: Any, exc_info: Any
    ) -> tuple[Any, Any]:
        service = self.container.service_name
        CALLS.labels(service, outcome_of_call(exc_info[1] if exc_info else None)).inc()
        CALL_SECONDS.labels(service).observe(time.perf_counter() - began)
        return self._reply(connection, message, worker, result, exc_info)

    def _reply(
        self, connection: BrokerConnection, message: amqp.Message, worker: Any, result: Any, exc_info: Any
    ) -> tuple[Any, Any]:
        """Answer, then ack. A caller that cannot be reached times out; the service lives on."""
        body = {"result": result, "error": serialized(exc_info[1]) if exc_info else None}
        try:
            text = json.dumps(body)
        except (TypeError, ValueError) as error:
            log.exception("the result of %s is not JSON", message.delivery_info["routing_key"])
            text = json.dumps({"result": None, "error": serialize(error)})
        properties = message.properties
        reply_to = properties.get("reply_to")
        if reply_to and not may_answer(self._user, reply_to):
            log.warning(
                "a call of %s gets no reply: none may be sent to its reply_to", message.delivery_info["routing_key"]
            )
            reply_to = None
        try:
            with connection.in_one_piece():
                if reply_to:
                    connection.channel.basic_publish(
                        amqp.Message(
                            text,
                            content_type="application/json",
                            content_encoding="utf-8",
                            delivery_mode=TRANSIENT,
                            correlation_id=properties.get("correlation_id", ""),
                        ),
                        RPC_EXCHANGE,
                        reply_to,
                    )
                connection.channel.basic_ack(message.delivery_info["delivery_tag"])
        except BROKER_ERRORS as error:
            log.warning("a reply could not be sent: %s", error)
        finally:
            self._at_work -= 1
        return result, exc_info


# What may become of a call.
CALL_DONE, CALL_REFUSED, CALL_FAILED = CALL_OUTCOMES = ("done", "refused", "failed")


def outcome_of_call(error: BaseException | None) -> str:
    """Whether a call was done, refused by a rule, or failed: the service could not work, or did not know the call."""
    if error is None:
        return CALL_DONE
    answered = isinstance(error, EcomError) and not isinstance(error, CannotWork | ServiceUnavailable)
    return CALL_REFUSED if answered else CALL_FAILED


def serialized(error: BaseException) -> dict[str, Any]:
    """An error as Nameko sends it. Nameko makes text of the numbers in it; in the details of ours they stay numbers."""
    data = cast(dict[str, Any], serialize(error))
    if isinstance(error, EcomError):
        data["exc_args"] = [error.message, error.details]
    return data


class Rpc(Entrypoint):
    """The RPC entrypoint: errors raised on purpose are answers, any other is logged with its traceback."""

    server = RpcServer()

    def __init__(self) -> None:
        super().__init__(expected_exceptions=(EcomError,))

    def setup(self) -> None:
        self.server.register_provider(self)

    def stop(self) -> None:
        self.server.stop()


rpc = Rpc.decorator
