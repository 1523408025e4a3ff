"""Whatever bytes arrive, the server reads the requests that a strict reading of RFC 9112 reads, or refuses.

`strictly` is that reading, written for this test alone: whoever stands in front of the server sees the same requests.
"""

import re
import socket
from itertools import zip_longest
from typing import NamedTuple

import pytest
from eventlet.greenio import GreenSocket
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.wrappers import Response

from shared.edge import connection
from shared.edge.connection import BODY, REFUSED, Server
from shared.edge.shares import Client, Connections

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([0-9])")
FIELD = re.compile(
    rb"(" + TOKEN + rb"):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]+)(.*)")
CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


class Read(NamedTuple):
    """One request as somebody has read it. Names of fields are in lower case."""

    method: bytes
    target: bytes
    fields: tuple
    body: bytes


class Unread(Exception):
    """What follows is no request, or not all of one."""


def strictly(data):
    """The requests at the beginning of some bytes."""
    requests = []
    while data:
        try:
            request, data, is_last = one_of(data)
        except Unread:
            break
        requests.append(request)
        if is_last:
            break
    return requests


def cut(data, end):
    """The bytes before `end`, and those after it."""
    before, found, after = data.partition(end)
    if not found:
        raise Unread
    return before, after


def one_of(data):
    """The first request, what follows it, and whether it is the last of its connection."""
    head, rest = cut(data.removeprefix(b"\r\n"), b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    line, fields = LINE.fullmatch(first), [FIELD.fullmatch(line) for line in lines]
    if line is None or None in fields:
        raise Unread
    method, target, minor = line.groups()
    fields = [(field[1].lower(), field[2]) for field in fields]
    hosts = valued(fields, b"host")
    if len(hosts) > 1 or (not hosts and minor != b"0"):
        raise Unread
    if absolute := ABSOLUTE.fullmatch(target):
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        fields = [field for field in fields if field[0] != b"host"] + [(b"host", absolute[1])]
    body, rest = body_of(fields, minor, rest)
    words = [word.strip(b" \t").lower() for value in valued(fields, b"connection") for word in value.split(b",")]
    is_last = b"close" in words or (minor == b"0" and b"keep-alive" not in words)
    return Read(method, target, tuple(sorted(fields)), body), rest, is_last


def valued(fields, wanted):
    return [value for name, value in fields if name == wanted]


def body_of(fields, minor, rest):
    lengths, codings = valued(fields, b"content-length"), valued(fields, b"transfer-encoding")
    if codings:
        if lengths or minor == b"0" or len(codings) > 1 or codings[0].lower().strip(b", \t") != b"chunked":
            raise Unread
        return chunks_of(rest)
    if len(lengths) > 1 or not all(re.fullmatch(rb"[0-9]+", length) for length in lengths):
        raise Unread
    length = int(lengths[0]) if lengths else 0
    if len(rest) < length:
        raise Unread
    return rest[:length], rest[length:]


def chunks_of(rest):
    body = b""
    while True:
        line, rest = cut(rest, b"\r\n")
        size = CHUNK.fullmatch(line)
        if size is None:
            raise Unread
        if (length := int(size[1], 16)) == 0:
            break
        if len(rest) < length + 2 or rest[length : length + 2] != b"\r\n":
            raise Unread
        body, rest = body + rest[:length], rest[length + 2 :]
    while True:
        line, rest = cut(rest, b"\r\n")
        if not line:
            return body, rest
        if not FIELD.fullmatch(line):
            raise Unread


def as_served(data):
    """What our server reads of the same bytes, and the status of each of its answers."""
    ours, theirs = socket.socketpair()
    requests = []

    def app(environ, start_response):
        if REFUSED in environ:
            return Response("", environ[REFUSED].code)(environ, start_response)
        query = environ.get("QUERY_STRING")
        target = environ["RAW_PATH_INFO"] + (f"?{query}" if query is not None else "")
        fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in environ["headers_raw"]]
        requests.append(Read(environ["REQUEST_METHOD"].encode(), target.encode(), tuple(sorted(fields)), environ[BODY]))
        return Response("", 200)(environ, start_response)

    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        sock = GreenSocket(ours)
        connections = Connections(9)
        client = Client(("127.0.0.1", 1), sock)
        connections.add(client)
        server = Server(sock, app, lambda error: Response("", error.code), connections)
        try:
            server.process_request(client)
        except OSError:  # the bytes ended within a head
            pass
        finally:
            sock.close()
        theirs.settimeout(5)
        answer = b"".join(iter(lambda: theirs.recv(65536), b""))
    statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 ([0-9]{3}) ", answer, re.M)]
    return requests, [status for status in statuses if status != 100]


def check(data):
    """Raises AssertionError where the server reads what the strict reading does not, or goes on after a refusal."""
    expected, (read, statuses) = strictly(data), as_served(data)
    for ours, theirs in zip_longest(read, expected[: len(read)]):
        assert ours == theirs
    refusals = statuses[len(read) :]
    assert statuses[: len(read)] == [200] * len(read)
    assert all(400 <= status < 500 or status in (501, 505) for status in refusals)
    assert len(refusals) <= 1
    assert len(read) == len(expected) or refusals, "a whole request is neither read nor refused"


GOOD = (
    b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://y/a HTTP/1.1\r\nHost: x\r\nX-A: b  c\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nX: y\r\n\r\n",
    b"PUT /d HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
    b"GET /e HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
)
# What a careless parser takes for the end of a line, a space, a digit or a letter.
ODD = tuple(
    b'\r|\n|\r\n|\r\r|\n\n|\r\n\r\n|\0| |\t|\x0b|\x0c|\x1c|\x85|\xa0|:|;|,|+|-|_|0x|0|1|f|(|"|\x7f|\xff'.split(b"|")
)
LINES = tuple(
    b"Host: x|Host: y|Host:|host : x|Content-Length: 3|Content-Length: 0|content-length: +3|Content-Length: 3, 3"
    b"|Content-Length : 3|Content_Length: 9|Transfer-Encoding: chunked|Transfer-Encoding: gzip|Transfer-Encoding:"
    b"|Transfer-Encoding: chunked, chunked|Transfer-Encoding:\x0bchunked|X: a\rContent-Length: 3|X: a\n b| folded"
    b"|: empty|Connection: close|Connection: keep-alive|Expect: 100-continue|Expect: x|X: \0|X: \xe9|X:y|X:".split(b"|")
)


@st.composite
def spoilt(draw):
    """Good requests, one after the other, with lines and bytes put in, taken out or exchanged."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3))))
    for line in draw(st.lists(st.sampled_from(LINES), max_size=2)):
        ends = [found.end() for found in re.finditer(b"\r\n", data)]
        place = draw(st.sampled_from(ends)) if ends else 0
        data[place:place] = line + b"\r\n"
    for piece in draw(st.lists(st.sampled_from(ODD) | st.binary(max_size=2), max_size=3)):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = piece
    return bytes(data)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody lingers for a client that has already ended its side."""
    monkeypatch.setattr(connection, "LINGER_S", 0.1)


@pytest.mark.parametrize("data", GOOD)
def test_good_requests_are_read_as_they_are(data):
    assert as_served(data)[0] == strictly(data) != []


def test_the_strict_reading_reads_one_request_after_the_other():
    assert [request.target for request in strictly(b"".join(GOOD))] == [b"/a?b=c", b"/a", *b"/b /c /d /e /f".split()]


def test_whatever_bytes_arrive_are_read_strictly_or_refused(long):
    examine(spoilt(), 20_000 if long else 400)


def test_bytes_of_any_kind_are_read_strictly_or_refused(long):
    examine(
        st.binary(max_size=200) | st.lists(st.sampled_from((*ODD, *LINES, *GOOD))).map(b"".join), 5_000 if long else 100
    )


def examine(strategy, examples):
    settings(max_examples=examples, deadline=None, derandomize=examples < 1_000, database=None)(
        given(strategy)(check)
    )()
