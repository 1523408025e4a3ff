"""CORS: pages of the origins in the settings may call the API and read answers, with tokens, never with cookies."""

import pytest

from shared.config import Settings
from tests.unit.serving import KEYS, ask, serving
from tests.unit.test_gateway_http import BEHIND, Gateway, bearer

SHOP = "https://shop.example"
ASKS = {"Origin": SHOP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture(scope="module")
def gateway():
    BEHIND.answer = {}
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
        "X-Correlation-ID",
        "traceparent",
    }
    assert int(headers["Access-Control-Max-Age"]) > 0
    assert headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", ["/api/stocks", "/api/nothing", "/api/auth/token", "/docs"])
def test_a_page_of_an_allowed_origin_may_read_every_answer(gateway, path):
    _, headers, _ = ask(gateway, "GET", path, headers={"Origin": SHOP, **bearer("customer")})
    assert headers["Access-Control-Allow-Origin"] == SHOP
    assert listed(headers["Access-Control-Expose-Headers"]) == {
        "Location",
        "Idempotent-Replayed",
        "X-Correlation-ID",
        "traceparent",
        "Retry-After",
    }
    assert headers["Vary"] == "Origin"


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
