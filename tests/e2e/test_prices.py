"""Orders cost what the menu says, whatever becomes of the catalog service and of its events."""

import os
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from tests.e2e.held import held
from tests.e2e.system import System, eventually

LIMIT_S = 2.0  # how long order_service waits for the catalog
OLD_PRICE_ENDS_WITHIN_S = 1.0


@pytest.fixture
def flow(system: System) -> Flow:
    return system.flow()


@pytest.fixture
def sku(flow: Flow) -> str:
    """A sku with stock, which is not on the menu."""
    new = f"priced-{uuid.uuid4().hex[:10]}"
    flow.send("PUT", f"/api/stocks/{new}", {"on_hand": 1000}, user="admin").raise_for_status()
    return new


def put_offer(flow: Flow, sku: str, unit_price: int, **more: Any) -> None:
    body = {"currency": "EUR", "unit_price": unit_price, **more}
    flow.send("PUT", f"/api/menu/offers/{sku}", body, user="admin").raise_for_status()


def post(flow: Flow, sku: str, seen: int | None = None, key: str | None = None) -> requests.Response:
    """Post one of a sku, by a customer who has seen a price, or names none."""
    line = {"sku": sku, "quantity": 1} | ({} if seen is None else {"unit_price": seen})
    body = {"currency": "EUR", "payment_method": "mock_ok", "items": [line]}
    return flow.send("POST", "/api/orders", body, Idempotency_Key=key or str(uuid.uuid4()))


def orders_of(system: System, sku: str) -> int:
    return int(
        system.databases.rows("order", "SELECT count(*) AS n FROM order_items WHERE sku = :sku", sku=sku)[0]["n"]
    )


@contextmanager
def catalog_stopped(system: System) -> Iterator[None]:
    """While the block runs the catalog service answers nobody. It must be short: its connections stay open."""
    pids = system.replicas_of("catalog").values()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_sku_costs_what_the_menu_says_and_a_refusal_uses_up_no_key(system: System, flow: Flow, sku: str) -> None:
    key = str(uuid.uuid4())
    unlisted = post(flow, sku, 10, key)
    assert (unlisted.status_code, unlisted.json()["error"]["code"]) == (422, "unknown_sku")
    assert "PUT /api/menu/offers/{sku}" in unlisted.json()["error"]["message"]
    put_offer(flow, sku, 1999)

    for seen in (10, 2500):
        refused = post(flow, sku, seen, key)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (409, "price_changed")
        (line,) = error["details"]["lines"]
        assert (line["sku"], line["unit_price"], line["seen"], error["details"]["total"]) == (sku, 1999, seen, 1999)
    assert orders_of(system, sku) == 0

    taken = post(flow, sku, line["unit_price"], key)
    assert (taken.status_code, taken.json()["total"], taken.json()["items"][0]["name"]) == (201, 1999, sku)
    assert post(flow, sku).json()["total"] == 1999
    paid = flow.at_rest(taken.json()["order_id"])
    assert flow.get(f"/api/payments/{paid['payment_id']}")["amount"] == 1999
    by_number = flow.get(f"/api/orders?order_no={taken.json()['order_no'].lower().replace('-', '')}")
    assert [order["order_id"] for order in by_number["items"]] == [paid["order_id"]]


def test_a_new_price_that_is_named_is_taken_at_once_while_its_event_is_held_back(
    system: System, flow: Flow, sku: str
) -> None:
    put_offer(flow, sku, 10)
    eventually(lambda: post(flow, sku).json()["total"], lambda total: total == 10)
    before = orders_of(system, sku)
    flows = [system.flow(n % system.replicas) for n in range(10)]

    def ten(one: Flow) -> list[int]:
        return [post(one, sku, 12).status_code for _ in range(10)]

    with held(system.databases, "catalog"):
        put_offer(flow, sku, 12)
        with ThreadPoolExecutor(10) as pool:
            codes = [code for some in pool.map(ten, flows) for code in some]
    assert codes == [201] * 100
    assert orders_of(system, sku) == before + 100
    assert post(flow, sku, 10).json()["error"]["code"] == "price_changed"


def change_price(system: System, flow: Flow, sku: str, unit_price: int) -> float:
    """Set a price, and return when order_service has heard of it: how many seconds later by the database's clock."""
    put_offer(flow, sku, unit_price)
    (row,) = system.databases.rows(
        "catalog", "SELECT offer_version, set_at FROM prices WHERE sku = :sku ORDER BY id DESC LIMIT 1", sku=sku
    )

    def heard() -> Any:
        statement = "SELECT heard_at FROM offers WHERE sku = :sku AND version >= :version"
        return system.databases.rows("order", statement, sku=sku, version=row["offer_version"])

    (offer,) = eventually(heard, bool, patience_s=10, otherwise="not heard")
    return (offer["heard_at"] - row["set_at"]).total_seconds()


def test_an_order_posted_after_a_new_price_was_heard_costs_it_whether_it_names_it_or_not(
    system: System, flow: Flow, sku: str
) -> None:
    change_price(system, flow, sku, 10)
    assert post(flow, sku).json()["total"] == 10
    for unit_price in (12, 9):
        print(f"heard after {change_price(system, flow, sku, unit_price):.2f} s")
        assert [post(one, sku).json()["total"] for one in (flow, system.flow(1))] == [unit_price] * 2
        assert post(flow, sku, unit_price).json()["total"] == unit_price
        refused = post(flow, sku, 10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "price_changed")


@pytest.mark.long
def test_an_old_price_ends_within_a_second(system: System, flow: Flow, sku: str) -> None:
    change_price(system, flow, sku, 10)
    took = sorted(change_price(system, flow, sku, 11 + n) for n in range(100))
    print(f"\na new price was heard after {took[50]:.3f} s (median), at most {took[-1]:.3f} s")
    assert took[-1] <= OLD_PRICE_ENDS_WITHIN_S


def test_an_order_that_was_taken_is_answered_and_a_listed_sku_is_ordered_while_the_catalog_is_stopped(
    system: System, flow: Flow, sku: str
) -> None:
    put_offer(flow, sku, 10)
    key = str(uuid.uuid4())
    first = post(flow, sku, 10, key)
    assert first.status_code == 201

    with catalog_stopped(system):
        assert post(flow, sku, 10).status_code == 201
        assert post(flow, sku).status_code == 201
        doubtful = post(flow, sku, 9)
        assert (doubtful.status_code, doubtful.json()["error"]["code"]) == (503, "unavailable")
        assert int(doubtful.headers["Retry-After"]) >= 1
        assert doubtful.elapsed.total_seconds() >= LIMIT_S
        again = post(flow, sku, 10, key)
    assert (again.status_code, again.content) == (201, first.content)

    put_offer(flow, sku, 99)
    assert post(flow, sku, 10, key).content == first.content
    put_offer(flow, sku, 99, on_sale=False)
    repeated = post(flow, sku, 10, key)
    assert (repeated.status_code, repeated.content, repeated.headers["Idempotent-Replayed"]) == (
        201,
        first.content,
        "true",
    )
    eventually(lambda: post(flow, sku, 99).json(), lambda body: body.get("error", {}).get("code") == "not_for_sale")


def test_orders_go_on_when_the_copy_of_the_offers_is_lost(system: System, flow: Flow, sku: str) -> None:
    put_offer(flow, sku, 10)
    assert post(flow, sku).status_code == 201
    system.databases.run("order", "DELETE FROM offers WHERE sku = :sku", sku=sku)

    assert post(flow, sku).json()["total"] == 10
    assert system.databases.rows("order", "SELECT count(*) AS n FROM offers WHERE sku = :sku", sku=sku) == [{"n": 1}]


def test_twenty_equal_posts_of_a_new_sku_have_one_answer(system: System, flow: Flow, sku: str) -> None:
    put_offer(flow, sku, 10)
    system.databases.run("order", "DELETE FROM offers WHERE sku = :sku", sku=sku)
    key = str(uuid.uuid4())
    flow.token("customer")
    flows = [system.flow(n % system.replicas) for n in range(20)]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: post(one, sku, 10, key), flows))

    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.content for answer in answers}) == 1
    assert orders_of(system, sku) == 1
