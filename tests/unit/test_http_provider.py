"""The provider over HTTP, against a small real server: anything but a good answer is no answer."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest

from payment_service import http_provider
from payment_service.breaker import Breaker, Guarded
from payment_service.domain import Answer
from payment_service.http_provider import MAX_ANSWER_BYTES, HttpProvider
from payment_service.provider import Charge, Provider
from shared.errors import ProviderAway, ProviderTimeout
from tests.certificates import Authority

DONE = {"done": True, "reference": "ref-1", "reason": ""}
DECLINED = {"done": False, "reference": "", "reason": "card_declined"}
CHARGE = Charge(uuid4(), uuid4(), 1250, "EUR", "card", "ann")


def answer(content: Any, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer as bytes; `content` is its body, or becomes JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class Server:
    """Answers each request with what `reply` returns; None closes the connection. Records requests and connections."""

    def __init__(self, tls: Any = None) -> None:
        self.reply: Callable[[], bytes | None] = lambda: answer(DONE)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections: list[Any] = []
        self._tls = tls
        self._listener = eventlet.listen(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [eventlet.spawn(self._accept)]

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._threads.append(eventlet.spawn(self._serve, connection))

    def _serve(self, connection: Any) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            reader = connection.makefile("rb")
            while line := reader.readline().decode().strip():
                pairs = (field.decode().strip().split(": ", 1) for field in iter(reader.readline, b"\r\n"))
                headers = {name.lower(): value for name, value in pairs}
                self.requests.append((line, headers, reader.read(int(headers.get("content-length", 0)))))
                reply = self.reply()
                if reply is None:
                    break
                connection.sendall(reply)
        except OSError:
            pass  # the client has gone, or refused the certificate
        connection.close()

    def hang_up(self) -> None:
        """Close every connection, as a server does with those that rest."""
        for thread in self._threads[1:]:
            thread.kill()
        for connection in self.connections:
            eventlet.greenio.shutdown_safe(connection)
            connection.close()
        eventlet.sleep(0)

    def close(self) -> None:
        """Take no more connections."""
        self._threads[0].kill()
        self._listener.close()
        self.hang_up()


@contextmanager
def serving(tls: Any = None) -> Iterator[Server]:
    server = Server(tls)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def provider(server: Server) -> HttpProvider:
    return HttpProvider(f"http://127.0.0.1:{server.port}/v1/", timeout_s=5)


def test_a_charge_is_a_post_with_its_key(server: Server, provider: HttpProvider) -> None:
    assert provider.charge(CHARGE) == Answer(True, reference="ref-1")

    ((line, headers, body),) = server.requests
    assert line == "POST /v1/charges HTTP/1.1"
    assert headers["idempotency-key"] == str(CHARGE.key)
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {
        "order_id": str(CHARGE.order_id),
        "amount": 1250,
        "currency": "EUR",
        "method": "card",
        "customer": "ann",
    }


def test_a_refund_is_a_post_of_the_same_form(server: Server, provider: HttpProvider) -> None:
    assert provider.refund(CHARGE) == Answer(True, reference="ref-1")
    assert [line for line, _, _ in server.requests] == ["POST /v1/refunds HTTP/1.1"]


def test_a_declined_charge_has_its_reason(server: Server, provider: HttpProvider) -> None:
    server.reply = lambda: answer(DECLINED)
    assert provider.charge(CHARGE) == Answer(False, reason="card_declined")


def test_a_repeated_charge_has_the_same_key(server: Server, provider: HttpProvider) -> None:
    assert provider.charge(CHARGE) == provider.charge(CHARGE)
    assert [headers["idempotency-key"] for _, headers, _ in server.requests] == [str(CHARGE.key)] * 2


def test_a_key_is_found_or_unknown(server: Server, provider: HttpProvider) -> None:
    assert provider.find(CHARGE.key) == Answer(True, reference="ref-1")
    server.reply = lambda: answer({"error": "unknown"}, "404 Not Found")
    assert provider.find(CHARGE.key) is None
    assert [line for line, _, _ in server.requests] == [f"GET /v1/operations/{CHARGE.key} HTTP/1.1"] * 2


BROKEN = {
    "an error": answer(DONE, "500 Internal Server Error"),
    "too many requests": answer(DONE, "429 Too Many Requests"),
    "a redirect": answer(b"", "302 Found", "Location: /elsewhere\r\n"),
    "created": answer(DONE, "201 Created"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    "no body": answer(b""),
    "no JSON": answer(b"<html>"),
    "no text": answer(b"\xff\xfe"),
    "no object": answer([DONE]),
    "an abyss": answer(b"[" * 10_000),
    "nothing said": answer({}),
    "not whether it was done": answer({"reference": "ref-1", "reason": ""}),
    "a word for yes": answer({**DONE, "done": "true"}),
    "a number for yes": answer({**DONE, "done": 1}),
    "done without a reference": answer({"done": True}),
    "done with an empty reference": answer({**DONE, "reference": ""}),
    "a reference that no row can hold": answer({**DONE, "reference": "a\0b"}),
    "a reference that is too long": answer({**DONE, "reference": "x" * 201}),
    "a refusal without a reason": answer({**DECLINED, "reason": ""}),
    "a reason that is a sentence": answer({**DECLINED, "reason": "The card was declined."}),
    "a body that is too long": answer(json.dumps(DONE).encode() + b" " * MAX_ANSWER_BYTES),
    "a body in pieces that is too long": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"5000\r\n" + b"[" * 0x5000 + b"\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_no_answer(server: Server, provider: HttpProvider, reply: bytes) -> None:
    server.reply = lambda: reply
    with pytest.raises(ProviderTimeout, match="no answer from the payment provider"):
        provider.charge(CHARGE)

    server.reply = lambda: answer(DONE)
    assert provider.charge(CHARGE) == Answer(True, reference="ref-1")


def test_a_charge_has_no_answer_where_the_provider_knows_no_charges(server: Server, provider: HttpProvider) -> None:
    server.reply = lambda: answer(DONE, "404 Not Found")
    with pytest.raises(ProviderTimeout, match="does not know /charges"):
        provider.charge(CHARGE)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", answer(DONE)[:-1]])
def test_an_answer_that_is_cut_off_is_no_answer(server: Server, provider: HttpProvider, sent: bytes) -> None:
    def reply() -> None:
        server.connections[-1].sendall(sent)

    server.reply = reply
    with pytest.raises(ProviderTimeout):
        provider.charge(CHARGE)
    assert len(server.requests) == 1


@pytest.mark.parametrize("drips", [False, True])
def test_an_answer_that_comes_too_late_is_no_answer(server: Server, drips: bool) -> None:
    """A byte now and then does not make the time longer."""
    provider = HttpProvider(f"http://127.0.0.1:{server.port}", timeout_s=0.05)

    def late() -> None:
        for _ in range(100):
            if drips:
                server.connections[-1].sendall(b"H")
            eventlet.sleep(0.01)

    server.reply = late
    with pytest.raises(ProviderTimeout, match=r"within 0.05 s"):
        provider.charge(CHARGE)

    server.reply = lambda: answer(DONE)
    assert provider.charge(CHARGE) == Answer(True, reference="ref-1")
    assert len(server.connections) == 2  # a late answer is never read as that to another charge


def test_calls_one_after_another_share_a_connection(server: Server, provider: HttpProvider) -> None:
    for _ in range(5):
        provider.charge(CHARGE)
    assert len(server.connections) == 1


def test_calls_side_by_side_have_a_connection_each_and_most_are_kept(
    server: Server, provider: HttpProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_provider, "MOST_RESTING", 3)
    for opened in (5, 7):  # three are used again
        calls = [eventlet.spawn(provider.charge, CHARGE) for _ in range(5)]
        assert [call.wait() for call in calls] == [Answer(True, reference="ref-1")] * 5
        assert len(server.connections) == opened


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(server: Server, provider: HttpProvider) -> None:
    calls = [eventlet.spawn(provider.charge, CHARGE) for _ in range(3)]
    assert [call.wait() for call in calls] == [Answer(True, reference="ref-1")] * 3
    server.hang_up()

    assert provider.charge(CHARGE) == Answer(True, reference="ref-1")
    assert len(server.connections) == 4


def test_a_connection_is_replaced_once(server: Server, provider: HttpProvider) -> None:
    provider.charge(CHARGE)
    server.reply = lambda: None
    with pytest.raises(ProviderTimeout):
        provider.charge(CHARGE)
    assert len(server.requests) == 3


def test_a_connection_that_the_server_closes_after_its_answer_is_not_kept(
    server: Server, provider: HttpProvider
) -> None:
    server.reply = lambda: answer(DONE, headers="Connection: close\r\n")
    provider.charge(CHARGE)
    server.reply = lambda: None
    with pytest.raises(ProviderTimeout):
        provider.charge(CHARGE)
    assert len(server.requests) == 2


def test_a_connection_that_rested_for_long_is_not_used_again(
    server: Server, provider: HttpProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.charge(CHARGE)
    monkeypatch.setattr(http_provider, "REST_S", -1.0)
    provider.charge(CHARGE)
    assert len(server.connections) == 2


def test_a_server_that_keeps_no_connections_is_answered_too(server: Server, provider: HttpProvider) -> None:
    def reply() -> None:
        body = json.dumps(DONE).encode()
        server.connections[-1].sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    server.reply = reply
    assert provider.charge(CHARGE) == provider.charge(CHARGE) == Answer(True, reference="ref-1")


def test_a_refused_connection_opens_the_circuit(server: Server, provider: HttpProvider) -> None:
    guarded: Provider = Guarded(provider, Breaker(30.0), "test")
    server.close()

    with pytest.raises(ProviderAway):
        guarded.charge(CHARGE)
    with pytest.raises(ProviderAway):
        guarded.find(UUID(int=1))


def test_a_server_that_is_up_keeps_the_circuit_closed(server: Server, provider: HttpProvider) -> None:
    """Only the charge fails: the neutral question is answered."""
    replies = iter([answer(DONE, "500 Internal Server Error"), answer({}, "404 Not Found"), answer(DONE)])
    server.reply = lambda: next(replies)
    guarded = Guarded(provider, Breaker(30.0), "test")

    with pytest.raises(ProviderTimeout):
        guarded.charge(CHARGE)
    assert guarded.charge(CHARGE) == Answer(True, reference="ref-1")


def test_a_certificate_is_verified(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    issued = authority.issue("pay", "localhost")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.certificate, issued.key)
    with serving(tls) as server:
        url = f"https://localhost:{server.port}"
        with pytest.raises(ProviderTimeout, match="CERTIFICATE_VERIFY_FAILED"):
            HttpProvider(url, timeout_s=5).charge(CHARGE)
        assert server.requests == []

        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        provider = HttpProvider(url, timeout_s=5)
        assert provider.charge(CHARGE) == provider.charge(CHARGE) == Answer(True, reference="ref-1")
        assert len(server.connections) == 1
        server.hang_up()
        assert provider.charge(CHARGE) == Answer(True, reference="ref-1")
