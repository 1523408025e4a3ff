"""Versions of the API: which one serves a request, when it ends, and what its answers say about that."""

import json
import logging
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from marshmallow import fields
from openapi_spec_validator import validate
from prometheus_client import REGISTRY

from gateway.api import versions as api_versions
from gateway.api.fields import AnswerSchema, uuid_field
from gateway.api.http import READERS, api
from gateway.api.openapi import document, routes
from gateway.api.versions import DEPRECATED, VERSIONS, Part, Version, Versions
from gateway.service import GatewayService
from shared.config import Settings
from shared.version import VERSION
from tests.unit.serving import KEYS, ask, say, serving
from tests.unit.test_gateway_http import BEHIND, JSON, ORDER, ORDER_ID, Gateway, bearer, code

# What clients are promised.
BEFORE_DEPRECATION = timedelta(days=60)
BEFORE_SUNSET = timedelta(days=150)

RELEASED, DEPRECATED_AT, SUNSET = date(2026, 6, 15), date(2026, 8, 14), date(2027, 1, 14)
ENDS = Version(1, date(2026, 1, 14), DEPRECATED_AT, SUNSET), Version(2, RELEASED)
PARTS = (
    Part("OrderItem.unit_price", DEPRECATED_AT, SUNSET, "Prices are those of the catalogue."),
    Part("OrderQuery.user", DEPRECATED_AT, SUNSET, "Ask as that user."),
    Part("Order.version", DEPRECATED_AT, SUNSET, "Compare `updated_at`."),
    Part("GET /api/orders/{order_id}/timeline", DEPRECATED_AT, SUNSET, "/api/orders/{order_id}/events"),
)
SHOWN = {"order_id": ORDER_ID, "total": 3998, "currency": "EUR"}
RELEASE = f"{VERSION.split('.')[1]}"


def faults(versions, parts=()):
    """The promises that a table of versions, or of parts of them, breaks."""
    found = [f"version {one.number} follows {before.number}" for before, one in pairwise(versions)
             if one.number != before.number + 1 or one.released <= before.released]  # fmt: skip
    successors = {before.number: one for before, one in pairwise(versions)}
    for version in versions:
        if version.deprecated is None:
            found += [f"version {version.number} ends before it is deprecated"] if version.sunset else []
            continue
        after = successors.get(version.number)
        if after is None or version.deprecated < after.released + BEFORE_DEPRECATION:
            found.append(f"version {version.number} is deprecated too early")
        if version.sunset is None or version.sunset < version.deprecated + BEFORE_SUNSET:
            found.append(f"version {version.number} ends too early")
    return found + [f"{part.name} ends too early" for part in parts if part.sunset < part.deprecated + BEFORE_SUNSET]


def test_the_tables_keep_what_clients_are_promised():
    assert VERSIONS[0].number == 1
    assert faults(VERSIONS, DEPRECATED) == []
    assert faults(ENDS, PARTS) == []


@pytest.mark.parametrize(
    ("versions", "fault"),
    [
        ((ENDS[0],), "version 1 is deprecated too early"),
        ((ENDS[0], Version(2, RELEASED + timedelta(days=1))), "version 1 is deprecated too early"),
        ((Version(1, date(2026, 1, 14), DEPRECATED_AT), ENDS[1]), "version 1 ends too early"),
        ((Version(1, date(2026, 1, 14), DEPRECATED_AT, date(2027, 1, 10)), ENDS[1]), "version 1 ends too early"),
        ((Version(1, date(2026, 1, 14), None, SUNSET), ENDS[1]), "version 1 ends before it is deprecated"),
        ((VERSIONS[0], Version(3, date(2099, 1, 1))), "version 3 follows 1"),
    ],
)
def test_a_version_that_ends_too_early_is_refused(versions, fault):
    assert faults(versions) == [fault]


def test_a_part_that_ends_too_early_is_refused():
    early = Part("OrderItem.sku", DEPRECATED_AT, DEPRECATED_AT + timedelta(days=149), "")
    assert faults(VERSIONS, [early]) == ["OrderItem.sku ends too early"]


def test_every_row_names_a_route_or_a_field_that_is_there_and_every_route_is_of_a_version():
    found = [route for _, _, route in routes(GatewayService)]
    known = {f"{route.method} {route.label}" for route in found}
    schemas = document(GatewayService)["components"]["schemas"]
    known |= {f"{name}.{field}" for name, schema in schemas.items() for field in schema.get("properties", ())}
    known |= {
        f"{route.query.__name__}.{item.data_key or name}"
        for route in found
        if route.query
        for name, item in route.query().fields.items()
    }
    assert {part.name for part in (*PARTS, *DEPRECATED)} <= known
    assert all(Versions().serving(route, found) for route in found)


class Clock:
    """A clock that a test moves to the midnight of a day."""

    def __init__(self):
        self.day = date(2026, 9, 1)

    def __call__(self):
        return datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC).timestamp()


class Money(AnswerSchema):
    """An amount of money."""

    amount = fields.Integer(required=True)
    currency = fields.String(required=True)


class OrderOfTwo(AnswerSchema):
    """An order as version 2 shows it."""

    order_id = uuid_field()
    total = fields.Nested(Money, required=True)


CLOCK = Clock()


class Two(Gateway):
    """The gateway with a second version, in which an order's total is an object."""

    api_versions = Versions(ENDS, PARTS, CLOCK)

    @api("GET", "/api/orders/<uuid:order_id>", roles=READERS, answer=OrderOfTwo, summary="Read an order", since=2)
    def get_order_of_two(self, call, order_id):
        """One order."""
        order = self.orders.get_order(str(order_id))
        return {"order_id": order["order_id"], "total": {"amount": order["total"], "currency": order["currency"]}}


@pytest.fixture(scope="module")
def running():
    with serving(Two) as server:
        yield server


@pytest.fixture
def gateway(running):
    BEHIND.asked.clear()
    BEHIND.answer = SHOWN
    CLOCK.day = date(2026, 9, 1)
    Two.api_versions.forget()
    return running


@pytest.fixture(scope="module")
def today():
    """The gateway as it is: version 1 alone."""
    with serving(Gateway) as server:
        BEHIND.answer = {}
        yield server


NOT_DEPRECATED = ("Deprecation", "Sunset", "Link", "X-Deprecated-Fields")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/stocks", 200),
        ("/api/v1/stocks", 200),
        ("/api/openapi.json", 200),
        ("/api/stocks?unknown=1", 400),
        ("/api/orders/no-uuid", 404),
        ("/api/v2/stocks", 404),
        ("/api/v01/stocks", 404),
        ("/api/ops/queues", 403),
        ("/api/stocks/reserve", 405),
        ("/dashboard", 401),
        ("/docs", 200),
        ("/nothing", 404),
    ],
)
def test_every_answer_names_its_version(today, path, status):
    answered, headers, _ = ask(today, "GET", path, headers=bearer("customer"))
    assert (answered, headers.get_all("X-API-Version")) == (status, [f"1.{RELEASE}"])
    assert not any(name in headers for name in NOT_DEPRECATED)


def test_a_request_that_cannot_be_read_is_answered_with_the_version(today):
    assert f"X-API-Version: 1.{RELEASE}\r\n" in say(today, "nonsense\r\n\r\n")


@pytest.mark.parametrize("given", ["1", "1.0", "1.7", " 1 "])
def test_a_client_may_name_the_version_of_its_path(today, given):
    assert ask(today, "GET", "/api/v1/stocks", headers={**bearer("customer"), "X-API-Version": given})[0] == 200


@pytest.mark.parametrize(
    ("path", "given"), [("/api/stocks", "2"), ("/api/v1/stocks", "2.0"), ("/api/stocks", "one"), ("/api/stocks", "")]
)
def test_another_version_than_that_of_the_path_is_400(today, path, given):
    BEHIND.asked.clear()
    answer = ask(today, "GET", path, headers={**bearer("customer"), "X-API-Version": given})
    assert code(answer) == (400, "version_mismatch")
    assert answer[2]["error"]["details"] == {"path": 1, "header": given}
    assert BEHIND.asked == []


def test_a_page_has_no_version_to_differ_from(today):
    assert ask(today, "GET", "/docs", headers={"X-API-Version": "7"})[0] == 200


def test_two_versions_show_one_order_side_by_side(gateway):
    path = f"/orders/{ORDER_ID}"
    old, unversioned, new = (
        ask(gateway, "GET", f"{root}{path}", headers=bearer("customer")) for root in ("/api/v1", "/api", "/api/v2")
    )
    assert old[0] == unversioned[0] == new[0] == 200
    assert old[2] == unversioned[2] == SHOWN
    assert new[2] == {"order_id": ORDER_ID, "total": {"amount": 3998, "currency": "EUR"}}
    assert [answer[1]["X-API-Version"] for answer in (old, unversioned, new)] == [
        f"1.{RELEASE}", f"1.{RELEASE}", f"2.{RELEASE}",
    ]  # fmt: skip
    assert [asked[:2] for asked in BEHIND.asked] == [("get_order", (ORDER_ID,))] * 3


def test_routes_without_a_successor_serve_both_versions(gateway):
    for root in ("/api", "/api/v1", "/api/v2"):
        assert ask(gateway, "GET", f"{root}/stocks", headers=bearer("customer"))[0] == 200


def test_what_was_created_is_found_in_the_version_of_the_request(gateway):
    BEHIND.answer = {"status": 201, "body": SHOWN, "location": f"/api/orders/{ORDER_ID}", "replayed": False}
    headers = {**JSON, **bearer("customer"), "Idempotency-Key": "k"}
    for root in ("/api", "/api/v2"):
        _, answered, _ = ask(gateway, "POST", f"{root}/orders", json.dumps(ORDER), headers)
        assert answered["Location"] == f"{root}/orders/{ORDER_ID}"


ENDING_OF_1 = {
    "Deprecation": "@1786665600",
    "Sunset": "Thu, 14 Jan 2027 00:00:00 GMT",
    "Link": ", ".join(
        (
            '</docs>; rel="deprecation"; type="text/html"',
            '</docs>; rel="sunset"; type="text/html"',
            '</api/v2/stocks>; rel="successor-version"',
        )
    ),
}


def told(headers):
    return {name: ", ".join(headers.get_all(name, ())) for name in ENDING_OF_1 if name in headers}


@pytest.mark.parametrize("root", ["/api", "/api/v1"])
def test_a_deprecated_version_says_when_it_ends_and_what_replaces_it(gateway, root):
    status, headers, _ = ask(gateway, "GET", f"{root}/stocks", headers=bearer("customer"))
    assert (status, told(headers)) == (200, ENDING_OF_1)
    refused = ask(gateway, "GET", f"{root}/stocks")
    assert (refused[0], told(refused[1])) == (401, ENDING_OF_1)
    assert told(ask(gateway, "GET", f"{root}/nothing")[1])["Deprecation"] == ENDING_OF_1["Deprecation"]


@pytest.mark.parametrize("path", ["/api/v2/stocks", "/api/v3/stocks", "/dashboard", "/docs", "/healthz"])
def test_what_does_not_end_says_nothing(gateway, path):
    assert told(ask(gateway, "GET", path, headers=bearer("customer"))[1]) == {}


def test_the_last_day_ends_at_midnight(gateway):
    CLOCK.day = SUNSET - timedelta(days=1)
    assert ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))[0] == 200
    CLOCK.day = SUNSET
    assert code(ask(gateway, "GET", "/api/stocks", headers=bearer("customer"))) == (410, "version_gone")


@pytest.mark.parametrize("path", ["/stocks", "/orders/no-uuid", "/nothing", "/stocks/reserve"])
def test_past_its_sunset_a_version_is_410_with_its_successor(gateway, path):
    CLOCK.day = date(2027, 2, 1)
    BEHIND.asked.clear()
    for root in ("/api", "/api/v1"):
        answer = ask(gateway, "GET", f"{root}{path}")
        assert code(answer) == (410, "version_gone")
        assert answer[2]["error"]["details"] == {"sunset": "2027-01-14", "successor": f"/api/v2{path}"}
        assert f'</api/v2{path}>; rel="successor-version"' in told(answer[1])["Link"]
    assert ask(gateway, "GET", f"/api/v2{path}", headers=bearer("customer"))[0] in (200, 404, 405)
    assert code(ask(gateway, "GET", f"/api/v3{path}")) == (404, "not_found")
    assert ask(gateway, "GET", "/dashboard/sign-in")[0] == 200


def test_a_page_of_another_origin_may_read_that_a_version_ends_and_has_ended():
    shop = "https://shop.example"
    asks = {"Origin": shop, "Access-Control-Request-Method": "GET"}
    with serving(Two, settings=Settings(auth_keys=KEYS, cors_origins=(shop,))) as server:
        for CLOCK.day, status in ((date(2026, 9, 1), 200), (SUNSET, 410)):
            BEHIND.answer = {}
            assert ask(server, "OPTIONS", "/api/stocks", headers=asks)[0] == 204
            answered, headers, _ = ask(server, "GET", "/api/stocks", headers={"Origin": shop, **bearer("customer")})
            readable = set(headers["Access-Control-Expose-Headers"].split(", "))
            assert (answered, readable >= {"X-API-Version", "Deprecation", "Sunset", "Link"}) == (status, True)


def test_a_deprecated_route_ends_by_itself(gateway):
    path = f"/api/v2/orders/{ORDER_ID}/timeline"
    status, headers, _ = ask(gateway, "GET", path, headers=bearer("customer"))
    assert status == 200
    assert f'</api/v2/orders/{ORDER_ID}/events>; rel="successor-version"' in told(headers)["Link"]
    CLOCK.day = SUNSET
    assert code(ask(gateway, "GET", path, headers=bearer("customer"))) == (410, "version_gone")
    assert ask(gateway, "GET", "/api/v2/stocks", headers=bearer("customer"))[0] == 200


def counted(route, version):
    labels = {"route": route, "version": version}
    return REGISTRY.get_sample_value("ecom_deprecated_requests_total", labels) or 0


PRICE = '"unit_price";deprecated=@1786665600;sunset=@1799884800'


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("POST", "/api/v2/orders", ORDER, PRICE),
        ("POST", "/api/v2/orders", {**ORDER, "items": [{"sku": "A-1"}, ORDER["items"][0]]}, None),  # 422
        ("GET", "/api/v2/orders?user=ann", None, '"user";deprecated=@1786665600;sunset=@1799884800'),
        ("GET", "/api/v2/orders", None, None),
    ],
)
def test_a_deprecated_field_that_a_client_sends_is_counted_and_named(gateway, method, path, body, named):
    BEHIND.answer = {"status": 201, "body": SHOWN, "location": "/x", "replayed": False, "items": []}
    before = counted("/api/orders", "2")
    headers = {**JSON, **bearer("customer"), "Idempotency-Key": "k"} if body else bearer("customer")
    _, answered, _ = ask(gateway, method, path, json.dumps(body) if body else None, headers)
    assert answered["X-Deprecated-Fields"] == named
    assert told(answered) == {}, "the route itself does not end"
    assert counted("/api/orders", "2") - before == (named is not None)


def use(gateway, user, path="/api/stocks"):
    return ask(gateway, "GET", path, headers=bearer("customer", sub=user))[0]


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == api_versions.__name__]


def test_a_user_of_what_is_deprecated_is_logged_once_a_day(gateway, caplog):
    caplog.set_level(logging.WARNING)
    before = counted("/api/stocks", "1")
    for user in ("ann", "bob", "ann"):
        assert use(gateway, user) == 200
    assert use(gateway, "eve", "/api/v2/stocks") == 200
    assert [line.split(" ")[0] for line in lines(caplog)] == ["ann", "bob"]
    assert "version 1" in lines(caplog)[0]
    assert counted("/api/stocks", "1") - before == 3
    CLOCK.day += timedelta(days=1)
    use(gateway, "ann")
    assert len(lines(caplog)) == 3


def test_so_many_users_of_a_day_are_remembered_and_no_more(gateway, caplog, monkeypatch):
    monkeypatch.setattr(api_versions, "MAX_USERS", 2)
    for number in range(4):
        use(gateway, f"user-{number}")
    assert len(lines(caplog)) == 2


def test_each_version_has_a_document_of_its_own(gateway):
    one, two = (ask(gateway, "GET", f"{root}/openapi.json")[2] for root in ("/api", "/api/v2"))
    for found in (one, two):
        validate(found)
    of_one, of_two = one["paths"]["/api/orders/{order_id}"]["get"], two["paths"]["/api/v2/orders/{order_id}"]["get"]
    assert (of_one["operationId"], of_two["operationId"]) == ("get_order", "get_order_of_two")
    assert len(one["paths"]) == len(two["paths"])
    assert of_one["deprecated"] is True
    assert {"Deprecation", "Sunset", "Link"} <= of_one["responses"]["200"]["headers"].keys()
    assert "deprecated since 2026-08-14 and ends on 2027-01-14" in of_one["description"]
    assert "`/api/v2/orders/{order_id}`" in of_one["description"]
    assert "deprecated" not in of_two
    assert two["paths"]["/api/v2/orders/{order_id}/timeline"]["get"]["deprecated"] is True


def test_deprecated_fields_are_marked_in_the_document():
    found = document(Two, 2)
    shown = found["components"]["schemas"]
    marked = {
        f"{name}.{field}"
        for name, schema in shown.items()
        for field, inner in schema.get("properties", {}).items()
        if inner.get("deprecated")
    }
    assert marked == {"OrderItem.unit_price", "Order.version"}
    assert shown["OrderItem"]["properties"]["unit_price"]["description"].endswith("those of the catalogue.")
    listed = found["paths"]["/api/v2/orders"]["get"]
    (user,) = [item for item in listed["parameters"] if item["name"] == "user"]
    assert user["deprecated"] is True
    assert "X-Deprecated-Fields" in listed["responses"]["200"]["headers"]
    assert "X-Deprecated-Fields" in found["paths"]["/api/v2/orders"]["post"]["responses"]["422"]["headers"]


def test_nothing_of_this_product_is_marked():
    assert '"deprecated": true' not in json.dumps(document(GatewayService))


def test_of_a_version_and_its_route_the_first_end_is_told():
    name, path = "GET /api/stocks", "/api/stocks"
    for days in (-1, 1):
        part = Part(name, DEPRECATED_AT, SUNSET + timedelta(days=days), "/api/orders")
        ends = Versions(ENDS, [part]).ending(1, path, name)
        assert (ends.what, ends.sunset) == ((name, part.sunset) if days < 0 else ("version 1", SUNSET))
