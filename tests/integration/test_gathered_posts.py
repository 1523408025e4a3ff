"""Posts that gateways gather, over the broker, and the order_service that answers them."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import eventlet
import pytest
from nameko.containers import ServiceContainer
from nameko.exceptions import RemoteError
from sqlalchemy import text

from ops.local.processes import Process, spawn
from order_service.service import OrderService
from shared import outbox
from shared.config import Settings
from shared.edge.gathered_calls import GatheredCalls
from shared.edge.rpc import RpcServer
from shared.edge.rpc_proxy import Replies
from shared.envelope import Envelope
from shared.errors import CannotWork, EcomError, IdempotencyInProgress, ServiceUnavailable
from tests.commands import ROOT
from tests.databases import Databases
from tests.integration.support import LIST, TIMEOUT_S, Bench, Mail, container_of, extension, offer_rows, until

BODY = {"currency": "EUR", "payment_method": "mock_ok", "items": [{"sku": "lamp", "quantity": 1, "unit_price": 5}]}


class Gateway:
    """Gathers posts as the gateway does."""

    name = "gateway"
    new_orders = GatheredCalls("order_service", "create_order", "create_orders", timeout_s=TIMEOUT_S)


class Patient:
    """Gathers what comes within a while."""

    def note(self, count: int) -> None:
        """Nothing is measured."""

    def wait_s(self, waiting: int, at_once: bool) -> float:
        return 0.1


class Posts:
    """Clients of one gateway."""

    def __init__(self, container: ServiceContainer) -> None:
        self.calls = extension(container, GatheredCalls)
        self.calls._gathering = Patient()

    def start(self, key: str, user: str = "ann", **changed: Any) -> Any:
        """A post that is under way."""
        return eventlet.spawn(self._post, key, user, {**BODY, **changed})

    def _post(self, key: str, user: str, order: dict[str, Any]) -> Any:
        context = {"user_id": user, "roles": ["customer"], "trace_id": trace_of(user)}
        worker = SimpleNamespace(data=context, context_data=context)
        try:
            return self.calls.get_dependency(worker).create_order(order=order, key=key)
        except EcomError as error:
            return error


def trace_of(user: str) -> str:
    return f"{len(user):032x}"


def answers(*posts: Any) -> list[Any]:
    with eventlet.Timeout(TIMEOUT_S + 5):
        return [post.wait() for post in posts]


@pytest.fixture
def gateways(settings: Settings, database: Databases, mail: Mail) -> Iterator[Callable[[], Posts]]:
    """Starts gateways."""
    started: list[ServiceContainer] = []

    def start() -> Posts:
        container = container_of(settings, Gateway)
        container.start()
        started.append(container)
        until(lambda: extension(container, Replies).not_ready_reason() is None)
        return Posts(container)

    yield start
    for container in started:
        container.kill()


@pytest.fixture
def serve(settings: Settings, database: Databases, mail: Mail) -> Iterator[Callable[..., ServiceContainer]]:
    """Starts order_service, or another that stands in for it."""
    started: list[ServiceContainer] = []
    for row in offer_rows({"lamp": 5}):
        database.run("order", LIST, **row)

    def start(service: Any = OrderService, **changed: Any) -> ServiceContainer:
        container = container_of(replace(settings, **changed), service, replica=len(started))
        container.start()
        started.append(container)
        until(lambda: extension(container, RpcServer).not_ready_reason() is None)
        return container

    yield start
    for container in started:
        container.kill()
    mail.channel.queue_purge("rpc-order_service")


def test_gathered_posts_are_orders_of_their_own_users_in_one_transaction(
    gateways: Callable[[], Posts], serve: Callable[..., Any], database: Databases
) -> None:
    serve()
    posts = gateways()
    users = ["ann", "berta", "charles"]

    found = answers(*(posts.start("key", user) for user in users))

    assert [(answer["status"], answer["replayed"]) for answer in found] == [(201, False)] * 3
    rows = database.rows(
        "order", "SELECT user_id, trace_id, CAST(xmin AS text) AS made_by FROM orders ORDER BY user_id"
    )
    assert [(row["user_id"], row["trace_id"]) for row in rows] == [(user, trace_of(user)) for user in users]
    assert len({row["made_by"] for row in rows}) == 1


def test_twenty_posts_of_one_key_at_two_gateways_and_two_replicas_make_one_order(
    gateways: Callable[[], Posts], serve: Callable[..., Any], database: Databases
) -> None:
    serve()
    serve()
    both = [gateways(), gateways()]

    found = answers(*(both[n % 2].start("one") for n in range(20)))

    assert {(answer["status"], answer["body"]["order_id"]) for answer in found} == {(201, found[0]["body"]["order_id"])}
    assert sum(not answer["replayed"] for answer in found) == 1
    assert database.rows("order", "SELECT count(*) AS n FROM orders") == [{"n": 1}]


def test_a_post_whose_key_is_held_delays_none_of_those_gathered_with_it(
    gateways: Callable[[], Posts], serve: Callable[..., Any], database: Databases, bench: Callable[..., Bench]
) -> None:
    serve()
    posts = gateways()
    insert = (
        "INSERT INTO idempotency_keys (user_id, route, key, fingerprint, status, body, location)"
        " VALUES ('ann', 'POST /api/orders', 'held', '', 201, '{}', '')"
    )
    with bench("order").sessions.begin() as session:
        session.execute(text(insert))
        held = posts.start("held")
        others = answers(*(posts.start(f"key-{n}") for n in range(4)))
        # They have their answers, and the key is held still. A slow machine gives up waiting for it.
        session.rollback()
    assert [answer["status"] for answer in others] == [201] * 4
    (last,) = answers(held)
    assert isinstance(last, IdempotencyInProgress) or last["status"] == 201


class OlderOrderService(OrderService):
    """Has no create_orders."""

    name = "order_service"
    create_orders = None


def test_a_gateway_goes_on_with_an_order_service_of_the_version_before(
    gateways: Callable[[], Posts], serve: Callable[..., Any], database: Databases
) -> None:
    serve(OlderOrderService)
    posts = gateways()

    found = answers(posts.start("one"), posts.start("two"), posts.start("one", payment_method="mock_declined"))

    assert sorted(str(getattr(answer, "code", "made")) for answer in found) == [
        "idempotency_key_reused",
        "made",
        "made",
    ]
    assert database.rows("order", "SELECT count(*) AS n FROM orders") == [{"n": 2}]


def test_a_list_that_one_post_makes_fail_is_made_post_by_post_and_only_that_post_fails(
    gateways: Callable[[], Posts], serve: Callable[..., Any], database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def emit(session: Any, events: list[Envelope]) -> None:
        if "broken" in {event.payload.payment_method for event in events}:
            raise ZeroDivisionError
        outbox.emit(session, events)

    monkeypatch.setattr("order_service.creation.outbox", SimpleNamespace(emit=emit))
    serve()
    posts = gateways()

    broken = posts.start("key-1", payment_method="broken")
    others = answers(posts.start("key-2"), posts.start("key-3"))

    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        answers(broken)
    assert [answer["status"] for answer in others] == [201, 201]
    assert database.rows("order", "SELECT count(*) AS n FROM outbox") == [{"n": 2}]


def test_new_orders_are_refused_while_too_many_are_under_way_and_accepted_when_these_have_ended(
    gateways: Callable[[], Posts], serve: Callable[..., Any], database: Databases
) -> None:
    serve(max_orders_under_way=3)
    posts, keys = gateways(), (f"key-{n}" for n in itertools.count())

    def refused() -> bool:
        return any(isinstance(answer, CannotWork) for answer in answers(*(posts.start(next(keys)) for _ in range(2))))

    first = answers(posts.start("first"))
    until(refused)
    made = database.rows("order", "SELECT count(*) AS n FROM orders")
    assert answers(posts.start("first")) == [{**first[0], "replayed": True}]
    database.run("order", "UPDATE orders SET status = 'PAID'")
    until(lambda: not refused())
    assert made[0]["n"] > 3


def test_orders_that_were_committed_before_order_service_was_killed_are_answered_and_made_once(
    gateways: Callable[[], Posts], database: Databases, mail: Mail, tmp_path: Path
) -> None:
    for row in offer_rows({"lamp": 5}):
        database.run("order", LIST, **row)
    has_died, log = tmp_path / "has died", tmp_path / "log"
    command = [sys.executable, "-m", "tests.integration.order_killer", str(has_died)]
    posts = gateways()
    popen = spawn(command, log=log, env=os.environ, cwd=ROOT, dies_with_us=signal.SIGKILL)
    process = Process.of(popen.pid)
    assert process
    try:
        until(lambda: mail.channel.queue_declare("rpc-order_service", passive=True).consumer_count, within_s=60)
        found = answers(*(posts.start(f"key-{n}") for n in range(3)))
        # A client repeats a post that was not answered in time.
        again = answers(*(posts.start(f"key-{n}") for n in range(3)))
    finally:
        process.end(signal.SIGKILL)
        popen.wait()
        mail.channel.queue_purge("rpc-order_service")

    assert has_died.exists(), (found, again)
    assert log.read_text().count("died of SIGKILL") == 1
    rows = database.rows("order", "SELECT CAST(order_id AS text) AS id FROM orders ORDER BY idempotency_key")
    made = [row["id"] for row in rows]
    assert len(made) == 3
    assert [(answer["replayed"], answer["body"]["order_id"]) for answer in again] == [(True, id_) for id_ in made]
    for answer, id_ in zip(found, made, strict=True):
        assert isinstance(answer, ServiceUnavailable) or answer["body"]["order_id"] == id_
