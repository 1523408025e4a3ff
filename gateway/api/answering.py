"""How answers and errors are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from werkzeug.datastructures import Headers
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


def keyed(made: Mapping[str, Any]) -> Answer:
    """The answer of a POST with a key: {status, body, location, replayed}. A header says if it was stored before."""
    location = [("Location", made["location"])] if made["location"] else []
    replayed = [("Idempotent-Replayed", "true")] if made["replayed"] else []
    return Answer(made["body"], made["status"], (*location, *replayed))


_encode = json.JSONEncoder(separators=(",", ":")).encode


def as_json(body: Any) -> str:
    """Compact JSON."""
    return _encode(body)


def as_json_line(body: Any) -> str:
    """Compact JSON that ends its line, so that a terminal's prompt does not stick to it."""
    return f"{as_json(body)}\n"


def next_page(request: Request, cursor: str) -> str:
    """A Link (RFC 8288) to the page after this one. It has no scheme and host: only a proxy in front knows those.

    It has no offset either: the cursor already points past the skipped rows.
    """
    asked = {name: value for name, value in request.args.items() if name not in ("cursor", "offset")}
    return f'<{quote(request.path)}?{urlencode({**asked, "cursor": cursor})}>; rel="next"'


class GatewayResponse(Response):
    """A response whose headers go out as they are: each address in them is a URI already.

    Werkzeug would copy them and look at each once more, which takes longer than all else that is done for a response.
    """

    def get_wsgi_headers(self, environ: Environ) -> Headers:
        """The headers as they are sent. Redirects, streams and answers without a body are left to Werkzeug."""
        if not self.is_sequence or self.status_code == HTTPStatus.NO_CONTENT or 300 <= self.status_code < 400:
            return super().get_wsgi_headers(environ)
        self.headers["Content-Length"] = str(sum(map(len, self.response)))
        return self.headers


def respond(
    environ: Environ,
    status: int,
    body: str,
    headers: Iterable[tuple[str, str]] = (),
    content_type: str = "application/json",
) -> Response:
    """A response with the headers that all answers of the gateway have."""
    trace = trace_of(environ)
    return GatewayResponse(
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
