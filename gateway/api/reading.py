"""How requests are read: trace, query parameters, JSON body and idempotency key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import marshmallow
from werkzeug.http import parse_options_header
from werkzeug.wrappers import Request

from gateway.api.strict_json import read_json
from shared import errors
from shared.edge.http import BODY, Environ
from shared.ids import new_trace_id
from shared.tracing import as_uuid, trace_id_from_correlation, trace_id_of

_IDEMPOTENCY_KEY = re.compile(r'("?)([A-Za-z0-9_.:-]{1,128})\1')
_CORRELATION = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACE = "ecom.trace"

# A body that only just can be read here might be nested too deeply for the RPC that passes it on.
MAX_DEPTH = 20


@dataclass(frozen=True)
class Trace:
    """The trace of one request, and the correlation id that the client gets back."""

    trace_id: str
    correlation_id: str


def trace_of(environ: Environ) -> Trace:
    """The trace id from the traceparent header, else from X-Correlation-ID, else a new one."""
    trace: Trace | None = environ.get(_TRACE)
    if trace is None:
        correlation = environ.get("HTTP_X_CORRELATION_ID", "")
        given = trace_id_of(environ.get("HTTP_TRACEPARENT")) or trace_id_from_correlation(correlation) or ""
        trace_id = given if given.strip("0") else new_trace_id()  # W3C Trace Context: all zeros is not a valid trace id
        known = _CORRELATION.fullmatch(correlation)
        trace = environ[_TRACE] = Trace(trace_id, correlation if known else as_uuid(trace_id))
    return trace


def query_of(request: Request) -> dict[str, list[str]]:
    """The query parameters as the client sent them: all values of each name."""
    return request.args.to_dict(flat=False) if request.environ.get("QUERY_STRING") else {}


def load_query(given: Mapping[str, list[str]], schema: marshmallow.Schema | None) -> dict[str, Any]:
    """The query parameters as loaded by a schema. Raises UnknownParameter, or BadRequest with details by parameter."""
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
    """The JSON body as loaded by a schema. Raises UnsupportedMediaType, BadJson, ValidationFailed."""
    try:
        loaded: dict[str, Any] = schema.load(_read_content(environ))
    except marshmallow.ValidationError as error:
        raise errors.ValidationFailed(details=by_field(error)) from error
    return loaded


def read_object(environ: Environ) -> dict[str, Any]:
    """The JSON body, which must be an object. Raises UnsupportedMediaType, BadJson, ValidationFailed."""
    content = _read_content(environ)
    if not isinstance(content, dict):
        raise errors.ValidationFailed(details={"body": ["Invalid input type."]})
    if not _is_within(content, MAX_DEPTH):
        raise errors.ValidationFailed(details={"body": ["Is nested too deeply."]})
    return content


def _is_within(content: Any, levels: int) -> bool:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return levels >= 0 and all(_is_within(item, levels - 1) for item in inner)


def _read_content(environ: Environ) -> Any:
    charset = check_content(environ, "application/json").get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8"):
        raise errors.UnsupportedMediaType("The body must be UTF-8.")
    return read_json(environ[BODY])


def check_content(environ: Environ, kind: str) -> dict[str, str]:
    """The parameters of the body's media type, which must be `kind`. Raises UnsupportedMediaType."""
    codings = {coding.strip().lower() for coding in environ.get("HTTP_CONTENT_ENCODING", "").split(",")}
    if codings - {"", "identity"}:
        raise errors.UnsupportedCoding
    given, parameters = parse_options_header(environ.get("CONTENT_TYPE"))
    if given.lower() != kind:
        raise errors.UnsupportedMediaType(f"The body must be {kind}.")
    return parameters


def check_conditions(environ: Environ, has_etag: bool) -> None:
    """Refuse what RFC 9110 forbids to ignore: conditions on an ETag that is not there. Raises PreconditionFailed.

    Where the answer has one, the condition waits for it.

    `If-Match: *` asks only that the resource exists. Where it must exist anyway the condition is met: without the
    resource the answer is 404. A PUT may create it, so there the condition is refused.

    A Range of what is put is refused, too. Raises BadRequest.
    """
    method = environ["REQUEST_METHOD"]
    changes = method not in ("GET", "HEAD")
    match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH", "")
    refused = match is not None and not has_etag and (match.strip() != "*" or method == "PUT")
    if refused or (changes and none_match.strip() == "*"):
        raise errors.PreconditionFailed(
            "This has no ETag, so no condition on it is met. To guard a change, send the `version` that was read."
        )
    if changes and "HTTP_CONTENT_RANGE" in environ:
        raise errors.BadRequest("Only the whole can be sent: Content-Range is not allowed.")


def by_field(error: marshmallow.ValidationError) -> dict[str, Any]:
    """The problems by field name. Items of a list are named by their index."""
    messages = error.messages
    details = messages if isinstance(messages, Mapping) else {"body": messages}
    return {str(name).replace("_schema", "body"): problem for name, problem in details.items()}


def idempotency_key(environ: Environ) -> str:
    """The Idempotency-Key without its optional quotes. Raises IdempotencyKeyRequired, IdempotencyKeyInvalid."""
    header = environ.get("HTTP_IDEMPOTENCY_KEY")
    if header is None:
        raise errors.IdempotencyKeyRequired
    match = _IDEMPOTENCY_KEY.fullmatch(header.strip())
    if match is None:
        raise errors.IdempotencyKeyInvalid
    return match[2]
