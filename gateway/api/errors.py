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
    errors.VersionGone: 410,
    errors.PreconditionFailed: 412,
    errors.PayloadTooLarge: 413,
    errors.TargetTooLong: 414,
    errors.UnsupportedMediaType: 415,
    errors.ExpectationFailed: 417,
    errors.ValidationFailed: 422,
    errors.RateLimited: 429,
    errors.HeadersTooLarge: 431,
    errors.NotImplementedHere: 501,
    errors.CannotWork: 503,
    errors.ServiceUnavailable: 503,
    errors.VersionNotSupported: 505,
}
INTERNAL = 500

# RFC 6750, section 3: a request without a token is told how to sign in, and no error.
CHALLENGE = 'Bearer realm="ecom"'
HEADERS: dict[type[EcomError], tuple[str, str]] = {
    errors.Unauthenticated: ("WWW-Authenticate", CHALLENGE),
    errors.InvalidToken: ("WWW-Authenticate", f'{CHALLENGE}, error="invalid_token"'),
    errors.InvalidClient: ("WWW-Authenticate", 'Basic realm="ecom"'),
    errors.RoleMissing: ("WWW-Authenticate", f'{CHALLENGE}, error="insufficient_scope"'),
    errors.UnsupportedCoding: ("Accept-Encoding", "identity"),
}

# After how many seconds to retry, unless the error itself says so in its details.
RETRY_AFTER_S: dict[type[EcomError], int] = {
    errors.IdempotencyInProgress: 1,
    errors.RateLimited: 10,
    errors.TooManyConnections: 1,
    errors.CannotWork: 2,
    errors.ServiceUnavailable: 2,
}

# The errors for statuses that the web server itself answers, before it calls any route, and for faults of a route.
REFUSALS: dict[int, type[EcomError]] = {
    400: errors.BadRequest,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    410: errors.VersionGone,
    413: errors.PayloadTooLarge,
    414: errors.TargetTooLong,
    417: errors.ExpectationFailed,
    429: errors.TooManyConnections,
    431: errors.HeadersTooLarge,
    500: EcomError,
    501: errors.NotImplementedHere,
    503: errors.ServiceUnavailable,
    505: errors.VersionNotSupported,
}


def report_error(environ: Environ, error: Exception) -> tuple[int, EcomError, list[tuple[str, str]]]:
    """What the client gets: status, error, headers. An unexpected error is logged and reported as internal."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)
    if status == INTERNAL or not isinstance(error, EcomError):
        name, trace_id = type(error).__name__, trace_of(environ).trace_id
        log.error("unexpected, under trace %s: %s", trace_id, name, exc_info=error)
        error = EcomError()
    headers = [HEADERS[kind] for kind in type(error).__mro__ if kind in HEADERS][:1]
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
    tuple(dict.fromkeys(kind.code for kind in _KINDS if _is_answered(kind))),  # several errors may share a code
    "Why a request was refused. The description of the API lists those of any request, with their meaning; each "
    "operation lists its own.",
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


class OauthError(AnswerSchema):
    """The shape of the errors for a client of OAuth 2.0, which has sent a form (RFC 6749, section 5.2)."""

    error = text_field("invalid_grant", "a stable code for programs")
    error_description = text_field("The refresh token is not valid.", "an explanation for people")
