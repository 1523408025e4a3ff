"""The OpenAPI document is valid, complete and true of the gateway's answers; and the page made from it."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import get_type_hints

import jsonschema
import marshmallow
import pytest
from openapi_spec_validator import validate

from gateway.api.addresses import Proxies
from gateway.api.currencies import CURRENCIES
from gateway.api.errors import REFUSALS
from gateway.api.fields import EXAMPLE_ID, AnswerSchema, list_field, text_field
from gateway.api.forms import FORM
from gateway.api.http import Api
from gateway.api.openapi import document, failures, routes
from gateway.following import KEEP_ALIVE_S, Stream
from gateway.operations import ReplayRequest
from gateway.orders import SORTS, STATES
from gateway.service import GatewayService
from gateway.site.pages import docs
from gateway.site.reader import DocumentReader
from ops.dlq.replay_request import read_replay
from order_service import domain as order_rules
from order_service import queries
from order_service.domain import Status
from payment_service.mock_provider import METHOD_UNKNOWN, METHODS
from shared import auth, errors
from shared.config import Settings
from shared.events import ReleaseRequested
from shared.order_states import AT_REST, Reason
from shared.schema import schema_of as schema_of_type
from shared.version import VERSION
from tests.unit.serving import ask, serving
from tests.unit.test_gateway_http import BEHIND, EXPECTED_ROLES, JSON, PAGES, Gateway, bearer

DOCUMENT = document(GatewayService)
OPERATIONS = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
READER = DocumentReader(DOCUMENT)
BODIES_READ = [route.body for _, _, route in routes(GatewayService) if route.body]
SHAPES = [shape for body in BODIES_READ for shape in getattr(body, "shapes", ())]
BODY_SCHEMAS = {schema.__name__: schema for schema in (*BODIES_READ, *SHAPES)}
ORIGIN = "https://shop.example"


def operation(method, path):
    return DOCUMENT["paths"][path][method.lower()]


def schema_of(answer):
    """The schema of an answer; of one that may also be a stream, that of its JSON."""
    return next(iter(answer["content"].values()))["schema"]


def conform(value, schema):
    """Hold a value against a schema of the document. Undocumented fields are refused too."""
    whole = {**schema, "components": json.loads(json.dumps(DOCUMENT["components"]))}
    for inner in whole["components"]["schemas"].values():
        if "properties" in inner:
            inner["additionalProperties"] = False
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert {"uuid", "date-time"} <= checker.checkers.keys()
    jsonschema.Draft202012Validator(whole, format_checker=checker).validate(value)


@pytest.fixture(scope="module")
def gateway():
    with serving(Gateway) as server:
        yield server


def test_the_document_is_valid_openapi():
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == VERSION


def test_anyone_can_read_the_document_and_it_never_changes(gateway):
    status, headers, body = ask(gateway, "GET", "/api/openapi.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == DOCUMENT
    assert list(body["components"]["schemas"]["OrderRequest"]["properties"]["currency"]["enum"]) == sorted(CURRENCIES)


def test_the_document_has_exactly_the_paths_of_the_gateway(gateway):
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


def test_the_document_shows_the_roles_of_each_operation():
    for (method, path), roles in ((route, EXPECTED_ROLES[route]) for route in EXPECTED_ROLES.keys() - PAGES):
        documented = operation(method, path)
        assert documented.get("x-roles") == (None if roles is None else sorted(roles))
        assert documented["security"] == ([] if roles is None else [{"bearer": []}])
        assert {"401", "403"} <= documented["responses"].keys() or roles is None


WITHOUT_SCHEMA = (
    "/docs",
    "/api/openapi.json",
    "/api/orders/{order_id}/events",
    "/api/stocks/release-events/export",
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_documents_its_parameters_and_answers(method, path):
    documented = operation(method, path)
    assert documented["summary"]
    assert documented["description"]
    assert {"400", "429", "503"} <= documented["responses"].keys()
    in_path = {item["name"] for item in documented["parameters"] if item["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", path))
    assert ("404" in documented["responses"]) >= bool(in_path)
    assert ({"408", "413", "415", "422"} <= documented["responses"].keys()) == ("requestBody" in documented)
    for status, answer in documented["responses"].items():
        if int(status) < 400 and status not in ("204", "304") and path not in WITHOUT_SCHEMA:
            assert schema_of(answer)["$ref"]
        if int(status) >= 400:
            shapes = [{"$ref": f"#/components/schemas/{name}"} for name in ("ErrorAnswer", "OauthError")]
            takes_form = FORM in documented.get("requestBody", {"content": {}})["content"]
            assert schema_of(answer) == ({"anyOf": shapes} if takes_form else shapes[0])
        assert "Retry-After" in answer["headers"] or status not in ("429", "503")
        assert "WWW-Authenticate" in answer["headers"] or status != "401"


def test_pages_for_people_are_not_in_the_document():
    assert not {path for _, path in PAGES} & DOCUMENT["paths"].keys()


def test_query_parameters_are_documented_under_the_names_that_are_read():
    for name, _, route in routes(GatewayService):
        if not route.in_document:
            continue
        documented = {
            item["name"] for item in operation(route.method, route.label)["parameters"] if item["in"] == "query"
        }
        assert documented == (
            {item.data_key or key for key, item in route.query().fields.items()} if route.query else set()
        ), name


def test_an_idempotent_operation_documents_its_key():
    documented = operation("post", "/api/orders")
    (key,) = [item for item in documented["parameters"] if item["in"] == "header"]
    assert (key["name"], key["required"]) == ("Idempotency-Key", True)
    shape = re.compile(key["schema"]["pattern"])
    assert all(shape.match(good) for good in ("k-1", '"k-1"', "a" * 128))
    assert not any(shape.match(bad) for bad in ("", '"k-1', "a b", "a" * 129))
    assert {"Location", "Idempotent-Replayed"} <= documented["responses"]["201"]["headers"].keys()
    located = operation("post", "/api/ops/dlq/{queue}/replays")["responses"]["202"]["headers"].keys()
    assert located & {"Location", "Idempotent-Replayed"} == {"Location"}
    assert "`idempotency_in_progress`" in documented["responses"]["409"]["description"]
    assert "`idempotency_key_reused`" in documented["responses"]["422"]["description"]


def test_an_event_stream_documents_last_event_id():
    documented = operation("get", "/api/orders/{order_id}/events")
    assert documented["responses"]["200"]["content"] == {"text/event-stream": {"schema": {"type": "string"}}}
    (header,) = [item for item in documented["parameters"] if item["in"] == "header"]
    assert (header["name"], header["required"]) == ("Last-Event-ID", False)
    shape = re.compile(header["schema"]["pattern"])
    assert all(shape.match(good) for good in ("0", "9" * 18))
    assert not any(shape.match(bad) for bad in ("", "-1", "x", "9" * 19))
    assert "`bad_request`" in documented["responses"]["400"]["description"]
    assert "Last-Event-ID" not in READER.operation("GET", "/api/orders/{order_id}/events", documented)["curl"]


def test_the_end_of_a_stream_is_documented_as_an_answer_without_a_body():
    documented = operation("get", "/api/orders/{order_id}/events")
    assert "content" not in documented["responses"]["204"]
    shown = READER.operation("GET", "/api/orders/{order_id}/events", documented)["answers"]
    assert next(answer for answer in shown if answer["status"] == "204")["lines"] == [
        documented["responses"]["204"]["description"]
    ]
    words = " ".join(documented["description"].split())
    assert all(word in words for word in ("`end`", "`Step`", "`id`", "15 seconds", "fetch"))
    assert KEEP_ALIVE_S == 15


def test_the_feed_is_documented_as_pages_and_as_a_stream():
    documented = operation("get", "/api/orders/events")
    assert documented["responses"]["200"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/FeedPage"}},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    after = next(item["schema"]["pattern"] for item in documented["parameters"] if item["name"] == "after")
    assert all(re.match(after, good) for good in ("0", "0-0", "41823-17", "now"))
    assert not any(re.match(after, bad) for bad in ("", "17", "1-", "now-1", "1-1now"))


def test_an_order_documents_its_states_at_rest_its_reasons_and_its_deadline():
    described = DOCUMENT["components"]["schemas"]["Order"]["properties"]
    in_progress, at_rest = (
        set(re.findall(r"[A-Z_]{3,}", part)) for part in described["status"]["description"].split(" are in progress; ")
    )
    assert (in_progress, at_rest) == (set(Status) - AT_REST, AT_REST)
    assert all(reason in described["reason"]["description"] for reason in Reason)
    waiting = operation("get", "/api/orders/{order_id}")["description"]
    assert f"{Settings.order_deadline_s / 60:.0f} minutes (`ORDER_DEADLINE_S`)" in waiting.replace("\n", " ")


def test_several_states_of_a_list_are_documented_like_those_of_a_wait():
    listed = {item["name"]: item["schema"] for item in operation("get", "/api/orders")["parameters"]}
    waited = {item["name"]: item["schema"] for item in operation("get", "/api/orders/{order_id}")["parameters"]}
    assert listed["status"]["pattern"] == waited["wait"]["pattern"]
    assert tuple(listed["sort"]["enum"]) == SORTS == tuple(queries.SORTS)


def test_an_export_is_documented_as_csv_with_filters_and_no_paging():
    documented = operation("get", "/api/stocks/release-events/export")
    good = documented["responses"]["200"]
    assert good["content"] == {"text/csv": {"schema": {"type": "string"}}}
    assert "Content-Disposition" in good["headers"]
    paged = {item["name"] for item in operation("get", "/api/stocks/release-events")["parameters"]}
    assert paged - {item["name"] for item in documented["parameters"]} == {"limit", "cursor", "offset", "include_total"}


def test_every_paged_list_documents_its_link_header():
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


def test_a_nullable_field_shows_its_other_type():
    fields = {item.name: item for item in READER.fields({"$ref": "#/components/schemas/ReleaseEventDetail"})}
    assert fields["timeline"].shape == "object or null"
    assert fields["timeline.steps[].event"].shape.startswith("one of order.created, ")
    assert fields["timeline.steps[].from"].shape.endswith(", REFUND_FAILED or null")
    assert fields["timeline.steps[].source"].shape == "text"
    roles = {item.name: item.shape for item in READER.fields({"$ref": "#/components/schemas/MockLogin"})}["roles"]
    written = [*auth.ROLES, *(f"ROLE_{role.upper()}" for role in auth.ROLES)]
    assert roles == f"list, 1 to 5; each is one of {', '.join(written)}"
    assert fields["seal.seq"].shape == "integer"


def test_the_gateways_order_states_are_those_of_the_order_service():
    assert set(STATES) == {str(status.value) for status in Status}


def test_waiting_documents_its_states_and_its_limit():
    documented = {item["name"]: item["schema"] for item in operation("get", "/api/orders/{order_id}")["parameters"]}
    assert (documented["timeout"]["minimum"], documented["timeout"]["maximum"]) == (1, 25)
    shape = re.compile(documented["wait"]["pattern"])
    assert all(shape.match(good) for good in ("PAID", "PAID,CANCELLED", ",".join(Status)))
    assert not any(shape.match(bad) for bad in ("", "SENT", "PAID,", "PAID, CANCELLED", "paid"))


def test_every_schema_has_a_description_and_a_valid_example():
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        conform(READER.example(schema), {"$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize("name", [name for name in DOCUMENT["components"]["schemas"] if name in BODY_SCHEMAS])
def test_the_gateway_accepts_the_example_of_every_body(name):
    load = read_replay if name == "ReplayRequest" else BODY_SCHEMAS[name]().load
    load(READER.example(DOCUMENT["components"]["schemas"][name]))


LINE = {"sku": "A-1", "quantity": 1, "unit_price": 0}
BODIES = {
    "OrderRequest": [
        {"currency": "EUR", "items": [LINE]},
        *({"currency": value, "items": [LINE]} for value in ("XXX", "", None)),
        *({"currency": "EUR", "items": value} for value in ([], [LINE] * 101, {}, [LINE | {"colour": "red"}])),
        *({"currency": "EUR", "items": [LINE | {"sku": value}]} for value in ("a" * 65, "-a", "a b", 7)),
        *({"currency": "EUR", "items": [LINE | {"quantity": value}]} for value in (0, 10_001, True, "1", None)),
        *({"currency": "IDR", "items": [LINE | {"unit_price": value}]} for value in (2_000_000_000, 2**53 - 1, 2**53)),
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
        *(example for shape in ReplayRequest.shapes for example in shape.openapi["examples"]),
        *({}, {"all": True}, {"all": False}, {"max": 1}, {"max": 1, "all": True}),
        *({"all": True, "ids": [EXAMPLE_ID]}, {"max": 1, "ids": [EXAMPLE_ID]}),
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
def test_the_document_and_the_gateway_agree_on_valid_bodies(name, body):
    def taken():
        try:
            # ops_service validates replay requests; the gateway passes them on.
            read_replay(body) if name == "ReplayRequest" else BODY_SCHEMAS[name]().load(body)
        except (marshmallow.ValidationError, errors.ValidationFailed):
            return False
        return True

    def documented():
        try:
            conform(body, {"$ref": f"#/components/schemas/{name}"})
        except jsonschema.ValidationError:
            return False
        return True

    assert taken() == documented()


def test_an_added_route_is_in_the_document():
    class Larger(GatewayService):
        name = "gateway"

        @Api.decorator("GET", "/api/orders/<uuid:order_id>/extra", roles=(auth.ADMIN,), answer=None, summary="More")
        def extra(self, call, order_id):
            """More of it."""

    documented = document(Larger)["paths"]
    assert documented["/api/orders/{order_id}/extra"]["get"]["x-roles"] == ["admin"]
    assert len(documented) == len(DOCUMENT["paths"]) + 1


class Colour(AnswerSchema):
    """One colour."""

    name = text_field("red")


class ColourPage(AnswerSchema):
    """All colours."""

    items = list_field(Colour)


class Colours:
    """A subject that no other file mentions."""

    @Api.decorator("GET", "/api/colours", roles=None, answer=ColourPage, summary="List colours")
    def list_colours(self, call):
        """Every colour."""


def test_an_added_subject_brings_its_routes_and_schemas_into_the_document():
    class Larger(Colours, GatewayService):
        name = "gateway"

    larger = document(Larger)
    assert larger["paths"]["/api/colours"]["get"]["tags"] == ["colours"]
    added = {name: larger["components"]["schemas"][name] for name in ("Colour", "ColourPage")}
    assert {name: schema["description"] for name, schema in added.items()} == {
        "Colour": "One colour.",
        "ColourPage": "All colours.",
    }
    assert DocumentReader(larger).example(added["ColourPage"]) == {"items": [{"name": "red"}]}


def test_the_document_lists_subjects_in_the_order_of_the_class_head():
    tags = [operation(method, path)["tags"][0] for method, path in OPERATIONS]
    in_the_head = [
        operation(item.method, item.label)["tags"][0]
        for subject in GatewayService.__bases__
        for member in vars(subject).values()
        for item in getattr(member, "nameko_entrypoints", ())
        if getattr(item, "in_document", False)
    ]
    assert list(dict.fromkeys(tags)) == list(dict.fromkeys(in_the_head))
    assert len(set(tags)) >= 6


def test_an_undescribed_piece_of_a_path_is_refused():
    class Odd(GatewayService):
        name = "gateway"

        @Api.decorator("GET", "/api/things/<colour>", roles=None, answer=None, summary="Odd")
        def odd(self, call, colour):
            """Odd."""

    with pytest.raises(KeyError, match="colour"):
        document(Odd)


def test_every_error_has_the_documented_shape(gateway):
    for error in (errors.NotFound(), errors.BelowReserved("Few.", {"reserved": 12}), errors.ServiceUnavailable()):
        BEHIND.answer = error
        status, headers, body = ask(gateway, "GET", "/api/stocks/A-1", headers=bearer("customer"))
        assert status >= 400
        conform(body, {"$ref": "#/components/schemas/ErrorAnswer"})
        assert {"X-Correlation-ID", "traceparent"} <= set(headers.keys())
    BEHIND.answer = {}


def test_the_operations_list_the_statuses_that_depend_on_them():
    statuses = {status for _, _, route in routes(GatewayService) for status in failures(route)}
    assert statuses == {400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 429, 503}


def test_every_operation_lists_a_condition_that_is_not_met():
    for _, _, route in routes(GatewayService):
        assert failures(route)[412] == [errors.PreconditionFailed], route.label


def test_the_description_says_what_the_codes_of_any_request_mean():
    for status, kind in REFUSALS.items():
        assert f"`{kind.code}` ({status}): {kind()}" in DOCUMENT["info"]["description"]


def test_a_route_answers_with_its_declared_status(gateway):
    body = json.dumps({"on_hand": 1}).encode()
    assert ask(gateway, "PUT", "/api/stocks/A-1", body, {**JSON, **bearer("admin")})[0] == 200


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


def test_the_docs_page_shows_every_operation_without_a_token(gateway):
    status, headers, text = ask(gateway, "GET", "/docs")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page = Elements(text)
    assert not page.open
    shown = "".join(page.words)
    ids = {attributes.get("id") for _, attributes in page.found}
    for method, path in OPERATIONS:
        documented = operation(method, path)
        assert documented["operationId"] in ids
        assert documented["summary"] in shown
        for role in documented.get("x-roles", ()):
            assert role in shown
    assert all(client in shown for client in Stream.samples.values())
    for code in ("idempotency_key_reused", "version_moved", "rate_limited"):
        assert code in shown
    assert "-H 'Idempotency-Key: first-order'" in shown
    assert "items[].unit_price" in shown


def test_the_docs_page_loads_nothing_from_elsewhere_and_runs_no_script(gateway):
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


def test_the_docs_page_has_one_path(gateway):
    assert ask(gateway, "GET", "/api/v1/docs")[0] == 404
    assert ask(gateway, "GET", "/api/v1/openapi.json")[0] == 200


def test_the_docs_page_escapes_the_document():
    hostile = json.loads(json.dumps(DOCUMENT))
    hostile["paths"]["/docs"]["get"]["summary"] = "<script>alert(1)</script>"
    assert "<script" not in docs(hostile, ORIGIN).body


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"Host": "shop.example:20150"}, "http://shop.example:20150"),
        ({"Host": "[::1]:8000"}, "http://[::1]:8000"),
        (
            {"Host": "shop.example", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.example"},
            "http://shop.example",
        ),
    ],
)
def test_the_docs_page_names_the_address_by_which_it_was_called(gateway, headers, origin):
    _, _, text = ask(gateway, "GET", "/docs", headers=headers)
    assert re.findall(r"^ *<pre>api=(.*)   #", text, re.M) == [origin]
    assert "127.0.0.1" not in text


@pytest.mark.parametrize(
    ("peer", "forwarded", "origin"),
    [
        ("10.0.0.5", {"PROTO": "https", "HOST": "shop.example"}, ORIGIN),
        ("10.0.0.5", {"FOR": "192.0.2.7, 10.0.0.6", "PROTO": "https, http", "HOST": "shop.example, inner"}, ORIGIN),
        ("10.0.0.5", {"FOR": "192.0.2.7, 10.0.0.6", "PROTO": "https", "HOST": "shop.example"}, ORIGIN),
        ("10.0.0.5", {"FOR": "192.0.2.7", "PROTO": "http, https", "HOST": "of.the.client, shop.example"}, ORIGIN),
        ("10.0.0.5", {"PROTO": "http,https", "HOST": "of.the.client,shop.example"}, ORIGIN),
        ("10.0.0.5", {"PROTO": "https"}, "https://gateway:8000"),
        ("10.0.0.5", {}, "http://gateway:8000"),
        ("10.0.0.5", {"PROTO": "javascript"}, "https://the-address-of-this-page"),
        ("10.0.0.5", {"HOST": "$(rm -rf /)"}, "https://the-address-of-this-page"),
        ("10.0.0.5", {"HOST": "<script>"}, "https://the-address-of-this-page"),
        ("192.0.2.7", {"PROTO": "https", "HOST": "shop.example"}, "http://gateway:8000"),
    ],
)
def test_the_origin_is_what_the_first_trusted_proxy_was_asked_for(peer, forwarded, origin):
    environ = {"REMOTE_ADDR": peer, "wsgi.url_scheme": "http", "HTTP_HOST": "gateway:8000"}
    environ |= {f"HTTP_X_FORWARDED_{name}": value for name, value in forwarded.items()}
    assert Proxies(["10.0.0.0/8"]).origin(environ) == origin


def test_the_docs_page_shows_patterns(gateway):
    _, _, text = ask(gateway, "GET", "/docs")
    assert "[A-Za-z0-9][A-Za-z0-9._-]{0,63}" in "".join(Elements(text).words)
    assert "1 to 128 of A-Z a-z 0-9 _ . : -" in "".join(Elements(text).words)
    shown = {item.name: item.pattern for item in READER.fields({"$ref": "#/components/schemas/OrderRequest"})}
    assert (shown["items[].sku"], shown["payment_method"]) == ("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "")


def test_the_docs_page_shows_each_shape_of_a_body(gateway):
    _, _, text = ask(gateway, "GET", "/docs")
    shown = re.sub(r"\s+", " ", "".join(Elements(text).words))
    for shape in SHAPES:
        assert shape.__doc__ in shown


def test_a_body_of_several_shapes_is_one_of_named_objects():
    several = [schema for schema in DOCUMENT["components"]["schemas"].values() if "oneOf" in schema]
    assert len(several) == 2
    for schema in several:
        for shape in schema["oneOf"]:
            assert READER.resolved(shape)["type"] == "object"
    assert not re.search(r'"(?:anyOf|oneOf|allOf|not)": (?:{|\[{"(?!\$ref))', json.dumps(DOCUMENT))


# Words that come from outside: other programs publish events, providers refuse payments, operators give reasons.
FREE = {
    *("DeadLetter.event_type", "DeadStep.event_type", "LinkedOperation.event_type"),
    *("DeadLetter.reason", "DeadStep.reason", "ReasonCount.reason", "Payment.reason", "Step.source", "FeedStep.source"),
    # Words of auth_service's records, which grow; the list of these events in an export.
    *("ExportedEvent.event", "ExportedSession.kind", "OwnExport.events"),
    *("OAuthCallback.code", "OAuthCallback.state"),
    *("AccountEvent.event", "ReasonRequest.reason", "RolesRequest.reason"),
}


def test_every_word_of_a_closed_list_is_an_enumeration():
    words = {"status", "state", "reason", "queue", "dlq", "kind", "event", "events", "event_type", "source", "code"}
    free = set()
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            whole = READER.resolved(inner)
            whole = READER.resolved(whole.get("items", whole))
            if field in words and "enum" not in whole:
                free.add(f"{name}.{field}")
    assert free == FREE


def enumerated(name):
    words = DOCUMENT["components"]["schemas"][name]["enum"]
    assert len(set(words)) == len(words)
    return set(words)


def test_the_enumerations_hold_what_the_services_can_say():
    reasons = {rule.reason for rule in order_rules.TABLE if rule.reason}
    assert enumerated("OrderReason") == reasons
    assert enumerated("OrderEvent") == {rule.hears for rule in order_rules.TABLE} | {"order.created"}
    asked = {word for _, words in order_rules.AWAITED.values() for word in words}
    assert enumerated("OrderEvent") >= asked
    assert enumerated("AwaitedFrom") >= {name for name, _ in order_rules.AWAITED.values()}
    words = schema_of_type(get_type_hints(ReleaseRequested, include_extras=True)["reason"])["enum"]
    assert enumerated("ReleaseReason") == {*words, "manual", "expired"}
    codes = set(re.findall(r"`(\w+)`:", json.dumps([failure for _, _, failure in failures_documented()])))
    assert enumerated("ErrorCode") == codes | {kind.code for kind in REFUSALS.values()}


def failures_documented():
    for method, path in OPERATIONS:
        for status, answer in operation(method, path)["responses"].items():
            if int(status) >= 400:
                yield path, status, answer["description"]


def test_the_methods_of_the_mock_provider_are_documented():
    words = DOCUMENT["components"]["schemas"]["OrderRequest"]["properties"]["payment_method"]["description"]
    assert set(re.findall(r"mock_\w+", words)) == set(METHODS)
    assert METHOD_UNKNOWN in words


# What each command leads to, by the tables of the services.
LEADS_TO = {
    "cancel_order": {rule.becomes for rule in order_rules.TABLE if rule.hears == "cancel" and rule.becomes},
    "retry_refund": {rule.becomes for rule in order_rules.TABLE if rule.hears == "refund.retry"},
    "create_order": {"PENDING"},
    "commit_reservation": {"COMMITTED"},
    "release_reservation": {"RELEASED"},
    "reserve": {"RESERVED"},
    "start_replay": {"started"},
}


def test_the_example_answer_of_a_command_is_what_the_command_leads_to():
    for method, path in OPERATIONS:
        documented = operation(method, path)
        if documented["operationId"] not in LEADS_TO:
            continue
        status = "201" if "201" in documented["responses"] else min(documented["responses"])
        shown = json.loads(READER.answer(status, documented["responses"][status])["example"])
        assert shown.get("status", shown.get("state")) in LEADS_TO[documented["operationId"]]
        conform(shown, schema_of(documented["responses"][status]))
        reason = {"CANCELLED": "order_cancelled", "REFUND_PENDING": "order_cancelled"}.get(shown.get("status"))
        assert shown.get("reason") == reason


def test_every_tag_is_described():
    used = [operation(method, path)["tags"] for method, path in OPERATIONS]
    described = {tag["name"]: tag["description"] for tag in DOCUMENT["tags"]}
    assert {name for names in used for name in names} == described.keys()
    assert all(described.values())
    assert described["payments"] == "Payments: read them."


def test_no_schema_has_a_property_of_its_own_name():
    # A generator names a class after the schema and its field after the property.
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert name.lower() not in map(str.lower, schema.get("properties", ()))
