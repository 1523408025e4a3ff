"""Who may do what, over the broker: the services ask their own rules, whoever calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any
from uuid import uuid4

import pytest
from nameko.containers import ServiceContainer
from nameko.standalone.rpc import ClusterRpcProxy

from shared.config import Settings
from shared.edge.rpc import RpcServer
from shared.errors import EcomError, NotFound, RoleMissing
from shared.roles import ADMIN, AUDITOR, CUSTOMER, OPERATOR, ROLES
from tests.databases import Databases
from tests.integration.support import LIST, TIMEOUT_S, Mail, container_of, extension, offer_rows, until

ORDER = {"currency": "EUR", "payment_method": "mock_ok", "items": [{"sku": "lamp", "quantity": 1, "unit_price": 5}]}

Call = Callable[..., Any]


@pytest.fixture
def start(settings: Settings, database: Databases, mail: Mail) -> Iterator[Callable[..., None]]:
    """Starts order_service: start(env="production")."""
    started: list[ServiceContainer] = []
    for row in offer_rows({"lamp": 5}):
        database.run("order", LIST, **row)

    def start(**changed: Any) -> None:
        container = container_of(replace(settings, **changed), "order")
        container.start()
        started.append(container)
        until(lambda: extension(container, RpcServer).not_ready_reason() is None)

    yield start
    for container in started:
        container.kill()
    mail.channel.queue_purge("rpc-order_service")


def call(settings: Settings, method: str, *args: Any, **context: Any) -> Any:
    """Calls order_service as Nameko itself does."""
    config = {"AMQP_URI": settings.amqp_uri, "serializer": "json"}
    with ClusterRpcProxy(config, context_data=context, timeout=TIMEOUT_S) as services:
        return getattr(services.order_service, method)(*args)


def refusal(settings: Settings, method: str, *args: Any, **context: Any) -> type[EcomError] | None:
    try:
        call(settings, method, *args, **context)
    except EcomError as error:
        return type(error)
    return None


def test_who_may_only_see_an_order_can_neither_cancel_it_nor_have_it_refunded(
    start: Callable[..., None], settings: Settings, database: Databases
) -> None:
    start()
    made = call(settings, "create_order", ORDER, "key-1", user_id="alice", roles=[CUSTOMER])
    order_id = made["body"]["order_id"]
    pairs = [*([role] for role in ROLES), *(list(pair) for pair in combinations(ROLES, 2))]
    mallory = {",".join(roles): {"user_id": "mallory", "roles": roles} for roles in pairs}

    cancelled = {
        name: refusal(settings, "cancel_order", order_id, str(uuid4()), **who)
        for name, who in mallory.items()
        if ADMIN not in who["roles"]
    }
    retried = {
        name: refusal(settings, "retry_refund", order_id, **who)
        for name, who in {**mallory, "owner": {"user_id": "alice", "roles": [CUSTOMER]}}.items()
        if not {OPERATOR, ADMIN} & set(who["roles"])
    }

    seers = {OPERATOR, AUDITOR}
    assert cancelled == {name: RoleMissing if seers & set(name.split(",")) else NotFound for name in cancelled}
    assert set(retried.values()) == {RoleMissing}
    assert database.rows("order", "SELECT status FROM orders") == [{"status": "PENDING"}]
    assert call(settings, "cancel_order", order_id, "key-2", user_id="alice", roles=[CUSTOMER])["status"] == 202


def test_in_development_a_call_that_names_no_user_may_post_an_order(
    start: Callable[..., None], settings: Settings, database: Databases
) -> None:
    start()
    order_id = call(settings, "create_order", ORDER, "key-1")["body"]["order_id"]
    assert call(settings, "get_order", order_id)["status"] == "PENDING"


def test_in_production_a_call_that_names_no_user_is_refused(start: Callable[..., None], settings: Settings) -> None:
    start(env="production")
    assert refusal(settings, "create_order", ORDER, "key-1") is RoleMissing
    assert refusal(settings, "list_orders", 10) is RoleMissing
    assert refusal(settings, "changed_orders", {}) is RoleMissing
