"""Which pages of other origins may call us from a browser, and what they may read of our answers."""

from __future__ import annotations

from collections.abc import Iterable

from werkzeug.wrappers import Response

from shared.edge.http import Environ

MAY_SEND = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Correlation-ID, traceparent"
MAY_READ = "Location, Idempotent-Replayed, X-Correlation-ID, traceparent, Retry-After"
PREFLIGHT_KEPT_S = 600


class Cors:
    """The rules for some origins. Tokens travel in a header and never in a cookie, so none may send credentials."""

    def __init__(self, origins: Iterable[str]) -> None:
        self.origins = frozenset(origins)

    def preflight(self, environ: Environ, methods: Iterable[str]) -> Response | None:
        """The answer to a browser that asks what it may send here, or None when this is no such question."""
        asks = environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        if not asks or self._origin(environ) is None:
            return None
        headers = {
            "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
            "Access-Control-Allow-Headers": MAY_SEND,
            "Access-Control-Max-Age": str(PREFLIGHT_KEPT_S),
        }
        return Response(status=204, headers=headers)

    def finish(self, response: Response, environ: Environ) -> None:
        """Let the page that asked read the answer, and keep shared caches from showing it to another one."""
        if not self.origins:
            return
        response.headers.add("Vary", "Origin")
        origin = self._origin(environ)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = MAY_READ

    def _origin(self, environ: Environ) -> str | None:
        origin = environ.get("HTTP_ORIGIN")
        return origin if origin in self.origins else None
