"""CORS: pages of the origins in the settings may call the API and read answers, with tokens, never with cookies."""

import pytest

from gateway.api.openapi import document
from gateway.service import GatewayService
from shared import errors
from shared.config import Settings
from tests.unit.serving import KEYS, ask, serving
from tests.unit.test_gateway_http import BEHIND, Gateway, bearer, post_order

SHOP = "https://shop.example"
ASKS = {"Origin": SHOP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture(autouse=True)
def nothing_answered():
    BEHIND.answer = {}


@pytest.fixture(scope="module")
def gateway():
    settings = Settings(auth_keys=KEYS, cors_origins=(SHOP, "http://localhost:3000"))
    with serving(Gateway, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def closed():
    with serving(Gateway) as server:
        yield server


def listed(header):
    return set(header.split(", "))


def names_of_cors(headers):
    return {name for name in headers if name.startswith("Access-Control-")}


@pytest.mark.parametrize("path", ["/api/orders", "/api/v1/orders"])
def test_a_preflight_answer_lists_what_the_browser_may_send(gateway, path):
    status, headers, body = ask(gateway, "OPTIONS", path, headers=ASKS)
    assert (status, body) == (204, "")
    assert headers["Access-Control-Allow-Origin"] == SHOP
    assert listed(headers["Access-Control-Allow-Methods"]) == {"GET", "HEAD", "POST"}
    assert listed(headers["Access-Control-Allow-Headers"]) == {
        "Authorization",
        "Content-Type",
        "Idempotency-Key",
        "Last-Event-ID",
        "X-API-Version",
        "X-Correlation-ID",
        "traceparent",
    }
    assert int(headers["Access-Control-Max-Age"]) > 0
    assert headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", ["/api/stocks", "/api/nothing", "/api/auth/token", "/docs"])
def test_a_page_of_an_allowed_origin_may_read_every_answer(gateway, path):
    _, headers, _ = ask(gateway, "GET", path, headers={"Origin": SHOP, **bearer("customer")})
    assert headers["Access-Control-Allow-Origin"] == SHOP
    assert {"X-Correlation-ID", "traceparent"} <= listed(headers["Access-Control-Expose-Headers"])
    assert headers["Vary"] == "Origin"


def replayed(gateway):
    BEHIND.answer = {"status": 201, "body": {}, "location": "/x", "replayed": True}
    return post_order(gateway, Origin=SHOP)


def a_page_of_many(gateway):
    BEHIND.answer = {"items": [], "next_cursor": "more"}
    return ask(gateway, "GET", "/api/stocks", headers={"Origin": SHOP, **bearer("customer")})


def unavailable(gateway):
    BEHIND.answer = errors.ServiceUnavailable()
    return ask(gateway, "GET", "/api/stocks", headers={"Origin": SHOP, **bearer("customer")})


# Each header of the document, and an answer that has it.
ANSWERS = {
    "X-API-Version": a_page_of_many,
    "X-Correlation-ID": a_page_of_many,
    "traceparent": a_page_of_many,
    "Link": a_page_of_many,
    "Location": replayed,
    "Idempotent-Replayed": replayed,
    "Retry-After": unavailable,
    "WWW-Authenticate": lambda gateway: ask(gateway, "GET", "/api/stocks", headers={"Origin": SHOP}),
    "Accept-Encoding": lambda gateway: post_order(gateway, Origin=SHOP, **{"Content-Encoding": "gzip"}),
    "ETag": lambda gateway: ask(gateway, "GET", "/api/menu/categories", headers={"Origin": SHOP}),
    "Allow": lambda gateway: ask(gateway, "DELETE", "/api/stocks", headers={"Origin": SHOP}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_page_may_read_every_header_that_the_document_shows(gateway, name):
    _, headers, _ = ANSWERS[name](gateway)
    assert name in headers
    assert name in listed(headers["Access-Control-Expose-Headers"])


def test_every_header_of_the_document_is_tried():
    shown = set(document(GatewayService)["components"]["headers"])
    assert shown - set(ANSWERS) == {"Content-Disposition"}  # of the export, which needs a service that streams


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://shop.example.evil.example", "http://shop.example", "null", "*", f"{SHOP}:443"],
)
def test_a_page_of_another_origin_may_read_nothing(gateway, origin):
    answers = [
        ask(gateway, "GET", "/api/stocks", headers={"Origin": origin, **bearer("customer")}),
        ask(gateway, "OPTIONS", "/api/stocks", headers={**ASKS, "Origin": origin}),
    ]
    assert [status for status, _, _ in answers] == [200, 405]
    for _, headers, _ in answers:
        assert names_of_cors(headers) == set()
        assert headers["Vary"] == "Origin"


def test_an_answer_to_a_request_without_origin_varies_too(gateway):
    _, headers, _ = ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))
    assert headers["Vary"] == "Origin"
    assert names_of_cors(headers) == set()


def test_no_answer_allows_credentials_or_everyone(gateway):
    for method in ("GET", "OPTIONS"):
        _, headers, _ = ask(gateway, method, "/api/orders", headers=ASKS)
        assert "Access-Control-Allow-Credentials" not in headers
        assert headers["Access-Control-Allow-Origin"] != "*"


def test_options_without_a_preflight_header_is_an_ordinary_method(gateway):
    status, headers, _ = ask(gateway, "OPTIONS", "/api/orders", headers={"Origin": SHOP})
    assert status == 405
    assert headers["Allow"]
    assert ask(gateway, "OPTIONS", "/api/nothing", headers=ASKS)[0] == 404
    assert ask(gateway, "DELETE", "/api/orders", headers=ASKS)[0] == 405


def test_no_origin_is_allowed_by_default(closed):
    for method, status in (("GET", 200), ("OPTIONS", 405)):
        answered, headers, _ = ask(closed, method, "/api/stocks", headers={**ASKS, **bearer("customer")})
        assert answered == status
        assert names_of_cors(headers) == set()
        assert "Vary" not in headers
