"""JSON over HTTP: how a request is read, who may ask, and how every answer and every error looks."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import marshmallow
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Rule
from werkzeug.wrappers import Request, Response

from gateway.cors import Cors
from gateway.rates import Rates
from shared import auth, errors
from shared.config import Settings
from shared.edge.connection import HAS_GONE
from shared.edge.http import BODY, Environ, Route, Shared
from shared.errors import EcomError
from shared.events import Identity
from shared.ids import new_trace_id
from shared.tracing import as_uuid, trace_id_from_correlation, trace_id_of, traceparent

log = logging.getLogger(__name__)

# The nearest class above an error decides; what has none is our fault and tells nothing.
STATUS: dict[type[EcomError], int] = {
    errors.BadRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.RequestTimeout: 408,
    errors.Conflict: 409,
    errors.LengthRequired: 411,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.ValidationFailed: 422,
    errors.RateLimited: 429,
    errors.CannotWork: 503,
    errors.ServiceUnavailable: 503,
}
INTERNAL = 500

CHALLENGE = 'Bearer realm="ecom", error="invalid_token"'

# When to come again, in seconds, where the error itself does not know better.
RETRY_AFTER_S: dict[type[EcomError], int] = {
    errors.IdempotencyInProgress: 1,
    errors.RateLimited: 10,
    errors.CannotWork: 2,
    errors.ServiceUnavailable: 2,
}

# What the server itself refuses, before any route was asked.
REFUSALS: dict[int, type[EcomError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    411: errors.LengthRequired,
    413: errors.PayloadTooLarge,
    500: EcomError,
    503: errors.ServiceUnavailable,
}

# Roles of a route: None is anyone, without a token; SIGNED_IN is anyone with one.
SIGNED_IN = frozenset(auth.ROLES)

PREFIXES = ("/api/", "/api/v1/")

_IDEMPOTENCY_KEY = re.compile(r'("?)([A-Za-z0-9_.:-]{1,128})\1')
_CORRELATION = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACE = "ecom.trace"

# No limit of ours has as many digits, and Python refuses to read 4,300 and more.
MAX_DIGITS = 19


@dataclass(frozen=True)
class Trace:
    """The trace of one request, and the correlation id its client knows it by."""

    trace_id: str
    correlation_id: str


@dataclass(frozen=True)
class Call:
    """A request that was read, checked and allowed."""

    trace_id: str
    identity: Identity | None
    body: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    expires_at: int = 0  # when its token ends, in seconds since 1970
    token_id: str = ""  # which token it is
    has_gone: Callable[[], bool] = lambda: False  # whether the client does not wait any more


@dataclass(frozen=True)
class Answer:
    """A result that is more than a body with the route's own status."""

    body: Any
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class Api(Route):
    """A route under /api: everything about it, also for the OpenAPI document, is said in its decorator.

    `answer` is the shape of what its method returns, `status` goes with it, and `also` holds other ones by status.
    `located` answers say in Location where what they made is. `fails` are errors that only this route can give; those
    of roles, bodies and keys are known by themselves. Whose query has a cursor says in Link where the next page is.
    """

    rates = Shared(Rates)
    content_type = "application/json"
    in_document = True  # of OpenAPI
    # Headers of requests that only such routes read, by name: what it is for, and its shape.
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {}
    # Headers that all good answers of such routes have beside those of every answer.
    answer_headers: tuple[str, ...] = ()

    def __init__(
        self,
        method: str,
        path: str,
        *,
        roles: Iterable[str] | None,
        summary: str,
        answer: type[marshmallow.Schema] | None,
        status: int = 200,
        also: Mapping[int, type[marshmallow.Schema]] | None = None,
        body: type[marshmallow.Schema] | None = None,
        query: type[marshmallow.Schema] | None = None,
        idempotent: bool = False,
        located: bool = False,
        fails: Iterable[type[EcomError]] = (),
    ) -> None:
        super().__init__(method, path)
        self.roles = None if roles is None else frozenset(roles)
        self.summary = summary
        self.status = status
        self.answers = {status: answer, **(also or {})}
        self.body = body
        self.query = query
        self.idempotent = idempotent
        self.located = located
        self.paged = query is not None and "cursor" in query().fields
        self.fails = tuple(fails)

    def setup(self) -> None:
        super().setup()
        settings: Settings = self.container.config["settings"]
        self._keys = settings.auth_keys
        self._cors = Cors(settings.cors_origins)
        self._body = self.body() if self.body else None
        self._query = self.query() if self.query else None

    def url_rules(self) -> Iterable[Rule]:
        """`/api/v1/...` is the same handler as `/api/...`."""
        for path in dict.fromkeys(self.url.replace(PREFIXES[0], prefix, 1) for prefix in PREFIXES):
            yield Rule(path, methods=[self.method])

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        """Who asks, then what: so that a stranger learns nothing about schemas or keys."""
        environ = request.environ
        trace_id = trace_of(environ).trace_id
        self.rates.made.check_address(environ["REMOTE_ADDR"])
        claims = self._claims(environ)
        identity = claims.identity if claims else None
        query = self.read_query(request)
        body = self.read_body(environ, self._body) if self._body else {}
        key = idempotency_key(environ) if self.idempotent else ""
        context: dict[str, Any] = {"trace_id": trace_id}
        if identity is not None:
            context |= {"user_id": identity.user_id, "roles": list(identity.roles)}
        expires_at, token_id = (claims.expires_at, claims.token_id) if claims else (0, "")
        return (Call(trace_id, identity, body, query, key, expires_at, token_id, environ[HAS_GONE]),), context

    def _claims(self, environ: Environ) -> auth.Claims | None:
        if self.roles is None:
            return None
        claims = self.verify(environ)
        self.rates.made.check_user(claims.identity)
        if self.roles.isdisjoint(claims.identity.roles):
            raise errors.Forbidden
        return claims

    def verify(self, environ: Environ) -> auth.Claims:
        """Who asks. Raises Unauthenticated."""
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            raise errors.Unauthenticated
        return auth.verify(token.strip(), self._keys)

    def read_query(self, request: Request) -> dict[str, Any]:
        """The query parameters as the route's schema has them. Raises BadRequest."""
        return load_query(query_of(request), self._query)

    def read_body(self, environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
        """The body as the route's schema has it. Raises BadRequest, UnsupportedMediaType, ValidationFailed."""
        return read_body(environ, schema)

    def answer(self, request: Request, result: Any) -> Response:
        result = result if isinstance(result, Answer) else Answer(result)
        headers = result.headers
        cursor = result.body.get("next_cursor") if self.paged and isinstance(result.body, Mapping) else None
        if cursor:
            headers = (*headers, ("Link", next_page(request, cursor)))
        return respond(
            request.environ, result.status or self.status, self.encode(result.body), headers, self.content_type
        )

    def encode(self, body: Any) -> str:
        """What the method returned, as text of the route's content type."""
        return as_json(body)

    def refuse(self, request: Request, error: Exception) -> Response:
        if isinstance(error, errors.CannotWork | errors.ServiceUnavailable):
            # Which part of us is away helps an operator and nobody else.
            log.warning("%s is unavailable, under trace %s: %s", self.label, trace_of(request.environ).trace_id, error)
            error = errors.ServiceUnavailable()
        return self.respond_with_error(request.environ, error)

    def refusal(self, error: HTTPException, environ: Environ) -> Response:
        if isinstance(error, MethodNotAllowed):
            preflight = self._cors.preflight(environ, error.valid_methods or ())
            if preflight is not None:
                return preflight
        kind = REFUSALS.get(error.code or INTERNAL, errors.BadRequest)
        says = error.description if kind in (errors.BadRequest, errors.ServiceUnavailable) else None
        allowed = [(name, value) for name, value in error.get_headers(environ) if name == "Allow"]
        return self.respond_with_error(environ, kind(says or ""), allowed)

    def respond_with_error(
        self, environ: Environ, error: Exception, headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        """An error as clients of such routes see it."""
        return respond_with_error(environ, error, headers)

    def finish(self, response: Response, environ: Environ) -> None:
        super().finish(response, environ)
        self._cors.finish(response, environ)


api = Api.decorator


# --- reading ---------------------------------------------------------------------------------------------------


def trace_of(environ: Environ) -> Trace:
    """The request's trace: its traceparent's, else its correlation id's, else a new one."""
    trace: Trace | None = environ.get(_TRACE)
    if trace is None:
        correlation = environ.get("HTTP_X_CORRELATION_ID", "")
        given = trace_id_of(environ.get("HTTP_TRACEPARENT")) or trace_id_from_correlation(correlation) or ""
        trace_id = given if given.strip("0") else new_trace_id()  # W3C: a trace id of zeros is none
        known = _CORRELATION.fullmatch(correlation)
        trace = environ[_TRACE] = Trace(trace_id, correlation if known else as_uuid(trace_id))
    return trace


def query_of(request: Request) -> dict[str, list[str]]:
    """The query parameters as they were given."""
    return request.args.to_dict(flat=False) if request.environ.get("QUERY_STRING") else {}


def load_query(given: Mapping[str, list[str]], schema: marshmallow.Schema | None) -> dict[str, Any]:
    """The query parameters as a schema has them. Raises UnknownParameter, or BadRequest with details by parameter."""
    known = {item.data_key or name for name, item in schema.fields.items()} if schema else set()
    unknown = sorted(given.keys() - known)
    if unknown:
        raise errors.UnknownParameter(details={"parameters": unknown})
    repeated = {name: ["Given more than once."] for name, values in given.items() if len(values) > 1}
    if repeated:
        raise errors.BadRequest("A query parameter is not valid.", repeated)
    if schema is None:
        return {}
    try:
        loaded: dict[str, Any] = schema.load({name: values[0] for name, values in given.items()})
    except marshmallow.ValidationError as error:
        raise errors.BadRequest("A query parameter is not valid.", by_field(error)) from error
    return loaded


def read_body(environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
    """The JSON body. Raises UnsupportedMediaType, BadJson, or ValidationFailed with details by field."""
    kind, _, parameters = (environ.get("CONTENT_TYPE") or "").partition(";")
    if kind.strip().lower() != "application/json" or not _is_utf8(parameters):
        raise errors.UnsupportedMediaType
    data = read_json(environ[BODY])
    try:
        loaded: dict[str, Any] = schema.load(data)
    except marshmallow.ValidationError as error:
        raise errors.ValidationFailed(details=by_field(error)) from error
    return loaded


def _is_utf8(parameters: str) -> bool:
    name, _, value = parameters.strip().lower().partition("=")
    return name.strip() != "charset" or value.strip(' "') in ("utf-8", "utf8")


def read_json(body: bytes) -> Any:
    """JSON read strictly: UTF-8, no name twice, no NaN. Raises BadJson."""
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_refused, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:
        raise errors.BadJson from error


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name is given twice")
    return read


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)  # and no float passes for an integer


def by_field(error: marshmallow.ValidationError) -> dict[str, Any]:
    """What is wrong, by the name of the field; places in a list are names too."""
    messages = error.messages
    details = messages if isinstance(messages, Mapping) else {"body": messages}
    return {str(name).replace("_schema", "body"): problem for name, problem in details.items()}


def idempotency_key(environ: Environ) -> str:
    """The Idempotency-Key, without the quotes it may wear."""
    header = environ.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        raise errors.IdempotencyKeyRequired
    match = _IDEMPOTENCY_KEY.fullmatch(header.strip())
    if match is None:
        raise errors.IdempotencyKeyInvalid
    return match[2]


# --- answering -------------------------------------------------------------------------------------------------


def as_json(body: Any) -> str:
    """JSON without a space too many."""
    return json.dumps(body, separators=(",", ":"))


def next_page(request: Request, cursor: str) -> str:
    """A Link (RFC 8288) to the page after this one: with no scheme and host, which a proxy in front of us knows better.

    What was skipped by offset is behind the cursor already.
    """
    asked = {name: value for name, value in request.args.items() if name not in ("cursor", "offset")}
    return f'<{quote(request.path)}?{urlencode({**asked, "cursor": cursor})}>; rel="next"'


def respond(
    environ: Environ,
    status: int,
    body: str,
    headers: Iterable[tuple[str, str]] = (),
    content_type: str = "application/json",
) -> Response:
    """A response with the headers that every answer under /api has."""
    trace = trace_of(environ)
    return Response(
        body,
        status,
        [
            ("Content-Type", content_type),
            ("Cache-Control", "no-store"),
            ("X-Correlation-ID", trace.correlation_id),
            ("traceparent", traceparent(trace.trace_id)),
            *headers,
        ],
    )


def respond_with_error(environ: Environ, error: Exception, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """The one shape of all errors."""
    status, told, own = tell(environ, error)
    body = {
        "error": {
            "code": told.code,
            "message": told.message,
            "details": told.details,
            "traceId": as_uuid(trace_of(environ).trace_id),
        }
    }
    return respond(environ, status, as_json(body), [*own, *headers])


def tell(environ: Environ, error: Exception) -> tuple[int, EcomError, list[tuple[str, str]]]:
    """What is told of an error: its status, itself, its headers. What was not raised on purpose is logged instead."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)
    if status == INTERNAL or not isinstance(error, EcomError):
        name, trace_id = type(error).__name__, trace_of(environ).trace_id
        log.error("unexpected, under trace %s: %s", trace_id, name, exc_info=error)
        error = EcomError()
    headers = []
    if isinstance(error, errors.Unauthenticated):
        headers.append(("WWW-Authenticate", CHALLENGE))
    again = next((RETRY_AFTER_S[kind] for kind in type(error).__mro__ if kind in RETRY_AFTER_S), None)
    if again is not None:
        headers.append(("Retry-After", str(error.details.get("retry_after", again))))
    return status, error, headers
