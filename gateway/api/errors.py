"""The error table: the status of each error, and the one shape in which clients see it."""

from __future__ import annotations

import logging

from marshmallow import fields

from gateway.api.fields import AnswerSchema, field_metadata, text_field, uuid_field
from gateway.api.reading import trace_of
from shared import errors
from shared.edge.http import Environ
from shared.errors import EcomError

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


def report_error(environ: Environ, error: Exception) -> tuple[int, EcomError, list[tuple[str, str]]]:
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


class Fault(AnswerSchema):
    """What is wrong."""

    code = text_field("not_found", "for programs")
    message = text_field("There is nothing here by that name.", "for people")
    details = fields.Dict(
        required=True, metadata=field_metadata({}, "what exactly; of a bad field its name and its problems")
    )
    traceId = uuid_field("to ask about", "0af76519-16cd-43dd-8448-eb211c80319c")


class Error(AnswerSchema):
    """The one shape of all errors."""

    error = fields.Nested(Fault, required=True)
