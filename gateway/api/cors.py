"""CORS: pages of which origins may call the API from a browser, and which headers they may send and read."""

from __future__ import annotations

from collections.abc import Iterable

from werkzeug.wrappers import Response

from shared.edge.http import Environ
from shared.edge.webserver import SECURITY_HEADERS

MAY_SEND = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-API-Version, X-Correlation-ID, traceparent"
# Browsers let pages read these without being told (Fetch: CORS-safelisted response-header name).
SAFELISTED = frozenset(
    {"cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma"}
)
# For browsers and caches, of no use to a page.
NOT_FOR_PAGES = frozenset({"set-cookie", "vary", *map(str.lower, SECURITY_HEADERS)})
PREFLIGHT_MAX_AGE_S = 600


class Cors:
    """The rules for the allowed origins. API tokens never travel in a cookie: no origin may send one."""

    def __init__(self, origins: Iterable[str]) -> None:
        self.origins = frozenset(origins)

    def preflight(self, environ: Environ, methods: Iterable[str]) -> Response | None:
        """The answer to a CORS preflight of an allowed origin, or None for any other request."""
        is_preflight = environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        if not is_preflight or self._origin(environ) is None:
            return None
        headers = {
            "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
            "Access-Control-Allow-Headers": MAY_SEND,
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        }
        return Response(status=204, headers=headers)

    def finish(self, response: Response, environ: Environ) -> None:
        """Let an allowed page read the answer. `Vary` stops shared caches from giving it to another origin."""
        if not self.origins:
            return
        response.headers.add("Vary", "Origin")
        origin = self._origin(environ)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            names = dict.fromkeys(name for name, _ in response.headers if _may_read(name))
            if names:
                response.headers["Access-Control-Expose-Headers"] = ", ".join(names)

    def _origin(self, environ: Environ) -> str | None:
        origin = environ.get("HTTP_ORIGIN")
        return origin if origin in self.origins else None


def _may_read(name: str) -> bool:
    name = name.lower()
    return name not in SAFELISTED | NOT_FOR_PAGES and not name.startswith("access-control-")
