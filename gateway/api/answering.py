"""How answers and errors are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from werkzeug.wrappers import Request, Response

from gateway.api.errors import report_error
from gateway.api.reading import trace_of
from shared.edge.http import Environ
from shared.tracing import as_uuid, traceparent

# The media type of Server-Sent Events.
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Answer:
    """A result with headers or a status of its own. A route method without either returns just the body."""

    body: Any
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()


def as_json(body: Any) -> str:
    """Compact JSON."""
    return json.dumps(body, separators=(",", ":"))


def as_json_line(body: Any) -> str:
    """Compact JSON that ends its line, so that a terminal's prompt does not stick to it."""
    return f"{as_json(body)}\n"


def next_page(request: Request, cursor: str) -> str:
    """A Link (RFC 8288) to the page after this one. It has no scheme and host: only a proxy in front knows those.

    It has no offset either: the cursor already points past the skipped rows.
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
    """A response with the headers that all answers of the gateway have."""
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
    """An error as JSON."""
    status, reported, own = report_error(environ, error)
    body = {
        "error": {
            "code": reported.code,
            "message": reported.message,
            "details": reported.details,
            "traceId": as_uuid(trace_of(environ).trace_id),
        }
    }
    return respond(environ, status, as_json_line(body), [*own, *headers])
