"""The OpenAPI document, made from the declarations by which the routes work."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
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
from shared.version import VERSION

DESCRIPTION = """\
Orders, stock and payments. `/api/v1/...` is the same as `/api/...`.

Sign in at `/api/auth/token` and send `Authorization: Bearer <access_token>` with every call. Money is an integer of
minor units: 1999 is 19.99 EUR. Times are RFC 3339 in UTC.

Every error has the shape `{"error": {"code", "message", "details", "traceId"}}`. Clients decide by `code`; people quote
`traceId` when they ask about an error. Every answer has its trace in `X-Correlation-ID` and `traceparent`; a client can
send its own in the same headers.

An unknown path is 404. A method that a path does not support is 405 with `Allow`. Request bodies are JSON with a
Content-Length of at most {limit} kB. Answers may gain fields.
""".replace("{limit}", str(MAX_BODY_BYTES // 1024))

KEY_SHAPE = rf'^(?:{IDEMPOTENCY_KEY.pattern}|"{IDEMPOTENCY_KEY.pattern}")$'

# The field of each path converter. For pieces of plain text, a route passes its own fields as `in_path`.
IN_PATHS: dict[str, marshmallow.fields.Field] = {"uuid": Id(), "int": WholeNumber(1, MAX_ROW_ID, 7)}

HEADERS = {
    "X-Correlation-ID": ("The correlation id that the client sent, else the trace id.", {"type": "string"}),
    "traceparent": ("The trace, in the form of W3C Trace Context.", {"type": "string"}),
    "Retry-After": ("After how many seconds to retry.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to sign in.", {"type": "string"}),
    "Location": ("The address of what was created.", {"type": "string", "format": "uri-reference"}),
    "Link": ('`<...>; rel="next"`: the next page, unless this is the last one.', {"type": "string"}),
    "Idempotent-Replayed": (
        "The answer was made for an earlier request with this key.",
        {"const": "true"},
    ),
}
ALWAYS = ("X-Correlation-ID", "traceparent")
EVENT_STREAM = "text/event-stream"


@cache
def document(service: type) -> dict[str, Any]:
    """The document of the routes of a service."""
    plugin = MarshmallowPlugin()
    spec = APISpec(
        "ecom", VERSION, "3.1.0", info={"description": DESCRIPTION}, plugins=[plugin], servers=[{"url": "/"}]
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
            if shape is not None and not isinstance(shape, str) and shape.__name__ not in spec.components.schemas:
                about = {"description": _doc(shape), **getattr(shape, "openapi", {})}
                spec.components.schema(shape.__name__, about, schema=shape)
        operation = _operation(name, method, route, plugin)
        spec.path(route.label, operations={route.method.lower(): operation})
    made = spec.to_dict()
    assert plugin.converter is not None
    for (shape, *_), name in plugin.converter.refs.items():
        # apispec finds the schemas inside other schemas itself and does not read their docstrings.
        made["components"]["schemas"][name].setdefault("description", _doc(shape))
    return json.loads(json.dumps(made))  # plain values that no schema shares


def routes(service: type) -> Iterator[tuple[str, Any, Api]]:
    """Every route of a service with its method and the method's name, in the order of the class head."""
    names = dict.fromkeys(name for kind in service.__mro__ for name in vars(kind))
    for name in names:
        method = getattr(service, name)
        for entrypoint in getattr(method, "nameko_entrypoints", ()):
            if isinstance(entrypoint, Api):
                yield name, method, entrypoint


def failures(route: Api) -> dict[int, list[type[EcomError]]]:
    """Every error that a route can answer, by status."""
    kinds: list[type[EcomError]] = [errors.UnknownParameter, *route.fails]
    if route.query is not None or route.reads_headers:
        kinds.append(errors.BadRequest)
    if route.paged:
        kinds.append(errors.InvalidCursor)
    if route.roles is not None:
        kinds += [errors.Unauthenticated, errors.Forbidden]
    if _in_path(route):
        kinds.append(errors.NotFound)
    if route.body is not None:
        kinds += [errors.BadJson, errors.RequestTimeout, errors.LengthRequired, errors.PayloadTooLarge]
        kinds += [errors.UnsupportedMediaType, errors.ValidationFailed]
    if route.idempotent:
        kinds += [errors.IdempotencyKeyRequired, errors.IdempotencyKeyInvalid]
        kinds += [errors.IdempotencyInProgress, errors.IdempotencyKeyReused]
    kinds += [errors.RateLimited, errors.ServiceUnavailable]
    by_status: dict[int, list[type[EcomError]]] = {}
    for error in kinds:
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
                "description": "chosen by the client: a repeated key has no further effect and gets the same answer",
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
    if route.samples:
        operation["x-codeSamples"] = [{"lang": lang, "source": source} for lang, source in route.samples.items()]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.body.__name__}}}
    return operation


def _answer(route: Api, status: int, shape: type[marshmallow.Schema] | str | None) -> dict[str, Any]:
    if isinstance(shape, str):
        return {"description": shape, "headers": _headers(ALWAYS)}
    if shape is None:
        schema: Any = {"type": "string"} if route.content_type.startswith("text/") else {"type": "object"}
    else:
        schema = shape.__name__
    has = {"Location": route.located, "Link": route.paged, "Idempotent-Replayed": route.idempotent}
    own = [*route.answer_headers, *(name for name, is_so in has.items() if is_so)]
    return {
        "description": _doc(shape) if shape else route.summary,
        "headers": _headers((*ALWAYS, *own)),
        "content": {route.content_type.partition(";")[0]: {"schema": schema}}
        | ({EVENT_STREAM: {"schema": {"type": "string"}}} if route.streams else {}),
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
    # Not inspect.getdoc, which would give a schema without words those of its base.
    return inspect.cleandoc(thing.__doc__ or "").partition("\n")[0]
