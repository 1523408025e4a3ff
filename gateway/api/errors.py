"""The error table: the status and headers of each error, and the JSON shape that all errors share."""

from __future__ import annotations

import logging

from marshmallow import fields

from gateway.api.fields import AnswerSchema, Enumeration, field_metadata, text_field, uuid_field, word_field
from gateway.api.reading import trace_of
from shared import errors
from shared.edge.http import Environ
from shared.errors import EcomError

log = logging.getLogger(__name__)

# The nearest base class of an error decides. An error without one is a bug: it becomes a 500 that reveals nothing.
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

# After how many seconds to retry, unless the error itself says so in its details.
RETRY_AFTER_S: dict[type[EcomError], int] = {
    errors.IdempotencyInProgress: 1,
    errors.RateLimited: 10,
    errors.CannotWork: 2,
    errors.ServiceUnavailable: 2,
}

# The errors for statuses that the web server itself answers, before it calls any route.
REFUSALS: dict[int, type[EcomError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    411: errors.LengthRequired,
    413: errors.PayloadTooLarge,
    500: EcomError,
    503: errors.ServiceUnavailable,
}


def report_error(environ: Environ, error: Exception) -> tuple[int, EcomError, list[tuple[str, str]]]:
    """What the client gets: status, error, headers. An unexpected error is logged and reported as internal."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)
    if status == INTERNAL or not isinstance(error, EcomError):
        name, trace_id = type(error).__name__, trace_of(environ).trace_id
        log.error("unexpected, under trace %s: %s", trace_id, name, exc_info=error)
        error = EcomError()
    headers = []
    if isinstance(error, errors.Unauthenticated):
        headers.append(("WWW-Authenticate", CHALLENGE))
    retry_after = next((RETRY_AFTER_S[kind] for kind in type(error).__mro__ if kind in RETRY_AFTER_S), None)
    if retry_after is not None:
        headers.append(("Retry-After", str(error.details.get("retry_after", retry_after))))
    return status, error, headers


def _is_answered(kind: type[EcomError]) -> bool:
    """Whether clients get the code of an error. They get `unavailable` for CannotWork, `internal` for others."""
    return kind is EcomError or (
        any(base in STATUS for base in kind.__mro__) and not issubclass(kind, errors.CannotWork)
    )


_KINDS: list[type[EcomError]] = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EcomError)
]
ERROR_CODE = Enumeration(
    "ErrorCode",
    tuple(kind.code for kind in _KINDS if _is_answered(kind)),
    "Why a request was refused. Each operation lists its own, with their meaning.",
)


class Fault(AnswerSchema):
    """The error itself."""

    code = word_field(ERROR_CODE, "not_found", "a stable code for programs")
    message = text_field("There is nothing here by that name.", "an explanation for people")
    details = fields.Dict(
        required=True, metadata=field_metadata({}, "more about it; for a bad field, its name and its problems")
    )
    traceId = uuid_field("the trace to quote when asking about this error", "0af76519-16cd-43dd-8448-eb211c80319c")


class ErrorAnswer(AnswerSchema):
    """The shape of all errors."""

    error = fields.Nested(Fault, required=True)
