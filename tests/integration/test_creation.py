"""Many posts in one transaction: each gets the answer that it would get alone, and none is in the way of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import eventlet
import pytest
from nameko.exceptions import deserialize
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from order_service import new_orders
from order_service.judging import Offer, Verdict
from order_service.new_orders import NewOrder
from shared import idempotency
from shared.config import Settings
from shared.edge.admission import Admission
from shared.errors import (
    CannotWork,
    EcomError,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    RoleMissing,
    TooManyOrders,
    ValidationFailed,
)
from shared.events import Identity
from shared.schema import MAX_AMOUNT
from tests.databases import Databases
from tests.integration.support import SYSTEM, Bench, Wire, assert_read_by_index, statements, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
ANN = Identity("ann", ("customer",))


@pytest.fixture
def order(bench: Callable[..., Bench]) -> Bench:
    one = bench("order")
    one.called_by(SYSTEM)
    return one


def post(key: str, user: str = "ann", quantity: int = 1, price: int = 5, **changed: Any) -> dict[str, Any]:
    sku = "lamp" if price == 5 else f"lamp-{price}"
    items = [{"sku": sku, "quantity": quantity, "unit_price": price}, {"sku": "rug", "quantity": 1, "unit_price": 7}]
    body = {"currency": "EUR", "payment_method": "mock_ok", "items": items}
    return {"order": body, "key": key, "user_id": user, "roles": ["customer"], "trace_id": TRACE, **changed}


def create(order: Bench, *posts: dict[str, Any]) -> list[Any]:
    """The answer, or the error, of each post."""
    replies = order.service.create_orders(list(posts))
    return [deserialize(reply["error"]) if reply["error"] else reply["result"] for reply in replies]


def judged(posted: dict[str, Any], key: str) -> NewOrder:
    """A post of ann's whose lines are taken at the prices that it names."""
    order = new_orders.posted_order(posted["order"], key, ANN, TRACE)
    offers = {line.sku: Offer(line.sku, 1, uuid4(), line.sku, True, ()) for line in order.lines}
    return new_orders.new_order(order, [Verdict(line, offers[line.sku], line.seen, None) for line in order.lines])


def repeated(order: Bench, *posts: dict[str, Any]) -> list[Any]:
    """The same, repeated where a lock was not free in time: a machine that does other things too may be slow."""
    while True:
        try:
            return create(order, *posts)
        except (IdempotencyInProgress, DBAPIError):
            eventlet.sleep(0.05)


def alone(order: Bench, posted: dict[str, Any]) -> Any:
    """What the same post gets from `create_order`."""
    order.called_by(Identity(posted["user_id"], tuple(posted["roles"])))
    try:
        return order.service.create_order(posted["order"], posted["key"])
    except EcomError as error:
        return error
    finally:
        order.called_by(SYSTEM)


def count(database: Databases, table: str) -> int:
    found: int = database.rows("order", f"SELECT count(*) AS n FROM {table}")[0]["n"]
    return found


def kinds(found: list[Any]) -> list[Any]:
    """Of each answer its status, of each error its class."""
    return [answer["status"] if isinstance(answer, dict) else type(answer) for answer in found]


def limit(order: Bench, settings: Settings, orders: int = 0, units: int = 0) -> None:
    order.service.settings = replace(settings, max_open_orders_per_user=orders, max_held_units_per_user=units)


def test_each_post_of_a_list_gets_the_answer_of_its_own_order(order: Bench, database: Databases) -> None:
    posts = [post(f"key-{n}", user=f"user-{n % 3}", quantity=n + 1) for n in range(10)]

    found = create(order, *posts)

    assert [answer["body"]["items"][0]["quantity"] for answer in found] == list(range(1, 11))
    assert {(answer["status"], answer["replayed"]) for answer in found} == {(201, False)}
    for posted, answer in zip(posts, found, strict=True):
        assert alone(order, posted) == {**answer, "replayed": True}
    stored = database.rows(
        "order",
        "SELECT CAST(o.order_id AS text), o.user_id, o.total, o.trace_id, count(*) AS lines, sum(quantity) AS units"
        " FROM orders o JOIN order_items USING (order_id) GROUP BY o.order_id ORDER BY o.order_id",
    )
    assert sorted((row["order_id"], row["user_id"], row["total"], row["units"]) for row in stored) == sorted(
        (answer["body"]["order_id"], posted["user_id"], answer["body"]["total"], n + 2)
        for n, (posted, answer) in enumerate(zip(posts, found, strict=True))
    )
    assert {row["trace_id"] for row in stored} == {TRACE}
    assert count(database, "outbox") == count(database, "order_events") == 10


def test_an_order_made_in_a_list_is_the_same_in_every_table_as_one_made_alone(
    order: Bench, database: Databases
) -> None:
    alone(order, post("one"))
    create(order, post("two"), post("three"))
    ids = ("order_id", "order_no", "key", "idempotency_key", "id", "message_id", "body", "location", "aggregate_id")
    restless = " ".join(f"- '{name}'" for name in ids)
    times = "- 'created_at' - 'updated_at' - 'at' - 'xid' - 'feed_xid' - 'trace_id' - 'traceparent'"
    for table in ("orders", "order_items", "order_events", "outbox", "idempotency_keys"):
        rows = database.rows("order", f"SELECT CAST(to_jsonb(t) {restless} {times} AS text) AS row FROM {table} t")
        assert len(rows) in (3, 6)
        assert len({row["row"] for row in rows}) == len(rows) // 3, table


def test_bad_and_repeated_posts_get_their_errors_and_their_neighbours_their_orders(
    order: Bench, settings: Settings, database: Databases
) -> None:
    limit(order, settings, orders=2)
    made = create(order, post("used", "bob"), post("old", "bob"))
    database.run("order", "DELETE FROM idempotency_keys WHERE key = 'old'")
    posts = [
        post("good-1", "eve"),
        post("no role", "eve", roles=["auditor"]),
        post("too dear", "eve", quantity=2, price=MAX_AMOUNT),
        post("used", "bob"),
        post("used", "bob", quantity=2),
        post("old", "bob"),
        post("old", "bob", quantity=2),
        post("third", "bob"),
        post("good-2", "ann"),
    ]

    found = create(order, *posts)

    assert kinds(found) == [
        201,
        RoleMissing,
        ValidationFailed,
        201,
        IdempotencyKeyReused,
        200,
        IdempotencyKeyReused,
        TooManyOrders,
        201,
    ]
    assert found[3] == {**made[0], "replayed": True}
    assert found[5]["body"]["order_id"] == made[1]["body"]["order_id"]
    assert found[7].details == {"open_orders": 2, "max_open_orders": 2, "held_units": 4, "max_held_units": None}
    assert count(database, "orders") == count(database, "outbox") == 4
    for posted, answer in zip(posts, found, strict=True):
        again = alone(order, posted)
        assert kinds([again]) == kinds([answer]), "alone it gets the same"
        if isinstance(again, EcomError):
            assert (again.message, again.details) == (answer.message, answer.details)


def test_twenty_posts_of_one_key_in_a_list_are_one_order_and_another_body_is_refused(
    order: Bench, database: Databases
) -> None:
    found = create(order, *(post("one") for _ in range(20)), post("one", quantity=9), post("one", "bob"))

    assert [answer["replayed"] for answer in found[:20]] == [False] + [True] * 19
    assert len({answer["body"]["order_id"] for answer in found[:20]}) == 1
    assert kinds(found[20:]) == [IdempotencyKeyReused, 201], "a key is its user's"
    assert count(database, "orders") == count(database, "outbox") == 2


def test_twenty_lists_at_once_with_the_same_keys_in_any_order_make_one_order_of_each_key(
    order: Bench, database: Databases
) -> None:
    posts = [post(f"key-{n}", user=f"user-{n % 2}") for n in range(10)]

    def some(number: int) -> list[Any]:
        return repeated(order, *(posts if number % 2 else reversed(posts)))

    found = list(eventlet.GreenPool(10).imap(some, range(20)))

    assert {kind for answers in found for kind in kinds(answers)} == {201}
    assert count(database, "orders") == count(database, "outbox") == 10
    assert sum(not answer["replayed"] for answers in found for answer in answers) == 10


def test_a_list_claims_its_keys_in_one_order_whatever_the_order_of_its_posts(order: Bench, database: Databases) -> None:
    """Two lists with the same keys would otherwise wait for each other."""
    news = [judged(post(key), key) for key in ("z", "a")]
    claims = [(new.request, new.answer) for new in news]
    patient = replace(new_orders.CLAIMING, together=new_orders.CLAIMING.alone)

    def claim_both() -> set[idempotency.Claim]:
        with order.sessions.begin() as session:
            return idempotency.claim_keys(session, claims, patient)

    with held(order, "a"):
        both = eventlet.spawn(claim_both)
        until(lambda: database.rows("order", "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        with held(order, "z"):
            assert not both.dead, "it waits for a, and has not claimed z"
    assert both.wait() == {("ann", "a"), ("ann", "z")}


def test_of_a_list_no_more_orders_of_a_user_are_made_than_may_be_open(
    order: Bench, settings: Settings, database: Databases
) -> None:
    limit(order, settings, units=10)
    posts = [post(f"key-{n}", user, quantity=2) for n in range(5) for user in ("ann", "bob")]

    found = create(order, *posts)

    assert kinds(found) == [201] * 6 + [TooManyOrders] * 4
    assert [error.details["held_units"] for error in found[6:]] == [9] * 4
    database.run("order", "UPDATE orders SET status = 'PAID'")
    assert kinds(create(order, *posts)) == [201] * 10, "the keys of refused posts are free"
    assert count(database, "orders") == count(database, "idempotency_keys") == 10


def test_lists_at_once_of_one_user_make_no_more_orders_than_may_be_open(
    order: Bench, settings: Settings, database: Databases
) -> None:
    limit(order, settings, orders=7)

    def some(number: int) -> list[Any]:
        return repeated(order, *(post(f"key-{number}-{n}") for n in range(3)))

    found = [kind for answers in eventlet.GreenPool(6).imap(some, range(6)) for kind in kinds(answers)]

    assert found.count(201) == count(database, "orders") == 7


@contextmanager
def held(order: Bench, key: str) -> Iterator[None]:
    """Another transaction has claimed a key of ann's, and does not end."""
    with order.sessions.begin() as session:
        posted = post(key)
        new = judged(posted, key)
        idempotency.claim_key(session, new.request, new.answer)
        yield
        session.rollback()


def test_a_key_that_another_transaction_holds_fails_its_list_soon_and_nothing_is_made(
    order: Bench, database: Databases
) -> None:
    with held(order, "held"), statements(order) as sent, pytest.raises(IdempotencyInProgress):
        create(order, post("free"), post("held"))
    assert sent[-1][0].startswith("SET LOCAL lock_timeout = 200;"), "alone it waits for 2 s"
    assert count(database, "orders") == 0
    assert kinds(create(order, post("free"), post("held"))) == [201, 201]


def test_a_list_waits_no_longer_for_the_turn_of_a_user_than_for_a_key(
    order: Bench, settings: Settings, database: Databases
) -> None:
    limit(order, settings, orders=5)
    with order.sessions.begin() as session:
        new_orders.open_of(session, ["ann"])
        with statements(order) as sent, pytest.raises(DBAPIError, match="lock timeout"):
            create(order, post("one"), post("two", "bob"))
    assert sent[1][0].startswith("SET LOCAL lock_timeout = 200;"), "in the same transaction"
    assert count(database, "orders") == 0


def test_a_claim_that_is_alone_waits_for_the_other_transaction_and_repeats_its_answer(
    order: Bench, database: Databases
) -> None:
    posted = post("held")
    new = judged(posted, "held")
    with order.sessions.begin() as session:
        idempotency.claim_key(session, new.request, new.answer)
        waiting = eventlet.spawn(alone, order, posted)
        until(lambda: database.rows("order", "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    assert waiting.wait() == {**new.answer.as_dict(), "replayed": True}


def test_while_too_many_orders_are_under_way_used_keys_are_answered_and_new_ones_refused(
    order: Bench, database: Databases
) -> None:
    made = create(order, post("used"), post("old"))
    database.run("order", "DELETE FROM idempotency_keys WHERE key = 'old'")
    order.service.admission = SimpleNamespace(is_full=lambda: True)

    found = create(order, post("used"), post("new"), post("old"), post("used", quantity=2))

    assert kinds(found) == [201, CannotWork, 200, IdempotencyKeyReused]
    assert found[0] == {**made[0], "replayed": True}
    assert alone(order, post("used")) == {**made[0], "replayed": True}
    assert kinds([alone(order, post("new"))]) == [CannotWork]
    assert count(database, "orders") == 2
    order.service.admission = SimpleNamespace(is_full=lambda: False)
    assert kinds([alone(order, post("new"))]) == [201], "its key is free"


def admission(order: Bench, most: int) -> Admission:
    """That of a service which counts when the test says so."""
    counted = Admission(new_orders.under_way, lambda settings: most)
    counted._most = most
    counted._database = order.database
    return counted


def test_a_service_is_full_while_more_orders_than_the_limit_are_not_paid(order: Bench, database: Databases) -> None:
    counted = admission(order, most=2)
    create(order, post("one"), post("two"))
    counted.run_once()
    assert not counted.is_full()
    create(order, post("three"))
    counted.run_once()
    assert counted.is_full()
    database.run("order", "UPDATE orders SET status = 'PAID' WHERE idempotency_key = 'one'")
    counted.run_once()
    assert not counted.is_full()


def test_what_is_under_way_is_counted_in_an_index_no_further_than_the_limit(order: Bench, database: Databases) -> None:
    create(order, *(post(f"key-{n}") for n in range(30)))
    database.run("order", "VACUUM ANALYZE orders")
    with statements(order) as sent, order.sessions.read() as session:
        session.execute(text("SET enable_seqscan = off"))  # so few rows are read faster without an index
        assert new_orders.under_way(session, 10) == 10
        plan = "\n".join(
            row[0] for row in session.connection().exec_driver_sql(f"EXPLAIN ANALYZE {sent[-1][0]}", sent[-1][1])
        )
        session.execute(text("RESET enable_seqscan"))
    assert "ix_orders_unsettled" in plan or "ix_orders_open_of_user" in plan, plan
    assert "actual rows=30" not in plan, plan


@pytest.mark.parametrize("number", [1, 2, 50])
def test_a_list_of_posts_is_one_transaction_of_four_statements_and_two_more_with_limits(
    number: int, bench: Callable[..., Bench], database: Databases, wire: Wire, settings: Settings
) -> None:
    measured = bench("order", url=wire.url(settings.database_url("order")))
    measured.called_by(SYSTEM)
    create(measured, *(post(f"first-{n}") for n in range(number)))  # connects, and prepares the statements
    for limits, most in (({}, 4), ({"orders": 1000, "units": 10_000}, 6)):  # a lock and a count
        limit(measured, settings, **limits)
        wire.completed.clear()
        create(measured, *(post(f"key-{n}-{most}", user=f"user-{n % 7}") for n in range(number)))
        assert wire.completed.count("BEGIN") == wire.completed.count("COMMIT") == 1
        sent = wire.completed[wire.completed.index("BEGIN") + 1 : wire.completed.index("COMMIT")]
        assert len([tag for tag in sent if tag != "SET"]) == most, sent


def test_keys_and_the_orders_that_have_them_are_found_by_index(order: Bench, database: Databases) -> None:
    database.run(
        "order",
        "INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key,"
        " fingerprint) SELECT gen_random_uuid(), 'ann', 'PAID', 'EUR', n, 'mock_ok', '', 'key-' || n, ''"
        " FROM generate_series(1, 20000) n",
    )
    database.run("order", "VACUUM ANALYZE orders")
    with statements(order) as sent:
        create(order, *(post(f"new-{n}") for n in range(10)))
    (claim,) = [each for each in sent if "INSERT INTO idempotency_keys" in each[0]]
    database.run("order", "DELETE FROM idempotency_keys")
    database.run("order", "DELETE FROM order_items")
    database.run("order", "DELETE FROM order_events")
    database.run("order", "DELETE FROM orders WHERE idempotency_key LIKE 'new-%'")
    assert_read_by_index(order, [(claim[0].partition(";")[2], claim[1])], most=10)
