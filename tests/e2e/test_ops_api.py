"""The operators' HTTP API on two replicas of everything: dead messages are counted, listed and put back to work.

The dead messages here are commits for orders without a reservation; a manual reservation repairs them.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import make_url

from ops.models import DIED
from shared.envelope import envelope
from shared.events import CommitRequested, Identity
from shared.ids import new_trace_id
from tests.e2e.broker import publish, publish_by_hand
from tests.e2e.system import System, eventually

TYPE = "inventory.commit.requested"
MAIN = "q.inventory.commit-requested"
DLQ = f"{MAIN}.dlq"
SKU = "mended"
# One message, then none for an hour: under way until it is ended.
SLOW = {"all": True, "rate": "1/h", "why": "slowly"}


def die(system: System, count: int) -> list[str]:
    """Let commits without a reservation die, one after the other; their orders, the oldest first."""
    orders = [str(uuid.uuid4()) for _ in range(count)]
    for number, order_id in enumerate(orders, start=1):
        publish_by_hand(system.amqp_uri, TYPE, {"order_id": order_id})
        # Two replicas consume: of two that are under way the second may die first.
        eventually(lambda: system.dead_letters()[DLQ], lambda messages: messages == number)  # noqa: B023
    return orders


def mend(system: System, orders: Sequence[str]) -> None:
    """Make what the commits of these orders lacked."""
    flow = system.flow()
    on_hand = flow.send("GET", f"/api/stocks/{SKU}").json().get("on_hand", 0)
    flow.stock(SKU, on_hand + len(orders))
    for order_id in orders:
        body = {"order_id": order_id, "items": [{"sku": SKU, "quantity": 1}]}
        flow.send("POST", "/api/stocks/reserve", body, "admin").raise_for_status()


def queue_of(system: System, replica: int = 0) -> dict[str, Any]:
    """The API's figures for the DLQ."""
    queues = system.flow(replica).get("/api/ops/queues", "operator")["items"]
    (found,) = [one for one in queues if one["queue"] == MAIN]
    return dict(found)


def listed(system: System, query: str = "", queue: str = MAIN) -> list[dict[str, Any]]:
    return list(system.flow().get(f"/api/ops/dlq/{queue}{query}", "operator")["items"])


def begin(system: System, user: str = "operator", **wanted: Any) -> str:
    """Begin a replay; where it is."""
    answer = system.flow().send("POST", f"/api/ops/dlq/{MAIN}/replays", wanted, user)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/api/ops/replays/{answer.json()['replay_id']}"
    return answer.headers["Location"]


def ended(system: System, location: str) -> dict[str, Any]:
    """The replay when it is over, as the other gateway shows it."""
    flow = system.flow(replica=1)
    return dict(eventually(lambda: flow.get(location, "operator"), lambda replay: replay["status"] != "started", 60))


def replayed(system: System, **wanted: Any) -> dict[str, Any]:
    return ended(system, begin(system, **wanted))


def test_dead_messages_are_counted_listed_and_put_back_to_work(system: System) -> None:
    orders = die(system, 3)
    told = queue_of(system, replica=1)
    assert (told["dlq"], told["service"], told["recorded"], told["busy"]) == (DLQ, "inventory", 3, None)
    assert told["reasons"] == [{"reason": "unknown_order", "count": 3}]
    assert told["oldest"] <= told["newest"]
    letters = listed(system)
    assert {letter["order_id"] for letter in letters} == set(orders)
    assert {letter["reason"] for letter in letters} == {"unknown_order"}
    assert listed(system, queue=DLQ) == letters

    mend(system, orders)
    replay = replayed(system, user=system.become("olga", "operator"), all=True, reasons=["unknown_order"], why="mended")

    assert (replay["status"], replay["outcome"]) == ("done", "3 applied (3 do not say who published them)")
    assert replay["counts"] == {"chosen": 3, "vouched": 3, "applied": 3}
    assert (replay["actor"], replay["why"], replay["queue"]) == ("olga", "mended", DLQ)
    assert replay["filter"] == {"reasons": ["unknown_order"]}
    assert replay["options"]["rate"] == 100
    assert replay["finished_at"] >= replay["started_at"]
    told = eventually(lambda: queue_of(system), lambda told: not told["messages"] and not told["recorded"])
    assert (told["oldest"], told["newest"], told["reasons"]) == (None, None, [])
    assert listed(system) == []
    states = system.databases.rows(
        "inventory", "SELECT state FROM reservations WHERE order_id = ANY(CAST(:ids AS uuid[]))", ids=orders
    )
    assert [row["state"] for row in states] == ["COMMITTED"] * 3


def test_the_ledger_has_the_tokens_user_and_every_message(system: System) -> None:
    orders = die(system, 2)
    mend(system, orders)
    user = system.become("ada", "admin")
    replay = replayed(system, user=user, max=1, why="the oldest first")
    assert replay["counts"] == {"chosen": 1, "vouched": 1, "applied": 1}
    (row,) = system.databases.rows(
        "ops", "SELECT * FROM operations WHERE operation_id = :id", id=uuid.UUID(replay["replay_id"])
    )
    assert (row["kind"], row["actor"], row["why"], row["status"]) == ("replay", "ada", "the oldest first", "done")
    (message,) = system.databases.rows(
        "ops",
        "SELECT order_id, fate FROM operation_messages WHERE operation_id = :id",
        id=uuid.UUID(replay["replay_id"]),
    )
    assert (str(message["order_id"]), message["fate"]) == (orders[0], "applied")
    (left,) = listed(system)
    assert left["order_id"] == orders[1]
    assert replayed(system, ids=[left["message_id"].upper()])["counts"] == {"chosen": 1, "vouched": 1, "applied": 1}


def test_a_list_is_filtered_and_paged(system: System) -> None:
    orders = die(system, 4)
    trace_id, traced = new_trace_id(), uuid.uuid4()
    publish(system.amqp_uri, envelope("order_service", CommitRequested(traced), trace_id, Identity("alice", ())))
    eventually(lambda: listed(system), lambda letters: len(letters) == 5)
    for query, found in {
        f"?order_id={orders[0]}": {orders[0]},
        f"?trace_id={trace_id}": {str(traced)},
        f"?trace_id={uuid.UUID(trace_id)}": {str(traced)},
        f"?type={TYPE}": {*orders, str(traced)},
        "?type=order.paid": set(),
        "?reason=unknown_order": {*orders, str(traced)},
        "?reason=crash": set(),
        f"?reason=unknown_order&order_id={traced}&trace_id={trace_id}": {str(traced)},
        f"?order_id={orders[0]}&trace_id={trace_id}": set(),
    }.items():
        assert {letter["order_id"] for letter in listed(system, query)} == found, query

    flow, pages, cursor = system.flow(), [], ""
    while cursor is not None and len(pages) < 5:
        page = flow.get(f"/api/ops/dlq/{MAIN}?limit=2&reason=unknown_order{cursor}", "operator")
        pages.append(page["items"])
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert [len(page) for page in pages] == [2, 2, 1]
    letters = [letter for page in pages for letter in page]
    assert letters == listed(system)
    assert [letter["died_at"] for letter in letters] == sorted((one["died_at"] for one in letters), reverse=True)
    first = flow.get(f"/api/ops/dlq/{MAIN}?limit=2", "operator")["next_cursor"]
    for path in (f"{MAIN}?limit=2&reason=unknown_order&cursor={first}", f"q.order.payment-result?cursor={first}"):
        answer = flow.send("GET", f"/api/ops/dlq/{path}", user="operator")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")

    mend(system, [*orders, str(traced)])
    assert replayed(system, all=True, trace_id=str(uuid.UUID(trace_id)))["counts"] == {"chosen": 1, "applied": 1}
    assert replayed(system, all=True)["counts"] == {"chosen": 4, "vouched": 4, "applied": 4}


def test_a_replay_whose_message_dies_again_stops_and_says_why(system: System) -> None:
    orders = die(system, 3)
    replay = replayed(system, all=True, ramp="1", stop_on_redeath=True)
    assert replay["status"] == "stopped"
    assert replay["outcome"].startswith("1 died again, as unknown_order (order ")
    assert replay["counts"] == {"chosen": 3, "vouched": 1, "dead_again": 1, "reasons": {"unknown_order": 1}}
    letters = eventually(lambda: listed(system), lambda letters: len(letters) == 3)
    assert sorted(letter["replays"] for letter in letters) == [0, 0, 1]

    mend(system, orders)
    replay = replayed(system, all=True, ramp="1,2", stop_on_redeath=True)
    assert (replay["status"], replay["counts"]) == ("done", {"chosen": 3, "vouched": 3, "applied": 3})


def test_a_conflict_names_the_operator_at_work_and_a_stopped_service_ends_its_replay(system: System) -> None:
    orders = die(system, 2)
    mend(system, orders)
    location = begin(system, **SLOW)
    eventually(lambda: len(listed(system)), lambda left: left == 1)
    answer = system.flow(replica=1).send("POST", f"/api/ops/dlq/{DLQ}/replays", {"all": True}, "admin")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    operation_id = location.rpartition("/")[2]
    said = answer.json()["error"]["message"]
    assert f"{DLQ} is being worked on by operator since 20" in said
    assert f"replay of {MAIN} over HTTP (`ecom dlq history {operation_id}` shows it)" in said
    told = queue_of(system)
    assert (told["messages"], told["recorded"], told["busy"]) == (1, 1, "operator")
    assert (told["holder"]["actor"], told["holder"]["operation_id"]) == ("operator", operation_id)

    for pid in system.replicas_of("ops").values():
        os.kill(pid, signal.SIGTERM)
    row = eventually(
        lambda: system.databases.rows(
            "ops",
            "SELECT status, outcome FROM operations WHERE operation_id = :id",
            id=uuid.UUID(location.rpartition("/")[2]),
        )[0],
        lambda row: row["status"] != "started",
        10,
    )
    assert (row["status"], row["outcome"]) == ("stopped", "its service was stopped")
    eventually(lambda: system.troubles("ops"), lambda troubles: not troubles, 60)
    assert ended(system, location)["counts"] == {"chosen": 2, "vouched": 1, "applied": 1}
    assert replayed(system, all=True)["counts"] == {"chosen": 1, "vouched": 1, "applied": 1}


def test_a_replay_whose_process_dies_is_told_as_interrupted_and_nothing_is_lost(system: System) -> None:
    orders = die(system, 2)
    mend(system, orders)
    location = begin(system, **SLOW)
    eventually(lambda: len(listed(system)), lambda left: left == 1)
    system.kill_service("ops")
    replay = ended(system, location)
    assert (replay["status"], replay["outcome"]) == ("interrupted", DIED)
    eventually(lambda: queue_of(system)["messages"], lambda messages: messages == 1)
    assert replayed(system, all=True)["counts"] == {"chosen": 1, "vouched": 1, "applied": 1}


def test_a_queue_or_replay_that_is_not_there_is_404(system: System) -> None:
    flow = system.flow()
    for method, path, body in (
        ("GET", "/api/ops/dlq/q.nobody", None),
        ("GET", f"/api/ops/dlq/{MAIN}.retry", None),
        ("POST", "/api/ops/dlq/q.nobody/replays", {"all": True}),
        ("GET", f"/api/ops/replays/{uuid.uuid4()}", None),
        ("GET", "/api/ops/replays/7", None),
    ):
        answer = flow.send(method, path, body, "operator")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path


@pytest.fixture
def no_ledger(system: System) -> Any:
    """The ledger's database refuses connections."""
    name = make_url(system.settings.database_url("ops")).database
    system.databases.run("order", f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    yield
    system.databases.run("order", f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_while_the_ledger_is_away_the_answer_is_503_and_nothing_begins(system: System, no_ledger: None) -> None:
    flow = system.flow()
    for method, path, body in (
        ("GET", "/api/ops/queues", None),
        ("POST", f"/api/ops/dlq/{MAIN}/replays", {"all": True}),
    ):
        answer = flow.send(method, path, body, "operator")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), path
        assert answer.headers["Retry-After"]
