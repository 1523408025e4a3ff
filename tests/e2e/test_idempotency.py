"""One key makes one order, however often and wherever it is posted."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import requests

from tests.e2e.system import System

POSTS = 20


def body_of(quantity: int = 1) -> dict:
    return {
        "currency": "EUR",
        "payment_method": "mock_ok",
        "items": [{"sku": "keyed", "quantity": quantity, "unit_price": 100}],
    }


def post(system: System, key: str, quantity: int = 1, user: str = "customer", replica: int = 0) -> requests.Response:
    return system.flow(replica).send("POST", "/api/orders", body_of(quantity), user=user, Idempotency_Key=key)


def orders_of(system: System, key: str) -> int:
    (row,) = system.databases.rows("order", "SELECT count(*) AS n FROM orders WHERE idempotency_key = :key", key=key)
    return row["n"]


@pytest.fixture
def key(system: System) -> str:
    system.flow().stock("keyed", 1000, price=100)
    return str(uuid.uuid4())


def test_twenty_posts_of_one_key_at_once_make_one_order_and_twenty_equal_answers(system: System, key: str) -> None:
    flows = [system.flow(n % system.replicas) for n in range(POSTS)]
    for flow in flows:
        flow.token("customer")
    start = Barrier(POSTS)

    def one(flow) -> requests.Response:
        start.wait()
        return flow.send("POST", "/api/orders", body_of(), Idempotency_Key=key)

    with ThreadPoolExecutor(POSTS) as threads:
        answers = list(threads.map(one, flows))
    assert {(answer.status_code, answer.content, answer.headers["Location"]) for answer in answers} == {
        (201, answers[0].content, answers[0].headers["Location"])
    }
    replayed = [answer.headers.get("Idempotent-Replayed") for answer in answers]
    assert (replayed.count("true"), replayed.count(None)) == (POSTS - 1, 1)
    assert orders_of(system, key) == 1
    assert answers[0].headers["Location"] == f"/api/orders/{answers[0].json()['order_id']}"


def test_a_late_repeat_gets_the_stored_answer_to_the_byte_from_either_gateway(system: System, key: str) -> None:
    first = post(system, key)
    system.flow().at_rest(first.json()["order_id"])
    for replica in range(system.replicas):
        again = post(system, key, replica=replica)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["Location"] == first.headers["Location"]
        assert again.headers["Idempotent-Replayed"] == "true"
    assert orders_of(system, key) == 1


def test_another_body_with_a_used_key_is_refused(system: System, key: str) -> None:
    assert post(system, key).status_code == 201
    refused = post(system, key, quantity=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert "Idempotent-Replayed" not in refused.headers
    assert orders_of(system, key) == 1


def test_the_order_of_the_fields_does_not_make_another_body(system: System, key: str) -> None:
    first = post(system, key)
    turned = {name: body_of()[name] for name in reversed(body_of())}
    again = system.flow().send("POST", "/api/orders", turned, Idempotency_Key=f'"{key}"')
    assert (again.status_code, again.content) == (201, first.content)


def test_an_order_without_a_key_or_with_an_impossible_one_is_a_bad_request(system: System) -> None:
    missing = system.flow().send("POST", "/api/orders", body_of())
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "idempotency_key_required")
    for impossible in ("", "a b", "x" * 129, "ü".encode().decode("latin-1")):
        refused = post(system, impossible)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "idempotency_key_invalid")


def test_the_same_key_of_another_user_makes_another_order(system: System, key: str) -> None:
    mine = post(system, key).json()["order_id"]
    theirs = post(system, key, user=system.become("neighbour", "customer"))
    assert theirs.status_code == 201
    assert theirs.json()["order_id"] != mine
    assert "Idempotent-Replayed" not in theirs.headers
    assert orders_of(system, key) == 2


def test_after_the_stored_answer_is_forgotten_the_order_itself_answers(system: System, key: str) -> None:
    first = post(system, key)
    order = system.flow().at_rest(first.json()["order_id"])
    assert system.databases.run("order", "DELETE FROM idempotency_keys WHERE key = :key", key=key) == 1
    again = post(system, key)
    assert again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert (again.json()["order_id"], again.json()["status"]) == (order["order_id"], "PAID")
    reused = post(system, key, quantity=2)
    assert (reused.status_code, reused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert orders_of(system, key) == 1


def test_a_refused_body_leaves_its_key_free(system: System, key: str) -> None:
    assert post(system, key, quantity=0).status_code == 422
    assert post(system, key).status_code == 201


def test_a_client_that_crashed_finds_its_order_by_the_key(system: System, key: str) -> None:
    order_id = post(system, key).json()["order_id"]
    (found,) = system.flow().get(f"/api/orders?idempotency_key={key}")["items"]
    assert found["order_id"] == order_id
