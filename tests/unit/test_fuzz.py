"""Whatever bytes come from outside, each reader answers as it promises: no crash, no 500, no traceback.

Two ways to make the bytes: Hypothesis, and changes of well-formed inputs (`mutations`). The normal run sends the same
few thousand every time; `--long` takes ten minutes and other ones each time. A failure names the bytes.
"""

import csv
import json
import logging
import random
import re
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from gateway.api import openapi
from gateway.api.cursors import Cursors
from gateway.service import GatewayService
from ops.audit.files import prove
from ops.dlq import dead_messages
from shared import exports
from shared.envelope import decode
from shared.errors import DeadMessage, InvalidCursor, NotFound, ValidationFailed
from shared.events import CATALOGUE
from shared.paging import decode_cursor, encode_cursor, id_position, name_position, row_position, time_position
from tests.messages import body
from tests.unit.mutations import mutant
from tests.unit.serving import KEYS, dial, serving
from tests.unit.test_audit_files import KEY, manifest, release
from tests.unit.test_gateway_http import BEHIND, ORDER_ID, Gateway, bearer

LONG_S = 600

# For the example of each path parameter.
PATH = {"order_id": ORDER_ID, "queue": "q.order.payment-result"}
IN_PATH = re.compile(r"{(\w+)}")


class Reader:
    """Something that reads bytes from outside: well-formed examples, and a check of what it does with others."""

    def __init__(self, seeds, check, cases):
        self.seeds = seeds
        self.check = check
        self.cases = cases  # of each kind, in the normal run


def envelopes():
    """Events of every type, and bare payloads."""
    whole = [body(type_) for type_ in CATALOGUE]
    return [json.dumps(event).encode() for event in whole] + [json.dumps(event["payload"]).encode() for event in whole]


def check_envelope(data):
    for key in ("order.created", "payment.succeeded", "no.event"):
        try:
            event = decode(data, key)
        except DeadMessage:
            continue
        written = event.to_json()
        assert decode(written, key).to_json() == written, "what was read can be written and is read again"


POSITION = ["lamp", 17, "2026-01-14T10:30:00+00:00", ORDER_ID]
PARSERS = [name_position, row_position, time_position, id_position]
CURSORS = Cursors(KEYS, "/api/stocks")
INNER = encode_cursor(POSITION, {})


def check_cursor(data):
    text = data.decode("utf-8", "replace")
    with suppress(InvalidCursor):
        assert CURSORS.open(text) == INNER, "only what was signed is opened"
    with suppress(InvalidCursor):
        for value in decode_cursor(text, {}, PARSERS):
            str(value).encode()


def export_file(reader, quoting=csv.QUOTE_ALL):
    lines = exports.header_line(reader) + exports.release_lines((release(n) for n in range(4)), reader)
    return lines + exports.manifest_line(manifest(lines, 4), quoting)


EXPORTS = [export_file(reader) for reader in exports.Reader]


def check_csv_cell(data):
    text = data.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    for reader in exports.Reader:
        row = release(1, sku=text, why=text) | {"roles": [text], "requested_by": text}
        written = exports.release_lines([row], reader).decode()
        (cells,) = csv.reader([written], strict=True)
        assert len(cells) == len(exports.COLUMNS)
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert not re.search(r'(^|[,;\t\r\n])"?[=+@-]', written), "another program divides it elsewhere"


@pytest.fixture(scope="module")
def check_csv_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("csv") / "export.csv"

    def check(data):
        file.write_bytes(data)
        assert prove(file, [KEY]).wrong or data in INTACT

    return check


# Quotes that an older version left out make no other file.
INTACT = {*EXPORTS, *(export_file(reader, csv.QUOTE_MINIMAL) for reader in exports.Reader)}


def check_dead_line(data):
    """A line of a file of dead messages, which an operator imports."""
    try:
        content = dead_messages.from_line(data)
    except ValidationFailed:
        return
    dead_messages.returning(content)


def requests():
    """A request to every route, as the OpenAPI document gives its examples."""
    for path, operations in openapi.document(GatewayService)["paths"].items():
        for method, operation in operations.items():
            parameters = [one for one in operation.get("parameters", ()) if "name" in one]
            in_query = [
                f"{one['name']}={one['example']}" for one in parameters if one["in"] == "query" and "example" in one
            ]
            content = operation.get("requestBody", {}).get("content", {})
            body = b"".join(json.dumps(one.get("example", {})).encode() for one in content.values())
            target = IN_PATH.sub(lambda found: PATH.get(found[1], "7"), path)
            lines = [
                f"{method.upper()} {target}?{'&'.join(in_query)} HTTP/1.1",
                *("Host: shop.example", "Idempotency-Key: k-1", "Content-Type: application/json"),
                f"Authorization: {bearer('admin', 'customer', 'auditor')['Authorization']}",
                f"Content-Length: {len(body)}",
            ]
            yield "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture(scope="module")
def check_request():
    BEHIND.answer = NotFound()
    with serving(Gateway) as server:

        def check(data):
            with dial(server) as sock:
                sock.settimeout(20)
                heard = b""
                try:
                    sock.sendall(data)
                    sock.shutdown(1)
                    while chunk := sock.recv(65536):
                        heard += chunk
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it was refused before it was read to its end
            statuses = re.findall(rb"^HTTP/1\.[01] ([0-9]{3})", heard, re.MULTILINE)
            assert not {status for status in statuses if status.startswith(b"5")} - {b"501", b"503", b"505"}, heard

        yield check
        check(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="module")
def readers(check_csv_file, check_request):
    return {
        "envelope": Reader(envelopes(), check_envelope, 5000),
        "cursor": Reader([INNER.encode(), CURSORS.sign(INNER).encode()], check_cursor, 5000),
        "CSV cell": Reader([b"a;=1+1", b"=1", b'say "so"', b"a\r\n@x,y", "\U0001f9fe".encode()], check_csv_cell, 1000),
        "CSV file": Reader(EXPORTS, check_csv_file, 300),
        "line of dead messages": Reader([DEAD_LINE], check_dead_line, 1000),
        "request": Reader(list(requests()), check_request, 1500),
    }


DEAD_LINE = dead_messages.to_line(
    dead_messages.Content(
        f"{PATH['queue']}.dlq",
        "",
        PATH["queue"],
        {"message_id": ORDER_ID, "timestamp": 1},
        {"x-attempt": 4},
        envelopes()[0],
    )
)

NAMES = ("envelope", "cursor", "CSV cell", "CSV file", "line of dead messages", "request")


@pytest.fixture(params=NAMES)
def reader(request, readers, caplog):
    caplog.set_level(logging.WARNING)
    yield readers[request.param]
    assert not [record for record in caplog.records if record.exc_info], "a traceback was logged"


@pytest.fixture(scope="module")
def until(long):
    """When one of the runs ends, by time.monotonic(); None: after a number of cases."""
    return (lambda: time.monotonic() + LONG_S / (2 * len(NAMES))) if long else lambda: None


@pytest.mark.timeout(LONG_S + 60)
def test_a_changed_input_is_read_or_refused(reader, until, long):
    end, number = until(), random.randrange(2**32) if long else 7
    chance, cases = random.Random(number), 0
    while time.monotonic() < end if end else cases < reader.cases:
        data, cases = mutant(reader.seeds, chance), cases + 1
        try:
            reader.check(data)
        except Exception as error:
            raise AssertionError(f"{data!r} of seed {number}") from error


@pytest.mark.timeout(LONG_S + 60)
def test_any_input_is_read_or_refused(reader, until, long):
    json_like = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    ).map(lambda value: json.dumps(value).encode())
    head = st.sampled_from(reader.seeds).flatmap(
        lambda whole: st.integers(0, len(whole)).flatmap(
            lambda n: st.binary(max_size=50).map(lambda end: whole[:n] + end)
        )
    )
    inputs = st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "replace")), json_like, head)

    @settings(
        max_examples=min(200, reader.cases), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs)
    def run(data):
        reader.check(data)

    end = until()
    while True:
        seed(random.randrange(2**32) if long else 7)(run)()
        if not end or time.monotonic() > end:
            return
