"""The feed of the steps of all orders: complete, in one order for all readers, whatever transactions do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from order_service import domain, feed, models
from shared.errors import BadRequest, CannotWork
from tests.databases import Databases
from tests.integration.support import SYSTEM, Bench, assert_read_by_index, statements, until

ORDER = UUID("01a1fcf8-0515-7912-9139-7154577473a5")
AN_ORDER = """
    INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key,
                        fingerprint)
    VALUES (:order_id, 'ann', 'PENDING', 'EUR', 1, 'mock_ok', '', 'key', '')
"""
STEPS = """
    INSERT INTO order_events (order_id, type, to_status, source, user_id, details)
    SELECT :order_id, :type || n, 'PENDING', 'order_service', 'ann', '{}' FROM generate_series(1, :count) n
"""


@pytest.fixture
def order(bench: Callable[..., Bench], database: Databases) -> Bench:
    """The order service with one order and no step."""
    database.run("order", AN_ORDER, order_id=ORDER)
    return bench("order")


def write(connection: Connection, type_: str, count: int = 1) -> None:
    """Steps of the order, as some replica of the service writes them."""
    connection.execute(text(STEPS), {"order_id": ORDER, "type": type_, "count": count})


def read(order: Bench, after: str = feed.BEGINNING, limit: int = 100) -> dict[str, Any]:
    with order.sessions.read() as session:
        return feed.steps_page(session, after, limit)


def read_all(order: Bench, count: int, after: str = feed.BEGINNING) -> dict[str, Any]:
    """The page, once it holds so many steps: a vacuum of the server may hold the horizon back for a moment."""

    def found() -> dict[str, Any] | None:
        page = read(order, after)
        return page if len(page["items"]) >= count else None

    page = until(found)
    assert page is not None
    return page


def types(page: dict[str, Any]) -> list[str]:
    return [item["event"] for item in page["items"]]


@contextmanager
def transaction(order: Bench) -> Iterator[Connection]:
    """A transaction that has its id, and is committed at the end of the block."""
    with order.database.engine.begin() as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
        yield connection


def test_a_step_that_commits_late_with_a_smaller_id_is_not_missed(order: Bench) -> None:
    with transaction(order) as late:
        write(late, "late")
        with transaction(order) as early:
            write(early, "early")
        page = read(order)
        assert types(page) == [], "an older transaction may still write steps that come first"
    assert types(read_all(order, 2, page["after"])) == ["late1", "early1"]


def test_a_step_that_commits_late_with_a_smaller_id_and_a_larger_transaction_is_not_missed(order: Bench) -> None:
    with transaction(order) as first, order.database.engine.connect() as second, second.begin() as late:
        second.execute(text("SELECT pg_current_xact_id()"))
        write(second, "late")
        write(first, "early")
        first.commit()
        page = read_all(order, 1)
        assert types(page) == ["early1"]
        late.commit()
    rest = read_all(order, 1, page["after"])
    assert types(rest) == ["late1"]
    assert rest["items"][0]["id"] < page["items"][0]["id"], "a reader by id has passed it"


def test_pages_hold_every_step_once_and_in_order(order: Bench) -> None:
    for number in range(7):
        with transaction(order) as connection:
            write(connection, f"{number}.", count=number)
    read_all(order, 21)
    seen, after, more = [], feed.BEGINNING, True
    while more:
        page = read(order, after, limit=4)
        seen += page["items"]
        after, more = page["after"], page["more"]
        assert len(page["items"]) == 4 or not more
    assert [item["event"] for item in seen] == [f"{n}.{m}" for n in range(7) for m in range(1, n + 1)]
    assert after == seen[-1]["position"]
    assert read(order, after) == {"items": [], "after": after, "more": False}
    assert {item["order_id"] for item in seen} == {str(ORDER)}


def test_now_is_after_all_steps_and_before_the_next(order: Bench) -> None:
    with transaction(order) as connection:
        write(connection, "past")
    read_all(order, 1)
    with transaction(order) as open_:
        now = read(order, feed.NOW)
        write(open_, "future")
    assert (now["items"], now["more"]) == ([], False)
    assert types(read_all(order, 1, now["after"])) == ["future1"]


def test_now_is_the_same_position_for_all_who_ask_before_the_next_step(order: Bench, database: Databases) -> None:
    assert read(order, feed.NOW)["after"] == feed.BEGINNING
    with transaction(order) as connection:
        write(connection, "past")
    read_all(order, 1)
    first = read(order, feed.NOW)["after"]
    for _ in range(3):
        with transaction(order):
            pass
    assert read(order, feed.NOW)["after"] == first


def test_the_steps_of_one_order_keep_their_order_although_transactions_overtake(order: Bench) -> None:
    """The slow transaction has its id from its inbox, and then waits for the order."""
    created = models.Heard("order.created", "order_service", "ann")

    def step(session: Session, type_: str) -> None:
        (before,) = models.orders_of(session, [ORDER], lock=True).values()
        heard = replace(created, type=type_)
        models.save_steps(session, [(heard, before, domain.Step(before, ()))])

    with order.sessions.begin() as slow:
        slow.execute(text("SELECT pg_current_xact_id()"))
        with order.sessions.begin() as quick:
            step(quick, "first")
        step(slow, "second")
    page = read_all(order, 2)

    assert types(page) == ["first", "second"]
    steps = order_events(order)
    assert steps["second"] == steps["first"] > 0


def order_events(order: Bench) -> dict[str, int]:
    with order.sessions.read() as session:
        return {row.type: row.xid for row in session.execute(text("SELECT type, xid FROM order_events"))}


def test_a_position_that_the_feed_has_not_come_to_is_refused(order: Bench) -> None:
    for position in ("999999999999-1", "x-1", "1", ""):
        with pytest.raises(BadRequest):
            read(order, position)


def test_the_feed_stops_when_transaction_ids_fall_back(order: Bench, database: Databases) -> None:
    with transaction(order) as connection:
        write(connection, "restored")
    database.run("order", "UPDATE order_events SET xid = xid + 1000000000")
    with pytest.raises(CannotWork, match="transaction ids are behind"):
        read(order)


def test_waiting_streams_get_the_pages_after_their_positions(order: Bench) -> None:
    with transaction(order) as connection:
        write(connection, "step", count=3)
    everything = read_all(order, 3)
    places = [feed.BEGINNING, *(item["position"] for item in everything["items"])]
    order.called_by(SYSTEM)
    found = order.service.next_steps(dict.fromkeys(places, 4))
    assert [(item["position"], item["version"]) for item in found] == [(place, 5) for place in places[:-1]]
    assert [types(item["page"]) for item in found] == [["step1", "step2", "step3"], ["step2", "step3"], ["step3"]]
    assert order.service.next_steps({}) == []


def test_an_answer_to_waiting_streams_is_bounded(order: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_STEPS", 7)
    monkeypatch.setattr(feed, "STREAM_PAGE", 5)
    with transaction(order) as connection:
        write(connection, "step", count=6)
    places = [feed.BEGINNING, *(item["position"] for item in read_all(order, 6)["items"])]
    order.called_by(SYSTEM)
    pages = [item["page"] for item in order.service.next_steps(dict.fromkeys(places, 1))]
    assert [(len(page["items"]), page["more"]) for page in pages] == [(5, True), (2, True)]


def test_a_page_costs_two_statements_and_reads_no_more_than_itself(order: Bench, database: Databases) -> None:
    for _ in range(4):
        with transaction(order) as connection:
            write(connection, "step", count=5000)
    database.run("order", "ANALYZE order_events")
    half_way = read_all(order, 1)["items"][0]["position"].partition("-")[0] + "-2500"
    with statements(order) as sent:
        for after in (feed.BEGINNING, half_way, feed.NOW):
            read(order, after, limit=40)

    assert len(sent) == 6
    assert_read_by_index(order, sent, most=41)
