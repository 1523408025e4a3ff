"""What RFC 9110, 9112 and 6750 demand of a server (MUST and MUST NOT), each as requests over a socket.

Demands that do not apply here, with the reason:

- 9110 7.6, 7.7 (forwarding, Via, transformations), 9112 3.2.1 to 3.2.3 for clients: this is no proxy and no client.
- 9110 8.8, 13.1.2 to 13.1.5, 304: no answer has a Last-Modified, and none but the menu has an ETag:
  tests/unit/test_gateway_menu.py.
- 9110 14 (Range): no answer has Accept-Ranges; a server may ignore Range, and this one does (tested below).
- 9110 11.7 (proxy authentication), 7.8 (Upgrade), 9.3.6 (CONNECT), 9.3.8 (TRACE): not offered.
- 9110 12.5 (negotiation): each path has one representation; a server may ignore every Accept header.
- 9112 7.4 and 6.5 for what we send: answers have neither trailers nor codings beside `chunked`.
- 6750 2.2, 2.3 (token in the body or the query): optional and not offered. 5.2 (TLS): for the proxy in front.

Demands that the gateway deviates from:

- 9110 13.2.1, conditions are ignored where the answer without them would be no 2xx: kept for what the gateway itself
  refuses. What a service would refuse (404, 409) is 412, because conditions are checked before a service is asked.
- 9110 13.1.1 and 13.1.2, `*` asks whether something exists: a PUT is refused under both conditions, because the gateway
  does not know whether it would create.
"""

import re
from email.message import Message
from email.utils import parsedate_to_datetime

import pytest

from shared import errors
from shared.edge import connection, framing
from tests.unit.serving import dial, say, serving
from tests.unit.test_gateway_http import BEHIND, ORDER_ID, Gateway, bearer
from tests.unit.test_http_edge import Echo


@pytest.fixture(scope="module")
def server():
    with serving(Echo) as server:
        yield server


@pytest.fixture(scope="module")
def gateway():
    BEHIND.answer = {}
    with serving(Gateway) as server:
        yield server


NEXT = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"
OVER = f"{connection.MAX_BODY_BYTES + 1:x}"
EXTENSION = "1;x=" + "e" * 1000 + "\r\na\r\n"


def get(*lines, target="/healthz", version="HTTP/1.1", method="GET", host=("Host: x",)):
    return "\r\n".join([f"{method} {target} {version}", *host, *lines]) + "\r\n\r\n"


def post(body, *lines, version="HTTP/1.1"):
    return get(*lines, target="/echo", method="POST", version=version) + body


def answers(text):
    """The (status, headers, body) of each answer that a connection has given. A final answer to HEAD has no body."""
    found = []
    while text:
        head, _, text = text.partition("\r\n\r\n")
        line, *fields = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers.get("content-length", 0))
        body, text = text[:length], text[length:]
        found.append((int(line.split()[1]), headers, body))
    return found


def statuses(server, text):
    return [status for status, _, _ in answers(say(server, text))]


# What is read, and the next request on the same connection is read, too.
TAKEN = {
    "9112 7.1: a chunked body is read": (post("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", CHUNKED), "abcde"),
    "9112 7.1: a chunk's size has hexadecimal digits of both cases and zeros before them": (
        post("0A\r\n0123456789\r\n0000000b\r\n0123456789a\r\n000\r\n\r\n", CHUNKED),
        "01234567890123456789a",
    ),
    "9112 7: the names of codings have no case": (post("1\r\na\r\n0\r\n\r\n", "transfer-encoding: CHUNKED"), "a"),
    "9112 7.1.1: unknown chunk extensions are ignored": (post('1;a=b;c="d e"\r\nx\r\n0 ;z\r\n\r\n', CHUNKED), "x"),
    "9112 7.1.2: trailers are read and discarded": (
        post("1\r\na\r\n0\r\nContent-Length: 5\r\nX-Sum: 1\r\n\r\n", CHUNKED),
        "a",
    ),
    "9112 7.1: an empty chunked body is empty": (post("0\r\n\r\n", CHUNKED), ""),
    "9112 7.1: a chunked body up to the limit is read": (
        post(f"{connection.MAX_BODY_BYTES:x}\r\n{'x' * connection.MAX_BODY_BYTES}\r\n0\r\n\r\n", CHUNKED),
        "x" * connection.MAX_BODY_BYTES,
    ),
    "9112 6.3: without a length there is no body": (post(""), ""),
    "9112 2.2: an empty line before the request line is ignored": ("\r\n" + post("a", "Content-Length: 1"), "a"),
    "9112 5: a field's value has optional white space around it": (post("a", "Content-Length:\t 1 \t"), "a"),
    "9110 10.1.1: a client that expects 100-continue hears it before its body": (
        post("a", "Content-Length: 1", "Expect: 100-Continue"),
        "a",
    ),
    "9110 10.1.1: a chunked body after 100-continue": (
        post("1\r\na\r\n0\r\n\r\n", CHUNKED, "Expect: 100-continue"),
        "a",
    ),
}


@pytest.mark.parametrize(("text", "body"), TAKEN.values(), ids=TAKEN)
def test_a_request_is_read_and_the_next_one_after_it(server, text, body):
    given = answers(say(server, text + NEXT))
    finals = [(status, text) for status, _, text in given if status >= 200]
    assert finals == [(200, body), (200, '{"status": "ok"}\n')]
    assert [status for status, _, _ in given if status < 200] == [100] * ("expect" in text.lower())


# What is refused ends the connection: nothing behind it may be taken for a request.
REFUSED = {
    "9112 6.3: a length and a coding": (400, post("0\r\n\r\n", CHUNKED, "Content-Length: 5")),
    "9112 6.3: chunked is not the last coding": (400, post("0\r\n\r\n", "Transfer-Encoding: chunked, gzip")),
    "9112 6.3: chunked is not a coding at all": (400, post("0\r\n\r\n", "Transfer-Encoding: identity")),
    "9112 6.1: chunked twice": (400, post("0\r\n\r\n", "Transfer-Encoding: chunked, chunked")),
    "9112 6.1: chunked twice, in two lines": (400, post("0\r\n\r\n", CHUNKED, CHUNKED)),
    "9112 6.1: a coding that is not known": (501, post("0\r\n\r\n", "Transfer-Encoding: gzip, chunked")),
    "9112 6.1: a coding with a character that others may strip": (400, post("0\r\n\r\n", CHUNKED + "\x0b")),
    "9112 6.1: an empty coding": (400, post("0\r\n\r\n", "Transfer-Encoding:")),
    "9112 6.1: HTTP/1.0 has no codings": (400, post("0\r\n\r\n", CHUNKED, version="HTTP/1.0")),
    "9112 7.1: a size that is no number": (400, post("x\r\n\r\n", CHUNKED)),
    "9112 7.1: a size with a prefix": (400, post("0x1\r\na\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: a size with a sign": (400, post("+1\r\na\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: a size with an underscore": (400, post("1_0\r\na\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: a size with a space before it": (400, post(" 1\r\na\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: no size": (400, post(";a=b\r\n\r\n", CHUNKED)),
    "9112 7.1: a size beyond any number of bytes": (400, post("F" * 20 + "\r\n", CHUNKED)),
    "9112 7.1: a size line that ends in a bare LF": (400, post("1\na\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: a bare CR in an extension": (400, post("1;a\rb\r\nc\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: a chunk that is longer than its size": (400, post("1\r\nabc\r\n0\r\n\r\n", CHUNKED)),
    "9112 7.1: other bytes where a chunk ends": (400, post("1\r\nazz0\r\n\r\n", CHUNKED)),
    "9112 7.1: a chunk without an end": (400, post("1\r\nab0\r\n\r\n", CHUNKED)),
    "9112 7.1.1: extensions without a limit": (400, post(EXTENSION * 9 + "0\r\n\r\n", CHUNKED)),
    "9112 7.1.1: an extension longer than a line may be": (400, post("1;" + "e" * 2000 + "\r\n", CHUNKED)),
    "9112 7.1.2: trailers without a limit": (431, post("0\r\n" + "X: y\r\n" * 2000 + "\r\n", CHUNKED)),
    "9112 7.1.2: a trailer that is no field": (400, post("0\r\nno colon\r\n\r\n", CHUNKED)),
    "9110 8.6: a chunk over the limit": (413, post(OVER + "\r\nx", CHUNKED)),
    "9110 8.6: chunks that are together over the limit": (
        413,
        post("1\r\na\r\n" + f"{connection.MAX_BODY_BYTES:x}\r\n", CHUNKED),
    ),
    "9112 3.2: no Host": (400, get(host=())),
    "9112 3.2: two Hosts": (400, get("Host: x")),
    "9112 3.2: a Host with a path": (400, get(host=("Host: x/y",))),
    "9112 3.2: a Host with a user": (400, get(host=("Host: me@x",))),
    "9112 3.2: a Host with a character that no name has": (400, get(host=("Host: $(x)",))),
    "9112 3.2: a Host that is too long": (400, get(host=("Host: " + "x" * 254,))),
    "9112 3.2: a Host with two names": (400, get(host=("Host: x, y",))),
    "9112 3.2: a target that is neither a path nor a URL": (400, get(target="healthz")),
    "9112 3.2: an authority without CONNECT": (400, get(target="x:80")),
    "9112 3.2: a URL without a host": (400, get(target="http:///healthz")),
    "9112 3.2.4: an asterisk without OPTIONS": (400, get(target="*")),
    "9112 3: two spaces": (400, get(target=" /healthz")),
    "9112 3: a space in the target": (400, get(target="/healthz /x")),
    "9112 3: a byte beyond ASCII in the target": (400, get(target="/h\N{LATIN SMALL LETTER E WITH ACUTE}")),
    "9112 2.3: HTTP/0.9 has no version": (400, "GET /healthz\r\n\r\n"),
    "9112 2.2: a request line that ends in a bare LF": (400, "GET /healthz HTTP/1.1\nHost: x\r\n\r\n"),
    "9112 2.2: a bare CR in the request line": (400, get(target="/healthz\r")),
    "9112 2.2: a bare CR in a field": (400, get("X-A: b\rContent-Length: 5")),
    "9112 2.2: a field that ends in a bare LF": (400, "GET /healthz HTTP/1.1\r\nHost: x\nX: y\r\n\r\n"),
    "9112 2.2: white space before the first field": (400, get(host=(" Host: x",))),
    "9112 5.1: white space before the colon": (400, get("X-A : b")),
    "9112 5.2: a folded field": (400, get("X-A: b", " c")),
    "9112 5: a field without a colon": (400, get("no colon")),
    "9110 5.1: a name that is no token": (400, get("X(A): b")),
    "9110 5.1: a field without a name": (400, get(": b")),
    "9110 5.5: a NUL in a value": (400, get("X-A: b\0c")),
    "9110 15.5.15: a target that is too long": (414, get(target="/" + "x" * 9000)),
    "6585 5: a field that is too long": (431, get("X-A: " + "x" * 9000)),
    "6585 5: more fields than a server takes": (431, get(*("X: y",) * 99)),
    "9110 10.1.1: another expectation": (417, get("Expect: 200-ok")),
    "9110 15.6.6: HTTP/2 with prior knowledge": (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "9110 15.6.6: another major version": (505, get(version="HTTP/3.0")),
    "9110 15.6.6: an earlier major version": (505, get(version="HTTP/0.9")),
}


@pytest.mark.parametrize(("status", "text"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_can_be_read_in_two_ways_is_refused_and_ends_the_connection(server, status, text):
    ((answered, headers, body),) = answers(say(server, text + NEXT))
    assert answered == status
    assert headers["connection"] == "close"
    assert body
    assert parsedate_to_datetime(headers["date"]), "9110 6.6.1: a server with a clock dates its 4xx answers"


def test_a_chunked_body_that_drips_is_408(server, monkeypatch):
    monkeypatch.setattr(connection, "BODY_S", 0.2)
    assert statuses(server, post("5\r\nab", CHUNKED)) == [408]


@pytest.mark.parametrize("text", ["1\r\n", "1\r\na", "1\r\na\r\n0\r\n", "1", "1\r\na\r\n0\r\nX: y\r\n"])
def test_a_chunked_body_that_ends_too_soon_is_no_request(server, monkeypatch, text):
    monkeypatch.setattr(Echo, "heard", 0)
    with dial(server) as sock:
        sock.sendall(post(text, CHUNKED).encode())
        sock.shutdown(1)
        assert sock.recv(65536) == b""
    assert Echo.heard == 0


def test_a_head_that_ends_too_soon_is_no_request(server):
    with dial(server) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        sock.shutdown(1)
        assert sock.recv(65536) == b""


def test_a_body_that_is_too_long_is_refused_before_the_client_is_told_to_continue(server):
    text = post("", f"Content-Length: {connection.MAX_BODY_BYTES + 1}", "Expect: 100-continue")
    assert statuses(server, text) == [413]


@pytest.mark.parametrize("lines", [("Expect: 100-continue",), ("Expect: other",)])
def test_an_expectation_of_http_1_0_is_ignored(server, lines):
    """9110 10.1.1."""
    assert statuses(server, post("a", "Content-Length: 1", *lines, version="HTTP/1.0")) == [200]


def test_as_many_fields_as_a_server_takes_are_read(server):
    assert statuses(server, get(*("X: y",) * 97, "Connection: close")) == [200]


# (request, whether the connection stays open)
CONNECTIONS = {
    "9112 9.3: HTTP/1.1 stays": (get(), True),
    "9112 9.6: close ends it": (get("Connection: close"), False),
    "9112 9.6: close in any case and place of the list": (get("Connection: TE, Close"), False),
    "9112 9.6: close in a second line": (get("Connection: TE", "Connection: close"), False),
    "9112 9.3: HTTP/1.0 ends": (get(version="HTTP/1.0", host=()), False),
    "9112 9.3: HTTP/1.0 stays if asked": (get("Connection: keep-alive", version="HTTP/1.0"), True),
}


@pytest.mark.parametrize(("text", "stays"), CONNECTIONS.values(), ids=CONNECTIONS)
def test_a_connection_stays_or_ends_as_the_client_wants(server, text, stays):
    given = answers(say(server, text + NEXT))
    assert [status for status, _, _ in given] == [200] * (1 + stays)
    assert (given[0][1].get("connection") == "close") is not stays


ANSWERED = {
    "9112 3.2.2: an absolute target": (get(target="http://x/healthz"), 200),
    "9112 3.2.2: an absolute target without a path": (get(target="HTTP://x:80"), 404),
    "9112 3.2: a Host of names that are in use": (get(host=("Host: _a-b.xn--c-2.example.:8000",)), 200),
    "9112 3.2: an IPv6 address as Host": (get(host=("Host: [::1]:8000",)), 200),
    "9112 2.5: a later minor version is read as HTTP/1.1": (get(version="HTTP/1.2"), 200),
    "9110 9.1: a method that nobody knows": (get(method="HACK"), 501),
    "9110 9.1: the names of methods have a case": (get(method="get"), 501),
    "9110 9.3.6: CONNECT": (get(method="CONNECT", target="x:80"), 501),
    "9110 9.3.8: TRACE is known and never allowed": (get(method="TRACE"), 405),
    "9110 14.2: Range is ignored": (get("Range: bytes=0-3"), 200),
    "9110 13.1.4: If-Unmodified-Since is ignored where nothing has a date": (
        get("If-Unmodified-Since: Mon, 01 Jan 1990 00:00:00 GMT"),
        200,
    ),
    "9110 7.8: an Upgrade is ignored": (get("Connection: upgrade", "Upgrade: h2c"), 200),
    "9110 5.3: an unknown field is ignored": (get("X-Nobody-Knows: this"), 200),
}


@pytest.mark.parametrize(("text", "status"), ANSWERED.values(), ids=ANSWERED)
def test_a_request_gets_the_answer_of_the_rules(server, text, status):
    given = answers(say(server, text + NEXT))
    assert given[0][0] == status
    assert parsedate_to_datetime(given[0][1]["date"])


KEPT = {"status": 202, "body": {}, "location": "/x", "replayed": False}
TOKEN = f"Authorization: {bearer('admin', 'customer')['Authorization']}"
STOCK, CANCEL = "/api/stocks/A-1", f"/api/orders/{ORDER_ID}/cancel"
TO_PUT = ('{"on_hand": 1}', "PUT", STOCK, "Content-Type: application/json", "Content-Length: 14")
TO_CANCEL = ("", "POST", CANCEL, "Idempotency-Key: k")
TO_GET = ("", "GET", STOCK)
ABSENT, CLASH = errors.NotFound(), errors.Conflict()
ANY, NONE = "If-Match: *", "If-None-Match: *"

# (request, condition, what the service behind answers, status)
CONDITIONS = {
    "9110 13.1.1: `*` is met by what can be read": (TO_GET, ANY, {}, 200),
    "9110 13.1.1: `*` is met by what can be changed only if it exists": (TO_CANCEL, ANY, KEPT, 202),
    "9110 13.1.1: no ETag matches": (TO_GET, 'If-Match: "x"', {}, 412),
    "9110 13.1.1: no ETag of several matches": (TO_CANCEL, 'If-Match: "x", W/"y"', KEPT, 412),
    "deviation from 13.1.1: whether a PUT would create is not known": (TO_PUT, ANY, {}, 412),
    "9110 13.1.2: `*` is not met by what exists": (TO_CANCEL, NONE, KEPT, 412),
    "deviation from 13.1.2: whether a PUT would not create is not known": (TO_PUT, NONE, {}, 412),
    "9110 13.1.2: no ETag is the one that the client has": (TO_PUT, 'If-None-Match: "x"', {}, 200),
    "9110 13.2.1: a read of what does not exist": (TO_GET, ANY, ABSENT, 404),
    "9110 13.2.1: a change of what does not exist": (TO_CANCEL, ANY, ABSENT, 404),
    "9110 13.2.1: a change that is refused": (TO_CANCEL, ANY, CLASH, 409),
    "deviation from 13.2.1: a service would refuse the change": (TO_CANCEL, NONE, CLASH, 412),
    "deviation from 13.2.1: a service would not find it": (TO_GET, 'If-Match: "x"', ABSENT, 412),
}


@pytest.mark.parametrize(("request_", "condition", "behind", "status"), CONDITIONS.values(), ids=CONDITIONS)
def test_a_condition_is_met_or_refused_before_anything_is_changed(gateway, request_, condition, behind, status):
    body, method, target, *lines = request_
    BEHIND.asked.clear()
    BEHIND.answer = behind
    text = get(*lines, TOKEN, condition, "Connection: close", method=method, target=target) + body
    assert statuses(gateway, text) == [status]
    assert len(BEHIND.asked) == (status != 412)


UNCONDITIONAL = {
    400: ("", "GET", f"{STOCK}?colour=red", TOKEN),
    401: ("", "GET", STOCK),
    404: ("", "GET", "/api/nothing/here", TOKEN),
    405: ("", "PATCH", STOCK, TOKEN),
    415: ("x", "PUT", STOCK, TOKEN, "Content-Length: 1"),
    422: ("{}", "PUT", STOCK, TOKEN, "Content-Type: application/json", "Content-Length: 2"),
}


@pytest.mark.parametrize(("status", "request_"), UNCONDITIONAL.items(), ids=map(str, UNCONDITIONAL))
def test_what_the_gateway_refuses_anyway_is_not_412(gateway, status, request_):
    """9110 13.2.1."""
    body, method, target, *lines = request_
    text = get(*lines, 'If-Match: "x"', "Connection: close", method=method, target=target) + body
    assert statuses(gateway, text) == [status]


def test_the_answer_to_head_has_the_headers_of_get_and_no_body(server):
    """9110 9.3.2."""
    of_get = answers(say(server, get("Connection: close")))[0][1]
    text = say(server, get("Connection: close", method="HEAD"))
    ((status, of_head, body),) = answers(text)
    assert (status, body, text[-4:]) == (200, "", "\r\n\r\n")
    assert {**of_head, "date": ""} == {**of_get, "date": ""}


def test_the_refusal_of_a_head_that_cannot_be_read_has_no_body_for_head(server):
    assert say(server, get("Host: y", method="HEAD")).endswith("\r\n\r\n")
    assert say(server, get(method="HEAD", target="/" + "x" * 9000)).endswith("\r\n\r\n")


@pytest.mark.parametrize("path", ["/healthz", "/echo"])
def test_a_method_that_a_path_does_not_have_is_405_with_those_it_has(server, path):
    """9110 15.5.6."""
    ((status, headers, _),) = answers(say(server, get("Connection: close", method="PATCH", target=path)))
    assert status == 405
    assert set(headers["allow"].split(", ")) == ({"GET", "HEAD"} if path == "/healthz" else {"POST"})


def test_options_of_the_whole_server_lists_the_methods_and_has_no_body(server):
    """9112 3.2.4; 9110 6.4.1: a 204 has no content, and 8.6: no Content-Length."""
    text = say(server, get("Connection: close", method="OPTIONS", target="*"))
    ((status, headers, _),) = answers(text)
    assert status == 204
    assert {"GET", "POST", "PUT"} <= set(headers["allow"].split(", "))
    assert "content-length" not in headers
    assert "transfer-encoding" not in headers
    assert text.endswith("\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("/a?b", "/a?b", "old"),
        ("http://new/a?b", "/a?b", "new"),
        ("https://[::1]:80?b", "/?b", "[::1]:80"),
        ("http://new", "/", "new"),
    ],
)
def test_the_host_of_an_absolute_target_replaces_the_header(target, path, host):
    """9112 3.2.2."""
    headers = Message()
    headers["Host"] = "old"
    assert framing.origin_form(target, "GET", headers) == path
    assert headers.get_all("Host") == [host]


REFUSED_BY_GATEWAY = dict(REFUSED.values())


@pytest.mark.parametrize("status", sorted(REFUSED_BY_GATEWAY))
def test_the_gateway_refuses_with_the_same_status_in_its_own_shape(gateway, status):
    ((answered, headers, body),) = answers(say(gateway, REFUSED_BY_GATEWAY[status].replace("/echo", "/api/orders")))
    assert (answered, headers["content-type"]) == (status, "application/json")
    assert re.search(r'"code":"[a-z0-9_]+"', body)
