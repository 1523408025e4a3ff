"""The OpenAPI document: valid, whole, and true of what the gateway answers; and the page made from it."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from importlib import metadata

import jsonschema
import marshmallow
import pytest
from openapi_spec_validator import validate

from gateway.api.fields import EXAMPLE_ID, AnswerSchema, list_field, text_field
from gateway.api.http import Api
from gateway.api.openapi import document, failures, routes
from gateway.operations import ReplayRequest
from gateway.orders import CURRENCIES, STATES
from gateway.service import GatewayService
from gateway.site.pages import docs
from gateway.site.reader import Reader
from order_service.domain import Status
from shared import auth, errors
from tests.unit.serving import ask, serving
from tests.unit.test_gateway_http import BEHIND, EXPECTED_ROLES, JSON, PAGES, Gateway, bearer

DOCUMENT = document(GatewayService)
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
READER = Reader(DOCUMENT)
BODY_SCHEMAS = {route.body.__name__: route.body for _, _, route in routes(GatewayService) if route.body}


def operation(method, path):
    return DOCUMENT["paths"][path][method.lower()]


def schema_of(answer):
    ((_, content),) = answer["content"].items()
    return content["schema"]


def conform(value, schema):
    """Hold a value against a schema of the document. Fields that it does not tell of are refused too."""
    whole = {**schema, "components": json.loads(json.dumps(DOCUMENT["components"]))}
    for inner in whole["components"]["schemas"].values():
        inner["additionalProperties"] = False
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert {"uuid", "date-time"} <= checker.checkers.keys()
    jsonschema.Draft202012Validator(whole, format_checker=checker).validate(value)


@pytest.fixture(scope="module")
def gateway():
    with serving(Gateway) as server:
        yield server


# --- the document ----------------------------------------------------------------------------------------------


def test_the_document_is_valid_openapi():
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == metadata.version("ecom")


def test_the_document_is_read_by_anyone_and_is_the_same_each_time(gateway):
    status, headers, body = ask(gateway, "GET", "/api/openapi.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == DOCUMENT
    assert list(body["components"]["schemas"]["OrderRequest"]["properties"]["currency"]["enum"]) == sorted(CURRENCIES)


def test_its_paths_are_the_gateways(gateway):
    rules = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in gateway.make_url_map().iter_rules()
        for method in rule.methods - {"HEAD"}
        if isinstance(rule.endpoint, Api) and rule.endpoint.in_document
    }
    canonical = {(path, method) for path, method in rules if not path.startswith("/api/v1/")}
    assert canonical == {(path, method) for method, path in OPERATIONS}
    versioned = {(path.replace("/api/v1/", "/api/"), method) for path, method in rules - canonical}
    assert versioned == {(path, method) for path, method in canonical if path.startswith("/api/")}


def test_it_says_who_may_call():
    for (method, path), roles in ((route, EXPECTED_ROLES[route]) for route in EXPECTED_ROLES.keys() - PAGES):
        told = operation(method, path)
        assert told.get("x-roles") == (None if roles is None else sorted(roles))
        assert told["security"] == ([] if roles is None else [{"bearer": []}])
        assert {"401", "403"} <= told["responses"].keys() or roles is None


WITHOUT_SCHEMA = (
    "/docs",
    "/api/openapi.json",
    "/api/orders/{order_id}/events",
    "/api/stocks/release-events/export",
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_tells_what_it_takes_and_gives(method, path):
    told = operation(method, path)
    assert told["summary"]
    assert told["description"]
    assert {"400", "429", "503"} <= told["responses"].keys()
    in_path = {item["name"] for item in told["parameters"] if item["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", path))
    assert ("404" in told["responses"]) >= bool(in_path)
    assert ({"408", "411", "413", "415", "422"} <= told["responses"].keys()) == ("requestBody" in told)
    for status, answer in told["responses"].items():
        if int(status) < 400 and path not in WITHOUT_SCHEMA:
            assert schema_of(answer)["$ref"]
        if int(status) >= 400:
            assert schema_of(answer) == {"$ref": "#/components/schemas/Error"}
        assert "Retry-After" in answer["headers"] or status not in ("429", "503")
        assert "WWW-Authenticate" in answer["headers"] or status != "401"


def test_pages_for_people_are_no_operations():
    assert not {path for _, path in PAGES} & DOCUMENT["paths"].keys()


def test_query_parameters_are_told_under_the_names_that_are_read():
    for name, _, route in routes(GatewayService):
        if not route.in_document:
            continue
        told = {item["name"] for item in operation(route.method, route.label)["parameters"] if item["in"] == "query"}
        assert told == (
            {item.data_key or key for key, item in route.query().fields.items()} if route.query else set()
        ), name


def test_an_operation_with_a_key_tells_of_it():
    told = operation("post", "/api/orders")
    (key,) = [item for item in told["parameters"] if item["in"] == "header"]
    assert (key["name"], key["required"]) == ("Idempotency-Key", True)
    shape = re.compile(key["schema"]["pattern"])
    assert all(shape.match(good) for good in ("k-1", '"k-1"', "a" * 128))
    assert not any(shape.match(bad) for bad in ("", '"k-1', "a b", "a" * 129))
    assert {"Location", "Idempotent-Replayed"} <= told["responses"]["201"]["headers"].keys()
    located = operation("post", "/api/ops/dlq/{queue}/replays")["responses"]["202"]["headers"].keys()
    assert located & {"Location", "Idempotent-Replayed"} == {"Location"}
    assert "`idempotency_in_progress`" in told["responses"]["409"]["description"]
    assert "`idempotency_key_reused`" in told["responses"]["422"]["description"]


def test_a_stream_of_events_is_text_that_goes_on_where_the_client_says():
    told = operation("get", "/api/orders/{order_id}/events")
    assert told["responses"]["200"]["content"] == {"text/event-stream": {"schema": {"type": "string"}}}
    (header,) = [item for item in told["parameters"] if item["in"] == "header"]
    assert (header["name"], header["required"]) == ("Last-Event-ID", False)
    shape = re.compile(header["schema"]["pattern"])
    assert all(shape.match(good) for good in ("0", "9" * 18))
    assert not any(shape.match(bad) for bad in ("", "-1", "x", "9" * 19))
    assert "`bad_request`" in told["responses"]["400"]["description"]
    assert "Last-Event-ID" not in READER.operation("GET", "/api/orders/{order_id}/events", told)["curl"]


def test_an_export_is_a_csv_file_and_takes_filters_and_no_page():
    told = operation("get", "/api/stocks/release-events/export")
    good = told["responses"]["200"]
    assert good["content"] == {"text/csv": {"schema": {"type": "string"}}}
    assert "Content-Disposition" in good["headers"]
    paged = {item["name"] for item in operation("get", "/api/stocks/release-events")["parameters"]}
    assert paged - {item["name"] for item in told["parameters"]} == {"limit", "cursor", "offset", "include_total"}


def test_a_list_in_pages_links_to_the_next():
    linked = {
        path
        for method, path in OPERATIONS
        for answer in operation(method, path)["responses"].values()
        if "Link" in answer["headers"]
    }
    paged = {
        path
        for method, path in OPERATIONS
        if any(item["name"] == "cursor" for item in operation(method, path)["parameters"])
    }
    assert linked == paged > {"/api/stocks/release-events"}


def test_what_can_be_null_is_shown_as_what_it_is_otherwise():
    fields = {item.name: item for item in READER.fields({"$ref": "#/components/schemas/ReleaseEventDetail"})}
    assert fields["timeline"].shape == "object or null"
    assert fields["timeline.steps[].event"].shape == "text"
    assert fields["seal.seq"].shape == "integer"


def test_the_gateways_order_states_are_those_of_the_order_service():
    assert set(STATES) == {str(status.value) for status in Status}


def test_waiting_is_told_with_its_states_and_its_limit():
    told = {item["name"]: item["schema"] for item in operation("get", "/api/orders/{order_id}")["parameters"]}
    assert (told["timeout"]["minimum"], told["timeout"]["maximum"]) == (1, 25)
    shape = re.compile(told["wait"]["pattern"])
    assert all(shape.match(good) for good in ("PAID", "PAID,CANCELLED", ",".join(Status)))
    assert not any(shape.match(bad) for bad in ("", "SENT", "PAID,", "PAID, CANCELLED", "paid"))


def test_every_schema_has_words_and_every_part_an_example():
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        conform(READER.example(schema), {"$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize("name", [name for name in DOCUMENT["components"]["schemas"] if name in BODY_SCHEMAS])
def test_the_example_of_a_body_is_taken_by_the_gateway(name):
    BODY_SCHEMAS[name]().load(READER.example(DOCUMENT["components"]["schemas"][name]))


LINE = {"sku": "A-1", "quantity": 1, "unit_price": 0}
BODIES = {
    "OrderRequest": [
        {"currency": "EUR", "items": [LINE]},
        *({"currency": value, "items": [LINE]} for value in ("XXX", "", None)),
        *({"currency": "EUR", "items": value} for value in ([], [LINE] * 101, {}, [LINE | {"colour": "red"}])),
        *({"currency": "EUR", "items": [LINE | {"sku": value}]} for value in ("a" * 65, "-a", "a b", 7)),
        *({"currency": "EUR", "items": [LINE | {"quantity": value}]} for value in (0, 10_001, True, "1", None)),
        *({"currency": "EUR", "items": [LINE], "payment_method": value} for value in ("", "a\0b", "a" * 201, "\xe9")),
    ],
    "TokenRequest": [
        {"username": "a", "password": "b"},
        {"user_id": "a", "roles": ["admin"]},
        *({"username": "a"}, {"username": "a", "roles": ["admin"]}, {}),
        {"username": "a", "password": "b", "user_id": "c"},
        {"user_id": "a", "roles": ["root"]},
        {"user_id": "a", "roles": []},
    ],
    "StockRequest": [{"on_hand": value} for value in (0, 10**9, -1, 10**9 + 1, True, "1")],
    "ReplayRequest": [
        *ReplayRequest.openapi["examples"],
        *({}, {"all": True}, {"all": False}, {"max": 1}, {"max": 1, "all": True}, {"max": 1, "all": False}),
        *({"all": value} for value in (1, "true", None)),
        *({"max": value} for value in (0, 10**9 + 1, True, "1", 1.5)),
        *({"ids": value} for value in ([], [EXAMPLE_ID] * 1000, [EXAMPLE_ID] * 1001, ["7"], [None], EXAMPLE_ID)),
        *({"all": True, "rate": value} for value in ("max", "1/s", "0.5/min", "30/m", "999999/h", "007/h")),
        *({"all": True, "rate": value} for value in ("0/s", "0.0/s", "00/h", "1", "-1/s", "1e9/s", "9999999/s", "1/d")),
        *({"all": True, "ramp": value} for value in ("1", "1,2,5,20", "999999", "0", "1,0", "1,", "1, 2", "1000000")),
        *({"all": True, "ramp": ",".join("1" * count)} for count in (20, 21)),
        *({"all": True, "since": value} for value in ("2026-01-14T10:30:00Z", "yesterday", "", 7)),
        *({"all": True, "trace_id": value} for value in (EXAMPLE_ID, "0" * 32, "7", 7, None)),
        *({"all": True, "reasons": value} for value in (["a"], ["a"] * 50, ["a"] * 51, [], [""], ["a\0"], "a")),
        *({"all": True, name: value} for name in ("force", "stop_on_redeath") for value in (False, 0, "no")),
    ],
    "ReserveRequest": [{"order_id": value, "items": [{"sku": "a", "quantity": 1}]} for value in (EXAMPLE_ID, "7")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "body"), [(name, body) for name, bodies in BODIES.items() for body in bodies])
def test_document_and_gateway_agree_on_what_is_valid(name, body):
    def taken():
        try:
            BODY_SCHEMAS[name]().load(body)
        except marshmallow.ValidationError:
            return False
        return True

    def documented():
        try:
            conform(body, {"$ref": f"#/components/schemas/{name}"})
        except jsonschema.ValidationError:
            return False
        return True

    assert taken() == documented()


def test_a_route_that_is_added_is_in_the_document():
    class Larger(GatewayService):
        name = "gateway"

        @Api.decorator("GET", "/api/orders/<uuid:order_id>/extra", roles=(auth.ADMIN,), answer=None, summary="More")
        def extra(self, call, order_id):
            """More of it."""

    told = document(Larger)["paths"]
    assert told["/api/orders/{order_id}/extra"]["get"]["x-roles"] == ["admin"]
    assert len(told) == len(DOCUMENT["paths"]) + 1


class Colour(AnswerSchema):
    """One colour."""

    name = text_field("red")


class ColourPage(AnswerSchema):
    """All colours."""

    items = list_field(Colour)


class Colours:
    """A subject of its own, with nothing about it anywhere else."""

    @Api.decorator("GET", "/api/colours", roles=None, answer=ColourPage, summary="List colours")
    def list_colours(self, call):
        """Every colour."""


def test_a_subject_that_is_mixed_in_brings_its_routes_and_schemas_into_the_document():
    class Larger(Colours, GatewayService):
        name = "gateway"

    larger = document(Larger)
    assert larger["paths"]["/api/colours"]["get"]["tags"] == ["colours"]
    added = {name: larger["components"]["schemas"][name] for name in ("Colour", "ColourPage")}
    assert {name: schema["description"] for name, schema in added.items()} == {
        "Colour": "One colour.",
        "ColourPage": "All colours.",
    }
    assert Reader(larger).example(added["ColourPage"]) == {"items": [{"name": "red"}]}


def test_the_document_lists_subjects_in_the_order_of_the_class_head():
    tags = [operation(method, path)["tags"][0] for method, path in OPERATIONS]
    assert list(dict.fromkeys(tags)) == ["auth", "orders", "stocks", "payments", "ops", "documents"]


def test_a_piece_of_a_path_that_nobody_described_is_refused():
    class Odd(GatewayService):
        name = "gateway"

        @Api.decorator("GET", "/api/things/<colour>", roles=None, answer=None, summary="Odd")
        def odd(self, call, colour):
            """Odd."""

    with pytest.raises(KeyError, match="colour"):
        document(Odd)


# --- answers ---------------------------------------------------------------------------------------------------


def test_every_error_of_the_gateway_looks_as_documented(gateway):
    for error in (errors.NotFound(), errors.BelowReserved("Few.", {"reserved": 12}), errors.ServiceUnavailable()):
        BEHIND.answer = error
        status, headers, body = ask(gateway, "GET", "/api/stocks/A-1", headers=bearer("customer"))
        assert status >= 400
        conform(body, {"$ref": "#/components/schemas/Error"})
        assert {"X-Correlation-ID", "traceparent"} <= set(headers.keys())
    BEHIND.answer = {}


def test_what_a_route_can_be_told_to_fail_with_is_in_the_table_of_statuses():
    for _, _, route in routes(GatewayService):
        assert set(failures(route)) <= {400, 401, 403, 404, 408, 409, 411, 413, 415, 422, 429, 503}


def test_a_status_of_a_route_is_the_one_it_declares(gateway):
    body = json.dumps({"on_hand": 1}).encode()
    assert ask(gateway, "PUT", "/api/stocks/A-1", body, {**JSON, **bearer("admin")})[0] == 200


# --- the page --------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.words = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_every_operation_to_anyone(gateway):
    status, headers, text = ask(gateway, "GET", "/docs")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = Elements(text)
    assert not page.open
    shown = "".join(page.words)
    ids = {attributes.get("id") for _, attributes in page.found}
    for method, path in OPERATIONS:
        told = operation(method, path)
        assert told["operationId"] in ids
        assert told["summary"] in shown
        for role in told.get("x-roles", ()):
            assert role in shown
    for code in ("idempotency_key_reused", "version_moved", "rate_limited"):
        assert code in shown
    assert "-H 'Idempotency-Key: first-order'" in shown
    assert "items[].unit_price" in shown


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script(gateway):
    _, headers, text = ask(gateway, "GET", "/docs")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert policy.pop("style-src") == f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'"
    assert set(policy.values()) == {"'none'"}
    assert {"default-src", "frame-ancestors", "base-uri", "form-action"} == policy.keys()
    for tag, attributes in Elements(text).found:
        assert tag not in ("script", "img", "link", "iframe", "object")
        assert not {"src", "style", "onclick", "onload"} & attributes.keys()
        assert attributes.get("href", "#").startswith(("#", "/api/"))


def test_the_page_has_one_path(gateway):
    assert ask(gateway, "GET", "/api/v1/docs")[0] == 404
    assert ask(gateway, "GET", "/api/v1/openapi.json")[0] == 200


def test_a_page_says_no_more_than_it_is_given():
    hostile = json.loads(json.dumps(DOCUMENT))
    hostile["paths"]["/docs"]["get"]["summary"] = "<script>alert(1)</script>"
    assert "<script" not in docs(hostile).body
