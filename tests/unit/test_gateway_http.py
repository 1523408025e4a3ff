"""The HTTP API with fake services: roles, reading of requests, and the shape of every answer."""

import inspect
import json
import re
import uuid
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import urlencode

import eventlet
import pytest
from nameko.containers import ServiceContainer
from nameko.exceptions import RemoteError

from gateway.api import http as api_http
from gateway.api import strict_json
from gateway.api.cursors import Cursors
from gateway.api.errors import STATUS
from gateway.api.http import Api
from gateway.service import GatewayService
from shared import auth, errors
from shared.config import Settings
from shared.edge import http as http_edge
from shared.edge.rpc_proxy import RpcProxy
from shared.logs import Reminder
from tests.unit.serving import KEYS, SECRET, Fake, ask, say, serving, signed_cursor

ORDER_ID = "01a1fcf8-0515-7912-9139-7154577473a5"
ORDER = {"currency": "EUR", "items": [{"sku": "A-1", "quantity": 2, "unit_price": 100}]}
QUEUE = "q.inventory.commit-requested"
JSON = {"Content-Type": "application/json"}


class Service:
    """A fake of a service behind RPC. It gives the answer that a test sets and records its calls."""

    def __init__(self):
        self.asked = []
        self.answer = {}
        self.before = lambda: None  # what happens before it answers

    def under(self, context):
        return _Asked(self, dict(context))


class _Asked:
    def __init__(self, service, context):
        self._service, self._context = service, context

    def __getattr__(self, method):
        def call(*args, **kwargs):
            self._service.asked.append((method, args, kwargs, self._context))
            self._service.before()
            if isinstance(self._service.answer, Exception):
                raise self._service.answer
            return self._service.answer

        return call


BEHIND = Service()


class Gateway(GatewayService):
    name = "gateway"


# Whatever service a route calls, the fake answers.
for _name, _dependency in inspect.getmembers(GatewayService, lambda item: isinstance(item, RpcProxy)):
    setattr(Gateway, _name, Fake(BEHIND))


@pytest.fixture(scope="module")
def running():
    with serving(Gateway) as server:
        yield server


@pytest.fixture
def gateway(running):
    BEHIND.asked.clear()
    BEHIND.answer = {}
    return running


def bearer(*roles, sub="alice"):
    return {"Authorization": f"Bearer {auth.issue(KEYS, sub, roles)}"}


def post_order(gateway, body=ORDER, key="k-1", roles=("customer",), **headers):
    BEHIND.answer = BEHIND.answer or {
        "status": 201,
        "body": {"order_id": ORDER_ID},
        "location": "/x",
        "replayed": False,
    }
    sent = body if isinstance(body, bytes | Iterator) else json.dumps(body).encode()
    keyed = {} if key is None else {"Idempotency-Key": key}
    return ask(gateway, "POST", "/api/orders", sent, {**JSON, **bearer(*roles), **keyed, **headers})


def code(answer):
    status, _, body = answer
    return status, body["error"]["code"]


ROOT = Path(__file__).resolve().parent.parent.parent
ROUTES = [
    item for name in dir(GatewayService) for item in getattr(getattr(GatewayService, name), "nameko_entrypoints", ())
]


def test_a_service_that_several_subjects_call_is_one_dependency():
    container = ServiceContainer(GatewayService, {"settings": Settings(auth_keys=KEYS)})
    names = [item.attr_name for item in container.dependencies if isinstance(item, RpcProxy)]
    assert "ops_soon" in names, "several subjects call ops"
    assert len(names) == len(set(names))
    assert len({id(item.replies) for item in container.dependencies if isinstance(item, RpcProxy)}) == 1


# The words of docs/http.md for the callers of a route. A service decides whose resource the customer may see.
CALLERS = {
    "anyone": None,
    "any signed-in user": set(auth.ROLES),
    "customer": {"customer"},
    "service, admin": {"service", "admin"},
    "admin, service": {"service", "admin"},
    "admin": {"admin"},
    "owner, admin": {"customer", "admin"},
    "owner, operator, auditor, admin": {"customer", "operator", "auditor", "admin"},
    "operator, admin": {"operator", "admin"},
    "operator, auditor, admin": {"operator", "auditor", "admin"},
    "operator, admin, service": {"operator", "admin", "service"},
    "auditor, admin": {"auditor", "admin"},
    "auditor, admin, signed in there": {"auditor", "admin"},
}


def without_names(path):
    """A path with its parameters unnamed: docs/http.md writes {id} for all of them."""
    return re.sub(r"{\w+}", "{}", path)


def documented_words():
    """From the table in docs/http.md, which people review: "GET /path/{}" and the callers of each route in words."""
    found, words = {}, ""
    for line in (ROOT / "docs" / "http.md").read_text(encoding="utf-8").splitlines():
        calls = re.findall(r"`(GET|POST|PUT|DELETE|PATCH) (/[^`?]*)", line.partition(" | ")[0])
        if line.startswith("|") and calls and "/healthz" not in line:
            column = line.split(" | ")[1]
            words = words if column == "the same" else column
            found |= {f"{method} {without_names(path)}": words for method, path in calls}
    return found


DOCUMENTED_ROLES = {tuple(route.split(" ")): CALLERS[words] for route, words in documented_words().items()}
EXPECTED_ROLES = {
    (item.method, item.label): DOCUMENTED_ROLES.get((item.method, without_names(item.label)), "not documented")
    for item in ROUTES
}
# Clients of these routes send a cookie and get pages: see test_dashboard.py.
PAGES = {(item.method, item.label) for item in ROUTES if not item.in_document}


def test_every_route_allows_the_roles_that_the_documentation_names():
    assert {(item.method, item.label): item.roles for item in ROUTES} == EXPECTED_ROLES
    assert len(DOCUMENTED_ROLES) == len(ROUTES)


@pytest.mark.parametrize("route", [route for route in EXPECTED_ROLES if EXPECTED_ROLES[route] and route not in PAGES])
def test_the_token_and_the_role_are_checked_before_anything_else(gateway, route):
    method, label = route
    path = (
        re.sub(r"\{\w+_id\}", ORDER_ID, label.replace("{event_id}", "7"))
        .replace("{sku}", "A-1")
        .replace("{queue}", QUEUE)
    )
    answer = ask(gateway, method, path, b"{not json")
    assert code(answer) == (401, "unauthenticated")
    assert answer[1]["WWW-Authenticate"].startswith("Bearer")
    others = sorted(set(auth.ROLES) - EXPECTED_ROLES[route]) or ["nobody"]
    for roles in [*combinations(others, 1), *combinations(others, 2)]:
        assert code(ask(gateway, method, path, b"{not json", bearer(*roles))) == (403, "forbidden")
    assert BEHIND.asked == []
    for roles in [pair for pair in combinations(auth.ROLES, 2) if not EXPECTED_ROLES[route].isdisjoint(pair)]:
        assert ask(gateway, method, path, b"{not json", bearer(*roles))[0] not in (401, 403)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "bearer  x y", "Token x"])
def test_an_invalid_bearer_token_is_401(gateway, header):
    assert code(ask(gateway, "GET", "/api/stocks", headers={"Authorization": header})) == (401, "unauthenticated")


def test_only_the_bearer_scheme_is_accepted_in_any_case(gateway):
    token = bearer("customer")["Authorization"].split()[1]
    for scheme, status in (("Basic", 401), ("Token", 401), ("BEARER", 200), ("bearer", 200)):
        assert ask(gateway, "GET", "/api/stocks", headers={"Authorization": f"{scheme} {token}"})[0] == status


def test_the_identity_and_the_trace_travel_with_the_call(gateway):
    trace_id = uuid.uuid4().hex
    headers = {**bearer("customer", "auditor"), "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    ask(gateway, "GET", f"/api/orders/{ORDER_ID}", headers=headers)
    assert BEHIND.asked[0][3] | {"call_id_stack": None} == {
        "trace_id": trace_id,
        "user_id": "alice",
        "roles": ["customer", "auditor"],
        "call_id_stack": None,
    }


def test_every_answer_has_its_trace_and_forbids_caching_and_sniffing(gateway):
    for path in ("/api/stocks", "/api/nothing", "/api/auth/token"):
        _, headers, _ = ask(gateway, "GET", path, headers=bearer("customer"))
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == "no-store"
        assert {"X-Correlation-ID", "traceparent"} <= set(headers.keys()), "as they are written in the documents"
        correlation = uuid.UUID(headers["X-Correlation-ID"])
        assert headers["traceparent"].split("-")[1] == correlation.hex


@pytest.mark.parametrize(
    ("sent", "trace_id", "correlation_id"),
    [
        ({"X-Correlation-ID": ORDER_ID}, ORDER_ID.replace("-", ""), ORDER_ID),
        ({"traceparent": "00-" + "ab" * 16 + "-00f067aa0ba902b7-01"}, "ab" * 16, str(uuid.UUID("ab" * 16))),
        (
            {"traceparent": "00-" + "ab" * 16 + "-00f067aa0ba902b7-01", "X-Correlation-ID": "cart-7"},
            "ab" * 16,
            "cart-7",
        ),
        ({"X-Correlation-ID": "cart-7"}, None, "cart-7"),
        ({"X-Correlation-ID": "a b"}, None, None),
        ({"X-Correlation-ID": "x" * 129}, None, None),
        ({"X-Correlation-ID": str(uuid.UUID(int=0))}, None, str(uuid.UUID(int=0))),
        ({"traceparent": "00-nonsense"}, None, None),
    ],
)
def test_a_trace_id_comes_from_the_client_or_is_new(gateway, sent, trace_id, correlation_id):
    _, headers, body = ask(gateway, "GET", "/api/nothing", headers=sent)
    answered = headers["traceparent"].split("-")[1]
    assert uuid.UUID(body["error"]["traceId"]).hex == answered
    assert answered == trace_id or (trace_id is None and answered.strip("0"))
    assert headers["X-Correlation-ID"] == (correlation_id or body["error"]["traceId"])


def test_errors_have_one_shape(gateway):
    BEHIND.answer = errors.BelowReserved("Twelve are reserved.", {"reserved": 12})
    status, _, body = ask(gateway, "GET", "/api/stocks/A-1", headers=bearer("customer"))
    assert status == 409
    assert body["error"].pop("traceId")
    assert body == {"error": {"code": "below_reserved", "message": "Twelve are reserved.", "details": {"reserved": 12}}}


@pytest.mark.parametrize("kind", STATUS)
def test_an_error_of_a_service_has_the_status_of_the_table(gateway, kind):
    BEHIND.answer = kind()
    expected = "unavailable" if STATUS[kind] == 503 else kind.code
    assert code(ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))) == (STATUS[kind], expected)


@pytest.mark.parametrize("kind", [errors.CannotWork, errors.PublishFailed, errors.ServiceUnavailable])
def test_an_unavailable_service_is_logged_and_not_named_to_the_client(gateway, kind, caplog, monkeypatch):
    monkeypatch.setattr(api_http, "_reminder", Reminder())
    BEHIND.answer = kind("the database the-db-host is away", {"host": "the-db-host"})
    answer = ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    assert code(answer) == (503, "unavailable")
    assert "the-db-host" not in json.dumps(answer[2])
    assert "the-db-host" in caplog.text


def test_the_table_has_every_error_that_a_client_can_get():
    reported = {errors.ServiceUnavailable, errors.RateLimited, errors.IdempotencyKeyReused, errors.VersionMoved}
    assert all(any(kind in STATUS for kind in error.__mro__) for error in reported)
    assert {STATUS[kind] for kind in STATUS} == {
        *{400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 414, 415, 417, 422, 429, 431},
        *{501, 503, 505},
    }


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password=secret"),
        RemoteError("IntegrityError", "Failing row contains (secret)"),
        errors.UnknownOrder("secret"),
        errors.ConfigurationFault("secret"),
    ],
)
def test_an_unexpected_error_is_500_and_reveals_nothing(gateway, error, caplog):
    BEHIND.answer = error
    answer = ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    assert code(answer) == (500, "internal")
    assert "secret" not in json.dumps(answer[2])
    assert uuid.UUID(answer[2]["error"]["traceId"]).hex in caplog.text


@pytest.mark.parametrize(
    "error", [errors.ServiceUnavailable, errors.RateLimited, errors.TooManyOrders, errors.IdempotencyInProgress]
)
def test_retry_after_is_sent_with_errors_that_can_be_retried(gateway, error):
    BEHIND.answer = error()
    _, headers, _ = ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    assert int(headers["Retry-After"]) > 0


def test_an_unsupported_method_is_405_with_the_supported_ones(gateway):
    answer = ask(gateway, "DELETE", "/api/orders")
    assert code(answer) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(answer[1]["Allow"].split(", "))


def test_refusals_of_the_web_server_look_like_every_error(gateway):
    big = ask(gateway, "POST", "/api/orders", b" " * 70_000, JSON)
    assert code(big) == (413, "payload_too_large")
    head, _, body = say(gateway, "POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n").partition(
        "\r\n\r\n"
    )
    assert head.startswith("HTTP/1.1 400 ")
    assert "application/json" in head
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_a_chunked_body_is_an_order_like_any_other(gateway):
    pieces = json.dumps(ORDER)
    answer = post_order(gateway, iter([pieces[:9].encode(), pieces[9:].encode()]))
    assert answer[0] == 201
    assert BEHIND.asked[0][2]["order"]["items"] == ORDER["items"]


def test_a_request_that_finds_no_free_worker_is_503_soon_and_the_others_are_answered(gateway, monkeypatch):
    let_go = eventlet.Event()
    monkeypatch.setattr(http_edge, "WORKER_S", 0.1)
    monkeypatch.setattr(BEHIND, "before", let_go.wait)
    busy = [eventlet.spawn(post_order, gateway, key=f"k-{n}") for n in range(4)]
    eventlet.spawn_after(1.5, lambda: let_go.ready() or let_go.send())
    while len(BEHIND.asked) < 4 and not let_go.ready():
        eventlet.sleep(0.01)
    refused = post_order(gateway, key="one-more")
    if not let_go.ready():
        let_go.send()
    assert code(refused) == (503, "unavailable")
    assert refused[1]["Retry-After"] == "2"
    assert [thread.wait()[0] for thread in busy] == [201] * 4
    assert post_order(gateway, key="one-more")[0] == 201


def test_a_client_turned_away_gets_retry_after(gateway, monkeypatch):
    while gateway.connections:
        eventlet.sleep(0.01)
    monkeypatch.setattr(gateway.connections, "most", 0)
    answer = ask(gateway, "GET", "/api/stocks")
    assert code(answer) == (503, "unavailable")
    assert answer[1]["Retry-After"]
    assert answer[2]["error"]["message"] == "Too many connections."


def test_the_versioned_path_is_the_same_handler(gateway):
    BEHIND.answer = {"items": [], "next_cursor": None}
    assert ask(gateway, "GET", "/api/v1/stocks", headers=bearer("customer"))[2] == BEHIND.answer
    assert ask(gateway, "GET", "/api/v2/stocks", headers=bearer("customer"))[0] == 404


def test_a_head_request_has_the_headers_and_no_body(gateway):
    assert ask(gateway, "HEAD", "/api/stocks", headers=bearer("customer"))[::2] == (200, "")


PROTECTION = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.mark.parametrize("path", ["/api/stocks", "/api/openapi.json", "/api/nothing", "/", "/healthz", "/docs"])
def test_every_answer_has_the_headers_that_protect_browsers(gateway, path):
    _, headers, _ = ask(gateway, "GET", path)
    for name, value in PROTECTION.items():
        assert headers.get_all(name) == [value] or (path, name) == ("/docs", "Content-Security-Policy")


def test_an_unreadable_request_gets_the_same_headers(gateway):
    for text in ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "nonsense\r\n\r\n"):
        head = say(gateway, text).partition("\r\n\r\n")[0]
        assert all(f"{name}: {value}" in head for name, value in PROTECTION.items())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        '{"sku": "\N{SNOWMAN}"}'.encode("utf-16"),
        b'{"currency": "EUR", "currency": "USD"}',
        b'{"items": [{"sku": "a", "sku": "b"}]}',
        b'{"currency": NaN}',
        b'{"currency": -Infinity}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"{'currency': 'EUR'}",
    ],
)
def test_lenient_json_is_400(gateway, body):
    assert code(post_order(gateway, body)) == (400, "bad_json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"7", b"null", b"true"])
def test_json_that_is_not_an_object_is_422(gateway, body):
    assert code(post_order(gateway, body)) == (422, "validation_failed")


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/jsonx",
        "application/json; v=1; charset=latin-1",
    ],
)
def test_a_body_with_another_content_type_is_415(gateway, kind):
    assert code(post_order(gateway, **{"Content-Type": kind})) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        'Application/JSON; charset="UTF-8"',
        "application/json;charset=utf-8",
        'application/json; version=1; charset="utf-8"',
        'application/json ; a="b;charset=latin-1"',
        "application/json;",
        "application/json; charset=utf-8; v=1",
    ],
)
def test_every_spelling_of_the_json_content_type_is_accepted(gateway, kind):
    assert post_order(gateway, **{"Content-Type": kind})[0] == 201


@pytest.mark.parametrize(
    ("header", "key"), [("k-1", "k-1"), ('"k-1"', "k-1"), ("a" * 128, "a" * 128), ("A_z.9:-", "A_z.9:-")]
)
def test_a_key_is_accepted_with_or_without_quotes(gateway, header, key):
    assert post_order(gateway, key=header)[0] == 201
    assert BEHIND.asked[0][:3] == ("place_order", (), {"order": {**ORDER, "payment_method": "mock_ok"}, "key": key})


@pytest.mark.parametrize("header", ["", '""', "a b", 'k-1"', '"k-1', "a" * 129, "\xe9", "a,b", "a/b"])
def test_a_malformed_key_is_400(gateway, header):
    assert code(post_order(gateway, key=header)) == (400, "idempotency_key_invalid")
    assert BEHIND.asked == []


def test_a_missing_key_is_400(gateway):
    assert code(post_order(gateway, key=None)) == (400, "idempotency_key_required")


def test_the_body_is_checked_before_the_key(gateway):
    assert code(post_order(gateway, b"{", key=None)) == (400, "bad_json")
    assert code(post_order(gateway, {}, key=None)) == (422, "validation_failed")


def test_a_posted_order_is_answered_as_stored(gateway):
    BEHIND.answer = {
        "status": 201,
        "body": {"order_id": ORDER_ID},
        "location": f"/api/orders/{ORDER_ID}",
        "replayed": True,
    }
    status, headers, body = post_order(gateway)
    assert (status, body) == (201, {"order_id": ORDER_ID})
    assert headers["Location"] == f"/api/orders/{ORDER_ID}"
    assert headers["Idempotent-Replayed"] == "true"
    BEHIND.answer = {**BEHIND.answer, "replayed": False}
    assert "Idempotent-Replayed" not in post_order(gateway)[1]


class ProductionGateway(Gateway):
    name = "gateway"


def test_production_requires_a_payment_method(gateway):
    settings = Settings(env="production", auth_keys=KEYS, payment_methods=("card", "invoice"))
    with serving(ProductionGateway, settings=settings) as production:
        answer = post_order(production)
        assert code(answer) == (422, "validation_failed")
        assert list(answer[2]["error"]["details"]) == ["payment_method"]
        assert post_order(production, {**ORDER, "payment_method": "card"})[0] == 201


def test_an_order_with_a_payment_method_that_the_server_does_not_list_is_422(gateway):
    """Production lists its own: a client cannot choose how the mock provider answers."""
    assert post_order(gateway, {**ORDER, "payment_method": "mock_declined"})[0] == 201
    refused = post_order(gateway, {**ORDER, "payment_method": "card"})
    assert code(refused) == (422, "validation_failed")
    settings = Settings(env="production", auth_keys=KEYS, payment_methods=("card", "invoice"))
    with serving(ProductionGateway, settings=settings) as production:
        for method in ("mock_ok", "Card", "card,invoice"):
            refused = post_order(production, {**ORDER, "payment_method": method})
            assert code(refused) == (422, "validation_failed")
            assert refused[2]["error"]["details"] == {"payment_method": ["Must be one of: card, invoice."]}
        assert post_order(production, {**ORDER, "payment_method": "invoice"})[0] == 201


@pytest.mark.parametrize(
    "path",
    [
        "/api/stocks?page=2",
        "/api/stocks/A-1?limit=1",
        f"/api/orders/{ORDER_ID}?x",
        "/api/stocks/release-events?User_id=a",
    ],
)
def test_an_unknown_parameter_is_400(gateway, path):
    assert code(ask(gateway, "GET", path, headers=bearer("admin"))) == (400, "unknown_parameter")


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=1.0", "limit=-1", "limit=", "limit=1&limit=2", "limit=%D9%A3", "limit=1e2"),
        *("cursor=", "cursor=a%00b", "order_id=7", "sku=-", "trace_id=7", "reason="),
        *("from=2026-01-14T10:30:00", "from=yesterday", "to=2026-01-14", "from=0001-01-01T00:00:00%2B14:00"),
        "from=2026-01-15T00:00:00Z&to=2026-01-14T00:00:00Z",
    ],
)
def test_a_parameter_with_a_bad_value_is_400_and_named(gateway, query):
    answer = ask(gateway, "GET", f"/api/stocks/release-events?{query}", headers=bearer("auditor"))
    assert code(answer) == (400, "bad_request")
    assert set(answer[2]["error"]["details"]) <= {pair.split("=")[0] for pair in query.split("&")}


STOCKS = "/api/stocks"
SIGNED = signed_cursor(STOCKS, "abc")
INVENTED = {
    "without a signature": "abc",
    "with an empty one": "abc.",
    "with a signature only": SIGNED[3:],
    "of another position": "abd" + SIGNED[3:],
    "with another signature": SIGNED[:4] + ("A" if SIGNED[4] != "A" else "B") + SIGNED[5:],
    "with half of the signature": SIGNED[:15],
    "with more behind it": SIGNED + "A",
    "of another route": signed_cursor("/api/orders", "abc"),
    "by another key": Cursors((("k1", "another-secret-of-more-than-32-bytes"),), STOCKS).sign("abc"),
    "in other letters": "abc.\u00fc",
    "with a lone surrogate": "abc.\ud800",
}


@pytest.mark.parametrize("cursor", INVENTED.values(), ids=INVENTED)
def test_a_cursor_that_the_gateway_has_not_signed_reaches_no_service(gateway, cursor):
    query = urlencode({"cursor": cursor}, errors="surrogatepass")
    answer = ask(gateway, "GET", f"{STOCKS}?{query}", headers=bearer("customer"))
    assert code(answer) == (400, "invalid_cursor")
    assert BEHIND.asked == []


def test_a_cursor_that_was_handed_out_comes_back_as_the_service_made_it(gateway):
    BEHIND.answer = {"items": [], "next_cursor": "abc"}
    status, headers, body = ask(gateway, "GET", STOCKS, headers=bearer("customer"))
    assert (status, body["next_cursor"]) == (200, SIGNED)
    assert headers["Link"] == f'<{STOCKS}?cursor={SIGNED}>; rel="next"'
    for path in (STOCKS, "/api/v1/stocks"):
        ask(gateway, "GET", f"{path}?cursor={SIGNED}", headers=bearer("customer"))
        assert BEHIND.asked[-1][2] == {"limit": 50, "cursor": "abc"}


def test_a_cursor_outlives_the_change_of_keys():
    old, new = (("old", SECRET),), (("new", "another-secret-of-more-than-32-bytes"), ("old", SECRET))
    signed = Cursors(old, STOCKS).sign("abc")
    assert Cursors(new, STOCKS).open(signed) == "abc"
    assert Cursors(new, STOCKS).sign("abc") != signed


def test_filters_of_releases_are_normalised(gateway):
    cursor = signed_cursor("/api/stocks/release-events", "abc")
    query = (
        f"limit=7&cursor={cursor}&order_id={ORDER_ID.upper()}&sku=A-1&reason=expired&user_id=alice&trace_id={ORDER_ID}"
        "&from=2026-01-14T12:00:00%2B02:00&to=2026-01-15T00:00:00Z"
    )
    BEHIND.answer = {"items": [], "next_cursor": None, "total": None}
    assert ask(gateway, "GET", f"/api/stocks/release-events?{query}", headers=bearer("auditor"))[0] == 200
    (method, (filters, *paging), _, _) = BEHIND.asked[0]
    assert (method, paging) == ("release_events", [7, "abc", 0, False])
    assert filters == {
        "order_id": ORDER_ID,
        "sku": "A-1",
        "reason": "expired",
        "user_id": "alice",
        "trace_id": ORDER_ID.replace("-", ""),
        "from": "2026-01-14T10:00:00.000Z",
        "to": "2026-01-15T00:00:00.000Z",
    }


@pytest.mark.parametrize(
    "query",
    [
        *("status=", "status=SENT", "status=PAID,", "status=paid", "sort=", "sort=total", "updated_from=yesterday"),
        "updated_from=2026-01-15T00:00:00Z&updated_to=2026-01-14T00:00:00Z",
    ],
)
def test_a_bad_filter_of_orders_is_400_and_named(gateway, query):
    answer = ask(gateway, "GET", f"/api/orders?{query}", headers=bearer("operator"))
    assert code(answer) == (400, "bad_request")
    assert set(answer[2]["error"]["details"]) <= {pair.split("=")[0] for pair in query.split("&")}


def test_filters_of_orders_are_passed_on(gateway):
    query = "status=PAID,CANCELLED&sort=updated_at&updated_from=2026-01-14T12:00:00%2B02:00"
    BEHIND.answer = {"items": [], "next_cursor": None}
    assert ask(gateway, "GET", f"/api/orders?{query}", headers=bearer("operator"))[0] == 200
    filters = {"status": "PAID,CANCELLED", "sort": "updated_at", "updated_from": "2026-01-14T10:00:00.000Z"}
    assert BEHIND.asked[0][:2] == ("list_orders", (50, None, filters))


def test_a_page_has_fifty_items_by_default(gateway):
    ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    assert BEHIND.asked[0][:3] == ("list_stocks", (), {"limit": 50, "cursor": None})


@pytest.mark.parametrize(
    "path", ["/api/orders/7", "/api/orders/7/timeline", "/api/payments/x", "/api/payments?order_id=7"]
)
def test_an_id_that_is_not_a_uuid_is_404(gateway, path):
    assert code(ask(gateway, "GET", path, headers=bearer("customer"))) == (404, "not_found")


def test_an_id_in_capitals_is_the_same_id(gateway):
    ask(gateway, "GET", f"/api/orders/{ORDER_ID.upper()}", headers=bearer("customer"))
    assert BEHIND.asked[0][1] == (ORDER_ID,)


def test_an_impossible_sku_is_404_to_read_and_422_to_write(gateway):
    for sku in ("-A", "a%00", "a%20b", "a" * 65, "%E2%98%83"):
        assert ask(gateway, "GET", f"/api/stocks/{sku}", headers=bearer("admin"))[0] == 404
        body = json.dumps({"on_hand": 1}).encode()
        assert ask(gateway, "PUT", f"/api/stocks/{sku}", body, {**JSON, **bearer("admin")})[0] == 422
    assert BEHIND.asked == []


@pytest.mark.parametrize(
    ("path", "allowed"), [("/api/stocks/release-events", {"GET", "HEAD"}), ("/api/v1/stocks/reserve", {"POST"})]
)
def test_path_words_of_the_api_are_not_skus(gateway, path, allowed):
    for method in {"GET", "PUT", "POST", "DELETE"} - allowed:
        answer = ask(gateway, method, path, b'{"on_hand": 1}', {**JSON, **bearer("admin")})
        assert code(answer) == (405, "method_not_allowed")
        assert set(answer[1]["Allow"].split(", ")) == allowed
    assert BEHIND.asked == []


def test_a_path_word_of_the_api_elsewhere_may_be_a_sku(gateway):
    assert ask(gateway, "GET", "/api/stocks/reservations", headers=bearer("customer"))[0] == 200
    assert BEHIND.asked[0][:2] == ("get_stock", ("reservations",))


def test_stock_is_set_with_or_without_a_version(gateway):
    headers = {**JSON, **bearer("admin")}
    ask(gateway, "PUT", "/api/stocks/A-1", b'{"on_hand": 5}', headers)
    ask(gateway, "PUT", "/api/stocks/A-1", b'{"on_hand": 5, "version": 3}', headers)
    assert [asked[1] for asked in BEHIND.asked] == [("A-1", 5, None), ("A-1", 5, 3)]


def test_a_reservation_is_released_and_committed_without_a_body(gateway):
    for verb in ("release", "commit"):
        assert ask(gateway, "POST", f"/api/stocks/reservations/{ORDER_ID}/{verb}", headers=bearer("service"))[0] == 200
    assert [asked[:2] for asked in BEHIND.asked] == [
        ("release_reservation", (ORDER_ID,)),
        ("commit_reservation", (ORDER_ID,)),
    ]


def replay(gateway, body, queue=QUEUE):
    BEHIND.answer = {"replay_id": ORDER_ID}
    return post_replay(gateway, body, queue)


def post_replay(gateway, body, queue=QUEUE):
    return ask(
        gateway, "POST", f"/api/ops/dlq/{queue}/replays", json.dumps(body).encode(), {**JSON, **bearer("operator")}
    )


@pytest.mark.parametrize("body", [{"ids": [ORDER_ID.upper()], "max": 3, "rate": "10/s"}, {"all": "perhaps"}, {}])
def test_a_replay_request_is_passed_on_as_it_is_and_answered_with_its_location(gateway, body):
    status, headers, answer = replay(gateway, body)
    assert (status, answer) == (202, {"replay_id": ORDER_ID})
    assert headers["Location"] == f"/api/ops/replays/{ORDER_ID}"
    (method, asked, _, context) = BEHIND.asked[0]
    assert (method, context["user_id"]) == ("start_replay", "alice")
    assert asked == (QUEUE, body)


@pytest.mark.parametrize("body", [[], None, "all", 1])
def test_a_replay_request_that_is_not_an_object_is_422(gateway, body):
    answer = replay(gateway, body)
    assert code(answer) == (422, "validation_failed")
    assert answer[2]["error"]["details"] == {"body": ["Invalid input type."]}
    assert BEHIND.asked == []


def test_a_replay_request_nested_deeper_than_rpc_can_carry_is_422(gateway):
    deep = 1
    for _ in range(100):
        deep = [deep]
    answer = replay(gateway, {"ids": deep})
    assert code(answer) == (422, "validation_failed")
    assert answer[2]["error"]["details"] == {"body": ["Is nested too deeply."]}
    assert BEHIND.asked == []


def test_the_problems_that_ops_finds_in_a_replay_request_are_the_details_of_the_answer(gateway):
    problems = {"max": ["must be an integer"], "ids": {"0": ["must be a UUID"]}}
    BEHIND.answer = errors.ValidationFailed(details=problems)
    answer = post_replay(gateway, {"max": "1", "ids": ["7"]})
    assert code(answer) == (422, "validation_failed")
    assert answer[2]["error"]["details"] == problems


@pytest.mark.parametrize("queue", ["Q", "%00", "a%20b", "%E2%98%83", "q" * 101, ".."])
def test_an_impossible_queue_name_is_404(gateway, queue):
    assert code(replay(gateway, {"all": True}, queue)) == (404, "not_found")
    assert code(ask(gateway, "GET", f"/api/ops/dlq/{queue}", headers=bearer("admin"))) == (404, "not_found")
    assert BEHIND.asked == []


def test_filters_of_dead_messages_are_normalised(gateway):
    cursor = signed_cursor("/api/ops/dlq/<queue>", "abc")
    query = f"reason=crash&type=order.paid&order_id={ORDER_ID.upper()}&trace_id={ORDER_ID}&limit=7&cursor={cursor}"
    assert ask(gateway, "GET", f"/api/ops/dlq/{QUEUE}.dlq?{query}", headers=bearer("operator"))[0] == 200
    assert BEHIND.asked[0][:2] == (
        "dead_letters",
        (
            f"{QUEUE}.dlq",
            {
                "reason": "crash",
                "event_type": "order.paid",
                "order_id": ORDER_ID,
                "trace_id": ORDER_ID.replace("-", ""),
            },
            7,
            "abc",
        ),
    )


def test_an_order_is_cancelled_once_for_each_key(gateway):
    for replayed, header in ((False, None), (True, "true")):
        BEHIND.answer = {"status": 202, "body": {"order_id": ORDER_ID}, "location": "/there", "replayed": replayed}
        headers = {**bearer("customer"), "Idempotency-Key": "k-1"}
        status, response_headers, body = ask(gateway, "POST", f"/api/orders/{ORDER_ID}/cancel", headers=headers)
        assert (status, body, response_headers["Location"]) == (202, {"order_id": ORDER_ID}, "/there")
        assert response_headers["Idempotent-Replayed"] == header
    assert {asked[:2] for asked in BEHIND.asked} == {("cancel_order", (ORDER_ID, "k-1"))}
    answer = ask(gateway, "POST", f"/api/orders/{ORDER_ID}/cancel", headers=bearer("customer"))
    assert code(answer) == (400, "idempotency_key_required")


def test_a_refund_is_retried_by_an_operator_without_a_key(gateway):
    BEHIND.answer = {"status": 202, "body": {"order_id": ORDER_ID}, "location": "/there", "replayed": False}
    assert ask(gateway, "POST", f"/api/orders/{ORDER_ID}/refund/retry", headers=bearer("operator"))[0] == 202
    assert BEHIND.asked[0][:2] == ("retry_refund", (ORDER_ID,))


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (
            {"username": "a", "password": "b"},
            ("issue_token", ("a", "b", {"network": "127.0.0.1", "client": "", "session_id": None}), {}),
        ),
        ({"user_id": "a", "roles": ["admin"]}, ("issue_mock_token", (), {"user_id": "a", "roles": ["admin"]})),
    ],
)
def test_signing_in_needs_no_token(gateway, body, asked):
    assert ask(gateway, "POST", "/api/auth/token", json.dumps(body).encode(), JSON)[0] == 200
    assert BEHIND.asked[0][:3] == asked


def test_wrong_credentials_are_401_with_a_challenge(gateway):
    BEHIND.answer = errors.Unauthenticated("The name or the password is wrong.")
    answer = ask(gateway, "POST", "/api/auth/token", b'{"username": "a", "password": "b"}', JSON)
    assert code(answer) == (401, "unauthenticated")
    assert answer[1]["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "a"},
        {"username": "a", "roles": ["admin"]},
        {"username": "a", "password": "b", "user_id": "c", "roles": ["admin"]},
        {"user_id": "a", "roles": []},
        {"user_id": "a", "roles": ["root"]},
        {"user_id": "a", "roles": "admin"},
        {"user_id": "a\0", "roles": ["admin"]},
    ],
)
def test_a_token_request_has_one_of_two_shapes(gateway, body):
    answer = ask(gateway, "POST", "/api/auth/token", json.dumps(body).encode(), JSON)
    assert code(answer) == (422, "validation_failed")


def test_a_route_declares_everything_about_itself():
    assert ROUTES
    assert all(isinstance(item, Api) and item.summary for item in ROUTES)


# The challenge of each refusal: RFC 6750, section 3.
CHALLENGES = {
    "no token": ({}, 401, 'Bearer realm="ecom"'),
    "another scheme": ({"Authorization": "Basic YTpi"}, 401, 'Bearer realm="ecom"'),
    "a token that is none": ({"Authorization": "Bearer a.b.c"}, 401, 'Bearer realm="ecom", error="invalid_token"'),
    "a role too few": (bearer("auditor"), 403, 'Bearer realm="ecom", error="insufficient_scope"'),
}


@pytest.mark.parametrize(("headers", "status", "challenge"), CHALLENGES.values(), ids=CHALLENGES)
def test_a_challenge_names_an_error_only_if_there_was_a_token(gateway, headers, status, challenge):
    answered, response_headers, _ = ask(gateway, "GET", "/api/ops/queues", headers=headers)
    assert (answered, response_headers.get_all("WWW-Authenticate")) == (status, [challenge])


def test_wrong_credentials_are_no_invalid_token(gateway):
    BEHIND.answer = errors.Unauthenticated("The name or the password is wrong.")
    _, headers, _ = ask(gateway, "POST", "/api/auth/token", b'{"username": "a", "password": "b"}', JSON)
    assert headers["WWW-Authenticate"] == 'Bearer realm="ecom"'


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("br, gzip", 415), ("identity", 201), ("", 201)])
def test_a_compressed_body_is_415_and_the_client_is_told_what_is_read(gateway, coding, status):
    """RFC 9110, section 15.5.16. Also for a body that only claims to be compressed."""
    answer = post_order(gateway, **{"Content-Encoding": coding})
    assert answer[0] == status
    if status == 415:
        assert code(answer) == (415, "unsupported_content_encoding")
        assert answer[1]["Accept-Encoding"] == "identity"


# Where JSON is wrong: body, words, and place (if the place is known).
WRONG_JSON = {
    "nothing": (b"", "empty", {}),
    "a missing comma": (b'{"currency": "EUR"\n "items": []}', "',' delimiter", {"line": 2, "column": 2}),
    "an end too early": (b'{"currency":', "Expecting value", {"line": 1, "column": 13}),
    "more after it": (b"{}\n\n {}", "Extra data", {"line": 3, "column": 2}),
    "NaN": (b'{"a": "NaN",\n "b": NaN}', "NaN is not JSON", {"line": 2, "column": 7}),
    "infinity": (b'{"a\\"Infinity": -Infinity}', "-Infinity is not JSON", {"line": 1, "column": 17}),
    "a name twice": (b'{"a": {"sku": 1, "sku": 2}}', 'the name "sku" twice', {}),
    "bytes that are no UTF-8": ('{\n"\N{SNOWMAN}'.encode() + b'\xff": 1}', "not UTF-8", {"line": 2, "column": 3}),
    "a byte order mark": (b"\xef\xbb\xbf{}", "byte order mark", {"line": 1, "column": 1}),
    "too many brackets": (b"[" * 60_000, "nested too deeply", {}),
}


@pytest.mark.parametrize(("body", "words", "place"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_an_error_of_json_says_what_is_wrong_and_its_place_if_it_has_one(gateway, body, words, place):
    answer = post_order(gateway, body)
    assert code(answer) == (400, "bad_json")
    fault = answer[2]["error"]
    assert words in fault["message"]
    assert fault["details"] == place
    if place:
        assert "line {line}, column {column}".format(**place) in fault["message"]


class CountedName(str):
    """A name that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedName.compared += 1
        return str.__eq__(self, other)


def test_a_name_given_twice_is_found_in_one_pass(monkeypatch):
    """Anybody may send a body of 64 kB: about 10,000 names, which must not cost 100 million comparisons."""
    monkeypatch.setattr(CountedName, "compared", 0)
    names = [*(f"{number}" for number in range(10_000)), "9999"]
    with pytest.raises(errors.BadJson, match='"9999" twice'):
        strict_json._unique_names([(CountedName(name), 0) for name in names])
    assert CountedName.compared < 20_000


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_change_under_a_condition_is_412_and_not_made(gateway, method, header):
    """RFC 9110, section 13.1: a condition that is not met forbids the change. What is changed has no ETag."""
    path, body = ("/api/stocks/A-1", b'{"on_hand": 1}') if method == "PUT" else ("/api/orders", json.dumps(ORDER))
    headers = {**JSON, **bearer("admin", "customer"), "Idempotency-Key": "k"}
    answer = ask(gateway, method, path, body, {**headers, header: "*" if header == "If-None-Match" else '"x"'})
    assert code(answer) == (412, "precondition_failed")
    assert BEHIND.asked == []


def test_a_condition_that_is_met_without_an_etag_is_met(gateway):
    conditions = {"If-None-Match": '"x"'}, {"If-None-Match": "*"}, {"If-Modified-Since": "never"}, {"If-Match": "*"}
    for headers in conditions:
        assert ask(gateway, "GET", "/api/stocks", headers={**bearer("customer"), **headers})[0] == 200


def test_a_part_of_a_body_is_refused(gateway):
    """RFC 9110, section 14.5."""
    headers = {**JSON, **bearer("admin"), "Content-Range": "bytes 0-3/10"}
    answer = ask(gateway, "PUT", "/api/stocks/A-1", b'{"on_hand": 1}', headers)
    assert code(answer) == (400, "bad_request")
    assert BEHIND.asked == []


def test_an_outage_is_logged_once_for_each_reason_and_half_minute(gateway, caplog, monkeypatch):
    monkeypatch.setattr(api_http, "_reminder", Reminder())
    for method in ("list_stocks", "get_stock"):
        BEHIND.answer = errors.ServiceUnavailable(f"no connection for inventory_service.{method}")
        for _ in range(3):
            ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    BEHIND.answer = errors.CannotWork("the database is away")
    ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.api.http"]
    assert len(lines) == 2
    assert "inventory_service" in lines[0]
    assert "the database is away" in lines[1]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        (None, "application/json"),
    ],
)
def test_the_first_page_leads_to_the_others(gateway, accept, kind):
    status, headers, body = ask(gateway, "GET", "/", headers={"Accept": accept} if accept else {})
    assert (status, headers["Content-Type"], headers["Vary"]) == (200, kind, "Accept")
    leads_to = set(body.values()) if kind == "application/json" else set(re.findall(r'href="([^"]+)"', body))
    assert leads_to == {"/docs", "/api/openapi.json", "/dashboard"}
    for path in leads_to:
        assert ask(gateway, "GET", path)[0] in (200, 401), "401 is the sign-in form"


def test_the_icon_that_every_browser_asks_for_is_no_error(gateway):
    assert ask(gateway, "GET", "/favicon.ico")[::2] == (204, "")


def test_json_ends_its_line(gateway):
    for path in ("/api/stocks", "/api/nothing", "/healthz"):
        text = say(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert text.endswith("}\n")
