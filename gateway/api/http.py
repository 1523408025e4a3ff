"""Routes under /api. The decorator of a route declares its roles, what it reads and what it answers."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, ClassVar

import marshmallow
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Rule
from werkzeug.wrappers import Request, Response

from gateway.api.addresses import Proxies
from gateway.api.answering import Answer, as_json_line, next_page, respond, respond_with_error
from gateway.api.callers import Verifying
from gateway.api.cors import Cors
from gateway.api.cursors import Cursors
from gateway.api.errors import INTERNAL, REFUSALS
from gateway.api.held import Held
from gateway.api.rates import Rates
from gateway.api.reading import (
    check_conditions,
    idempotency_key,
    load_query,
    query_of,
    read_body,
    read_object,
    trace_of,
)
from gateway.api.strict_json import read_json
from gateway.api.versions import Part, Versions, deprecated_in, in_version, is_api, is_sent
from shared import auth, errors
from shared.auth import ADMIN, AUDITOR, CUSTOMER, OPERATOR
from shared.config import Settings
from shared.edge.connection import BODY, HAS_GONE
from shared.edge.http import Environ, Shared
from shared.edge.settings import settings_of
from shared.edge.webserver import allowed
from shared.errors import EcomError
from shared.events import Identity
from shared.logs import Reminder, in_a_line

log = logging.getLogger(__name__)

# The roles of a route. None allows requests without a token; SIGNED_IN allows every valid token.
SIGNED_IN = frozenset(auth.ROLES)
# The services check who owns an order or a payment; the gateway passes on the identity of the caller.
READERS = (CUSTOMER, OPERATOR, AUDITOR, ADMIN)
OPERATORS = (OPERATOR, ADMIN)
AUDITORS = (AUDITOR, ADMIN)

# The web server's own words for these say more than the meaning of the class.
TOLD_BY_SERVER = (errors.BadRequest, errors.NotImplementedHere, errors.ServiceUnavailable, errors.TooManyConnections)

# During an outage every request meets the same reason. Which method of a service was called makes no other reason.
_reminder = Reminder()
_METHOD_OF_SERVICE = re.compile(r"\b(\w+_service)\.\w+")


@dataclass(frozen=True)
class Call:
    """A request that has been read, checked and allowed."""

    trace_id: str
    identity: Identity | None
    body: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    expires_at: int = 0  # when the token expires, in seconds since 1970
    token_id: str = ""  # the token's own id
    version: int = 1  # of the API
    has_gone: Callable[[], bool] = lambda: False  # whether the client has closed its connection
    address: str = ""  # of the client, as a trusted proxy says
    client: str = ""  # what the client calls itself, its User-Agent
    session_id: str | None = None  # of the token, if it belongs to a session
    token_version: int | None = None  # of the token's user, when it was issued


class Api(Verifying):
    """A route under /api. Its decorator declares everything about it, also for the OpenAPI document.

    `answer` is the schema of what the method returns with `status`, or words if there is no body; `also` maps further
    statuses to their schemas, or to words. A `located` answer has a Location header with the address of what was
    created. `fails` lists the errors particular to this route; errors of roles, bodies and keys need no mention.
    `in_path` has a field for each piece of plain text in the path. A body that is `passed_on` is validated by the
    service that gets it: its schema only documents it. A route whose query has a cursor links to the next page in a
    Link header. `example` holds the values of the answer that differ from the examples of its schema. `since` is the
    first version of the API that has the route; a route with the same method and path and a later `since` takes over
    from there.
    """

    rates = Shared(Rates)
    held = Shared(Held)
    content_type = "application/json"
    cache_control = "no-store"
    has_etag = False
    in_document = True  # whether the OpenAPI document shows the route
    form: type[marshmallow.Schema] | None = None  # of a body that is a form, where one may be sent
    needs_body = True  # whether a request without any body is refused
    streams = False  # whether a client may choose Server-Sent Events by its Accept header
    samples: ClassVar[dict[str, str]] = {}  # programs that call the route, by language
    # Request headers that only this kind of route reads, by name: description and JSON schema.
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {}
    # Headers of successful answers of this kind of route, beside those of every answer; same form.
    answer_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {}

    def __init__(
        self,
        method: str,
        path: str,
        *,
        roles: Iterable[str] | None,
        summary: str,
        answer: type[marshmallow.Schema] | str | None,
        status: int = 200,
        also: Mapping[int, type[marshmallow.Schema] | str] | None = None,
        body: type[marshmallow.Schema] | None = None,
        query: type[marshmallow.Schema] | None = None,
        idempotent: bool = False,
        located: bool = False,
        fails: Iterable[type[EcomError]] = (),
        in_path: Mapping[str, marshmallow.fields.Field] | None = None,
        passed_on: bool = False,
        example: Mapping[str, Any] | None = None,
        since: int = 1,
    ) -> None:
        super().__init__(method, path)
        self.roles = None if roles is None else frozenset(roles)
        self.summary = summary
        self.status = status
        self.answers = {status: answer, **(also or {})}
        self.body = body
        self.query = query
        self.idempotent = idempotent
        self.located = located
        self.paged = query is not None and "cursor" in query().fields
        self.fails = tuple(fails)
        self.in_path = in_path or {}
        self.passed_on = passed_on
        self.example = dict(example or {})
        self.since = since

    @cached_property
    def name(self) -> str:
        """The route as tables name it: GET /api/orders/{order_id}."""
        return f"{self.method} {self.label}"

    def setup(self) -> None:
        super().setup()
        settings: Settings = settings_of(self.container)
        self._cursors = Cursors(self._keys, self.url)
        self._cors = Cors(settings.cors_origins)
        self._proxies = Proxies(settings.trusted_proxies)
        self.server.is_proxy = self._proxies.trusts
        self._body = self.body() if self.body else None
        self._query = self.query() if self.query else None
        self._versions: Versions = self.container.service_cls.api_versions
        self._old_in_body = deprecated_in(self._body, self._versions.parts)
        self._old_in_query = deprecated_in(self._query, self._versions.parts)

    def url_rules(self) -> Iterable[Rule]:
        """Its path in each version that it serves; `/api/v1/...` is the same as `/api/...`."""
        others = [other for other in self.container.entrypoints if isinstance(other, Api)]
        for version in self._versions.serving(self, others):
            path = in_version(version.number, self.url)
            yield Rule(path, methods=[self.method])
            if version.number == 1 and is_api(path):
                yield Rule(path.replace("/api/", "/api/v1/", 1), methods=[self.method])
            if not is_api(path):
                return

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        """Check the caller first and the request second, so that a stranger learns nothing about schemas or keys."""
        environ = request.environ
        trace_id = trace_of(environ).trace_id
        self._versions.begin(environ, self.name, request.path_values)  # type: ignore[attr-defined]
        address = self._proxies.client_address(environ)
        self.rates.made.check_address(address)
        if self._proxies.trusts(environ["REMOTE_ADDR"]):  # else the connection itself counts
            self.held.made.hold_request(address, environ)
        claims = self._claims(environ)
        identity = claims.identity if claims else None
        self._versions.check_header(environ)
        query = self.read_query(request)
        if self.paged and query["cursor"] is not None:
            query["cursor"] = self._cursors.open(query["cursor"])
        body = self.read_body(environ, self._body) if self._body else {}
        key = idempotency_key(environ) if self.idempotent else ""
        check_conditions(environ, self.has_etag)
        self._versions.note_use(environ, self.label, identity.user_id if identity else "somebody", self._old(request))
        context: dict[str, Any] = {"trace_id": trace_id}
        if identity is not None:
            context |= {"user_id": identity.user_id, "roles": list(identity.roles)}
        expires_at, token_id = (claims.expires_at, claims.token_id) if claims else (0, "")
        session_id, token_version = (claims.session_id, claims.version) if claims else (None, None)
        asked = self._versions.asked(environ["PATH_INFO"])
        version = (asked or self._versions.newest).number
        client = environ.get("HTTP_USER_AGENT", "")
        call = Call(
            trace_id,
            identity,
            body,
            query,
            key,
            expires_at,
            token_id,
            version,
            environ[HAS_GONE],
            address,
            client,
            session_id,
            token_version,
        )
        return (call,), context

    def _old(self, request: Request) -> Iterator[Part]:
        """The deprecated fields that a request has."""
        if self._old_in_query:
            sent = query_of(request)
            yield from (part for (name,), part in self._old_in_query if name in sent)
        if self._old_in_body:
            body = read_json(request.environ[BODY])
            yield from (part for names, part in self._old_in_body if is_sent(body, names))

    def _claims(self, environ: Environ) -> auth.Claims | None:
        if self.roles is None:
            return None
        claims = self.verify(environ)
        self.rates.made.check_user(claims.identity)
        if self.roles.isdisjoint(claims.identity.roles):
            raise errors.RoleMissing
        return claims

    def is_shut_out(self, call: Call) -> bool:
        """Whether the caller's token was revoked since the call began, for routes that answer for long."""
        who = call.identity
        return who is not None and self.revocations.is_revoked(who.user_id, call.token_version, call.session_id)

    def read_query(self, request: Request) -> dict[str, Any]:
        """The query parameters as loaded by the route's schema. Raises BadRequest."""
        return load_query(query_of(request), self._query)

    def read_body(self, environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
        """The body as loaded by the route's schema. Raises BadRequest, UnsupportedMediaType, ValidationFailed."""
        return read_object(environ) if self.passed_on else read_body(environ, schema)

    def answer(self, request: Request, result: Any) -> Response:
        result = result if isinstance(result, Answer) else Answer(result)
        body, headers = result.body, result.headers
        version = self._versions.asked(request.path)
        if version is not None and version.number > 1:  # services say where something is in version 1
            headers = tuple(
                (name, in_version(version.number, to) if name == "Location" else to) for name, to in headers
            )
        if self.paged and isinstance(body, Mapping) and body.get("next_cursor"):
            cursor = self._cursors.sign(body["next_cursor"])
            body, headers = {**body, "next_cursor": cursor}, (*headers, ("Link", next_page(request, cursor)))
        status = result.status or self.status
        text = "" if status == HTTPStatus.NO_CONTENT else self.encode(body)
        response = respond(request.environ, status, text, headers, self.content_type)
        response.headers["Cache-Control"] = self.cache_control
        return response

    def encode(self, body: Any) -> str:
        """The result of the method as text of the route's content type."""
        return as_json_line(body)

    def refuse(self, request: Request, error: Exception) -> Response:
        if isinstance(error, errors.CannotWork | errors.ServiceUnavailable):
            # Only operators need to know which service is unavailable, so it is logged and not answered.
            trace_id = trace_of(request.environ).trace_id
            if _reminder.due(_METHOD_OF_SERVICE.sub(r"\1", in_a_line(error))):
                log.warning("%s is unavailable, as under trace %s: %s", self.label, trace_id, error)
            error = errors.ServiceUnavailable()
        return self.respond_with_error(request.environ, error)

    def refusal(self, error: HTTPException, environ: Environ) -> Response:
        if isinstance(error, MethodNotAllowed):
            preflight = self._cors.preflight(environ, error.valid_methods or ())
            if preflight is not None:
                return preflight
        try:
            self._versions.check_unmatched(environ)
        except errors.VersionGone as gone:
            return self.respond_with_error(environ, gone)
        kind = REFUSALS.get(error.code or INTERNAL, errors.BadRequest)
        message = error.description if kind in TOLD_BY_SERVER else None
        return self.respond_with_error(environ, kind(message or ""), allowed(error))

    def respond_with_error(
        self, environ: Environ, error: Exception, headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        """An error as clients of this kind of route see it."""
        return respond_with_error(environ, error, headers)

    def finish(self, response: Response, environ: Environ) -> None:
        super().finish(response, environ)
        self._versions.finish(response, environ)
        self._cors.finish(response, environ)


class ForAnyone(Api):
    """A route that anyone may read, and that a cache may keep for some seconds.

    Its ETag is a hash of the body and no number of a change: prices also change by the clock.
    """

    cache_control = "public, max-age=5"
    has_etag = True
    answer_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "ETag": ("send it as If-None-Match: the answer is 304 while nothing has changed", {"type": "string"}),
    }
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "If-None-Match": (
            "the ETag of an answer that is known",
            {"type": "string", "examples": ['"3f79bb7b435b05321651daefd374cdc681dc06faa65e374e38337b88ca046dea"']},
        ),
    }

    def __init__(self, method: str, path: str, **declared: Any) -> None:
        super().__init__(method, path, also={304: "Nothing has changed since the answer with this ETag."}, **declared)

    def answer(self, request: Request, result: Any) -> Response:
        response = super().answer(request, result)
        etag = hashlib.sha256(response.get_data()).hexdigest()
        wanted, known = request.if_match, request.if_none_match
        if wanted and not (wanted.star_tag or wanted.is_strong(etag)):
            raise errors.PreconditionFailed("The answer has another ETag by now.")
        response.set_etag(etag)
        if known.contains_weak(etag):
            response.status_code = HTTPStatus.NOT_MODIFIED
        return response


class ForEditors(Api):
    """A route whose answers no cache may keep, since they tell what is not public yet."""

    cache_control = "private, no-store"


class SigningIn(Api):
    """A route that checks a password. Few may do so at once, because it is slow on purpose."""

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        prepared = super().prepare(request)
        self.held.made.hold_sign_in(self._proxies.client_address(request.environ), request.environ)
        return prepared


class Proving(Api):
    """A route that sends a mail, or takes the token from one. One address may do so a few times a minute."""

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        self.rates.made.check_proof(self._proxies.client_address(request.environ))
        return super().prepare(request)


class ProvingByPassword(Proving, SigningIn):
    """The same, where a password is hashed besides."""


class Holding(Api):
    """A route that may hold a connection for long: a wait, a stream or an export."""

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        if self.holds(request, call) and call.identity is not None:
            self.held.made.hold_wait(call.identity.user_id, request.environ)
        return (call,), context

    def holds(self, request: Request, call: Call) -> bool:
        """Whether this request counts against what its user may hold."""
        return True


api = Api.decorator
for_anyone = ForAnyone.decorator
for_editors = ForEditors.decorator
sign_in = SigningIn.decorator
prove = Proving.decorator
prove_by_password = ProvingByPassword.decorator
