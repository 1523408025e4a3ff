"""The OpenAPI document, made from the declarations by which the routes work."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import marshmallow
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from gateway.api.answering import EVENT_STREAM
from gateway.api.errors import HEADERS as HEADERS_OF_ERRORS
from gateway.api.errors import REFUSALS, RETRY_AFTER_S, STATUS, ErrorAnswer, OauthError
from gateway.api.examples import NULL, example_of
from gateway.api.fields import IDEMPOTENCY_KEY, MAX_ROW_ID, Id, OneOf, WholeNumber, Word
from gateway.api.forms import FORM
from gateway.api.http import Api
from gateway.api.versions import Part, Versions, deprecated_in, in_version, is_api
from shared import errors
from shared.edge.connection import MAX_BODY_BYTES
from shared.errors import EcomError
from shared.version import VERSION

DESCRIPTION = """\
Orders, stock and payments. {version} Every answer names its version in `X-API-Version`. A request may do
so too: another version than that of its path is 400. Of what is deprecated, answers say when it ends and what replaces
it: `Deprecation`, `Sunset` and `Link`; past its end it is 410.

Sign in at `/api/auth/token` and send `Authorization: Bearer <access_token>` with every call. A service that has a key
may send `X-API-Key` and `X-Service-Name` instead. Money is an integer of
minor units: 1999 is 19.99 EUR. Times are RFC 3339 in UTC.

Every error has the shape `{"error": {"code", "message", "details", "traceId"}}`. Clients decide by `code`; people quote
`traceId` when they ask about an error. Every answer has its trace in `X-Correlation-ID` and `traceparent`; a client can
send its own in the same headers.

An unknown path is 404. A method that a path does not support is 405 with `Allow`. Request bodies are JSON
of at most {limit} kB, not compressed; they may be chunked.

Any request may be refused by one of these; each operation lists the others. {refusals}

Later versions may add fields to answers and words to enumerations: ignore a field that you do not know, and treat a
word that you do not know as one that you have no rule for.
"""

KEY_SHAPE = rf'^(?:{IDEMPOTENCY_KEY.pattern}|"{IDEMPOTENCY_KEY.pattern}")$'

# The field of each path converter. For pieces of plain text, a route passes its own fields as `in_path`.
IN_PATHS: dict[str, marshmallow.fields.Field] = {"uuid": Id(), "int": WholeNumber(1, MAX_ROW_ID, 7)}

HEADERS = {
    "X-API-Version": (
        "The version of the API, and after a point the release that serves it.",
        {"type": "string", "pattern": "^[0-9]+[.][0-9]+$"},
    ),
    "Deprecation": ("Since when this is deprecated (RFC 9745): seconds since 1970.", {"type": "string"}),
    "Sunset": ("From when on this is 410 (RFC 8594).", {"type": "string"}),
    "X-Deprecated-Fields": (
        "The deprecated fields of the request: a list of their names, each with the parameters `deprecated` and"
        " `sunset` (RFC 9651).",
        {"type": "string"},
    ),
    "X-Correlation-ID": ("The correlation id that the client sent, else the trace id.", {"type": "string"}),
    "traceparent": ("The trace, in the form of W3C Trace Context.", {"type": "string"}),
    "Retry-After": ("After how many seconds to retry.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to sign in.", {"type": "string"}),
    "Accept-Encoding": ("The content codings that a request body may have.", {"type": "string"}),
    "Location": ("The address of what was created.", {"type": "string", "format": "uri-reference"}),
    "Link": (
        '`<...>; rel="next"`: the next page, unless this is the last one. Of what is deprecated `deprecation`, `sunset`'
        " and `successor-version`.",
        {"type": "string"},
    ),
    "Idempotent-Replayed": (
        "The answer was made for an earlier request with this key.",
        {"const": "true"},
    ),
}
ALWAYS = ("X-API-Version", "X-Correlation-ID", "traceparent")
OF_AN_END = ("Deprecation", "Sunset", "Link")


@cache
def document(service: type, number: int = 1) -> dict[str, Any]:
    """The document of the routes of a service, as they are in one version of its API."""
    versions: Versions = service.api_versions  # type: ignore[attr-defined]
    plugin = MarshmallowPlugin()
    spec = APISpec(
        "ecom",
        VERSION,
        "3.1.0",
        info={"description": _description(number), "contact": {"name": "The operators of this installation"}},
        plugins=[plugin],
        servers=[{"url": "/"}],
    )
    _show_enumerations(spec, plugin)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    every = [route for _, _, route in routes(service)]
    documented = [
        (name, method, route)
        for name, method, route in routes(service)
        if route.in_document and number in [version.number for version in versions.serving(route, every)]
    ]
    headers = dict(HEADERS)
    for _, _, route in documented:
        headers |= route.answer_headers
    for name, (description, schema) in headers.items():
        spec.components.header(name, {"description": description, "schema": schema})
    for name, method, route in documented:
        for shape in (route.body, route.form, *route.answers.values(), *_error_shapes(route)):
            if shape is not None and not isinstance(shape, str):
                _add_schema(spec, shape)
        operation = _operation(name, method, route, plugin)
        spec.path(in_version(number, route.label), operations={route.method.lower(): operation})
    for tag, description in _tags(service, [(name, route) for name, _, route in documented]).items():
        spec.tag({"name": tag, "description": description})
    made = spec.to_dict()
    assert plugin.converter is not None
    for (shape, *_), name in plugin.converter.refs.items():
        # apispec finds the schemas inside other schemas itself and does not read their docstrings.
        made["components"]["schemas"][name].setdefault("description", _doc(shape))
    for _, _, route in documented:
        if route.example:
            answer = _shown(made, number, route)["responses"][str(route.status)]
            for content in answer["content"].values():
                content["example"] = example_of(content["schema"], made["components"]["schemas"]) | route.example
    made = json.loads(json.dumps(made))  # plain values that no schema shares
    for _, _, route in documented:
        _mark_deprecated(_shown(made, number, route), number, route, versions)
    for part in versions.parts.values():
        name, _, field = part.name.partition(".")
        if name in made["components"]["schemas"]:
            _deprecate(made["components"]["schemas"][name]["properties"][field], part)
    used = set(re.findall(r'"#/components/headers/([^"]+)"', json.dumps(made)))
    made["components"]["headers"] = {
        name: header for name, header in made["components"]["headers"].items() if name in used
    }
    return made


def _shown(made: Mapping[str, Any], number: int, route: Api) -> dict[str, Any]:
    """The operation of a route in a document."""
    shown: dict[str, Any] = made["paths"][in_version(number, route.label)][route.method.lower()]
    return shown


def _mark_deprecated(operation: dict[str, Any], number: int, route: Api, versions: Versions) -> None:
    """Say of a route and its parameters what of them is deprecated, and list the headers that say so."""
    told: tuple[str, ...] = ()
    ending = versions.ending(number, in_version(number, route.label), route.name)
    if ending is not None and is_api(route.label):
        operation["deprecated"] = True
        operation["description"] += f"\n\nDeprecated: {ending}"
        told = OF_AN_END
    in_query = deprecated_in(route.query() if route.query else None, versions.parts)
    for (name,), part in in_query:
        for parameter in operation["parameters"]:
            if (parameter["in"], parameter["name"]) == ("query", name):
                _deprecate(parameter, part)
    if in_query or deprecated_in(route.body() if route.body else None, versions.parts):
        told += ("X-Deprecated-Fields",)
    for answer in operation["responses"].values():
        answer["headers"] |= _headers(told)


def _deprecate(shown: dict[str, Any], part: Part) -> None:
    words = f"{shown['description']}. " if shown.get("description") else ""
    shown |= {"deprecated": True, "description": f"{words}Deprecated: {part.instead}"}


def _description(number: int) -> str:
    refusals = " ".join(f"`{kind.code}` ({status}): {_doc(kind)}" for status, kind in REFUSALS.items())
    version = "`/api/v1/...` is the same as `/api/...`." if number == 1 else f"This is version {number}."
    values = {"{version}": version, "{limit}": str(MAX_BODY_BYTES // 1024), "{refusals}": refusals}
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], DESCRIPTION)


def _show_enumerations(spec: APISpec, plugin: MarshmallowPlugin) -> None:
    """Make of each enumeration a schema of its own, to which the fields with its words refer."""

    def refer(_: Any, field: marshmallow.fields.Field, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(field, Word):
            return {}
        for enumeration in field.enumerations:
            if enumeration.name not in spec.components.schemas:
                words = list(enumeration.words)
                about = {"type": "string", "enum": words, "description": enumeration.description}
                spec.components.schema(enumeration.name, about | {"examples": words[:1]})
        kinds = [_reference(enumeration.name) for enumeration in field.enumerations]
        kinds += [NULL] if field.allow_none else []
        return {"anyOf": kinds} if len(kinds) > 1 else kinds[0]

    assert plugin.converter is not None
    plugin.map_to_openapi_type(Word, None, None)
    plugin.converter.add_attribute_function(refer)


def _add_schema(spec: APISpec, shape: type[marshmallow.Schema]) -> None:
    if shape.__name__ in spec.components.schemas:
        return
    about = {"description": _doc(shape), **getattr(shape, "openapi", {})}
    if not issubclass(shape, OneOf):
        spec.components.schema(shape.__name__, about, schema=shape)
        return
    for one in shape.shapes:
        _add_schema(spec, one)
    spec.components.schema(shape.__name__, about | {"oneOf": [_reference(one.__name__) for one in shape.shapes]})


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _tags(service: type, documented: Iterable[tuple[str, Api]]) -> dict[str, str]:
    """The subject of each tag, in the words of the modules that have its routes."""
    modules: dict[str, dict[str, None]] = {}
    for name, route in documented:
        kind = next(kind for kind in service.__mro__ if name in vars(kind))
        modules.setdefault(_tag(route), {})[_doc(sys.modules[kind.__module__])] = None
    return {tag: " ".join(words) for tag, words in modules.items()}


def routes(service: type) -> Iterator[tuple[str, Any, Api]]:
    """Every route of a service with its method and the method's name, in the order of the class head."""
    names = dict.fromkeys(name for kind in service.__mro__ for name in vars(kind))
    for name in names:
        method = getattr(service, name)
        for entrypoint in getattr(method, "nameko_entrypoints", ()):
            if isinstance(entrypoint, Api):
                yield name, method, entrypoint


def failures(route: Api) -> dict[int, list[type[EcomError]]]:
    """The errors that a route can answer, by status, beside those of any request: REFUSALS."""
    kinds: list[type[EcomError]] = [errors.UnknownParameter, errors.PreconditionFailed, *route.fails]
    if is_api(route.label):
        kinds.append(errors.VersionMismatch)
    if route.query is not None or route.reads_headers:
        kinds.append(errors.BadRequest)
    if route.paged:
        kinds.append(errors.InvalidCursor)
    if route.roles is not None:
        kinds += [errors.Unauthenticated, errors.RoleMissing]
    if _in_path(route):
        kinds.append(errors.NotFound)
    if route.body is not None:
        kinds += [errors.BadJson, errors.RequestTimeout, errors.PayloadTooLarge]
        kinds += [errors.UnsupportedMediaType, errors.UnsupportedCoding, errors.ValidationFailed]
    if route.idempotent:
        kinds += [errors.IdempotencyKeyRequired, errors.IdempotencyKeyInvalid]
        kinds += [errors.IdempotencyInProgress, errors.IdempotencyKeyReused]
    kinds += [errors.RateLimited, errors.TooManyConnections, errors.ServiceUnavailable]
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
                "description": "chosen by the client: 1 to 128 of A-Z a-z 0-9 _ . : - (quotes around them are "
                "allowed); a repeated key has no further effect and gets the same answer",
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
        | {status: _failure(route, kinds) for status, kinds in failures(route).items()},
    }
    if route.roles is not None:
        operation |= {"security": [{"bearer": []}], "x-roles": sorted(route.roles)}
    if route.samples:
        operation["x-codeSamples"] = [{"lang": lang, "source": source} for lang, source in route.samples.items()]
    if route.body is not None:
        content = {"application/json": {"schema": _reference(route.body.__name__)}}
        if route.form is not None:
            content[FORM] = {"schema": _reference(route.form.__name__)}
        operation["requestBody"] = {"required": route.needs_body, "content": content}
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


def _error_shapes(route: Api) -> tuple[type[marshmallow.Schema], ...]:
    return (ErrorAnswer,) if route.form is None else (ErrorAnswer, OauthError)


def _failure(route: Api, kinds: Iterable[type[EcomError]]) -> dict[str, Any]:
    own = {name for kind in kinds for name in _own_headers(kind)}
    shapes = [_reference(shape.__name__) for shape in _error_shapes(route)]
    return {
        "description": "\n".join(f"- `{kind.code}`: {_doc(kind)}" for kind in kinds),
        "headers": _headers((*ALWAYS, *sorted(own))),
        "content": {"application/json": {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}},
    }


def _own_headers(kind: type[EcomError]) -> Iterator[str]:
    yield from [HEADERS_OF_ERRORS[known][0] for known in kind.__mro__ if known in HEADERS_OF_ERRORS][:1]
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
