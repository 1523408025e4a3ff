"""Every route keeps the contract of the gateway's own OpenAPI document: its refusals and their form.

The tables hold kinds of requests, not routes: a route that is added is covered by being in the document.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import jwt
import pytest
import requests

from gateway.site.reader import DocumentReader
from ops.cli.flow import Flow
from shared import auth
from tests.e2e.broker import publish_by_hand
from tests.e2e.persons import PASSWORD, mailed, new_address, person, token_to
from tests.e2e.signed_in import signed_in
from tests.e2e.system import ROOT, System, eventually
from tests.oidc import REDIRECT_URI

HUGE = 10**30
STRANGER = "nobody-of-that-role"
PREFIXES = ("/api/", "/api/v1/")
EVENT_STREAM = "text/event-stream"
# More than the limit of 64 kB.
TOO_LARGE = b" " * (64 * 1024 + 1)


@dataclass(frozen=True)
class Request:
    """One request. Made from the examples of the document, it is valid."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None  # a value to send as JSON, or raw bytes, or an iterator to send in chunks

    def with_headers(self, **headers: str | None) -> Request:
        """A copy with some headers changed or, for None, removed."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={k: v for k, v in (self.headers | named).items() if v is not None})

    def as_user(self, token: str | None) -> Request:
        return self.with_headers(Authorization=f"Bearer {token}" if token else None)


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    documented: dict[str, Any]
    reader: DocumentReader

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def roles(self) -> list[str] | None:
        return self.documented.get("x-roles")

    def parameters(self, place: str) -> list[dict[str, Any]]:
        return [item for item in self.documented["parameters"] if item["in"] == place]

    @property
    def body_schema(self) -> dict[str, Any] | None:
        if "requestBody" not in self.documented:
            return None
        return dict(self.documented["requestBody"]["content"]["application/json"]["schema"])

    def request(self) -> Request:
        """A valid request without a token, made from examples."""
        path = self.path
        for item in self.parameters("path"):
            path = path.replace(f"{{{item['name']}}}", str(item["schema"]["examples"][0]))
        query = {item["name"]: item["schema"]["examples"][0] for item in self.parameters("query") if item["required"]}
        headers = {item["name"]: item["schema"]["examples"][0] for item in self.parameters("header")}
        body = None
        if self.body_schema is not None:
            headers["Content-Type"] = "application/json"
            body = self.reader.example(self.body_schema)
        return Request(self.method, path, query, headers, body)


class Api:
    """The running gateway, and tokens of every role for it."""

    def __init__(self, system: System) -> None:
        self.url = system.url("gateway")
        self.http = requests.Session()
        self.keys = system.settings.auth_keys
        self.document = self.http.get(f"{self.url}/api/openapi.json", timeout=10).json()
        reader = DocumentReader(self.document)
        self.operations = [
            Operation(method.upper(), path, documented, reader)
            for path, methods in self.document["paths"].items()
            for method, documented in methods.items()
        ]

    def token(self, *roles: str, sub: str = "contract") -> str:
        return auth.issue(self.keys, sub, roles)

    def allowed(self, operation: Operation) -> Request:
        """A valid request with the token of an allowed role."""
        token = self.token(*operation.roles) if operation.roles is not None else None
        return operation.request().as_user(token)

    def send(self, request: Request) -> requests.Response:
        sent = request.body
        if sent is not None and not isinstance(sent, bytes | Iterator):
            sent = json.dumps(sent).encode()
        answer = self.http.request(
            request.method, self.url + request.path, request.query, sent, request.headers, timeout=15, stream=True
        )
        if answer.headers["Content-Type"] == EVENT_STREAM:
            answer.close()  # the stream would last for minutes
        else:
            assert answer.content is not None
        return answer

    def versions(self, request: Request) -> list[Request]:
        """The same request by every prefix of its path."""
        first, *others = PREFIXES
        if not request.path.startswith(first):
            return [request]
        return [request, *(replace(request, path=request.path.replace(first, other, 1)) for other in others)]


@pytest.fixture(scope="module")
def api(system: System) -> Api:
    api = Api(system)
    assert len(api.operations) > 15
    return api


def problems(
    api: Api, operation: Operation, request: Request, status: int, code: str, what: str = "", **headers: str
) -> Iterator[str]:
    """How the answers to a request, by every prefix of its path, differ from the contract."""
    for version in api.versions(request):
        answer = api.send(version)
        where = f"{version.method} {version.path}{' ' + what if what else ''}"
        error = error_of(answer)
        if (answer.status_code, error.get("code")) != (status, code):
            yield f"{where}: {answer.status_code} {answer.text[:200]}, not {status} {code}"
        elif set(error) != {"code", "message", "details", "traceId"}:
            yield f"{where}: an error of another shape: {answer.text[:200]}"
        elif uuid.UUID(error["traceId"]).hex != answer.headers["traceparent"].split("-")[1]:
            yield f"{where}: its error and its headers tell of two traces"
        elif status != 405 and str(status) not in operation.documented["responses"]:
            yield f"{where}: {status} is right, and not in the document"
        for name, value in headers.items():
            if not answer.headers.get(name.replace("_", "-"), "").startswith(value):
                yield f"{where}: no {name}: {value}"


def error_of(answer: requests.Response) -> dict[str, Any]:
    if answer.headers.get("Content-Type") != "application/json":
        return {}
    return dict(answer.json().get("error", {}))


def bad_tokens(api: Api, roles: list[str]) -> dict[str, str]:
    """Invalid tokens that name an allowed user."""
    good = api.token(*roles)
    (kid, secret), *_ = api.keys
    now = int(time.time())
    claims = jwt.decode(good, options={"verify_signature": False})
    head, payload, signature = good.split(".")

    def signed(key: str = secret, algorithm: str = "HS256", kid_: str | None = kid, **changes: Any) -> str:
        changed = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(changed, key, algorithm, headers={"kid": kid_} if kid_ else None)

    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": kid}).encode()).rstrip(b"=").decode()
    return {
        "no token": "",
        "no token at all": "nonsense",
        "a signature of another": f"{head}.{payload}.{signature[:-8]}AAAAAAAA",
        "another key": signed(key="not-the-key-of-this-system-0123456789"),
        "another algorithm": signed(algorithm="HS512"),
        "a kid that is not known": signed(kid_="other"),
        "no kid": signed(kid_=None),
        "alg none": f"{unsigned}.{payload}.",
        "alg none, the signature kept": f"{unsigned}.{payload}.{signature}",
        "expired": signed(iat=now - 1000, exp=now - 100),
        "of the future": signed(iat=now + 600, exp=now + 1200),
        "for a day": signed(exp=now + 86_400),
        "another audience": signed(aud="other-api"),
        "another issuer": signed(iss="other"),
        "nobody": signed(sub=""),
        "roles that are no list": signed(roles=" ".join(roles)),
        **{f"no {name}": signed(**{name: None}) for name in ("exp", "iat", "iss", "aud", "sub", "jti", "roles")},
    }


@pytest.mark.filterwarnings("ignore:The HMAC key")
def test_no_route_accepts_an_invalid_token(api: Api) -> None:
    found = [
        problem
        for operation in api.operations
        if operation.roles is not None
        for what, token in bad_tokens(api, operation.roles).items()
        for problem in problems(
            api, operation, operation.request().as_user(token or None), 401, "unauthenticated", what,
            WWW_Authenticate="Bearer",
        )
    ]  # fmt: skip
    assert found == []


def test_no_route_allows_another_role(api: Api) -> None:
    found = [
        problem
        for operation in api.operations
        if operation.roles is not None
        for role in (*sorted(set(auth.ROLES) - set(operation.roles)), STRANGER)
        for problem in problems(
            api, operation, operation.request().as_user(api.token(role)), 403, "forbidden", f"as {role}"
        )
    ]
    assert found == []


def test_every_route_allows_each_of_its_roles(api: Api) -> None:
    for operation in api.operations:
        for role in operation.roles or ():
            answer = api.send(replace(operation.request().as_user(api.token(role)), query={"unknown": "1"}))
            assert error_of(answer).get("code") == "unknown_parameter", f"{operation} as {role}: {answer.text}"


def test_customers_get_404_for_the_resources_of_others(system: System, api: Api) -> None:
    flow = system.flow()
    flow.stock("contract", 10)
    order = flow.at_rest(flow.order("contract")["order_id"])
    owned = {name: order[name] for name in ("order_id", "payment_id")}
    found = []
    asked = 0
    for operation in api.operations:
        places = {item["name"] for item in operation.parameters("path") + operation.parameters("query")} & owned.keys()
        if not places or not {"customer", "auditor"} <= set(operation.roles or ()):
            continue
        asked += 1
        path = operation.path
        for name, value in owned.items():
            path = path.replace(f"{{{name}}}", value)
        good = operation.request()
        query = good.query | {
            item["name"]: owned[item["name"]] for item in operation.parameters("query") if item["name"] in owned
        }
        request = replace(good, path=path, query=query)
        for who, role, status in (("customer", "customer", 200), ("auditor", "auditor", 200)):
            answer = api.send(request.as_user(api.token(role, sub=who)))
            if answer.status_code != status:
                found.append(f"{operation} as {who}: {answer.status_code} {answer.text}")
        found += problems(api, operation, request.as_user(api.token("customer", sub="mallory")), 404, "not_found")
    assert found == []
    assert asked >= 4
    listed = api.send(Request("GET", "/api/orders").as_user(api.token("customer", sub="mallory")))
    assert listed.json()["items"] == []


def test_an_id_that_is_not_a_uuid_is_404(api: Api) -> None:
    found = []
    for operation in api.operations:
        good = api.allowed(operation)
        for item in operation.parameters("path"):
            if item["schema"].get("format") != "uuid":
                continue
            example = item["schema"]["examples"][0]
            for bad in ("7", "no-uuid", example[:-1], example + "0", "%00", "..%2F", example.replace("-", "")):
                found += problems(api, operation, replace(good, path=good.path.replace(example, bad)), 404, "not_found")
    assert found == []


def test_an_unknown_query_parameter_is_400(api: Api) -> None:
    found = []
    for operation in api.operations:
        good = api.allowed(operation)
        for name in ("unknown", "Limit", "limit[]", ""):
            bad = replace(good, query=good.query | {name: "1"})
            found += problems(api, operation, bad, 400, "unknown_parameter", name)
    assert found == []


def bad_values(schema: dict[str, Any]) -> Iterator[str]:
    """Invalid values of a query parameter."""
    if "enum" in schema:
        yield from ("", "nothing")
    elif schema["type"] == "integer":
        yield from (
            "",
            "x",
            "1.0",
            "1e2",
            "-1",
            str(schema["minimum"] - 1),
            "+1",
            str(HUGE),
            str(schema["maximum"] + 1),
            "\N{ARABIC-INDIC DIGIT THREE}",
        )
    elif schema.get("format") == "date-time":
        yield from ("", "yesterday", "2026-01-14", "2026-01-14T10:30:00", "2026-13-01T00:00:00Z")
    elif schema.get("format") == "uuid":
        yield "7"
    else:
        yield from ("", "a\0b", "x" * (schema.get("maxLength", 200) + 1))


def test_a_bad_query_value_is_400(api: Api) -> None:
    found = []
    for operation in api.operations:
        good = api.allowed(operation)
        for item in operation.parameters("query"):
            if item["required"]:  # an id that names the resource: 404, see above
                continue
            for value in bad_values(item["schema"]):
                bad = replace(good, query=good.query | {item["name"]: value})
                found += problems(api, operation, bad, 400, "bad_request", f"{item['name']}={value[:20]!r}")
    assert found == []


def test_an_invented_cursor_is_400(api: Api) -> None:
    found = []
    for operation in api.operations:
        if any(item["name"] == "cursor" for item in operation.parameters("query")):
            for cursor in ("x", "WzddLg", "....", base64.urlsafe_b64encode(b'{"a": 1}').decode()):
                bad = replace(api.allowed(operation), query={"cursor": cursor})
                found += problems(api, operation, bad, 400, "invalid_cursor", cursor)
    assert found == []


def test_an_unknown_status_is_400_and_the_known_ones_are_named(api: Api) -> None:
    token = api.token("auditor")
    answer = api.send(Request("GET", "/api/orders", {"status": "SENT"}).as_user(token))
    assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request")
    (message,) = error_of(answer)["details"]["status"]
    for status in re.findall(r"[A-Z_]{4,}", message):
        assert api.send(Request("GET", "/api/orders", {"status": status}).as_user(token)).status_code == 200


def test_an_unsupported_method_is_405_with_the_supported_ones(api: Api) -> None:
    found = []
    for operation in api.operations:
        taken = {other.method for other in api.operations if other.path == operation.path}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - taken:
            bad = replace(operation.request(), method=method, body=None)
            found += problems(api, operation, bad, 405, "method_not_allowed")
            allowed = set(api.send(bad).headers["Allow"].split(", "))
            if allowed - {"HEAD"} != taken:
                found.append(f"{method} {operation.path}: Allow: {allowed}, and it takes {taken}")
    assert found == []


@pytest.mark.parametrize(
    "path", ["/index.html", "/api", "/api/", "/api/v2/orders", "/api/nothing", "/api/orders/", "/api//orders",
             "/API/orders", "/api/orders/%ff", "/docs/", "/api/openapi", "/api/v1", "/.env", "/api/../api/orders"]
)  # fmt: skip
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    prepared = requests.Request("GET", api.url, headers={"Authorization": f"Bearer {api.token('admin')}"}).prepare()
    prepared.url = api.url + path  # set directly, because requests would normalise it
    answer = api.http.send(prepared, timeout=10)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


def test_bodies_too_large_are_refused_whole_and_in_chunks(api: Api) -> None:
    found = []
    for operation in api.operations:
        # The size is checked first, so no token is needed. Only operations with a body document these answers.
        documented = copy.deepcopy(operation.documented)
        documented["responses"] |= {"413": {}}
        any_body = replace(operation, documented=documented)
        good = operation.request()
        found += problems(api, any_body, replace(good, body=TOO_LARGE), 413, "payload_too_large")
        for version in api.versions(good):
            chunked = replace(version, body=iter([TOO_LARGE]))
            answer = api.send(chunked)
            if (answer.status_code, error_of(answer).get("code")) != (413, "payload_too_large"):
                found.append(f"{version.method} {version.path} in chunks: {answer.status_code} {answer.text}")
    assert found == []


def bodies(operation: Operation) -> Iterator[tuple[str, Any, int, str]]:
    """A name, a body that breaks one rule, and the expected answer."""
    assert operation.body_schema is not None
    reader = operation.reader
    for text in (b"", b"{", b"\xff", b'{"a": 1, "a": 1}', b'{"a": NaN}', b"[" * 5000, b"{} {}", b"{'a': 1}"):
        if text or operation.documented["requestBody"]["required"]:
            yield f"malformed {text[:20]!r}", text, 400, "bad_json"
    for other in ([], "text", 7, None, True):
        yield f"no object: {other!r}", json.dumps(other).encode(), 422, "validation_failed"
    for shape in reader.resolved(operation.body_schema).get("oneOf", [operation.body_schema]):
        for what, body in bad_bodies(reader, reader.resolved(shape)):
            yield what, body, 422, "validation_failed"


def bad_bodies(reader: DocumentReader, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A name, and a body of one shape that breaks one rule."""
    for good in schema.get("examples") or [reader.example(schema)]:
        for place, inner in places(reader, schema, good):
            for what, value in wrong(inner):
                yield f"{'.'.join(map(str, place))} is {what}", changed(good, place, value)
        for place, value in objects(good):
            yield f"a field too many at {place}", changed(good, place, value | {"unknown": 1})
        for name in good:
            if name in schema.get("required", ()):
                yield f"no {name}", {other: value for other, value in good.items() if other != name}


def places(
    reader: DocumentReader, schema: dict[str, Any], good: Any, at: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, Any]]:
    """Every place in a valid value with its schema, except the whole value."""
    schema = dict(reader.resolved(schema))
    if at:
        yield at, schema
    if isinstance(good, dict):
        for name, value in good.items():
            yield from places(reader, schema["properties"][name], value, (*at, name))
    elif isinstance(good, list):
        yield from places(reader, schema["items"], good[0], (*at, 0))


def objects(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        yield at, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield from objects(inner, (*at, name))


def changed(good: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copied = copy.copy(good)
    copied[at[0]] = changed(good[at[0]], at[1:], value)
    return copied


EXAMPLES: dict[str, Any] = {"string": "text", "integer": 7, "array": [], "object": {}, "boolean": True, "null": None}


def wrong(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values that this schema refuses."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    for kind, example in EXAMPLES.items():
        if kind not in kinds:
            yield kind, example
    if "integer" in kinds:
        yield "too small", schema["minimum"] - 1
        yield "too large", schema["maximum"] + 1
        yield "huge", HUGE
        yield "a huge float", 1e300
        yield "a float", 1.5
        yield "1.0", 1.0
        yield "a text", "7"
    elif "string" in kinds:
        if schema.get("minLength") != 0:
            yield "empty", ""
        yield "with NUL", "a\0b"
        yield "half a character", "\ud800"
        if "maxLength" in schema:
            yield "too long", "a" * (schema["maxLength"] + 1)
    elif "array" in kinds:
        if schema.get("minItems"):
            yield "empty", []
        yield "a list of null", [None]
    elif "boolean" in kinds:
        yield "1", 1
        yield "a text", "true"


def test_an_invalid_body_is_422_with_details(api: Api) -> None:
    found = []
    count = 0
    for operation in api.operations:
        if operation.body_schema is not None:
            for what, body, status, code in bodies(operation):
                found += problems(api, operation, replace(api.allowed(operation), body=body), status, code, what)
                count += 1
    assert found == []
    assert count > 150


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data",
             "application/json; charset=latin-1", "application/jsonx"]
)  # fmt: skip
def test_a_body_of_another_content_type_is_415(api: Api, kind: str | None) -> None:
    found = [
        problem
        for operation in api.operations
        if operation.body_schema is not None and kind not in operation.documented["requestBody"]["content"]
        for problem in problems(
            api, operation, api.allowed(operation).with_headers(Content_Type=kind), 415, "unsupported_media_type"
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "idempotency_key_required"),
        *((key, "idempotency_key_invalid") for key in ("", "a b", '"a', "a" * 129, "a/b", "\xe9", "a,b")),
    ],
)
def test_a_missing_or_malformed_key_is_400(api: Api, key: str | None, code: str) -> None:
    keyed = [
        operation
        for operation in api.operations
        if any(item["name"] == "Idempotency-Key" for item in operation.parameters("header"))
    ]
    assert keyed
    found = [
        problem
        for operation in keyed
        for problem in problems(api, operation, api.allowed(operation).with_headers(Idempotency_Key=key), 400, code)
    ]
    assert found == []


# Answers that are not JSON have tests of their own.
OTHER_ANSWERS = {"GET /docs", "GET /api/orders/{order_id}/events", "GET /api/stocks/release-events/export"}


def accounts(system: System, flow: Flow) -> Iterator[tuple[str, str, str, Any]]:
    """Requests about accounts, each of a person of its own, since some of them end what others would go on with."""
    path, new = "/api/auth", new_address()
    at_home, moving, changing, forgetful, leaving, staying = (person(system, flow) for _ in range(6))
    flow.send("POST", f"{path}/me/erase", {"password": PASSWORD}, staying).raise_for_status()
    password = "an agreeable summer"
    yield "POST", f"{path}/register", "customer", {"email": new, "name": "Ann", "locale": "de"}
    yield "POST", f"{path}/verify-email", "customer", {"token": mailed(system, "register", new), "password": password}
    moved = mailed(system, "change_email", moving, new_address())
    yield "POST", f"{path}/verify-email", "customer", {"token": moved, "password": PASSWORD}
    yield "POST", f"{path}/login", "customer", {"login": "customer", "password": PASSWORD}
    yield "GET", f"{path}/me", at_home, None
    yield "PATCH", f"{path}/me", at_home, {"name": "Ann"}
    yield "POST", f"{path}/me/email", at_home, {"email": new_address(), "password": PASSWORD}
    yield "GET", f"{path}/me/export", at_home, None
    yield "GET", f"{path}/me/export", "customer", None
    yield "POST", f"{path}/password", changing, {"current_password": PASSWORD, "new_password": password}
    yield "POST", f"{path}/password/reset", "customer", {"email": forgetful}
    reset = mailed(system, "reset", forgetful)
    yield "POST", f"{path}/password/reset/confirm", "customer", {"token": reset, "password": password}
    yield "POST", f"{path}/me/erase", leaving, {"password": PASSWORD}
    yield "POST", f"{path}/keep", "customer", {"token": mailed(system, "keep", staying)}


def providers(system: System, flow: Flow) -> Iterator[tuple[str, str, str, Any]]:
    """Requests about signing in by a provider, and by the mail that links an identity."""
    path, there = "/api/auth/oauth", {"provider": "google", "redirect_uri": REDIRECT_URI}
    taken = person(system, flow)

    def callback(email: str) -> dict[str, Any]:
        begun = flow.send("POST", f"{path}/start", there, None).json()
        claims = {"sub": str(uuid.uuid4()), "email": email, "email_verified": True}
        added = system.google.consent(begun["authorization_url"], **claims)
        return {"provider": "google", "attempt": begun["attempt"], **added}

    system.databases.run("auth", "UPDATE proofs SET network = ''")  # only few mails go to one network in an hour
    assert flow.send("POST", f"{path}/callback", callback(taken), None).status_code == 409
    yield "POST", f"{path}/start", "customer", there
    yield "POST", f"{path}/callback", "customer", callback(new_address())
    yield "POST", "/api/auth/link", "customer", {"token": token_to(system, taken, "link")}
    yield "GET", "/api/auth/identities", taken, None
    yield "DELETE", "/api/auth/identities/google", taken, None


def buying(flow: Flow) -> Iterator[tuple[str, str, str, Any]]:
    """Requests about recipes, rules, suppliers and purchase orders of the sku `contract`, in an order that works."""
    inventory, key = "/api/inventory", str(uuid.uuid4())
    suppliers = [{"name": f"Lamps {n} {key}", "lead_days": 3} for n in range(3)]
    lines = [{"sku": "contract", "quantity": 5, "unit_cost": 100, "currency": "EUR"}]

    def made(path: str, body: Any, user: str, id_: str) -> str:
        answer = flow.send("POST", f"{inventory}/{path}", body, user, Idempotency_Key=str(uuid.uuid4()))
        return f"{inventory}/{path}/{answer.json()[id_]}"

    ours, theirs = (made("suppliers", one, "admin", "supplier_id") for one in suppliers[:2])
    bought, refused = (
        made(
            "purchase-orders",
            {"supplier_id": one.rpartition("/")[2], "lines": lines},
            "operator",
            "purchase_order_id",
        )
        for one in (ours, theirs)
    )
    recipe = f"{inventory}/recipes/contract-{key[:8]}"
    yield "PUT", recipe, "admin", {"components": [{"sku": "contract", "quantity": 2}]}
    yield "GET", recipe, "auditor", None
    yield "DELETE", recipe, "admin", None
    yield "POST", f"{inventory}/suppliers", "admin", suppliers[2]
    yield "PUT", ours, "admin", {**suppliers[0], "phone": "+49 30 1", "version": 1}
    yield "GET", ours, "operator", None
    yield "PUT", f"{inventory}/rules/contract", "admin", {"unit": "piece", "low_at": 1}
    yield "GET", f"{inventory}/rules/contract", "auditor", None
    yield "PUT", bought, "operator", {"lines": lines, "note": "for the fair", "version": 1}
    yield "GET", bought, "operator", None
    yield "POST", f"{bought}/order", "admin", None
    yield "POST", f"{bought}/receive", "operator", {"lines": [{"sku": "contract", "quantity": 2, "unit_cost": 90}]}
    yield "POST", f"{bought}/close", "operator", None
    yield "POST", f"{inventory}/purchase-orders", "operator", {"supplier_id": ours.rpartition("/")[2], "lines": lines}
    yield "POST", f"{refused}/cancel", "operator", None


def test_real_answers_match_the_document_exactly(system: System, api: Api) -> None:
    flow = system.flow()
    flow.stock("contract", 100)
    key = str(uuid.uuid4())
    posted = flow.order("contract", key=key)
    order = flow.at_rest(posted["order_id"])
    refused = flow.at_rest(flow.order("contract", payment="mock_declined")["order_id"])
    flow.timeline(refused["order_id"], last="inventory.released")
    kept = flow.at_rest(flow.order("contract", payment="mock_refund_declined")["order_id"])["order_id"]
    flow.cancel(kept)
    assert flow.at_rest(kept)["status"] == "REFUND_FAILED"
    found = f"status=PAID&user=customer&from=2026-01-14T10:30:00Z&to={datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"

    def reservation() -> dict[str, Any]:
        return {"order_id": str(uuid.uuid4()), "items": [{"sku": "contract", "quantity": 2}]}

    held = [flow.send("POST", "/api/stocks/reserve", reservation(), "admin").json() for _ in range(2)]
    dead = str(uuid.uuid4())
    publish_by_hand(system.amqp_uri, "inventory.commit.requested", {"order_id": dead})
    letters = "/api/ops/dlq/q.inventory.commit-requested"
    eventually(lambda: flow.get(letters, "operator")["items"], bool)
    unmended = flow.send("POST", f"{letters}/replays", {"all": True}, "operator").headers["Location"]
    eventually(lambda: flow.get(unmended, "operator")["status"], lambda status: status == "done")
    by_hand = flow.send("POST", "/api/stocks/reserve", reservation(), "admin").json()
    flow.send("POST", f"/api/stocks/reservations/{by_hand['reservation_id']}/release", None, "admin")
    releases = [
        flow.get(f"/api/stocks/release-events?order_id={of['order_id']}", "auditor")["items"][0]["id"]
        for of in (refused, by_hand)
    ]
    draft = {"name": "A lamp", "variants": [{"sku": f"contract-{uuid.uuid4().hex[:8]}"}]}
    item = flow.send("POST", "/api/menu/items", draft, "admin", Idempotency_Key=key).json()
    document, an_item = {**draft, "status": "published", "version": 1}, f"items/{item['item_id']}"
    an_offer = {"currency": "EUR", "unit_price": 1000}  # as `flow` has put it there
    a_line = {"sku": "contract-2", "quantity": 2}
    a_reservation = {"order_id": dead, "items": [{"sku": "contract", "quantity": 1}]}

    an_order = {"currency": "EUR", "items": [{"sku": "contract", "quantity": 1, "unit_price": 1000}]}
    sessions = [signed_in(system, "customer") for _ in range(3)]
    a_key = {"roles": ["service"], "expires_at": f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"}
    key_id = flow.send("POST", "/api/services/contract/keys", a_key, "admin").json()["key_id"]
    a_person = f"contract-{key}"
    add = "INSERT INTO users (user_id, name, email, roles) VALUES (:its, :its, :its || '@example.com', '{customer}')"
    system.databases.run("auth", add, its=a_person)
    requests_of: list[tuple[str, str, str, Any]] = [
        ("POST", "/api/auth/token", "customer", {"username": "customer", "password": "demo-customer"}),
        ("POST", "/api/auth/introspect", "service", {"token": flow.token("auditor")}),
        ("POST", "/api/auth/introspect", "service", {"token": "x"}),
        *accounts(system, flow),
        *providers(system, flow),
        ("POST", "/api/auth/refresh-token", "customer", {"refresh_token": sessions[0].refresh_token}),
        ("POST", "/api/auth/revoke", "customer", {"token": sessions[0].refresh_token}),
        ("POST", "/api/auth/logout", "customer", {"all": False}),
        ("GET", "/api/auth/sessions", "customer", None),
        ("DELETE", f"/api/auth/sessions/{sessions[1].session_id}", "customer", None),
        ("POST", "/api/auth/validate-token", "customer", None),
        ("POST", "/api/services/contract/keys", "admin", a_key),
        ("GET", "/api/services/contract/keys", "admin", None),
        ("DELETE", f"/api/services/contract/keys/{key_id}", "admin", None),
        ("POST", "/api/orders", "customer", an_order),
        ("GET", "/api/orders", "customer", None),
        ("GET", f"/api/orders?idempotency_key={key}", "customer", None),
        ("GET", f"/api/orders/{order['order_id']}", "customer", None),
        ("GET", f"/api/orders?{found}", "operator", None),
        ("GET", "/api/orders?status=PAID,CANCELLED&updated_from=2026-01-14T10:30:00Z&sort=updated_at", "auditor", None),
        ("GET", f"/api/orders/{refused['order_id']}", "auditor", None),
        ("GET", f"/api/orders/{order['order_id']}?wait=PAID,CANCELLED&timeout=5", "customer", None),
        ("GET", f"/api/orders/{order['order_id']}?wait=REFUND_FAILED&timeout=1", "customer", None),
        ("POST", f"/api/orders/{refused['order_id']}/cancel", "customer", None),
        ("POST", f"/api/orders/{kept}/cancel", "admin", None),
        ("POST", f"/api/orders/{kept}/refund/retry", "operator", None),
        ("GET", f"/api/orders/{kept}/timeline", "operator", None),
        ("GET", f"/api/orders/{order['order_id']}/timeline", "customer", None),
        ("GET", f"/api/orders/{refused['order_id']}/timeline", "customer", None),
        ("PUT", "/api/stocks/contract-2", "admin", {"on_hand": 5}),
        ("GET", "/api/stocks", "customer", None),
        ("GET", "/api/stocks/contract", "service", None),
        ("POST", "/api/stocks/reserve", "service", reservation()),
        ("POST", f"/api/stocks/reservations/{held[0]['reservation_id']}/release", "admin", None),
        ("POST", f"/api/stocks/reservations/{held[1]['reservation_id']}/commit", "admin", None),
        ("GET", "/api/stocks/release-events?limit=5", "auditor", None),
        ("GET", "/api/stocks/release-events?limit=1&offset=1&include_total=true", "admin", None),
        *(("GET", f"/api/stocks/release-events/{one}", "auditor", None) for one in releases),
        ("GET", f"/api/payments/{order['payment_id']}", "customer", None),
        ("GET", f"/api/payments?order_id={refused['order_id']}", "customer", None),
        ("GET", "/api/ops/queues", "operator", None),
        ("GET", letters, "operator", None),
        ("GET", unmended, "admin", None),
        ("POST", "/api/stocks/reserve", "service", a_reservation),
        ("POST", f"{letters}/replays", "operator", {"all": True}),
        ("POST", f"/api/orders/{order['order_id']}/notes", "operator", {"text": "They called.", "shown": True}),
        ("POST", f"/api/orders/{order['order_id']}/notes", "admin", {"text": "A friend of ours."}),
        ("GET", f"/api/orders/{order['order_id']}/notes", "customer", None),
        ("GET", f"/api/orders/{order['order_id']}/notes", "auditor", None),
        ("POST", "/api/inventory/reconcile", "service", {"skus": ["contract"]}),
        ("POST", "/api/inventory/stock-in", "operator", {"lines": [a_line], "reason": "found", "note": "behind it"}),
        ("POST", "/api/inventory/stock-out", "admin", {"lines": [a_line], "reason": "theft"}),
        (
            "POST",
            "/api/inventory/adjust",
            "operator",
            {"lines": [{"sku": "contract-2", "counted": 3}], "reason": "count"},
        ),
        ("POST", "/api/inventory/batch", "customer", {"skus": ["contract", "nothing"]}),
        ("GET", "/api/inventory/movements?sku=contract", "auditor", None),
        *buying(flow),
        ("PUT", "/api/menu/categories/contract", "admin", {"name": "Lamps"}),
        ("DELETE", "/api/menu/categories/contract", "admin", None),
        ("PUT", "/api/menu/offers/contract", "admin", an_offer),
        ("PUT", "/api/menu/offers", "admin", {"offers": [{"sku": "contract", **an_offer}]}),
        ("GET", "/api/menu/offers?skus=contract,nothing", "customer", None),
        ("GET", "/api/menu/items?currency=EUR", "customer", None),
        ("POST", "/api/menu/items", "admin", {"name": "Another"}),
        ("PUT", f"/api/menu/{an_item}", "admin", document),
        ("PUT", f"/api/menu/{an_item}", "admin", {**document, "name": "A red lamp", "version": 2}),
        ("POST", f"/api/menu/{an_item}/revert", "admin", {"to_version": 2, "version": 3}),
        ("GET", f"/api/menu/{an_item}", "customer", None),
        ("GET", f"/api/menu/editor/{an_item}", "auditor", None),
        ("GET", f"/api/menu/editor/{an_item}/versions?limit=2", "auditor", None),
        ("GET", f"/api/menu/editor/{an_item}/prices", "auditor", None),
        ("DELETE", f"/api/menu/{an_item}", "admin", None),
        ("GET", f"/api/users?email={a_person}@Example.com&role=ROLE_CUSTOMER&limit=1", "admin", None),
        ("GET", f"/api/users/{a_person}", "admin", None),
        ("POST", "/api/users/batch", "operator", {"ids": [a_person, "nobody"]}),
        ("PUT", f"/api/users/{a_person}/roles", "admin", {"roles": ["ROLE_OPERATOR"], "reason": "a test"}),
        ("POST", f"/api/users/{a_person}/disable", "admin", {"reason": "a test"}),
        ("POST", f"/api/users/{a_person}/enable", "admin", {"reason": "a test"}),
        ("DELETE", f"/api/users/{a_person}/sessions", "admin", None),
        ("GET", f"/api/users/{a_person}/events?limit=3", "auditor", None),
        ("GET", "/api/openapi.json", "customer", None),
    ]
    # Every other operation that needs nothing to be there.
    listed = {path.partition("?")[0] for method, path, _, _ in requests_of if method == "GET"}
    requests_of += [
        ("GET", operation.path, (operation.roles or ["customer"])[0], None)
        for operation in api.operations
        if operation.method == "GET" and operation.path not in listed and str(operation) not in OTHER_ANSWERS
        if "{" not in operation.path and not any(item["required"] for item in operation.parameters("query"))
    ]
    answered = set()
    for method, path, user, body in requests_of:
        answer = flow.send(method, path, body, user, Idempotency_Key=str(uuid.uuid4()))
        operation = operation_of(api, method, path.partition("?")[0])
        response = operation.documented["responses"].get(str(answer.status_code))
        assert answer.status_code < 300, f"{method} {path}: {answer.text}"
        assert response is not None, f"{operation}: {answer.status_code} is not in the document"
        if answer.status_code != 204:
            conform(api, answer.json(), response["content"]["application/json"]["schema"])
        answered.add(str(operation))
    assert flow.at_rest(kept)["status"] == "REFUND_FAILED"
    assert answered | OTHER_ANSWERS == {str(operation) for operation in api.operations}


def test_a_real_stream_sends_the_timeline_as_server_sent_events(system: System, api: Api) -> None:
    flow = system.flow()
    flow.stock("contract", 100)
    order_id = flow.at_rest(flow.order("contract")["order_id"])["order_id"]
    steps = flow.timeline(order_id, last="inventory.committed")["steps"]
    url = f"{api.url}/api/orders/{order_id}/events"
    headers = {"Authorization": f"Bearer {flow.token('customer')}"}
    with requests.get(url, headers=headers, stream=True, timeout=15) as answer:
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, EVENT_STREAM)
        assert operation_of(api, "GET", f"/api/orders/{order_id}/events").documented["responses"]["200"][
            "content"
        ].keys() == {EVENT_STREAM}
        lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
        assert [next(lines), next(lines)] == ["retry: 1000", ""]
        for step in steps:
            event = [next(lines) for _ in range(4)]
            assert event == [f"id: {step['id']}", f"event: {step['event']}", event[2], ""]
            assert json.loads(event[2].removeprefix("data: ")) == step
            conform(api, step, {"$ref": "#/components/schemas/Step"})
        assert list(lines) == ["event: end", 'data: {"status":"PAID"}', ""]


def test_a_real_export_matches_the_document(api: Api) -> None:
    operation = operation_of(api, "GET", "/api/stocks/release-events/export")
    good = operation.documented["responses"]["200"]
    for version in api.versions(api.allowed(operation)):
        answer = api.send(replace(version, query={"sku": "contract"}))
        assert answer.status_code == 200, answer.text
        assert {answer.headers["Content-Type"].partition(";")[0]} == good["content"].keys()
        assert {name.lower() for name in good["headers"]} <= {name.lower() for name in answer.headers}
        first, *_, last = answer.content.decode().split("\r\n")[:-1]
        assert (first.partition(",")[0], last.partition(",")[0]) == ('"id"', '"manifest"')


@pytest.mark.parametrize("last", ["", "x", "-1", "1.5", "9" * 19])
def test_a_malformed_last_event_id_is_400(api: Api, last: str) -> None:
    streams = [
        operation
        for operation in api.operations
        if EVENT_STREAM in operation.documented["responses"].get("200", {}).get("content", {})
    ]
    assert len(streams) == 2
    for operation in streams:
        bad = api.allowed(operation).with_headers(Last_Event_ID=last, Accept=EVENT_STREAM)
        assert list(problems(api, operation, bad, 400, "bad_request", last)) == []


def operation_of(api: Api, method: str, path: str) -> Operation:
    """The operation of a path: the one with the fewest templates."""
    fitting = [
        operation
        for operation in api.operations
        if operation.method == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", operation.path), path)
    ]
    return min(fitting, key=lambda operation: operation.path.count("{"))


def conform(api: Api, value: Any, schema: dict[str, Any]) -> None:
    whole = {**schema, "components": copy.deepcopy(api.document["components"])}
    for inner in whole["components"]["schemas"].values():
        inner["additionalProperties"] = False
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(whole, format_checker=checker).validate(value)


SCHEMATHESIS = Path(sys.executable).with_name("st")


@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(api: Api, long: bool, tmp_path: Path) -> None:
    """Send valid and invalid requests made from the document, with a token that has every role."""
    hooks = {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.e2e.fuzz"}
    run = subprocess.run(
        [
            SCHEMATHESIS,
            "run",
            f"{api.url}/api/openapi.json",
            f"--header=Authorization: Bearer {api.token(*auth.ROLES)}",
            f"--max-examples={150 if long else 8}",
            "--generation-deterministic",
            "--continue-on-failure",
            "--warnings=off",
            "--request-timeout=15",
            "--no-color",
        ],
        cwd=tmp_path,
        env={**os.environ, **hooks, **({"FUZZ_ALL_CASES": "1"} if long else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    (selected,) = re.findall(r"Operations: +(\d+) selected", run.stdout)
    # Every operation with a JSON answer or body, in two of the phases. Some have no example, and few have links.
    assert int(selected) >= len(api.operations) - 1, run.stdout
    assert run.stdout.count(f"✅ {selected} passed") == 2, run.stdout
