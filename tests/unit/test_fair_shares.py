"""What is held open is shared fairly: connections of an address, waits and streams of a user, sign-ins."""

import socket
from collections import Counter
from contextlib import ExitStack, closing, contextmanager

import eventlet
import pytest
from eventlet.event import Event
from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from gateway.api import held
from gateway.api.http import Holding, SigningIn
from shared.config import Settings
from shared.edge import shares, watch
from shared.edge.shares import Client, Connections, Shares
from shared.edge.turns import Turns
from shared.errors import TooManyConnections
from tests.unit.serving import KEYS, ORDERS, ask, dial, hear, probes_of, serving
from tests.unit.test_gateway_following import EVENTS, FEED, PATH, STREAMED, Shop, an_order, watch_of
from tests.unit.test_gateway_http import BEHIND, ROUTES, Gateway, bearer, code
from tests.unit.test_http_edge import Echo, lives, post

__all__ = ["an_order"]  # a fixture that every test here gets

CROWD = 300
OTHER = "127.0.0.2"


@pytest.fixture
def closed(monkeypatch):
    """The clients whose connections were closed to make room."""
    closed = []
    monkeypatch.setattr(shares, "shutdown_safe", closed.append)
    return closed


def clients_at(connections, *addresses):
    """A client from each address, let in. The socket of each is its place among them."""
    clients = [Client((address, 1), place) for place, address in enumerate(addresses)]
    for client in clients:
        connections.add(client)
    return clients


def test_an_address_at_its_limit_loses_its_oldest_connection_without_a_request(closed):
    connections = Connections(10, of_address=2)
    first, second, *_ = clients_at(connections, "a", "a", "b", "c")
    assert connections.begin(first)
    connections.add(Client(("a", 1), 9))
    assert closed == [second[1]]
    assert not connections.begin(second)
    assert len(connections) == 4


def test_an_address_whose_connections_all_have_requests_is_refused(closed):
    connections = Connections(10, of_address=2)
    for client in clients_at(connections, "a", "a"):
        connections.begin(client)
    with pytest.raises(TooManyRequests):
        connections.add(Client(("a", 1), 9))
    connections.add(Client(("b", 1), 9))
    assert (closed, len(connections)) == ([], 3)


def test_a_full_server_closes_a_connection_of_the_address_that_holds_the_most(closed):
    connections = Connections(5)
    clients_at(connections, "b", "a", "c", "a", "a")
    connections.add(Client(("d", 1), 9))
    assert (closed, len(connections)) == ([1], 5)


def test_requests_under_way_count_when_the_address_that_holds_the_most_is_sought(closed):
    connections = Connections(4)
    one, other, *_ = clients_at(connections, "a", "a", "b", "a")
    connections.begin(one)
    connections.begin(other)
    connections.add(Client(("d", 1), 9))
    assert closed == [3]


def test_a_full_server_where_every_connection_has_a_request_refuses(closed):
    connections = Connections(2)
    for client in clients_at(connections, "a", "b"):
        connections.begin(client)
    with pytest.raises(ServiceUnavailable):
        connections.add(Client(("c", 1), 9))
    assert closed == []


def test_a_connection_at_rest_again_is_the_youngest(closed):
    connections = Connections(2)
    first, second = clients_at(connections, "a", "a")
    connections.begin(first)
    connections.rest(first)
    connections.add(Client(("b", 1), 9))
    assert closed == [second[1]]


def test_a_proxy_holds_more_than_one_address_may(closed):
    connections = Connections(10, of_address=1)
    for place in range(4):
        connections.add(Client(("a", 1), place), is_proxy=True)
    assert (closed, len(connections)) == ([], 4)


def test_nothing_is_remembered_of_connections_that_have_ended():
    connections = Connections(10, of_address=5)
    for client in clients_at(connections, "a", "a", "b"):
        connections.begin(client)
        connections.rest(client)
        connections.remove(client)
        connections.remove(client)
        connections.rest(client)
    assert (len(connections), connections._held, connections._idle) == (0, {}, {})


def test_a_name_at_its_limit_is_refused_until_something_of_it_is_released():
    of_user = Shares("Too many.", 1)
    with of_user.held("alice"):
        with (
            of_user.held("bob"),
            pytest.raises(TooManyConnections, match=r"Too many\.") as refused,
            of_user.held("alice"),
        ):
            pass
        assert refused.value.details == {"limit": 1, "retry_after": 1}
    with of_user.held("alice"):
        pass
    assert of_user._held == {}


def test_a_limit_of_zero_is_none():
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(Shares("Too many.", 0).held("alice"))


@contextmanager
def holding(server, text, count=CROWD):
    """So many connections from one address, each of which has sent `text`."""
    with ExitStack() as stack:
        crowd = []
        for _ in range(count):
            crowd.append(stack.enter_context(closing(dial(server))))
            crowd[-1].sendall(text.encode())
            eventlet.sleep(0)
        eventlet.sleep(0.1)
        yield crowd


def ask_from(address, server, method="GET", path="/healthz"):
    """The status of the answer to a client at another address of this machine."""
    with socket.create_connection(("127.0.0.1", server.port), 10, source_address=(address, 0)) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return int(hear(sock).split()[1])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Echo, "let_go", Event())
    with serving(Echo, settings=Settings(connections_per_address=0)) as server:
        server.connections.most = 100
        yield server
        if not Echo.let_go.ready():
            Echo.let_go.send()


@pytest.mark.parametrize(
    "begun", ["", "GET /hea", "GET /healthz HTTP/1.1\r\nHost: x\r\n", post("ab", "Content-Length: 50")]
)
@pytest.mark.parametrize("address", ["127.0.0.1", OTHER])
def test_connections_without_a_whole_request_keep_nobody_out(server, begun, address):
    with holding(server, begun):
        assert len(server.connections) == 100
        assert [ask_from(address, server) for _ in range(5)] == [200] * 5


def test_connections_that_wait_for_their_next_request_keep_nobody_out(server):
    with holding(server, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert [ask_from(OTHER, server) for _ in range(5)] == [200] * 5


def test_an_address_with_too_many_requests_under_way_is_429_and_others_are_served(server):
    server.connections.of_address = 50
    with holding(server, "GET /wait/1 HTTP/1.1\r\nHost: x\r\n\r\n", 60) as crowd:
        assert ask_from("127.0.0.1", server) == 429
        assert ask_from(OTHER, server) == 200
        assert len(server.connections) == 50
        Echo.let_go.send()
        answers = [sock.recv(65536).decode().split()[1] for sock in crowd]
    assert sorted(answers) == ["200"] * 50 + ["429"] * 10


def test_a_request_on_a_connection_that_was_closed_to_make_room_is_not_carried_out(server, monkeypatch):
    monkeypatch.setattr(Echo, "heard", 0)
    with dial(server) as sock:
        sock.sendall(post("ab", "Content-Length: 4").encode())
        eventlet.sleep(0.05)
        (client,) = server.connections
        server.connections.remove(client)
        sock.sendall(b"cd")
        assert hear(sock) == ""
    assert Echo.heard == 0
    assert lives(server)


GET_STOCKS, PATH_OF_ORDER = "/api/stocks", "/api/orders/{order_id}"


@contextmanager
def shop_with(**settings):
    BEHIND.answer = {}
    with serving(Shop, settings=Settings(auth_keys=KEYS, **settings)) as shop:
        yield shop
        watch_of(shop).release()


def test_probes_have_a_port_of_their_own_which_clients_cannot_fill():
    with serving(Gateway) as gateway:
        gateway.connections.most = 0
        probes = probes_of(gateway)
        assert ask(gateway, "GET", "/healthz")[0] == 503
        assert ask(probes, "GET", "/healthz")[2] == {"status": "ok"}
        assert set(ask(probes, "GET", "/readyz")[2]) == {"ready", "reasons", "warnings"}
        assert "ecom_http_requests_total" in ask(probes, "GET", "/metrics")[2]
        assert ask(probes, "GET", GET_STOCKS)[0] == 404


def test_connections_to_the_port_of_the_probes_keep_no_probe_out():
    with serving(Gateway) as gateway, holding(probes_of(gateway), "GET /hea", 100):
        assert ask(probes_of(gateway), "GET", "/healthz")[0] == 200


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
def test_clients_find_no_metrics_and_no_reasons_on_the_port_for_clients(path):
    with serving(Gateway) as gateway:
        assert code(ask(gateway, "GET", path)) == (404, "not_found")
        assert ask(gateway, "GET", "/healthz")[2] == {"status": "ok"}


def test_a_stopping_service_says_on_the_port_of_its_probes_that_it_stops(monkeypatch):
    monkeypatch.setattr(Echo, "let_go", Event())
    with serving(Gateway) as gateway:
        gateway.drain()
        reasons = ask(probes_of(gateway), "GET", "/readyz")[2]["reasons"]
    assert "the service is stopping" in reasons


def held_open(server, path, sub="alice", role="customer", **headers):
    """A connection on which a request for this path is under way."""
    sock = dial(server)
    lines = [f"{name}: {value}" for name, value in {**bearer(role, sub=sub), **headers}.items()]
    sock.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode())
    eventlet.sleep(0.1)
    return sock


HELD = {
    "a wait": (f"{PATH}?wait=PAID&timeout=20", "customer", {}),
    "a stream": (EVENTS, "customer", {}),
    "a stream of the feed": (FEED, "operator", STREAMED),
}


@pytest.mark.parametrize(("path", "role", "headers"), HELD.values(), ids=HELD)
def test_a_user_at_the_limit_of_waits_and_streams_is_429_and_others_are_served(path, role, headers, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.05)
    with shop_with(waits_per_user=2) as shop, ExitStack() as stack:
        first, _ = [stack.enter_context(closing(held_open(shop, path, role=role, **headers))) for _ in range(2)]
        refused = ask(shop, "GET", path, None, {**bearer(role), **headers})
        assert code(refused) == (429, "too_many_connections")
        assert refused[1]["Retry-After"] == "1"
        assert refused[2]["error"]["message"] == "Too many waits, streams and exports of one user are open."
        assert refused[2]["error"]["details"] == {"limit": 2, "retry_after": 1}
        assert ask(shop, "GET", PATH, headers=bearer("customer"))[0] == 200, "an answer at once holds nothing"
        with closing(held_open(shop, path, "bob", role, **headers)):
            assert held_by(shop) == {"alice": 2, "bob": 1}
        first.close()
        while held_by(shop) != {"alice": 1}:
            eventlet.sleep(0.02)


def held_by(server):
    """What the gateway counts as held, by user."""
    (of_gateway,) = {item.made for item in server.container.subextensions if getattr(item, "make", 0) is held.Held}
    return of_gateway._waits._held


def test_what_is_refused_at_the_limit_asks_no_service_and_takes_no_worker():
    with shop_with(waits_per_user=1) as shop, closing(held_open(shop, EVENTS)):
        with eventlet.Timeout(5):
            while not held_by(shop):  # the first request of a server may take its time
                eventlet.sleep(0.01)
        spawned = []
        shop.container.spawn_worker = lambda *args, **kwargs: spawned.append(args)
        assert ask(shop, "GET", EVENTS, headers=bearer("customer"))[0] == 429
        assert spawned == []


def test_an_error_before_a_stream_begins_leaves_nothing_held():
    ORDERS.states = {}
    with shop_with(waits_per_user=1) as shop:
        assert [ask(shop, "GET", EVENTS, headers=bearer("customer"))[0] for _ in range(3)] == [404] * 3
        assert held_by(shop) == {}


def test_every_route_that_may_answer_for_long_counts_what_it_holds_and_every_sign_in_is_counted():
    assert {route.label for route in ROUTES if isinstance(route, Holding)} == {
        PATH_OF_ORDER,
        f"{PATH_OF_ORDER}/events",
        "/api/orders/events",
        "/api/stocks/release-events/export",
        "/api/auth/me/export",
        "/dashboard/export",
    }
    assert {route.label for route in ROUTES if isinstance(route, SigningIn)} == {
        *("/api/auth/token", "/api/auth/login", "/api/auth/verify-email", "/dashboard/sign-in"),
        *("/api/auth/password", "/api/auth/password/reset/confirm", "/api/auth/me/email", "/api/auth/me/erase"),
    }


def forwarded(server, client, path="/api/openapi.json"):
    return ask(server, "GET", path, headers={"X-Forwarded-For": client, **bearer("customer")})


def test_behind_a_proxy_requests_under_way_count_for_the_client_that_it_names():
    behind = {"trusted_proxies": ("127.0.0.1/32",), "connections_per_address": 2, "waits_per_user": 0}
    with shop_with(**behind) as shop, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(closing(held_open(shop, EVENTS, **{"X-Forwarded-For": "192.0.2.1"})))
        refused = forwarded(shop, "192.0.2.1")
        assert code(refused) == (429, "too_many_connections")
        assert refused[2]["error"]["message"] == "Too many requests of one address are under way."
        assert forwarded(shop, "192.0.2.2")[0] == 200


def test_an_address_with_too_many_sign_ins_is_429_and_others_sign_in(monkeypatch):
    monkeypatch.setattr(held, "SIGN_INS_OF_ADDRESS", 2)
    let_go = Event()

    class Hashing:
        def issue_token(self, username, password, origin):
            let_go.wait()
            return {"access_token": "x", "token_type": "Bearer", "expires_in": 900}

    def sign_in(client):
        headers = {"Content-Type": "application/json", "X-Forwarded-For": client}
        return ask(gateway, "POST", "/api/auth/token", b'{"username": "alice", "password": "x"}', headers)

    monkeypatch.setattr(BEHIND, "under", lambda context: Hashing())
    with serving(Gateway, settings=Settings(auth_keys=KEYS, trusted_proxies=("127.0.0.1/32",))) as gateway:
        signing_in = [eventlet.spawn(sign_in, "192.0.2.1") for _ in range(2)]
        eventlet.sleep(0.1)
        assert code(sign_in("192.0.2.1")) == (429, "too_many_connections")
        other = eventlet.spawn(sign_in, "192.0.2.2")
        eventlet.sleep(0.1)
        let_go.send()
        assert [thread.wait()[0] for thread in (*signing_in, other)] == [200] * 3


def test_few_requests_begin_in_a_round_of_the_hub_and_all_in_the_order_of_their_coming():
    turns, rounds, began = Turns(at_once=3), [0], []

    def request(number):
        turns.wait("a")
        began.append((number, rounds[0]))

    def count_rounds():
        while len(began) < 10:
            rounds[0] += 1
            eventlet.sleep(0)

    for number in range(10):
        eventlet.spawn_n(request, number)
    count_rounds()
    assert [number for number, _ in began] == list(range(10))
    per_round = Counter(at for _, at in began)
    assert len(per_round) >= 4
    assert max(per_round.values()) == 3


def test_a_request_that_comes_alone_has_its_turn_at_once():
    turns = Turns(at_once=1)
    for _ in range(3):
        with eventlet.Timeout(0, pytest.fail.Exception("it waited")):
            turns.wait("a")
        eventlet.sleep(0)
        eventlet.sleep(0)


def test_a_request_of_another_address_does_not_wait_behind_all_those_of_one():
    turns, began = Turns(at_once=2), []

    def request(address):
        turns.wait(address)
        began.append(address)

    for address in "a" * 20 + "b" + "c":
        eventlet.spawn_n(request, address)
    while len(began) < 22:
        eventlet.sleep(0)
    assert {"b", "c"} < set(began[:6])
