"""The OpenAPI document, made from the declarations that the routes themselves work by."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from typing import Any

import marshmallow
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from gateway.api.errors import RETRY_AFTER_S, STATUS, Error
from gateway.api.fields import IDEMPOTENCY_KEY, MAX_ROW_ID, Id, WholeNumber
from gateway.api.http import Api
from shared import errors
from shared.edge.connection import MAX_BODY_BYTES
from shared.errors import EcomError

DESCRIPTION = """\
Orders, stock and payments. `/api/v1/...` is the same as `/api/...`.

Sign in at `/api/auth/token` and send `Authorization: Bearer <access_token>` with every call. Money is an integer of
minor units: 1999 is 19.99 EUR. Times are RFC 3339 in UTC.

Every error has one shape, `{"error": {"code", "message", "details", "traceId"}}`. Clients decide by `code`; people who
ask about an error tell its `traceId`. Every answer names its trace in `X-Correlation-ID` and `traceparent`, and
takes the client's own from the same headers.

A path that is not here is 404, a method that a path does not take is 405 with `Allow`. Request bodies are JSON with a
Content-Length of at most {limit} kB. Answers may gain fields.
""".replace("{limit}", str(MAX_BODY_BYTES // 1024))

KEY_SHAPE = rf'^(?:{IDEMPOTENCY_KEY.pattern}|"{IDEMPOTENCY_KEY.pattern}")$'

# What a value in a path may be, by the converter of the rule. A route says it of its pieces of plain text.
IN_PATHS: dict[str, marshmallow.fields.Field] = {"uuid": Id(), "int": WholeNumber(1, MAX_ROW_ID, 7)}

HEADERS = {
    "X-Correlation-ID": ("What the client calls this request, or else the trace id.", {"type": "string"}),
    "traceparent": ("The trace, by W3C Trace Context.", {"type": "string"}),
    "Retry-After": ("After how many seconds to come again.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to sign in.", {"type": "string"}),
    "Location": ("Where what was asked for is.", {"type": "string", "format": "uri-reference"}),
    "Link": ('`<...>; rel="next"`: the next page, where there is one.', {"type": "string"}),
    "Idempotent-Replayed": ("That this answer was made for an earlier request.", {"const": "true"}),
}
ALWAYS = ("X-Correlation-ID", "traceparent")


@cache
def document(service: type) -> dict[str, Any]:
    """The document of a service's routes."""
    plugin = MarshmallowPlugin()
    spec = APISpec(
        "ecom", version(), "3.1.0", info={"description": DESCRIPTION}, plugins=[plugin], servers=[{"url": "/"}]
    )
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    documented = [(name, method, route) for name, method, route in routes(service) if route.in_document]
    headers = dict(HEADERS)
    for _, _, route in documented:
        headers |= route.answer_headers
    for name, (description, schema) in headers.items():
        spec.components.header(name, {"description": description, "schema": schema})
    for name, method, route in documented:
        for shape in (route.body, *route.answers.values(), Error):
            if shape is not None and shape.__name__ not in spec.components.schemas:
                about = {"description": _doc(shape), **getattr(shape, "openapi", {})}
                spec.components.schema(shape.__name__, about, schema=shape)
        operation = _operation(name, method, route, plugin)
        spec.path(route.label, operations={route.method.lower(): operation})
    made = spec.to_dict()
    assert plugin.converter is not None
    for (shape, *_), name in plugin.converter.refs.items():
        # Schemas inside others are found by apispec, which does not read docstrings.
        made["components"]["schemas"][name].setdefault("description", _doc(shape))
    return json.loads(json.dumps(made))  # plain, and shared with no schema


def version() -> str:
    """The project's version."""
    return metadata.version("ecom")


def routes(service: type) -> Iterator[tuple[str, Any, Api]]:
    """Each route of a service under the name of its method, in the order of the class."""
    names = dict.fromkeys(name for kind in service.__mro__ for name in vars(kind))
    for name in names:
        method = getattr(service, name)
        for entrypoint in getattr(method, "nameko_entrypoints", ()):
            if isinstance(entrypoint, Api):
                yield name, method, entrypoint


def failures(route: Api) -> dict[int, list[type[EcomError]]]:
    """Every error that a route can give, by status."""
    told: list[type[EcomError]] = [errors.UnknownParameter, *route.fails]
    if route.query is not None or route.reads_headers:
        told.append(errors.BadRequest)
    if route.paged:
        told.append(errors.InvalidCursor)
    if route.roles is not None:
        told += [errors.Unauthenticated, errors.Forbidden]
    if _in_path(route):
        told.append(errors.NotFound)
    if route.body is not None:
        told += [errors.BadJson, errors.RequestTimeout, errors.LengthRequired, errors.PayloadTooLarge]
        told += [errors.UnsupportedMediaType, errors.ValidationFailed]
    if route.idempotent:
        told += [errors.IdempotencyKeyRequired, errors.IdempotencyKeyInvalid]
        told += [errors.IdempotencyInProgress, errors.IdempotencyKeyReused]
    told += [errors.RateLimited, errors.ServiceUnavailable]
    by_status: dict[int, list[type[EcomError]]] = {}
    for error in told:
        status = next(STATUS[kind] for kind in error.__mro__ if kind in STATUS)
        by_status.setdefault(status, []).append(error)
    return dict(sorted(by_status.items()))


def _operation(name: str, method: Any, route: Api, plugin: MarshmallowPlugin) -> dict[str, Any]:
    assert plugin.converter is not None
    parameters: list[dict[str, Any]] = [
        {"in": "path", "name": piece, "required": True, "schema": plugin.converter.field2property(field)}
        for piece, field in _in_path(route)
    ]
    if route.query is not None:
        parameters += plugin.converter.schema2parameters(route.query(), location="query")
    if route.idempotent:
        parameters.append(
            {
                "in": "header",
                "name": "Idempotency-Key",
                "required": True,
                "description": "the client's own name for this request: a repeat has the same effect and answer",
                "schema": {"type": "string", "pattern": KEY_SHAPE, "examples": ["first-order"]},
            }
        )
    parameters += [
        {"in": "header", "name": header, "required": False, "description": description, "schema": dict(schema)}
        for header, (description, schema) in route.reads_headers.items()
    ]
    operation: dict[str, Any] = {
        "operationId": name,
        "tags": [_tag(route)],
        "summary": route.summary,
        "description": inspect.getdoc(method) or "",
        "security": [],
        "parameters": parameters,
        "responses": {status: _answer(route, status, shape) for status, shape in route.answers.items()}
        | {status: _failure(kinds) for status, kinds in failures(route).items()},
    }
    if route.roles is not None:
        operation |= {"security": [{"bearer": []}], "x-roles": sorted(route.roles)}
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.body.__name__}}}
    return operation


def _answer(route: Api, status: int, shape: type[marshmallow.Schema] | None) -> dict[str, Any]:
    if shape is None:
        schema: Any = {"type": "string"} if route.content_type.startswith("text/") else {"type": "object"}
    else:
        schema = shape.__name__
    has = {"Location": route.located, "Link": route.paged, "Idempotent-Replayed": route.idempotent}
    own = [*route.answer_headers, *(name for name, is_so in has.items() if is_so)]
    return {
        "description": _doc(shape) if shape else route.summary,
        "headers": _headers((*ALWAYS, *own)),
        "content": {route.content_type.partition(";")[0]: {"schema": schema}},
    }


def _failure(kinds: Iterable[type[EcomError]]) -> dict[str, Any]:
    own = {name for kind in kinds for name in _own_headers(kind)}
    return {
        "description": "\n".join(f"- `{kind.code}`: {_doc(kind)}" for kind in kinds),
        "headers": _headers((*ALWAYS, *sorted(own))),
        "content": {"application/json": {"schema": Error.__name__}},
    }


def _own_headers(kind: type[EcomError]) -> Iterator[str]:
    if issubclass(kind, errors.Unauthenticated):
        yield "WWW-Authenticate"
    if any(known in RETRY_AFTER_S for known in kind.__mro__):
        yield "Retry-After"


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _in_path(route: Api) -> list[tuple[str, marshmallow.fields.Field]]:
    pieces = re.findall(r"<(?:(\w+):)?(\w+)>", route.url)
    return [(name, IN_PATHS[converter] if converter else route.in_path[name]) for converter, name in pieces]


def _tag(route: Api) -> str:
    pieces = route.label.split("/")
    return pieces[2] if len(pieces) > 2 and "." not in pieces[2] else "documents"


def _doc(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]
