"""Clients that wait for an order or stream its steps, with a fake order service."""

import gc
import re
import socket
import time
from contextlib import contextmanager

import eventlet
import psutil
import pytest

from gateway import following
from shared import auth
from shared.config import Settings
from shared.edge import watch
from shared.edge.hint_listener import HintListener
from shared.edge.revocation_feed import RevocationFeed
from shared.errors import NotFound, ServiceUnavailable
from tests.unit.serving import KEYS, ORDERS, Fake, ask, dial, hear, serving
from tests.unit.test_gateway_http import ORDER_ID, Gateway, bearer, code

PATH = f"/api/orders/{ORDER_ID}"
EVENTS = f"{PATH}/events"
FEED = "/api/orders/events"
STREAMED = {"Accept": "text/event-stream"}


class Orders:
    """The order service, as a worker of the gateway calls it."""

    def under(self, context):
        return self

    def get_order(self, order_id):
        if order_id not in ORDERS.states:
            raise NotFound
        return ORDERS.read(order_id)

    def steps(self, order_id, after):
        self.get_order(order_id)
        return ORDERS.call("order_service.steps", [order_id, after], {}, {}, 1)

    def all_steps(self, after, limit):
        return ORDERS.call("order_service.all_steps", [after, limit], {}, {}, 1)


class Shop(Gateway):
    name = "gateway"
    orders = Fake(Orders())


@pytest.fixture(autouse=True)
def an_order(monkeypatch):
    """One PENDING order. Only hints make the gateway ask about it."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 60.0)
    ORDERS.states = {ORDER_ID: {"order_id": ORDER_ID, "version": 1, "status": "PENDING"}}
    ORDERS.steps = [{"id": 10, "event": "order.created", "to": "PENDING"}]
    ORDERS.ending = {"status": "PENDING", "ended": False}
    ORDERS.feed = []
    ORDERS.error = None
    ORDERS.asked.clear()
    ORDERS.steps_asked.clear()
    ORDERS.feed_asked.clear()
    with eventlet.Timeout(20):
        yield


@pytest.fixture
def quick(monkeypatch):
    """The gateway asks often, also without hints. Requested before `shop`."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.05)


@pytest.fixture
def shop():
    with serving(Shop, max_workers=2) as server:
        yield server


def watches(server):
    return {item.key: item for item in server.container.subextensions if isinstance(item, watch.Watch)}


def watch_of(server):
    return watches(server)["order_id"]


def waiters(server):
    return sum(len(list(watch._everybody())) for watch in watches(server).values())


def settle(server, count):
    """Return when this many clients wait."""
    while waiters(server) != count:
        eventlet.sleep(0.01)
    eventlet.sleep(0.05)


def happens(server, event, status, hint=True):
    """The order takes a step."""
    ORDERS.steps = [*ORDERS.steps, {"id": ORDERS.steps[-1]["id"] + 1, "event": event, "to": status}]
    ORDERS.change(ORDER_ID, status=status)
    if hint:
        watch_of(server).ask_soon([ORDER_ID])


def get(server, path=PATH, **headers):
    return eventlet.spawn(ask, server, "GET", path, None, {**bearer("customer"), **headers})


def test_a_gateway_listens_to_hints_once(shop):
    """Each listener costs the broker a connection and a queue. Hints name orders, so the feed has no use for them.

    docs/decisions/0011 promises one queue for each process.
    """
    (listener,) = [item for item in shop.container.subextensions if isinstance(item, HintListener)]
    listening = {callback.__self__ for callback in listener.callbacks}
    feed_of_revocations = next(item for item in shop.container.subextensions if isinstance(item, RevocationFeed))
    assert listening == {watch_of(shop), feed_of_revocations}


@pytest.mark.parametrize("query", ["", "?timeout=25", "?wait=PENDING", "?wait=PAID,PENDING&timeout=25"])
def test_an_order_already_in_a_wanted_state_is_answered_at_once(shop, query):
    assert get(shop, PATH + query).wait()[2] == ORDERS.read(ORDER_ID)
    assert waiters(shop) == 0


def test_an_order_is_answered_as_soon_as_it_reaches_a_wanted_state(shop):
    waiting = get(shop, f"{PATH}?wait=PAID,CANCELLED&timeout=20")
    settle(shop, 1)
    happens(shop, "inventory.reserved", "RESERVED")
    eventlet.sleep(0.05)
    assert not waiting.dead
    happens(shop, "payment.succeeded", "PAID")
    status, headers, body = waiting.wait()
    assert (status, body["status"], body["version"]) == (200, "PAID", 3)
    assert headers["Content-Type"] == "application/json"


def test_after_the_timeout_the_order_is_answered_as_it_is(shop):
    began = time.monotonic()
    waiting = get(shop, f"{PATH}?wait=PAID&timeout=1")
    settle(shop, 1)
    happens(shop, "inventory.reserved", "RESERVED")
    assert waiting.wait()[2]["status"] == "RESERVED"
    assert time.monotonic() - began > 0.9
    assert waiters(shop) == 0


def test_a_waiting_client_gets_the_last_known_order_while_order_service_is_unavailable(quick, shop):
    waiting = get(shop, f"{PATH}?wait=PAID&timeout=1")
    settle(shop, 1)
    ORDERS.error = ServiceUnavailable()
    status, _, body = waiting.wait()
    assert (status, body["status"]) == (200, "PENDING")


def test_an_unknown_order_is_404_without_waiting(shop):
    ORDERS.states = {}
    for path in (f"{PATH}?wait=PAID", EVENTS):
        assert code(get(shop, path).wait()) == (404, "not_found")
    assert waiters(shop) == 0


@pytest.mark.parametrize(
    "query",
    ["wait=", "wait=SENT", "wait=PAID,", "wait=paid", "wait=PAID&wait=PAID", "timeout=0", "timeout=26", "timeout=1.5"],
)
def test_a_bad_wait_or_timeout_is_400(shop, query):
    assert code(get(shop, f"{PATH}?{query}").wait()) == (400, "bad_request")


def test_waiting_clients_hold_no_worker(shop):
    waiting = [get(shop, f"{PATH}?wait=PAID") for _ in range(50)]
    streams = [Listener(shop) for _ in range(10)]
    settle(shop, 60)  # of 2 workers
    assert get(shop).wait()[0] == 200
    happens(shop, "payment.succeeded", "PAID")
    assert {thread.wait()[2]["status"] for thread in waiting} == {"PAID"}
    for stream in streams:
        stream.close()


def test_a_client_that_hangs_up_stops_waiting(quick, shop):
    clients = [dial(shop) for _ in range(3)]
    clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing sends a reset
    for client, path in zip(clients, (f"{PATH}?wait=PAID&timeout=25", EVENTS, EVENTS), strict=True):
        client.sendall(request(path))
    stays = get(shop, f"{PATH}?wait=PAID&timeout=25")
    settle(shop, 4)
    for client in clients:
        client.close()
    settle(shop, 1)
    happens(shop, "payment.succeeded", "PAID")
    assert stays.wait()[2]["status"] == "PAID"


def test_a_client_that_hangs_up_leaves_no_file_open(quick, shop):
    gc.disable()  # a collection would close leaked files
    try:
        assert get(shop).wait()[0] == 200
        eventlet.sleep(0.05)
        files = psutil.Process().num_fds()
        for path in (f"{PATH}?wait=PAID&timeout=25", EVENTS):
            for how in (b"\0" * 8, b"\1\0\0\0\0\0\0\0"):  # closing ends the connection, or resets it
                client = dial(shop)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
                client.sendall(request(path))
                settle(shop, 1)
                client.close()
                settle(shop, 0)
        while psutil.Process().num_fds() > files:
            eventlet.sleep(0.02)
    finally:
        gc.enable()


def test_a_client_that_pipelines_its_next_request_has_not_gone(quick, shop):
    with dial(shop) as client:
        client.sendall(request(f"{PATH}?wait=PAID&timeout=25"))
        settle(shop, 1)
        client.sendall(request(PATH, "Connection: close\r\n"))
        eventlet.sleep(0.2)
        assert waiters(shop) == 1
        happens(shop, "payment.succeeded", "PAID")
        assert hear(client).count('"status":"PAID"') == 2


def test_a_stop_answers_all_waiting_clients_and_ends_the_streams():
    with serving(Shop, settings=Settings(auth_keys=KEYS, waits_per_user=0)) as server:
        waiting = [get(server, f"{PATH}?wait=PAID&timeout=25") for _ in range(200)]
        streams = [Listener(server) for _ in range(10)] + [Listener(server, FEED, **STREAMED) for _ in range(10)]
        settle(server, 220)
        began = time.monotonic()
        server.container.stop()
        assert time.monotonic() - began < 5
        assert [thread.wait()[::2] for thread in waiting] == [(200, ORDERS.read(ORDER_ID))] * 200
        assert all(stream.rest().endswith("0\r\n\r\n") for stream in streams), "no stream was cut off"


def request(path, more="", headers=None):
    named = {**bearer("customer", "operator"), "Host": "shop", **(headers or {})}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return ("\r\n".join(lines) + f"\r\n{more}\r\n").encode()


class Listener:
    """A client of an event stream: of one order, unless told otherwise."""

    def __init__(self, server, path=EVENTS, **headers):
        self.sock = dial(server)
        self.heard = ""
        self.sock.sendall(request(path, headers={name.replace("_", "-"): value for name, value in headers.items()}))

    def until(self, words):
        """Everything received so far, as soon as it contains these words."""
        while words not in self.heard:
            chunk = self.sock.recv(65536)
            assert chunk, f"it ended before {words!r}: {self.heard}"
            self.heard += chunk.decode()
        return self.heard

    def rest(self):
        """Everything received until the end."""
        self.sock.settimeout(5)
        while not self.heard.endswith("0\r\n\r\n") and (chunk := self.sock.recv(65536)):
            self.heard += chunk.decode()
        return self.heard

    def close(self):
        self.sock.close()


@contextmanager
def listening(server, path=EVENTS, **headers):
    listener = Listener(server, path, **headers)
    try:
        yield listener
    finally:
        listener.close()


def test_the_stream_begins_with_past_steps_and_sends_new_ones_as_they_happen(shop):
    with listening(shop) as client:
        head = client.until("retry: 1000\n\n").partition("\r\n\r\n")[0].lower()
        assert head.startswith("http/1.1 200 ")
        for header in (
            "content-type: text/event-stream",
            "cache-control: no-store",
            "x-accel-buffering: no",
            "transfer-encoding: chunked",
            "x-content-type-options: nosniff",
        ):
            assert header in head
        assert "content-length" not in head
        client.until('id: 10\nevent: order.created\ndata: {"id":10,"event":"order.created","to":"PENDING"}\n\n')
        settle(shop, 1)
        assert ORDERS.steps_asked == [0], "what it has read is not asked for again"
        happens(shop, "inventory.reserved", "RESERVED")
        client.until("id: 11\nevent: inventory.reserved\n")
        happens(shop, "payment.succeeded", "PAID")
        client.until("id: 12\nevent: payment.succeeded\n")
        assert client.heard.count("id: ") == 3
        assert ORDERS.steps_asked == [0, 10, 11]


def test_a_client_that_reconnects_gets_only_the_steps_it_missed(shop):
    happens(shop, "inventory.reserved", "RESERVED")
    with listening(shop, Last_Event_ID="10") as client:
        client.until("id: 11\n")
        assert "id: 10\n" not in client.heard
    with listening(shop, Last_Event_ID="9" * 18) as client:
        client.until("retry")
        assert "id: " not in client.heard


@pytest.mark.parametrize("last", ["", "x", "-1", "1.0", "1e3", "9" * 19, "0x10", "٣"])
def test_a_malformed_last_event_id_is_400(shop, last):
    answer = get(shop, EVENTS, **{"Last-Event-ID": last.encode()}).wait()
    assert code(answer) == (400, "bad_request")
    assert waiters(shop) == 0


def test_an_idle_stream_sends_keep_alives_and_asks_no_service(quick, shop, monkeypatch):
    monkeypatch.setattr(following, "KEEP_ALIVE_S", 0.05)
    with listening(shop) as client:
        client.until(": still here\n\n")
        client.heard = ""
        client.until(": still here\n\n")
        assert ORDERS.steps_asked == [0]
        assert "id: " not in client.heard, "no step is sent twice"


def test_steps_that_could_not_be_read_are_sent_later(shop, monkeypatch):
    monkeypatch.setattr(following, "RETRY_S", 0.05)
    with listening(shop) as client:
        settle(shop, 1)
        happens(shop, "inventory.reserved", "RESERVED", hint=False)
        (waiter,) = watch_of(shop)._everybody()
        ORDERS.error = ServiceUnavailable()
        waiter.update(ORDERS.read(ORDER_ID))
        client.until(": still here\n\n")
        assert "id: 11\n" not in client.heard
        ORDERS.error = None
        client.until("id: 11\n")


def test_a_stream_lasts_no_longer_than_its_token(shop):
    token = auth.issue(KEYS, "alice", ("customer",), ttl_s=3, now=time.time() - 1)
    began = time.monotonic()
    with listening(shop, Authorization=f"Bearer {token}") as client:
        assert client.rest().endswith("0\r\n\r\n")
    assert time.monotonic() - began < 10  # of 25
    assert code(get(shop, EVENTS, Authorization=f"Bearer {token}").wait()) == (401, "unauthenticated")


def test_a_stream_ends_after_its_longest_time_and_the_client_can_reconnect(shop, monkeypatch):
    monkeypatch.setattr(following, "MAX_STREAM_S", 0.1)
    with listening(shop) as client:
        assert client.rest().endswith("0\r\n\r\n")
    assert waiters(shop) == 0


def test_a_head_request_of_a_stream_has_no_body_and_does_not_wait(shop):
    status, headers, body = ask(shop, "HEAD", EVENTS, headers=bearer("customer"))
    assert (status, headers["Content-Type"], body) == (200, "text/event-stream", "")
    assert waiters(shop) == 0


END = 'event: end\ndata: {"status":"PAID"}\n\n'


def ends(server, status="PAID"):
    """The order takes its last step."""
    ORDERS.ending = {"status": status, "ended": True}
    happens(server, "inventory.committed", status)


def test_the_stream_of_an_order_at_rest_ends_with_a_mark(shop):
    ORDERS.ending = {"status": "PAID", "ended": True}
    with listening(shop) as client:
        assert "id: 10\n" in client.rest().partition(END)[0]
    assert waiters(shop) == 0


def test_a_stream_ends_after_the_last_step_and_not_before(shop):
    with listening(shop) as client:
        settle(shop, 1)
        happens(shop, "payment.succeeded", "PAID")
        client.until("id: 11\n")
        assert "event: end" not in client.heard
        ends(shop)
        assert "event: inventory.committed\n" in client.rest().partition(END)[0]
    assert client.heard.count(END) == 1


def test_a_client_that_has_all_steps_of_an_order_at_rest_is_told_not_to_reconnect(shop):
    ends(shop)
    status, headers, body = get(shop, EVENTS, **{"Last-Event-ID": "11"}).wait()
    assert (status, body, headers["Content-Type"]) == (204, "", None)
    status, _, body = get(shop, EVENTS, **{"Last-Event-ID": "10"}).wait()
    assert (status, body.count("id: "), body.count(END)) == (200, 1, 1)
    ORDERS.ending = {"status": "REFUND_PENDING", "ended": False}
    with listening(shop, Last_Event_ID="11") as client:
        client.until("retry: ")
        happens(shop, "payment.refunded", "CANCELLED")
        client.until("id: 12\n")


def test_a_stream_goes_on_while_order_service_is_of_the_version_before(shop):
    ORDERS.ending = {}
    with listening(shop, Last_Event_ID="10") as client:
        settle(shop, 1)
        happens(shop, "inventory.reserved", "RESERVED")
        client.until("id: 11\n")


def all_orders(count):
    """This many steps of different orders happen."""
    for _ in range(count):
        number = len(ORDERS.feed) + 1
        ORDERS.feed.append({"id": 100 + number, "event": "order.created", "position": f"1-{number}"})


def positions(heard):
    return re.findall(r"^id: ([0-9]+-[0-9]+)\nevent: ", heard, re.M)


def test_the_feed_is_answered_page_by_page(shop):
    all_orders(3)
    first = get(shop, f"{FEED}?limit=2", **bearer("service")).wait()
    assert (first[0], first[1]["Content-Type"]) == (200, "application/json")
    assert first[2] == {"items": ORDERS.feed[:2], "after": "1-2", "more": True}
    for accept in ("*/*", "application/json", "text/event-stream;q=0.1, */*"):
        rest = get(shop, f"{FEED}?after={first[2]['after']}", Accept=accept, **bearer("operator")).wait()
        assert rest[2] == {"items": ORDERS.feed[2:], "after": "1-3", "more": False}


@pytest.mark.parametrize("query", ["after=", "after=1", "after=1-", "after=-1", "after=a-b", "limit=0", "limit=201"])
def test_a_bad_position_or_limit_is_400(shop, query):
    for accept in ({}, STREAMED):
        answer = get(shop, f"{FEED}?{query}", **bearer("operator"), **accept).wait()
        assert code(answer) == (400, "bad_request")
    answer = get(shop, FEED, **bearer("operator"), **STREAMED, **{"Last-Event-ID": "17"}).wait()
    assert code(answer) == (400, "bad_request")


def test_a_stream_of_the_feed_begins_with_past_steps_and_sends_new_ones(quick, shop):
    all_orders(2)
    with listening(shop, FEED, **STREAMED) as client:
        assert "content-type: text/event-stream" in client.until("id: 1-2\n").partition("\r\n\r\n")[0].lower()
        assert 'event: order.created\ndata: {"id":101,"event":"order.created","position":"1-1"}\n\n' in client.heard
        settle(shop, 1)
        all_orders(1)
        client.until("id: 1-3\n")
        all_orders(1)
        client.until("id: 1-4\n")
        assert positions(client.heard) == ["1-1", "1-2", "1-3", "1-4"]


def test_streams_at_the_same_position_cost_one_question(shop):
    streams = [Listener(shop, FEED, **STREAMED) for _ in range(20)]
    settle(shop, 20)
    ORDERS.feed_asked.clear()
    all_orders(1)
    watches(shop)["position"]._ask(["1-0"])
    for client in streams:
        client.until("id: 1-1\n")
        client.close()
    assert ORDERS.feed_asked == [[{"1-0": 1}]]


def test_a_stream_far_behind_reads_page_after_page_without_waiting(shop, monkeypatch):
    monkeypatch.setattr(following, "STREAM_PAGE", 10)
    all_orders(35)
    with listening(shop, f"{FEED}?after=1-5", **STREAMED) as client:
        client.until("id: 1-35\n")
        settle(shop, 1)
        assert ORDERS.feed_asked == [["1-5", 10], ["1-15", 10], ["1-25", 10]]
        assert positions(client.heard) == [f"1-{number}" for number in range(6, 36)]


def test_a_stream_far_behind_goes_on_when_order_service_is_back(quick, shop, monkeypatch):
    monkeypatch.setattr(following, "STREAM_PAGE", 10)
    all_orders(35)
    with listening(shop, FEED, **STREAMED) as client:
        client.until("id: 1-1\n")
        ORDERS.error = ServiceUnavailable()
        settle(shop, 1)
        ORDERS.error = None
        client.until("id: 1-35\n")
        assert positions(client.heard) == [f"1-{number}" for number in range(1, 36)]


def test_a_client_of_the_feed_continues_after_its_last_event(quick, shop):
    all_orders(4)
    with listening(shop, f"{FEED}?after=1-1", Last_Event_ID="1-3", **STREAMED) as client:
        client.until("id: 1-4\n")
        assert positions(client.heard) == ["1-4"]


def test_a_client_that_begins_now_is_told_where_that_is(quick, shop):
    all_orders(2)
    with listening(shop, f"{FEED}?after=now", **STREAMED) as client:
        client.until("id: 1-2\nretry: 1000\n\n")
        settle(shop, 1)
        all_orders(1)
        client.until("id: 1-3\n")
        assert positions(client.heard) == ["1-3"]


def test_an_idle_stream_of_the_feed_sends_keep_alives(shop, monkeypatch):
    monkeypatch.setattr(following, "KEEP_ALIVE_S", 0.05)
    with listening(shop, FEED, **STREAMED) as client:
        client.until(": still here\n\n")
        client.heard = ""
        client.until(": still here\n\n")
        assert ORDERS.feed_asked == [["0", following.STREAM_PAGE]]


def test_every_waiting_client_is_counted_once(shop):
    clients = [Listener(shop), Listener(shop, FEED, **STREAMED), Listener(shop, FEED, **STREAMED)]
    settle(shop, 3)
    assert [watched._all_waiting() for watched in watches(shop).values()] == [3, 3], "they share one gauge"
    for client in clients:
        client.close()


@pytest.mark.parametrize(("path", "role"), [(f"{PATH}/events", "customer"), ("/api/orders/events", "operator")])
@pytest.mark.parametrize("what", [{"user_id": "alice", "version": 2}, {"session_id": ORDER_ID}])
def test_a_stream_whose_token_is_revoked_ends_at_its_next_look(shop, path, role, what, monkeypatch):
    monkeypatch.setattr(following, "KEEP_ALIVE_S", 0.1)
    tokens = [
        auth.issue(KEYS, sub, (role,), version=1, session_id=session_id)
        for sub, session_id in (("alice", ORDER_ID), ("bob", "another"))
    ]
    headers = [{"Authorization": f"Bearer {token}", "Accept": "text/event-stream"} for token in tokens]
    shut_out, other = [eventlet.spawn(ask, shop, "GET", path, None, header) for header in headers]
    settle(shop, 2)
    feed = next(item for item in shop.container.subextensions if isinstance(item, RevocationFeed))
    feed._known.take([{"user_id": None, "version": None, "session_id": None, **what}])
    assert shut_out.wait()[0] == 200
    eventlet.sleep(0.2)
    assert not other.dead
    other.kill()
