"""HTTP entrypoints: routes, and the probes that every service answers on its own port."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any, cast

from nameko.containers import WorkerContext
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, SharedExtension
from nameko.web.handlers import HttpRequestHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule
from werkzeug.wrappers import Request, Response

from shared.config import Settings
from shared.edge import green
from shared.edge.connection import BODY, HELD, Environ
from shared.edge.green import Event
from shared.edge.probe_server import ProbeServer
from shared.edge.settings import settings_of
from shared.edge.webserver import WebServer, plain_refusal, protect
from shared.errors import EcomError, ServiceUnavailable
from shared.metrics import READY, UNREADY, WAS_READY

__all__ = ["BODY", "HELD", "Environ", "Probes", "ProbesApart", "Route", "Shared"]

# How long a request waits for a free worker. In an overload it is better refused soon than answered late.
WORKER_S = 2.0

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


class Route(HttpRequestHandler):
    """An HTTP entrypoint. A subclass defines how a request is read, answered and refused."""

    server = WebServer()
    # Routes of this kind also format the errors of unknown paths below this one; "" is everywhere.
    below = ""

    def __init__(self, method: str, url: str) -> None:
        super().__init__(method, url, expected_exceptions=(EcomError,))

    @cached_property
    def label(self) -> str:
        """The route as metrics and documents show it: /api/orders/{order_id}."""
        return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", self.url)

    def setup(self) -> None:
        super().setup()
        self.server.refusals[self.below] = self.refusal
        self.server.finish = self.finish

    def stop(self) -> None:
        self.server.drain()
        super().stop()

    def url_rules(self) -> Iterable[Rule]:
        """Every path that leads here."""
        yield Rule(self.url, methods=[self.method])

    def handle_request(self, request: Request) -> Response:
        """Read in the connection's own greenlet, so that what is refused never takes a worker; then run."""
        try:
            args, context = self.prepare(request)
            return self.answer(request, self._in_a_worker(args, request.path_values, context))  # type: ignore[attr-defined]
        except Exception as error:
            return self.refuse(request, error)

    def prepare(self, request: Request) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The method's arguments before those in the path, and the context that travels with its calls."""
        return (request,), {}

    def answer(self, request: Request, result: Any) -> Response:
        """Turn the method's result into a response."""
        return cast(Response, self.response_from_result(result))

    def refuse(self, request: Request, error: Exception) -> Response:
        """An error, from wherever it came, as a response."""
        raise error

    def refusal(self, error: HTTPException, environ: Environ) -> Response:
        """A refusal of the server itself: no such path or method, or a request that could not be read."""
        return plain_refusal(error, environ)

    def finish(self, response: Response, environ: Environ) -> None:
        """Give any answer of the service, refusals and probes too, the headers that all have."""
        protect(response, environ)

    def _in_a_worker(self, args: Any, kwargs: Any, context: dict[str, Any]) -> Any:
        done = Event()
        try:
            with green.Timeout(WORKER_S, ServiceUnavailable("every worker of this service is busy")):
                self.container.spawn_worker(
                    self, args, kwargs, context_data=context, handle_result=partial(self.handle_result, done)
                )
        except ContainerBeingKilled as error:
            raise ServiceUnavailable("the service is stopping") from error
        return done.wait()


class Shared(SharedExtension):
    """An object that all routes of a service share: `made`, built once by `make(settings)`."""

    def __init__(self, make: Callable[[Settings], Any]) -> None:
        self.make = make

    @property
    def sharing_key(self) -> Any:
        return type(self), self.make

    def setup(self) -> None:
        self.made = self.make(settings_of(self.container))


class Probe:
    """A path that the server answers by itself, with no worker: also when all of them are busy."""

    def __init__(self, path: str, respond: Callable[[], Response]) -> None:
        self.label = path
        self._respond = respond

    def url_rules(self) -> Iterable[Rule]:
        """Its one path."""
        yield Rule(self.label, methods=["GET"])

    def handle_request(self, request: Request) -> Response:
        """Answer without a token: probes have none."""
        return self._respond()


class Health(DependencyProvider):
    """Answers /healthz, /readyz and /metrics, and injects itself."""

    server: WebServer = WebServer()

    def setup(self) -> None:
        for path, respond in {"/healthz": self.healthz, "/readyz": self.readyz, "/metrics": self.metrics}.items():
            self.server.register_provider(Probe(path, respond))
        self._service = self.container.service_name
        self._was_ready = False
        for metric in (READY, WAS_READY, UNREADY):
            metric.labels(self._service)  # there from the start, as 0: Prometheus cannot see a first step from nothing

    def get_dependency(self, worker_ctx: WorkerContext) -> Health:
        return self

    def healthz(self) -> Response:
        """The process lives and its hub turns."""
        return _json({"status": "ok"})

    def readyz(self) -> Response:
        """The service can do its work now, or why not."""
        reasons = self.reasons()
        self._count(ready=not reasons)
        return _json(
            {"ready": not reasons, "reasons": reasons, "warnings": self.all_warnings()}, 503 if reasons else 200
        )

    def _count(self, ready: bool) -> None:
        READY.labels(self._service).set(ready)
        if ready:
            self._was_ready = True
            WAS_READY.labels(self._service).set(1)
        elif self._was_ready:
            UNREADY.labels(self._service).inc()

    def metrics(self) -> Response:
        """This process's own numbers."""
        return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)

    def reasons(self) -> list[str]:
        """Why the service cannot work: the reasons of all its extensions."""
        troubles = (_not_ready_reason(extension) for extension in list(self.container.extensions))
        return sorted({not_ready_reason for not_ready_reason in troubles if not_ready_reason})

    def all_warnings(self) -> list[str]:
        """What a person should look at although the service can work: the warnings of all its extensions."""
        found = [warning for extension in list(self.container.extensions) for warning in _warnings(extension)]
        return sorted(set(found))


class HealthApart(Health):
    """Answers the probes on a port of their own, and /healthz on the port for clients as well.

    The words of /healthz tell a stranger nothing, and a proxy in front must see whether that port answers.
    """

    server = ProbeServer()
    public = WebServer()

    def setup(self) -> None:
        super().setup()
        self.public.can_work = lambda: not self.reasons()
        self.public.register_provider(Probe("/healthz", self.healthz))


def _warnings(extension: Any) -> list[str]:
    ask = getattr(extension, "warnings", None)
    return ask() if callable(ask) else []


def _not_ready_reason(extension: Any) -> str | None:
    ask = getattr(extension, "not_ready_reason", None)
    return ask() if callable(ask) else None


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(f"{json.dumps(body)}\n", status, [("Cache-Control", "no-store")], content_type="application/json")


class Probes:
    """Mixed into a service that clients do not call: GET /healthz, /readyz and /metrics on its port."""

    health = Health()


class ProbesApart:
    """Mixed into a service that clients call: the same on a port of their own."""

    health = HealthApart()
