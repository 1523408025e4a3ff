"""The WSGI application of a service: finds the route of a request, asks it, measures it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException, InternalServerError, MethodNotAllowed
from werkzeug.wrappers import Request, Response

from shared.edge.connection import REFUSED, Environ
from shared.edge.framing import UnknownHere
from shared.logs import Reminder, in_a_line
from shared.metrics import REQUEST_SECONDS, REQUESTS

if TYPE_CHECKING:
    from shared.edge.webserver import WebServer

log = logging.getLogger(__name__)

UNMATCHED = "unmatched"
# The method in the metrics for those that are not in METHODS, so that clients cannot make up series.
OTHER = "OTHER"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# No path takes TRACE, so it is 405 everywhere. A method that is not known at all is 501.
KNOWN = METHODS | {"TRACE"}


class App:
    """The application of one web server."""

    def __init__(self, server: WebServer) -> None:
        self.server = server
        self.service = server.container.service_name
        url_map = server.make_url_map()
        self.routes = url_map.bind("")
        self._reminder = Reminder()
        self.fixed: dict[str, set[str]] = {}
        for rule in url_map.iter_rules():
            if not rule.arguments:
                self.fixed.setdefault(rule.rule, set()).update(rule.methods or ())

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        began = time.perf_counter()
        route, response = self.respond(environ)
        method = environ["REQUEST_METHOD"]
        REQUESTS.labels(self.service, method if method in METHODS else OTHER, route, response.status_code).inc()
        REQUEST_SECONDS.labels(self.service, route).observe(time.perf_counter() - began)
        return response(environ, start_response)

    def respond(self, environ: Environ) -> tuple[str, Response]:
        """The template of the route that was met, and its answer."""
        if REFUSED in environ:
            return UNMATCHED, self.refuse(environ[REFUSED], environ)
        if environ["REQUEST_METHOD"] not in KNOWN:
            return UNMATCHED, self.refuse(UnknownHere("This server does not know that method."), environ)
        if environ["PATH_INFO"] == "*":  # OPTIONS *, about the server as a whole
            return UNMATCHED, self.finished(
                Response(status=204, headers={"Allow": ", ".join(sorted(METHODS))}), environ
            )
        # WSGI passes bytes as latin-1. A path that is not UTF-8 matches no route.
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        try:
            self._check_fixed(path, environ["REQUEST_METHOD"])
            provider, values = self.routes.match(path, environ["REQUEST_METHOD"])
        except HTTPException as error:
            return UNMATCHED, self.refuse(error, environ)
        request = Request(environ, populate_request=False)
        request.path_values = values  # type: ignore[attr-defined]  # Nameko's name for it
        try:
            response = provider.handle_request(request)
        except Exception:
            log.exception("%s failed", provider.label)
            return provider.label, self.refuse(InternalServerError(), environ)
        return provider.label, self.finished(response, environ)

    def _check_fixed(self, path: str, method: str) -> None:
        """Raises MethodNotAllowed for a path that is fixed, also where a template takes that method.

        OpenAPI reads it so: with GET /things/export and PUT /things/{name}, nothing can be put by the name `export`.
        """
        if method not in self.fixed.get(path, {method}):
            raise MethodNotAllowed(sorted(self.fixed[path]))

    def refuse(self, error: HTTPException, environ: Environ) -> Response:
        """Every answer that no route gave looks as the service's routes want it."""
        return self.finished(self.server.refusal(error, environ), environ)

    def refuse_unread(self, error: HTTPException) -> Response:
        """Refuse a head that could not be read, or a connection too many. Logged once for each reason and half minute.

        No request is known, so it is counted as OTHER.
        """
        if self._reminder.due(in_a_line(error)):
            log.warning("no request was read: %s", error)
        response = self.refuse(error, {"REQUEST_METHOD": "GET"})
        REQUESTS.labels(self.service, OTHER, UNMATCHED, response.status_code).inc()
        return response

    def finished(self, response: Response, environ: Environ) -> Response:
        """An answer with the headers that all have."""
        self.server.finish(response, environ)
        return response
