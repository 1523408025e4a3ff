"""The release audit with fake services: its pages, one release, and the CSV."""

import csv
import hashlib
import http.client
import io
import json
import logging
import re
import time

import eventlet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import export
from gateway.export import Export, Running, filename, linked
from gateway.service import GatewayService
from shared import exports
from shared.errors import CannotWork, NotFound, ServiceUnavailable
from tests.unit.serving import Fake, ask, dial, hear, serving, signed_cursor
from tests.unit.test_gateway_http import ORDER_ID, bearer, code

PATH = "/api/stocks/release-events"
EXPORT = f"{PATH}/export"
EXPORT_ID = "01a1fcf8-0a3c-7d01-8f2e-3b1c9d5e7f60"
MANIFEST = {"version": 1, "export_id": EXPORT_ID, "mac": "m"}


def release(number, **what):
    return {
        "id": number,
        "order_id": ORDER_ID,
        "reservation_id": EXPORT_ID,
        "sku": "A-1",
        "quantity": 2,
        "reason": "expired",
        "requested_by": "alice",
        "roles": ["customer", "auditor"],
        "trace_id": "0" * 32,
        "released_at": "2026-01-14T10:30:00.123Z",
        **what,
    }


def operation(at="2026-01-14T10:00:00.000Z", **what):
    return {
        "operation_id": EXPORT_ID,
        "kind": "replay",
        "queue": "q.dlq",
        "actor": "bob",
        "why": "it is mended",
        "message_id": ORDER_ID,
        "event_type": None,
        "at": at,
        **what,
    }


class Services:
    """A fake of the services. Each call takes one of the `faults` of its name; None means success."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.releases = []
        self.operations = {}
        self.asked = []
        self.faults = {}
        self.page = 2
        self.away = set()  # calls that fail, except for the first page of an export

    def under(self, context):
        self.context = dict(context)
        return self

    def call(self, routing_key, args, kwargs, context, timeout_s):
        eventlet.sleep(0)
        return getattr(self, routing_key.partition(".")[2])(*args)

    def _note(self, name, *args):
        self.asked.append((name, *args))
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if fault is not None:
            raise fault
        if name in self.away and args[-1] is not None:
            raise ServiceUnavailable(f"nobody hears {name}")

    def asked_for(self, name):
        return [args for asked, *args in self.asked if asked == name]

    def release_events(self, filters, limit, cursor, offset, include_total):
        self._note("release_events", filters, limit, cursor, offset, include_total)
        first = offset + int(cursor or 0)
        more = str(first + limit) if len(self.releases) > first + limit else None
        total = len(self.releases) if include_total else None
        return {"items": self.releases[first : first + limit], "next_cursor": more, "total": total}

    def release_event(self, event_id):
        self._note("release_event", event_id)
        for one in self.releases:
            if one["id"] == event_id:
                return {**one, "seal": {"seq": 3, "sealed_at": one["released_at"]}}
        raise NotFound

    def timeline(self, order_id):
        self._note("timeline", order_id)
        return {"order_id": order_id, "steps": []}

    def dead_of_order(self, order_id):
        self._note("dead_of_order", order_id)
        return []

    def operations_of(self, order_ids):
        self._note("operations_of", order_ids)
        return self.operations

    def open_release_export(self, filters):
        self._note("open_release_export", filters)
        return {"export_id": EXPORT_ID, "sealed_to": 1}

    def release_export_page(self, export_id, limit, cursor):
        self._note("release_export_page", export_id, limit, cursor)
        page = self.release_events({}, self.page, cursor, 0, False)
        return {name: page[name] for name in ("items", "next_cursor")}

    def close_release_export(self, export_id, rows, sha256):
        self._note("close_release_export", export_id, rows, sha256)
        return {**MANIFEST, "rows": rows, "sha256": sha256}


SERVICES = Services()


class Gateway(GatewayService):
    name = "gateway"
    orders = inventory = ops = ops_soon = Fake(SERVICES)


@pytest.fixture(autouse=True)
def services(monkeypatch):
    SERVICES.reset()
    monkeypatch.setattr(Export, "replies", SERVICES)
    monkeypatch.setattr(export, "PAUSE_S", 0.01)
    monkeypatch.setattr(export, "LONGEST_PAUSE_S", 0.05)
    with eventlet.Timeout(20):
        yield SERVICES


@pytest.fixture
def gateway(services):
    with serving(Gateway, max_workers=1) as server:
        yield server


def get(gateway, path, role="auditor"):
    return ask(gateway, "GET", path, headers=bearer(role))


def many(count):
    return [release(number) for number in range(count, 0, -1)]


def read(text):
    """The header, the lines and the manifest of a file."""
    header, *lines, last = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert last[0] == exports.MANIFEST
    assert last[2:] == [""] * 9
    return header, lines, json.loads(last[1])


def test_a_page_has_earlier_operations_and_asks_for_all_its_orders_at_once(gateway, services):
    before, after = operation(), operation("2026-01-14T10:30:00.124Z")
    services.releases = [release(3), release(2, order_id=EXPORT_ID), release(1)]
    services.operations = {ORDER_ID: [before, after]}
    body = get(gateway, PATH)[2]
    assert [item["operations"] for item in body["items"]] == [[before], [], [before]]
    assert body["total"] is None
    assert services.asked_for("operations_of") == [[[ORDER_ID, EXPORT_ID]]]


@pytest.mark.parametrize("fault", [ServiceUnavailable, CannotWork])
def test_releases_are_listed_while_ops_service_is_unavailable(gateway, services, fault):
    services.releases = many(2)
    services.faults = {"operations_of": [fault()]}
    status, _, body = get(gateway, PATH)
    assert (status, [item["operations"] for item in body["items"]]) == (200, [None, None])


def test_offset_and_total_are_passed_on_and_are_not_filters(gateway, services):
    services.releases = many(5)
    body = get(gateway, f"{PATH}?offset=2&limit=2&include_total=true&sku=A-1")[2]
    assert ([item["id"] for item in body["items"]], body["total"]) == ([3, 2], 5)
    assert services.asked_for("release_events") == [[{"sku": "A-1"}, 2, None, 2, True]]
    assert get(gateway, f"{PATH}?include_total=false")[2]["total"] is None


@pytest.mark.parametrize(
    "query",
    [
        *("offset=-1", "offset=10001", "offset=", "offset=1.0", "offset=0&cursor=2", "offset=5&cursor=2"),
        *("include_total=", "include_total=1", "include_total=yes", "include_total=True"),
    ],
)
def test_a_bad_offset_or_total_is_400_and_named(gateway, services, query):
    answer = get(gateway, f"{PATH}?{query}")
    assert code(answer) == (400, "bad_request")
    assert list(answer[2]["error"]["details"]) == [query.partition("=")[0]]
    assert services.asked == []


@pytest.mark.parametrize("path", [PATH, PATH.replace("/api/", "/api/v1/")])
def test_each_page_links_to_the_next_with_the_same_path_and_parameters(gateway, services, path):
    services.releases = many(5)
    seen, asked = [], f"{path}?limit=2&reason=a%3E%26b%22&include_total=true"
    while asked:
        status, headers, body = get(gateway, asked)
        assert (status, body["total"]) == (200, 5)
        seen += [item["id"] for item in body["items"]]
        link = headers.get("Link", "<>")
        asked, relation = link[1:].split(">")
        assert (asked == "") == (body["next_cursor"] is None)
        assert not asked or (asked.startswith(f"{path}?") and relation == '; rel="next"')
    assert seen == [5, 4, 3, 2, 1]
    assert [filters for filters, *_ in services.asked_for("release_events")] == [{"reason": 'a>&b"'}] * 3


def test_the_link_after_an_offset_has_only_the_cursor(gateway, services):
    services.releases = many(5)
    link = get(gateway, f"{PATH}?limit=2&offset=1")[1]["Link"]
    signed = signed_cursor(PATH, "3")
    assert link == f'<{PATH}?limit=2&cursor={signed}>; rel="next"'


def test_a_release_has_its_seal_its_operations_and_the_timeline_of_its_order(gateway, services):
    services.releases = [release(7)]
    services.operations = {ORDER_ID: [operation()]}
    status, _, body = get(gateway, f"{PATH}/7", role="admin")
    assert status == 200
    assert body == {
        **release(7),
        "seal": {"seq": 3, "sealed_at": "2026-01-14T10:30:00.123Z"},
        "operations": [operation()],
        "timeline": {"order_id": ORDER_ID, "steps": [], "dead_messages": []},
    }


def test_a_manual_release_has_no_timeline(gateway, services):
    services.releases = [release(7)]
    services.faults = {"timeline": [NotFound()]}
    assert get(gateway, f"{PATH}/7")[2]["timeline"] is None


def test_a_release_is_503_while_order_service_is_unavailable(gateway, services):
    services.releases = [release(7)]
    services.faults = {"timeline": [ServiceUnavailable()]}
    assert code(get(gateway, f"{PATH}/7")) == (503, "unavailable")


def test_a_release_is_shown_while_ops_service_is_unavailable(gateway, services):
    services.releases = [release(7)]
    services.faults = {"operations_of": [ServiceUnavailable()], "dead_of_order": [CannotWork()]}
    body = get(gateway, f"{PATH}/7")[2]
    assert (body["operations"], body["timeline"]["dead_messages"]) == (None, None)


@pytest.mark.parametrize("event_id", ["8", "0", "-1", "x", "7.0", "7x", str(2**63), "9" * 40, ORDER_ID, "Export"])
def test_an_unknown_release_is_404(gateway, services, event_id):
    services.releases = [release(7)]
    assert code(get(gateway, f"{PATH}/{event_id}")) == (404, "not_found")
    assert all(asked < 2**63 for (asked,) in services.asked_for("release_event"))


def test_a_file_has_a_header_a_line_for_each_release_and_the_manifest(gateway, services):
    services.releases = many(5)
    services.operations = {ORDER_ID: [operation(), operation(kind="requeue", why="")]}
    status, headers, text = get(gateway, f"{EXPORT}?from=2026-01-14T12:00:00%2B02:00&to=2026-02-01T00:00:00Z")
    assert (status, headers["Content-Type"], headers["Transfer-Encoding"]) == (
        200,
        "text/csv; charset=utf-8",
        "chunked",
    )
    assert headers["Content-Disposition"] == (
        'attachment; filename="release-events_20260114T100000Z_20260201T000000Z.csv"'
    )
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    header, lines, manifest = read(text)
    assert tuple(header) == exports.COLUMNS
    assert [line[0] for line in lines] == ["5", "4", "3", "2", "1"]
    assert lines[0][1:] == [
        *(ORDER_ID, EXPORT_ID, "A-1", "2", "expired", "alice", "customer auditor", "0" * 32),
        *("2026-01-14T10:30:00.123Z", f"replay {EXPORT_ID} by bob: it is mended; requeue {EXPORT_ID} by bob"),
    ]
    assert text.endswith("\r\n")
    assert text.count("\r\n") == text.count("\n") == 7
    before_the_last = text.encode()[: text.index('"manifest",')]
    assert manifest == {**MANIFEST, "rows": 5, "sha256": hashlib.sha256(before_the_last).hexdigest()}
    assert services.asked_for("open_release_export") == [
        [{"from": "2026-01-14T10:00:00.000Z", "to": "2026-02-01T00:00:00.000Z"}]
    ]


def test_a_file_without_releases_has_a_header_and_the_manifest(gateway):
    header, lines, manifest = read(get(gateway, EXPORT)[2])
    assert (tuple(header), lines, manifest["rows"]) == (exports.COLUMNS, [], 0)


def test_the_inventory_gets_the_identity_of_the_exporting_user(gateway, services):
    ask(gateway, "GET", EXPORT, headers=bearer("auditor", sub="carol"))
    assert (services.context["user_id"], services.context["roles"]) == ("carol", ["auditor"])


# Texts in which a formula would begin if another separator or a line end divided them; behind each the cell.
INNER = {
    "a;=1+1": "a;'=1+1",
    "a,+1": "a,'+1",
    "a\t@SUM(A1)": "a\t'@SUM(A1)",
    "a\n-1": "a\n'-1",
    "a\r\n=1": "a\r\n'=1",
    "a;'=1": "a;''=1",
    "a;;=1,=2": "a;;'=1,'=2",
    "\t=1": "'\t'=1",
    "\r=1": "'\r'=1",
    "a;b='1'": "a;b='1'",
    "a; =1": "a; =1",
}


@pytest.mark.parametrize(("text", "cell"), INNER.items(), ids=ascii)
def test_no_separator_and_no_line_end_makes_a_formula_of_a_text(text, cell):
    assert exports.for_programs(text) == cell
    assert program_reads(cell) == text
    row = release(1, sku=text, reason=text, requested_by=text, roles=[text], trace_id=text)
    for reader in exports.Reader:
        lines = exports.release_lines([{**row, "operations": [operation(why=text)]}], reader).decode()
        cells = re.split(r'[,;\t\r\n]"?', lines.removeprefix('"'))
        assert not [piece for piece in cells if piece.startswith(("=", "+", "-", "@"))]


def test_every_cell_stands_in_quotes(gateway, services):
    services.releases = many(2)
    for line in get(gateway, EXPORT)[2].splitlines():
        assert re.fullmatch(r'("([^"]|"")*",)*"([^"]|"")*"', line), line


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "\0x"]
ODD = ["", "a,b", 'say "so"', '"', "'", "'=1", "two\nlines", "two\r\nlines", "a\rb", "\U0001f9fe caf\xe9", " =1", "a;b"]


@pytest.mark.parametrize("value", [*FORMULAS, *ODD])
def test_every_cell_is_read_back_unchanged_and_no_cell_is_a_formula(gateway, services, value):
    services.releases = [release(1, sku=value, reason=value, requested_by=value, roles=[value], trace_id=value)]
    services.operations = {ORDER_ID: [operation(kind=value)]}
    _, (line,), _ = read(get(gateway, EXPORT)[2])
    wanted = INNER.get(value) or (f"'{value}" if value in FORMULAS or value.startswith("'") else value)
    assert [line[place] for place in (3, 5, 6, 7, 8)] == [wanted] * 5
    assert line[10].removeprefix(wanted).startswith(" ")
    assert not any(cell[:1] in tuple("=+-@\t\r\0") for cell in line if cell)


# Texts that a spreadsheet shows as something else, some of them as the same thing; behind each the cell.
CHANGED = {
    "00042": "'00042",
    "42": "'42",
    "1E5": "'1E5",
    "100000": "'100000",
    "1" * 32: "'" + "1" * 32,
    "12345678901234567890123456789e12": "'12345678901234567890123456789e12",
    "1,5": "'1,5",
    "5%": "'5%",
    "１２": "'１２",
    "1/2": "'1/2",
    "MAR1": "'MAR1",
    "5. März": "'5. März",
    "1月": "'1月",
    "5 pm": "'5 pm",
    "5 EUR": "'5 EUR",
    "true": "'true",
    "WAHR": "'WAHR",
    **{formula: f"'{formula}" for formula in FORMULAS if formula.isprintable()},
    "＝1+1": "'＝1+1",
    "#N/A": "'#N/A",
    "'=1+1": "''=1+1",
    "'00042": "''00042",
    "\t=1": '"\\t=1"',
    "two\nlines": '"two\\nlines"',
    "two\r\nlines": '"two\\r\\nlines"',
    " ann": '" ann"',
    "ann\u200b": '"ann\\u200b"',
    "e\u0301": '"e\\u0301"',
    '"ann"': '"\\"ann\\""',
}
KEPT = [
    "ann",
    "M\xfcller",
    "lamp-2",
    "sku-00042",
    "0af7651916cd43dd8448eb211c80319c",
    "user.5@shop.example",
    "",
    "a,b;c",
]


# As the documentation says it.
WITHIN = r"(?<=[,;\t\r\n])'(?='*[=+\-@\0＝＋－＠])"


def program_reads(cell):
    """The text in a cell of a file for programs."""
    return re.sub(f"^'|{WITHIN}", "", cell)


def text_of(cell):
    """The text in a cell of a file for spreadsheets."""
    cell = re.sub(WITHIN, "", cell)
    return json.loads(cell) if cell.startswith('"') else cell.removeprefix("'")


@pytest.mark.parametrize(("text", "cell"), [*CHANGED.items(), *((text, text) for text in KEPT)])
def test_a_cell_for_spreadsheets_is_shown_as_its_text(text, cell):
    row = release(12, sku=text, requested_by=text, roles=[text], trace_id=text, operations=[])
    (line,) = csv.reader([exports.release_lines([row], exports.Reader.SPREADSHEETS).decode()], strict=True)
    assert [line[place] for place in (3, 6, 7, 8)] == [cell] * 4
    assert text_of(cell) == text
    assert (line[0], line[4], line[9]) == ("12", "2", "2026-01-14T10:30:00.123Z")


@given(st.text(max_size=8), st.text(max_size=8))
def test_two_users_are_never_one_cell(one, other):
    for write in (exports.for_programs, exports.for_spreadsheets):
        assert (write(one) == write(other)) == (one == other)
        assert not write(one).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert text_of(exports.for_spreadsheets(one)) == program_reads(exports.for_programs(one)) == one
    # Pairs that an apostrophe or a JSON string could make equal are too rare to be drawn.
    for twin in (f"'{one}", json.dumps(one), exports.for_spreadsheets(one), exports.for_programs(one)):
        assert twin == one or exports.for_spreadsheets(twin) != exports.for_spreadsheets(one)
        assert twin == one or exports.for_programs(twin) != exports.for_programs(one)


def test_a_file_for_spreadsheets_has_a_byte_order_mark_that_is_signed(gateway, services):
    services.releases = many(3)
    plain, marked = (get(gateway, f"{EXPORT}?for={reader}&sku=A-1")[2].encode() for reader in exports.Reader)
    assert get(gateway, f"{EXPORT}?sku=A-1")[2].encode() == plain
    assert plain.startswith(b'"id",')
    assert marked.startswith(exports.BOM + b'"id",')
    assert marked.count(exports.BOM) == 1
    before_the_last = marked[: marked.index(b'"manifest",')]
    assert read(marked.decode())[2]["sha256"] == hashlib.sha256(before_the_last).hexdigest()
    assert services.asked_for("open_release_export") == [[{"sku": "A-1"}]] * 3  # the reader is no filter
    assert code(get(gateway, f"{EXPORT}?for=me")) == (400, "bad_request")


@pytest.mark.parametrize(
    ("filters", "name"),
    [
        ({}, "release-events_all.csv"),
        ({"colour": "red"}, "release-events_all.csv"),
        ({"reason": "payment_failed"}, "release-events_reason-payment_failed.csv"),
        ({"sku": "a/../b"}, "release-events_sku-a-..-b-82af2e01.csv"),
        ({"user_id": "\u00e9" * 200}, "release-events_user_id---db0b291d.csv"),
        ({"from": "2026-01-14T10:00:00.123Z"}, "release-events_20260114T100000.123Z_now.csv"),
        (
            {"to": "2026-01-14T10:00:00.000Z", "sku": "lamp"},
            "release-events_begin_20260114T100000Z_sku-lamp.csv",
        ),
        ({"to": "2026-01-14T10:00:00.000Z"}, "release-events_begin_20260114T100000Z.csv"),
    ],
)
def test_the_file_name_has_the_filters(filters, name):
    assert filename(filters, exports.Reader.PROGRAMS) == name


@pytest.mark.parametrize("path", [f"{EXPORT}?for=spreadsheets", f"{EXPORT}?for=programs", EXPORT])
def test_a_file_for_spreadsheets_has_a_name_of_its_own(gateway, path):
    named = "release-events_all_for-spreadsheets.csv" if "spreadsheets" in path else "release-events_all.csv"
    for method in ("HEAD", "GET"):
        headers = ask(gateway, method, path, headers=bearer("auditor"))[1]
        assert headers["Content-Disposition"] == f'attachment; filename="{named}"'


def test_files_with_other_filters_have_other_names_of_moderate_length():
    texts = ["a b", "a-b", "a/b", "\u00e9", "\u00e8", "x" * 200, "x" * 199 + "y"]
    names = [filename({"user_id": text, "reason": text}, reader) for text in texts for reader in exports.Reader]
    assert len(set(names)) == len(texts) * len(exports.Reader)
    assert all(len(name) <= 200 and re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_an_operation_at_the_time_of_the_release_is_linked_to_it():
    at = "2026-01-14T10:30:00.123Z"
    (found,) = linked([release(1)], {ORDER_ID: [operation(at)]})
    assert found["operations"] == [operation(at)]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=5", "unknown_parameter"),
        ("cursor=abc", "unknown_parameter"),
        ("offset=1", "unknown_parameter"),
        ("sku=-", "bad_request"),
        ("from=yesterday", "bad_request"),
        ("from=2026-01-15T00:00:00Z&to=2026-01-14T00:00:00Z", "bad_request"),
    ],
)
def test_a_bad_filter_is_an_error_like_any_other(gateway, services, query, says):
    assert code(get(gateway, f"{EXPORT}?{query}")) == (400, says)
    assert services.asked == []


@pytest.mark.parametrize("call", ["open_release_export", "release_export_page", "operations_of"])
@pytest.mark.parametrize("fault", [ServiceUnavailable, CannotWork])
def test_an_unavailable_service_before_the_first_byte_is_503_at_once(gateway, services, call, fault):
    services.releases = many(1)
    services.faults = {call: [fault()]}
    assert code(get(gateway, EXPORT)) == (503, "unavailable")


@pytest.mark.parametrize("role", ["customer", "operator", "service", "nobody"])
def test_other_roles_cannot_export(gateway, services, role):
    for path in (EXPORT, PATH, f"{PATH}/7"):
        assert code(get(gateway, path, role)) == (403, "forbidden")
        assert code(ask(gateway, "GET", path)) == (401, "unauthenticated")
    assert services.asked == []


def test_a_head_request_opens_no_export(gateway, services):
    status, headers, text = ask(gateway, "HEAD", f"{EXPORT}?to=2026-01-14T10:00:00Z", headers=bearer("auditor"))
    assert (status, headers["Content-Type"], text) == (200, "text/csv; charset=utf-8", "")
    assert headers["Content-Disposition"] == 'attachment; filename="release-events_begin_20260114T100000Z.csv"'
    assert ask(gateway, "HEAD", EXPORT)[0] == 401
    assert ask(gateway, "HEAD", f"{EXPORT}?sku=-", headers=bearer("auditor"))[0] == 400
    assert services.asked == []


def test_a_short_outage_neither_breaks_an_export_nor_loses_or_repeats_a_row(gateway, services):
    services.releases = many(9)
    texts = [get(gateway, EXPORT)[2]]
    for call in ("release_export_page", "operations_of", "close_release_export"):
        for fault in (ServiceUnavailable, CannotWork):
            services.faults = {call: [None, fault(), fault(), fault()][call == "close_release_export" :]}
            texts.append(get(gateway, EXPORT)[2])
            assert not any(services.faults.values())
    assert set(texts) == {texts[0]}
    assert read(texts[0])[2]["rows"] == 9


def broken(gateway, path=EXPORT):
    """The part of a file that came before its connection was broken off."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request("GET", path, headers=bearer("auditor"))
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
    finally:
        connection.close()
    return caught.value.partial.decode()


@pytest.mark.parametrize("call", ["release_export_page", "operations_of", "close_release_export"])
def test_a_long_outage_breaks_the_export_off_and_is_logged(gateway, services, call, monkeypatch, caplog):
    monkeypatch.setattr(export, "RETRY_TIMEOUT_S", 0.1)
    services.releases = many(5)
    first = [] if call == "close_release_export" else [None]
    services.faults = {call: [*first, *(ServiceUnavailable("inventory is away") for _ in range(1000))]}
    text = broken(gateway)
    assert text.startswith('"id","order_id",')
    assert "manifest" not in text
    (line,) = [record for record in caplog.records if record.name == "gateway.export"]
    assert line.levelno == logging.WARNING
    assert EXPORT_ID in line.getMessage()
    assert "inventory is away" in line.getMessage()


def test_an_unexpected_error_breaks_the_export_off_at_once_and_is_logged(gateway, services, caplog):
    services.releases = many(5)
    services.faults = {"release_export_page": [None, RuntimeError("a fault")]}
    assert "manifest" not in broken(gateway)
    (line,) = [record for record in caplog.records if record.name == "gateway.export"]
    assert (line.levelno, line.exc_info[0]) == (logging.ERROR, RuntimeError)


def test_the_next_page_is_read_after_the_client_took_the_previous_one(services):
    services.releases = many(1000)
    running = Running(EXPORT_ID, lambda method, *args: services.call(method, args, {}, {}, 1), lambda: None, "t")
    running.read()
    pieces = running.file()
    for taken in range(1, 5):
        next(pieces)
        assert len(services.asked_for("release_export_page")) == taken
    pieces.close()


def test_an_export_stops_reading_when_its_client_has_gone(gateway, services):
    services.releases = many(100_000)
    with dial(gateway) as client:
        token = bearer("auditor")["Authorization"]
        client.sendall(f"GET {EXPORT} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        assert client.recv(10)
    while gateway.connections:
        eventlet.sleep(0.01)
    assert 0 < len(services.asked_for("release_export_page")) < 50_000
    assert services.asked_for("close_release_export") == []


def begun(gateway, services, count, read=get, path=EXPORT):
    """Exports that have begun and wait for an unavailable service."""
    services.releases = many(10)
    services.away = {"release_export_page"}
    running = [eventlet.spawn(read, gateway, path) for _ in range(count)]
    while len(services.asked_for("release_export_page")) < 2 * count:
        eventlet.sleep(0.01)
    return running


def test_an_export_that_waits_for_a_service_ends_when_its_client_goes(gateway, services):
    services.releases = many(10)
    services.away = {"release_export_page"}
    with dial(gateway) as client:
        token = bearer("auditor")["Authorization"]
        client.sendall(f"GET {EXPORT} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        while len(services.asked_for("release_export_page")) < 3:
            eventlet.sleep(0.01)
    began = time.monotonic()
    while gateway.connections:
        eventlet.sleep(0.01)
    assert time.monotonic() - began < 5  # of RETRY_TIMEOUT_S


def test_exports_hold_no_worker(gateway, services):
    running = begun(gateway, services, 5)  # of 1 worker
    assert get(gateway, f"{PATH}?limit=1")[0] == 200
    assert not any(thread.dead for thread in running)
    services.away = set()
    assert {read(thread.wait()[2])[2]["rows"] for thread in running} == {10}


def test_a_stop_lets_a_nearly_finished_export_finish(services):
    with serving(Gateway) as server:
        (running,) = begun(server, services, 1)
        eventlet.spawn_after(0.2, services.away.clear)
        server.container.stop()
        assert read(running.wait()[2])[2]["rows"] == 10


def test_a_stop_breaks_a_longer_export_off(services, monkeypatch, caplog):
    monkeypatch.setattr(export, "STOP_S", 0.2)
    with serving(Gateway) as server:
        (running,) = begun(server, services, 1, read=broken)
        began = time.monotonic()
        server.container.stop()
        assert time.monotonic() - began < 5
        assert "manifest" not in running.wait()
    assert any("the service stops" in record.getMessage() for record in caplog.records)


def test_an_http_1_0_client_can_tell_a_broken_file_by_its_missing_manifest(gateway, services, monkeypatch):
    monkeypatch.setattr(export, "RETRY_TIMEOUT_S", 0.05)
    services.releases = many(5)
    for faults in ([], [None, *(ServiceUnavailable() for _ in range(1000))]):
        services.faults = {"release_export_page": faults}
        with dial(gateway) as client:
            token = bearer("auditor")["Authorization"]
            client.sendall(f"GET {EXPORT} HTTP/1.0\r\nAuthorization: {token}\r\n\r\n".encode())
            assert ("manifest" in hear(client)) == (not faults)
