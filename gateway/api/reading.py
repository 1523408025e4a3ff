"""How requests are read: trace, query parameters, JSON body and idempotency key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import marshmallow
from werkzeug.wrappers import Request

from shared import errors
from shared.edge.http import BODY, Environ
from shared.ids import new_trace_id
from shared.tracing import as_uuid, trace_id_from_correlation, trace_id_of

_IDEMPOTENCY_KEY = re.compile(r'("?)([A-Za-z0-9_.:-]{1,128})\1')
_CORRELATION = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACE = "ecom.trace"

# No limit of the API has more digits, and Python refuses to read integers of 4,300 digits and more.
MAX_DIGITS = 19

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
    kind, _, parameters = (environ.get("CONTENT_TYPE") or "").partition(";")
    if kind.strip().lower() != "application/json" or not _is_utf8(parameters):
        raise errors.UnsupportedMediaType
    return read_json(environ[BODY])


def _is_utf8(parameters: str) -> bool:
    name, _, value = parameters.strip().lower().partition("=")
    return name.strip() != "charset" or value.strip(' "') in ("utf-8", "utf8")


def read_json(body: bytes) -> Any:
    """Read JSON strictly: UTF-8, no duplicate names, no NaN. Raises BadJson."""
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique_names, parse_constant=_refuse_constant, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:
        raise errors.BadJson from error


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name is given twice")
    return read


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)  # WholeNumber refuses floats


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
