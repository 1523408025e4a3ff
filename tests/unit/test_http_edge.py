"""The HTTP edge: slow, broken and too many clients cost what they may cost, and never the service."""

import contextlib
import errno
import http.client
import resource
import socket
import subprocess
import time

import eventlet
import psycopg2
import pytest
from eventlet import wsgi
from eventlet.event import Event
from nameko.containers import ServiceContainer
from nameko.extensions import DependencyProvider
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError
from werkzeug.wrappers import Response

from ops.local.install import ROOT
from shared.config import Settings, bracketed
from shared.edge import connection, runner, shares, webserver
from shared.edge.database import Database
from shared.edge.http import BODY, Probes, ProbesApart, Route
from shared.edge.shares import max_connections
from shared.errors import ConfigurationFault
from shared.version import VERSION
from tests.unit.serving import ask, dial, hear, say, server_of, serving

route = Route.decorator


class Trouble(DependencyProvider):
    """An extension that can be in trouble."""

    words = None

    def not_ready_reason(self):
        return self.words


class Echo(Probes):
    """Answers what it was sent, at once or when it is let go."""

    name = "echo"
    not_ready_reason = Trouble()
    let_go = None
    heard = 0

    @route("POST", "/echo")
    def echo(self, request):
        Echo.heard += 1
        return Response(request.environ[BODY])

    @route("GET", "/wait/<int:n>")
    def wait(self, request, n):
        Echo.let_go.wait()
        return Response(str(n))

    @route("GET", "/fault")
    def fault(self, request):
        raise RuntimeError("secret words of a database")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Echo, "let_go", Event())
    monkeypatch.setattr(Echo, "heard", 0)
    monkeypatch.setattr(Trouble, "words", None)
    with serving(Echo, max_workers=2) as server:
        yield server
        if not Echo.let_go.ready():
            Echo.let_go.send()


def post(body, *headers):
    lines = ["POST /echo HTTP/1.1", "Host: x", *headers]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def lives(server):
    return ask(server, "GET", "/healthz")[0] == 200


def test_a_connection_is_kept_for_the_next_request(server):
    with dial(server) as sock:
        for word in ("one", "two"):
            sock.sendall(post(word, "Content-Length: 3").encode())
            assert sock.recv(65536).decode().endswith(word)


def test_requests_sent_in_one_go_are_answered_in_turn(server):
    answer = say(server, post("one", "Content-Length: 3") + post("two", "Content-Length: 3", "Connection: close"))
    assert answer.count("200 OK") == 2
    assert answer.index("one") < answer.index("two")


def test_a_silent_connection_is_closed(server, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    began = time.monotonic()
    with dial(server) as sock:
        assert hear(sock) == ""
    assert time.monotonic() - began < 4  # of 5, as the limit is


@pytest.mark.parametrize(("limit", "begun"), [("IDLE_S", "GE"), ("HEAD_S", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")])
def test_a_head_that_drips_is_cut_off(server, monkeypatch, limit, begun):
    monkeypatch.setattr(connection, limit, 0.3)
    began = time.monotonic()
    with dial(server) as sock:
        sock.sendall(begun.encode())
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                sock.sendall(b"x")
                eventlet.sleep(0.05)
    assert time.monotonic() - began < 4


def test_bodies_that_drip_are_408_and_take_no_worker(server, monkeypatch):
    monkeypatch.setattr(connection, "BODY_S", 0.5)
    slow = [dial(server) for _ in range(6)]
    for sock in slow:
        sock.sendall(post("ab", "Content-Length: 50").encode())
    eventlet.sleep(0.1)
    assert ask(server, "POST", "/echo", b"quick")[2] == "quick"
    answers = [hear(sock) for sock in slow]
    assert all(answer.startswith("HTTP/1.1 408 ") for answer in answers)
    assert all("connection: close" in answer.lower() for answer in answers)


def test_a_client_that_leaves_in_its_body_harms_nobody_and_takes_no_worker(server):
    for _ in range(5):
        with dial(server) as sock:
            sock.sendall(post("ab", "Content-Length: 50").encode())
    assert lives(server)
    assert Echo.heard == 0


def test_a_client_that_resets_harms_nobody_and_is_no_news(server, caplog):
    for text in ("", "GET /wai", post("ab", "Content-Length: 50"), "GET /healthz HTTP/1.1\r\n\r\n"):
        for _ in range(5):
            sock = dial(server)
            sock.sendall(text.encode())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
    eventlet.sleep(0.1)
    assert lives(server)
    assert "failed" not in caplog.text


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError("raw readinto() returned invalid length"), False), (RuntimeError("an error of ours"), True)],
)
def test_a_fault_of_one_connection_ends_it_alone_and_only_ours_is_news(server, monkeypatch, caplog, error, told):
    def fail(connection):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(server._serv, "process_request", fail)
        with dial(server) as sock:
            assert hear(sock) == ""
    assert lives(server)
    assert ("a connection failed" in caplog.text) is told


def test_a_body_up_to_the_limit_is_taken(server):
    body = b"x" * connection.MAX_BODY_BYTES
    assert ask(server, "POST", "/echo", body)[2] == body.decode()


def test_a_body_over_the_limit_is_413_at_once(server):
    began = time.monotonic()
    with dial(server) as sock:
        sock.sendall(post("only the beginning", f"Content-Length: {connection.MAX_BODY_BYTES + 1}").encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - began < connection.BODY_S


def test_a_client_that_sends_too_much_still_hears_why(server):
    assert ask(server, "POST", "/echo", b"x" * 30_000_000)[0] == 413


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 3", "Content-Length: 3"),
        ("Content-Length: 3", "Content-Length: 30"),
        ("Content-Length: +3",),
        ("Content-Length: 0_3",),
        ("Content-Length: -3",),
        ("Content-Length: 3, 3",),
        ("Content-Length: \N{ARABIC-INDIC DIGIT THREE}",),
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("no colon", "Content-Length: 3"),
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_400_and_ends_the_connection(server, lines):
    answer = say(server, post("abc", *lines) + post("", "Content-Length: 0"))
    assert answer.startswith("HTTP/1.1 400 ")
    assert answer.count("HTTP/1.") == 1


def test_a_post_without_a_length_has_an_empty_body(server):
    assert say(server, post("", "Connection: close")).endswith("\r\n\r\n")


def test_a_head_that_is_not_http_is_400(server):
    for text in ("\x16\x03\x01 tls\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "one two three four\r\n\r\n"):
        answer = say(server, text)
        assert answer[9:10] in ("4", "5"), answer
        assert "<" not in answer
    assert lives(server)


def test_a_head_that_is_too_long_is_refused_and_the_client_hears_it(server):
    many = "".join(f"X-{n}: {'x' * 4_000}\r\n" for n in range(20))
    for head in (
        f"GET /{'x' * 9_000} HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nX-Long: {'x' * 9_000}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{many}\r\n",
    ):
        answer = say(server, head)
        assert answer[9:12] in ("414", "431"), answer
        assert answer.split("\r\n\r\n")[1]


def test_a_path_or_method_that_is_not_there_is_refused(server):
    assert ask(server, "GET", "/nothing")[0] == 404
    assert ask(server, "GET", "/wait/one")[0] == 404
    assert ask(server, "GET", "/%ff%fe")[0] == 404
    assert ask(server, "DELETE", "/echo")[0] == 405


def test_a_fault_tells_the_client_nothing(server):
    status, _, body = ask(server, "GET", "/fault")
    assert status == 500
    assert "secret" not in body


def test_requests_are_counted_by_route_and_never_by_path(server):
    Echo.let_go.send()
    ask(server, "GET", "/wait/7")
    ask(server, "GET", "/wait-for-a-secret")
    ask(server, "HACK", "/echo")
    counted = ask(server, "GET", "/metrics")[2]
    assert 'ecom_http_requests_total{method="GET",route="/wait/{n}",service="echo",status="200"}' in counted
    assert 'method="OTHER",route="unmatched"' in counted
    assert 'ecom_http_request_seconds_count{route="/wait/{n}",service="echo"}' in counted
    assert "wait-for-a-secret" not in counted
    assert "HACK" not in counted


def test_probes_answer_while_every_worker_is_busy(server):
    waiting = [eventlet.spawn(ask, server, "GET", f"/wait/{n}") for n in range(4)]
    eventlet.sleep(0.1)
    assert ask(server, "GET", "/healthz")[2] == {"status": "ok"}
    assert ask(server, "GET", "/readyz")[2] == {"ready": True, "reasons": [], "warnings": []}
    metrics = ask(server, "GET", "/metrics")[2]
    assert "ecom_http_requests_total" in metrics
    assert f'ecom_build_info{{version="{VERSION}"}} 1.0' in metrics
    Echo.let_go.send()
    assert [thread.wait()[2] for thread in waiting] == ["0", "1", "2", "3"]


def test_a_service_in_trouble_is_not_ready_and_says_why(server, monkeypatch):
    monkeypatch.setattr(Trouble, "words", "the well is dry")
    assert ask(server, "GET", "/readyz")[::2] == (503, {"ready": False, "reasons": ["the well is dry"], "warnings": []})
    assert lives(server)


def probes_counted():
    names = ("ecom_ready", "ecom_was_ready", "ecom_unready_total")
    return tuple(REGISTRY.get_sample_value(name, {"service": "stranger"}) for name in names)


class Stranger(Probes):
    name = "stranger"
    trouble = Trouble()


def test_probes_count_as_failed_only_after_the_first_success(monkeypatch):
    with serving(Stranger) as server:
        monkeypatch.setattr(Trouble, "words", "the well is dry")
        ask(server, "GET", "/readyz")
        assert probes_counted() == (0, 0, 0)
        monkeypatch.setattr(Trouble, "words", "")
        ask(server, "GET", "/readyz")
        assert probes_counted() == (1, 1, 0)
        monkeypatch.setattr(Trouble, "words", "the well is dry")
        ask(server, "GET", "/readyz")
        assert probes_counted() == (0, 1, 1)


class DeadDatabase(Database):
    """A database that answers nothing."""

    class Sessions:
        @contextlib.contextmanager
        def read(self):
            eventlet.sleep(60)
            yield

    def setup(self):
        self.sessions = self.Sessions()

    def stop(self):
        pass


class Stranded(Probes):
    name = "stranded"
    db = DeadDatabase()


def test_a_database_that_does_not_answer_is_said_in_time(monkeypatch):
    monkeypatch.setattr("shared.edge.database.PROBE_S", 0.1)
    with serving(Stranded) as server:
        status, _, body = ask(server, "GET", "/readyz")
    assert (status, body["reasons"]) == (503, ["the database does not answer (Timeout)"])


class RefusingDatabase(DeadDatabase):
    """A database that lets nobody in, as psycopg2 tells it of two addresses of one server."""

    class Sessions:
        def read(self):
            tries = [f'connection to server at "{one}", port 5432 failed: FATAL:  no such password' for one in "ab"]
            raise OperationalError("", {}, psycopg2.OperationalError("\n".join(tries) + "\n"))


class Refused(Probes):
    name = "refused"
    db = RefusingDatabase()


def test_a_database_that_refuses_is_quoted():
    with serving(Refused) as server:
        assert ask(server, "GET", "/readyz")[2]["reasons"] == ["the database refuses: no such password"]


@contextlib.contextmanager
def listening_on(address):
    container = ServiceContainer(Echo, {"WEB_SERVER_ADDRESS": address, "max_workers": 1, "settings": Settings()})
    container.start()
    try:
        yield server_of(container).port
    finally:
        container.stop()


@pytest.mark.parametrize(
    ("address", "hosts"), [("[::1]:0", ["::1"]), ("[::]:0", ["::1", "127.0.0.1"]), ("localhost:0", ["127.0.0.1"])]
)
def test_a_service_listens_on_ipv6_and_on_both(address, hosts):
    with listening_on(address) as port:
        for host in hosts:
            probe = http.client.HTTPConnection(host, port, timeout=10)
            probe.request("GET", "/healthz")
            assert probe.getresponse().status == 200
            probe.close()


# What the resolver says about these names.
NAMES = {"six": ["::1"], "both": ["::1", "127.0.0.1"], "nobody": []}


@pytest.fixture
def names(monkeypatch):
    """The resolver knows NAMES."""
    look_up = socket.getaddrinfo

    def by_name(host, *args, **kwargs):
        if host in NAMES and not NAMES[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in NAMES.get(host, [host]) for found in look_up(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", by_name)


@pytest.mark.parametrize(("name", "host"), [("six", "::1"), ("both", "127.0.0.1")])
def test_a_service_listens_on_the_address_of_a_name(names, name, host):
    with listening_on(f"{name}:0") as port, socket.create_connection((host, port), timeout=10):
        pass


@pytest.mark.parametrize(
    ("address", "why"),
    [("192.0.2.1:80", "Cannot assign requested address"), ("nobody:80", "Name or service not known")],
)
def test_an_address_on_which_nothing_can_listen_is_named_once_with_the_reason(names, address, why):
    with pytest.raises(ConfigurationFault) as caught, listening_on(address):
        pass
    assert str(caught.value) == f"cannot listen on {address}: {why}"


def test_a_taken_port_of_ipv6_is_named():
    with listening_on("[::1]:0") as port:
        with pytest.raises(ConfigurationFault, match=f"port {port} on ::1 is taken"), listening_on(f"[::1]:{port}"):
            pass


@pytest.mark.parametrize(("host", "code"), [("::1", 0), ("127.0.0.1", 0), (None, 1)])
def test_the_probe_of_a_container_finds_its_service_on_ipv4_and_ipv6(host, code):
    if host is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        assert probe_of_a_container(port) == code
        return
    with listening_on(f"{bracketed(host)}:0") as port:
        assert probe_of_a_container(port) == code


def probe_of_a_container(port: int) -> int:
    return subprocess.run(["bash", ROOT / "deploy" / "ready", str(port)], check=False).returncode


def test_a_taken_port_is_named(server):
    container = ServiceContainer(Echo, {**server.container.config, "WEB_SERVER_ADDRESS": f"127.0.0.1:{server.port}"})
    with pytest.raises(ConfigurationFault, match=f"port {server.port} on 127.0.0.1 is taken"):
        container.start()
    container.kill()


def test_connections_over_the_cap_are_turned_away_with_503(server):
    server.connections.most = 3
    waiting = [eventlet.spawn(ask, server, "GET", f"/wait/{n}") for n in range(3)]
    eventlet.sleep(0.1)
    assert ask(server, "GET", "/healthz")[0] == 503
    assert ask(server, "POST", "/echo", b"x" * 30_000_000)[0] == 503
    Echo.let_go.send()
    assert [thread.wait()[0] for thread in waiting] == [200] * 3
    assert lives(server)


def refused_unread(status):
    """How many answers of this status the metrics of the service count without a request."""
    labels = {"service": Echo.name, "method": "OTHER", "route": "unmatched", "status": str(status)}
    return REGISTRY.get_sample_value("ecom_http_requests_total", labels) or 0


def test_what_is_no_request_is_counted_and_each_reason_is_logged_once(server, caplog):
    before = [refused_unread(status) for status in (400, 414, 503)]
    for _ in range(3):
        say(server, "GET /healthz HTTP/1.1\r\n\r\n")
        say(server, f"GET /{'x' * 9000} HTTP/1.1\r\nHost: x\r\n\r\n")
    while server.connections:  # the last ones may still listen whether their client says more
        eventlet.sleep(0.01)
    server.connections.most = 0
    for _ in range(2):
        say(server, "")
    after = [refused_unread(status) for status in (400, 414, 503)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 3, 2]
    lines = [record.getMessage() for record in caplog.records if record.name == "shared.edge.wsgi_app"]
    assert [line.partition(": ")[2].partition(" ")[0] for line in lines] == ["400", "414", "503"]


def test_the_cap_leaves_half_of_the_file_descriptors_to_the_service(monkeypatch):
    monkeypatch.setattr(shares.resource, "getrlimit", lambda kind: (200, 200))
    assert max_connections() == 100


def test_a_thousand_waiting_clients_leave_room_for_others_where_files_are_allowed(monkeypatch):
    monkeypatch.setattr(shares.resource, "getrlimit", lambda kind: (65_536, 65_536))
    assert max_connections() > 2000


@pytest.mark.parametrize(
    ("soft", "hard", "set_to"),
    [
        (1024, 4096, (4096, 4096)),
        (1024, 10**6, (runner.MAX_FILES, 10**6)),
        (1024, resource.RLIM_INFINITY, (runner.MAX_FILES, resource.RLIM_INFINITY)),
        (10**6, 10**6, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_a_service_may_open_as_many_files_as_it_is_allowed_to(monkeypatch, soft, hard, set_to):
    asked = []
    monkeypatch.setattr(runner.resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(runner.resource, "setrlimit", lambda kind, limits: asked.append(limits))
    runner.raise_file_limit()
    assert asked == ([set_to] if set_to else [])


def test_running_out_of_file_descriptors_does_not_end_the_service_and_is_logged_once(server, monkeypatch, caplog):
    monkeypatch.setattr(webserver, "ACCEPT_AGAIN_S", 0.01)
    accept, failures = server._sock.accept, [OSError(errno.EMFILE, "Too many open files")] * 3

    def failing():
        if failures:
            raise failures.pop()
        return accept()

    monkeypatch.setattr(server._sock, "accept", failing)
    assert lives(server)
    assert lives(server)
    assert not failures
    assert caplog.text.count("could not be accepted") == 1


class Shop(ProbesApart):
    """A service that clients call, with an extension that can be in trouble."""

    name = "shop"
    trouble = Trouble()


def test_a_client_waits_for_a_service_that_has_just_started_and_not_for_long(monkeypatch):
    monkeypatch.setattr(Trouble, "words", "not connected yet")
    with serving(Shop) as server, dial(server) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        monkeypatch.setattr(Trouble, "words", None)
        client.settimeout(2)
        assert client.recv(1)
    monkeypatch.setattr(Trouble, "words", "not connected yet")
    monkeypatch.setattr(webserver, "START_S", 0.3)
    with serving(Shop) as server:
        assert ask(server, "GET", "/healthz")[0] == 200


def test_a_stop_finishes_the_requests_under_way_and_takes_no_more(monkeypatch):
    monkeypatch.setattr(Echo, "let_go", Event())
    with serving(Echo) as server:
        idle = dial(server)
        port = server.port
        under_way = eventlet.spawn(ask, server, "GET", "/wait/1")
        eventlet.sleep(0.1)
        stopping = eventlet.spawn(server.container.stop)
        with eventlet.Timeout(2):
            assert hear(idle) == ""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        assert not stopping.dead
        Echo.let_go.send()
        assert under_way.wait()[2] == "1"
        with eventlet.Timeout(2):
            stopping.wait()


def test_a_stop_answers_those_who_have_connected_already(server):
    request = post("ab", "Content-Length: 2").encode()
    with dial(server) as accepted, unseen(server) as waiting:
        waiting.sendall(request)
        eventlet.spawn_after(webserver.ARRIVING_S / 2, accepted.sendall, request)
        server.drain()
        assert [hear(sock)[:12] for sock in (accepted, waiting)] == ["HTTP/1.1 200"] * 2


def unseen(server):
    """A socket that the kernel has connected while the server had no turn to accept it."""
    return eventlet.patcher.original("socket").create_connection(("127.0.0.1", server.port), timeout=10)


def test_a_request_that_is_still_arriving_is_answered_and_told_that_it_was_the_last(server):
    with dial(server) as sock:
        sock.sendall(post("ab", "Content-Length: 4").encode())
        eventlet.sleep(0.1)
        draining = eventlet.spawn(server.drain)
        with eventlet.Timeout(5):
            while any(client[2] != wsgi.STATE_CLOSE for client in server.connections):
                eventlet.sleep(0.01)
        sock.sendall(b"cd")
        answer = hear(sock)
        draining.wait()
    assert answer.startswith("HTTP/1.1 200 ")
    assert "connection: close" in answer.lower()
    assert answer.endswith("abcd")


def test_a_connection_that_never_ends_does_not_hold_up_the_stop(monkeypatch):
    monkeypatch.setattr(Echo, "let_go", Event())
    monkeypatch.setattr(webserver, "DRAIN_S", 0.3)
    with serving(Echo) as server, dial(server) as sock:
        sock.sendall(post("ab", "Content-Length: 50").encode())
        eventlet.sleep(0.1)
        began = time.monotonic()
        server.drain()
        assert 0.2 < time.monotonic() - began < 5
