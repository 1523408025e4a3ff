"""Clients that follow an order, through either gateway, on two replicas of everything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from tests.e2e.held import held
from tests.e2e.system import ROOT, System


def reserved(flow: Flow, sku: str) -> str:
    """An order that waits for its payment, while payment's events are held back."""
    order_id = str(flow.order(sku)["order_id"])
    Flow.until(lambda: flow.get(f"/api/orders/{order_id}"), lambda order: order["status"] == "RESERVED")
    return order_id


class Events:
    """One client of an order's events, or of the feed: each is (id, event, data). `end` has the id 0."""

    def __init__(self, flow: Flow, order_id: str | None, last: Any = None, user: str = "customer") -> None:
        headers = {"Authorization": f"Bearer {flow.token(user)}", "Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        path = f"/api/orders/{order_id}/events" if order_id else "/api/orders/events"
        self.answer = requests.get(flow.url + path, headers=headers, stream=True, timeout=20)

        self._told = self._read()  # one for good: the connection ends with it

    def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        return self._told

    def _read(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        told: dict[str, str] = {}
        for line in self.answer.iter_lines(chunk_size=1, decode_unicode=True):
            if line:
                name, _, value = line.partition(": ")
                told[name] = value
            elif "data" not in told:
                told = {}
            else:
                yield int(told.get("id", "0").rpartition("-")[2]), told["event"], json.loads(told["data"])
                told = {}

    def until(self, event: str) -> list[tuple[int, str, dict[str, Any]]]:
        """Everything received up to this event."""
        heard = []
        for item in self:
            heard.append(item)
            if item[1] == event:
                return heard
        raise AssertionError(f"it ended before {event}: {heard}")


@contextmanager
def listening(flow: Flow, order_id: str, last: int | None = None) -> Iterator[Events]:
    events = Events(flow, order_id, last)
    try:
        assert events.answer.status_code == 200
        assert events.answer.headers["Content-Type"].startswith("text/event-stream")
        yield events
    finally:
        events.answer.close()


def test_both_gateways_answer_their_waiting_clients_when_the_order_is_paid(system: System) -> None:
    flow = system.flow()
    flow.stock("awaited", 10)
    with ThreadPoolExecutor(system.replicas) as threads:
        with held(system.databases, "payment"):
            order_id = reserved(flow, "awaited")
            path = f"/api/orders/{order_id}?wait=PAID,CANCELLED&timeout=20"
            waiting: list[Future[dict[str, Any]]] = [
                threads.submit(system.flow(replica).get, path) for replica in range(system.replicas)
            ]
            time.sleep(0.5)  # nothing comes for a while
            assert not any(each.done() for each in waiting)
        answers = [each.result() for each in waiting]
    assert {answer["status"] for answer in answers} == {"PAID"}
    assert answers[0] == answers[1]
    assert flow.get(path)["status"] == "PAID", "and who comes later is answered at once"


def test_a_wait_for_a_state_that_does_not_come_ends_with_the_order_as_it_is(system: System) -> None:
    flow = system.flow()
    flow.stock("not-awaited", 10)
    with held(system.databases, "payment"):
        order_id = reserved(flow, "not-awaited")
        began = time.monotonic()
        assert flow.get(f"/api/orders/{order_id}?wait=PAID&timeout=1")["status"] == "RESERVED"
        assert time.monotonic() - began > 0.9


def test_a_client_hears_every_step_from_the_first_at_either_gateway(system: System) -> None:
    flow = system.flow()
    flow.stock("heard", 10)
    with held(system.databases, "payment"):
        order_id = reserved(flow, "heard")
        flows = [system.flow(replica) for replica in range(system.replicas)]
        streams = [Events(each, order_id) for each in flows]
        early = [next(iter(stream)) for stream in streams]
        assert {event for _, event, _ in early} == {"order.created"}
    steps = flow.timeline(order_id, last="inventory.committed")["steps"]
    for stream, first in zip(streams, early, strict=True):
        *heard, end = [first, *stream]  # it ends by itself
        assert [data for _, _, data in heard] == steps
        assert [id_ for id_, _, _ in heard] == sorted(data["id"] for _, _, data in heard)
        assert end == (0, "end", {"status": "PAID"})
    again = Events(flow, order_id, last=steps[-1]["id"])
    assert (again.answer.status_code, again.answer.content) == (204, b"")


def test_the_feed_tells_the_steps_of_all_orders_to_streams_and_to_readers_of_pages(system: System) -> None:
    flow = system.flow()
    flow.stock("fed", 10)
    began = flow.get("/api/orders/events?after=now", "service")["after"]
    streams = [Events(system.flow(replica), None, began, "operator") for replica in range(system.replicas)]
    orders = [str(flow.order("fed", payment=method)["order_id"]) for method in ("mock_ok", "mock_declined")]
    paid, refused = (
        flow.timeline(order_id, last=last)["steps"]
        for order_id, last in zip(orders, ("inventory.committed", "inventory.released"), strict=True)
    )
    pages: list[dict[str, Any]] = []
    while len(pages) < len(paid) + len(refused):
        page = flow.get(f"/api/orders/events?limit=2&after={pages[-1]['position'] if pages else began}", "operator")
        assert len(page["items"]) == 2 or not page["more"]
        pages += page["items"]
    for order_id, steps in zip(orders, (paid, refused), strict=True):
        told = [{**step, "order_id": None, "position": None} for step in pages if step["order_id"] == order_id]
        assert told == [{**step, "order_id": None, "position": None} for step in steps]
    for stream in streams:
        assert [next(stream._told)[2] for _ in pages] == pages
        stream.answer.close()


@pytest.mark.parametrize(("runs", "sample"), [(sys.executable, "stream.py"), ("node", "stream.mjs")])
def test_the_sample_clients_follow_an_order_to_its_end(system: System, runs: str, sample: str) -> None:
    if shutil.which(runs) is None:
        pytest.skip(f"{runs} is not installed")
    flow = system.flow()
    flow.stock("by-example", 10)
    order_id = flow.order("by-example")["order_id"]
    where = {"API": flow.url, "STREAM": f"/api/orders/{order_id}/events", "TOKEN": flow.token("customer")}
    command = [runs, str(ROOT / "gateway/samples" / sample)]

    run = subprocess.run(command, env={**os.environ, **where}, capture_output=True, text=True, timeout=30, check=False)

    steps = flow.get(f"/api/orders/{order_id}/timeline")["steps"]
    told = [f"{step['event']} {step['to']}" for step in steps]
    assert run.stdout.splitlines() == [*told, "end PAID"], run.stderr


def test_a_client_that_comes_again_to_another_gateway_goes_on_where_it_was(system: System) -> None:
    first, second = system.flow(0), system.flow(1)
    first.stock("heard-on", 10)
    with ExitStack() as open_streams:
        with held(system.databases, "payment"):
            order_id = reserved(first, "heard-on")
            with listening(first, order_id) as events:
                heard = events.until("inventory.reserved")
            again = open_streams.enter_context(listening(second, order_id, last=heard[-1][0]))
        rest = again.until("payment.succeeded")
    steps = first.timeline(order_id, last="inventory.committed")["steps"]
    assert [data for _, _, data in heard + rest] == steps[: len(heard) + len(rest)]


@pytest.mark.parametrize("path", ["?wait=PAID", "/events"])
def test_only_readers_of_all_orders_can_follow_the_order_of_another_user(system: System, path: str) -> None:
    flow = system.flow()
    flow.stock("followed", 10)
    order_id = flow.order("followed")["order_id"]
    stranger = system.become("mallory", "customer")
    answer = flow.send("GET", f"/api/orders/{order_id}{path}", user=stranger)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    if path == "/events":
        events = Events(flow, order_id, user="auditor")
        assert events.until("payment.succeeded")[0][1] == "order.created"
        events.answer.close()
    else:
        assert flow.get(f"/api/orders/{order_id}{path}", user="auditor")["status"] == "PAID"
