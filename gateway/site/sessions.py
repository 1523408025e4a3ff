"""Sessions of people in a browser: a token in a cookie, forms in place of JSON, and errors as pages.

The token has an audience of its own: a stolen cookie does not open the API, and an API token does not open these pages.
A session lasts one hour, or until its user signs out or is shut out: auth_service then ends it, and no gateway accepts
its token any more. Cookies of the version before belong to no session: they are accepted until their hour is over.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import marshmallow
from werkzeug.http import dump_cookie, parse_cookie
from werkzeug.wrappers import Request, Response

from gateway.api.answering import Answer, respond
from gateway.api.errors import report_error
from gateway.api.forms import pairs_of, read_form
from gateway.api.http import Api, SigningIn
from gateway.api.reading import by_field, load_query, query_of, trace_of
from gateway.export import Export
from gateway.site.pages import Look, PageRoute, render
from shared import auth, errors
from shared.edge.http import Environ
from shared.edge.settings import settings_of
from shared.events import Identity
from shared.exports import Reader
from shared.tracing import as_uuid

HOME = "/dashboard"
COOKIE = "ecom_session"
# Browsers take a cookie with this prefix over HTTPS only, so that nobody who can change plain HTTP can plant one. (The
# prefix __Host- would need the path /.)
SECURE_PREFIX = "__Secure-"

# A browser keeps the cookie longer than the session lasts. So the sign-in form can say that a session has ended.
COOKIE_S = 24 * 3600

# What this browser shows when its user signs in again, so that nobody who guesses passwords elsewhere can pause its
# sign-ins. It opens nothing by itself. Browsers keep no cookie for longer.
DEVICE_COOKIE = "ecom_device"
DEVICE_S = 400 * 24 * 3600

# The purposes of forms that have a token.
SIGN_OUT, EXPORT = "sign-out", "export"

# Signing in redirects only to these pages. In place of the export, which is a file, it redirects to its page.
_OWN = re.compile(r"(/dashboard(?:/releases/[0-9]{1,19})?)(?:/export)?(\?[!-\[\]-~]*)?")

# For these statuses the sign-in form is shown again.
_SHOW_AGAIN = {401, 422}

LOOK = Look("base.css", "dashboard.css", forms=True)


@dataclass(frozen=True)
class Visitor:
    """The user who looks at a page, and the tokens of their forms."""

    name: str
    sign_out_token: str
    export_token: str

    @classmethod
    def of(cls, identity: Identity, token_id: str, keys: auth.Keys) -> Visitor:
        """The visitor of a session."""
        key = keys[0][1]
        return cls(identity.user_id, form_token(key, SIGN_OUT, token_id), form_token(key, EXPORT, token_id))


class Session(Api):
    """A route for signed-in users. Mixed into a kind of route, it reads the cookie and shows errors as pages."""

    in_document = False
    below = HOME

    def setup(self) -> None:
        super().setup()
        self._production = settings_of(self.container).production
        self._cookie = cookie_name(self._production)

    def verify(self, environ: Environ) -> auth.Claims:
        return self.not_ended(auth.verify(self._token_in(environ), self._keys, audience=auth.DASHBOARD))

    def read_query(self, request: Request) -> dict[str, Any]:
        """An empty form field counts as not given."""
        given = {name: values for name, values in query_of(request).items() if any(values)}
        return load_query(given, self._query)

    def read_body(self, environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
        check_origin(environ)
        try:
            loaded: dict[str, Any] = schema.load(read_form(environ))
        except marshmallow.ValidationError as error:
            raise errors.ValidationFailed(details=by_field(error)) from error
        return loaded

    def respond_with_error(
        self, environ: Environ, error: Exception, headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        status, reported, own = report_error(environ, error)
        own = [header for header in own if header[0] != "WWW-Authenticate"]
        if status == 401:
            own.append(("WWW-Authenticate", challenge(self._cookie)))
        page = self.error_page(environ, status, reported)
        return respond(environ, status, page.body, [*page.headers, *own, *headers], PageRoute.content_type)

    def error_page(self, environ: Environ, status: int, error: errors.EcomError) -> Answer:
        """The page for an error."""
        if status == 401:
            return sign_in_form(requested_page(environ), has_ended=bool(self._token_in(environ)))
        sign_in = f"{HOME}/sign-in?{urlencode({'next': self.leads_to(environ)})}" if status == 403 else ""
        return self.show(environ, "error.html", status=status, error=error, sign_in=sign_in)

    def leads_to(self, environ: Environ) -> str:
        """The page to go to after signing in."""
        return requested_page(environ)

    def show(self, environ: Environ, template: str, **values: Any) -> Answer:
        """A page that shows an error and its trace."""
        trace_id = as_uuid(trace_of(environ).trace_id)
        return show(template, visitor=self._visitor(environ), trace_id=trace_id, **values)

    def _token_in(self, environ: Environ) -> str:
        return parse_cookie(environ).get(self._cookie, "")

    def _visitor(self, environ: Environ) -> Visitor | None:
        try:
            claims = self.verify(environ)
        except errors.Unauthenticated:
            return None
        return Visitor.of(claims.identity, claims.token_id, self._keys)


class SessionPage(Session, PageRoute):
    """A page for signed-in users."""


class SessionExport(Session, Export):
    """A file for signed-in users, who open it in a spreadsheet."""

    reader = Reader.SPREADSHEETS


class SignIn(SessionPage, SigningIn):
    """Reads the sign-in form, and by which device token its user has signed in here before.

    A problem is shown above the same form.
    """

    def read_body(self, environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
        device_token = parse_cookie(environ).get(cookie_name(self._production, DEVICE_COOKIE)) or None
        return {**super().read_body(environ, schema), "device_token": device_token}

    def error_page(self, environ: Environ, status: int, error: errors.EcomError) -> Answer:
        if status not in _SHOW_AGAIN:
            return super().error_page(environ, status, error)
        form = dict(pairs_of(environ))
        problem = "Both a name and a password are needed." if status == 422 else error.message
        return sign_in_form(own_path(form.get("next", "")), problem, form.get("username", ""))

    def leads_to(self, environ: Environ) -> str:
        try:
            return own_path(dict(pairs_of(environ)).get("next", ""))
        except ValueError:  # not a form, from another site
            return HOME


session_page = SessionPage.decorator
sign_in_page = SignIn.decorator
session_export = SessionExport.decorator


def show(template: str, **values: Any) -> Answer:
    """A page of the dashboard."""
    page = render(LOOK, template, **values)
    # With no-referrer, which all other answers have, browsers would send the Origin of a form as "null".
    return Answer(page.body, headers=(*page.headers, ("Referrer-Policy", "same-origin")))


def sign_in_form(leads_to: str = HOME, problem: str = "", username: str = "", has_ended: bool = False) -> Answer:
    """The form with name and password. `leads_to` is the page that was requested first.

    `has_ended` says that the browser had a session, which has ended.
    """
    return show(
        "sign-in.html", visitor=None, leads_to=leads_to, problem=problem, username=username, has_ended=has_ended
    )


def redirect(path: str, *cookies: str) -> Answer:
    """Redirect the browser to a path; it sends a GET."""
    return Answer("", 303, (("Location", path), *(("Set-Cookie", cookie) for cookie in cookies)))


def own_path(address: str) -> str:
    """The address if it is one of these pages, else the first page. This prevents redirects to other sites."""
    match = _OWN.fullmatch(address)
    return match[1] + (match[2] or "") if match else HOME


def requested_page(environ: Environ) -> str:
    """The page that a request asked for, with its filters."""
    query = environ.get("QUERY_STRING", "")
    return own_path(environ.get("PATH_INFO", "") + (f"?{query}" if query else ""))


def check_origin(environ: Environ) -> None:
    """Raise Forbidden for a form that another site has sent.

    A request with neither Sec-Fetch-Site nor Origin is allowed: current browsers always send one.
    """
    site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
    if site is not None:  # set by the browser, and right even if a proxy changes the Host
        own = site in ("same-origin", "none")
    else:
        own = origin is None or urlsplit(origin).netloc == environ.get("HTTP_HOST")
    if not own:
        raise errors.Forbidden("This form was sent by another site.")


def challenge(cookie: str) -> str:
    """What a 401 asks for. RFC 9110 requires a challenge; browsers do not know this one and show no password dialog."""
    return f'Cookie realm="ecom", form-action="{HOME}/sign-in", cookie-name="{cookie}"'


def cookie_name(production: bool, name: str = COOKIE) -> str:
    """The name of the session's cookie, or of another. In production no other name is read."""
    return f"{SECURE_PREFIX if production else ''}{name}"


def cookie(token: str, production: bool) -> str:
    """The session as a Set-Cookie header. An empty token deletes the cookie."""
    return _cookie(cookie_name(production), token, production, COOKIE_S)


def device_cookie(token: str, production: bool) -> str:
    """What names this device at the next sign-in, as a Set-Cookie header."""
    return _cookie(cookie_name(production, DEVICE_COOKIE), token, production, DEVICE_S)


def _cookie(name: str, token: str, production: bool, max_age_s: int) -> str:
    return dump_cookie(
        name,
        token,
        max_age=max_age_s if token else 0,
        path=HOME,
        secure=production,
        httponly=True,
        samesite="Lax",
    )


def form_token(key: str, purpose: str, token_id: str) -> str:
    """The secret that a form with this purpose must send in a session. A page of another site cannot know it."""
    return hmac.new(key.encode(), f"ecom-dashboard {purpose} {token_id}".encode(), "sha256").hexdigest()


def check_form(token: str, purpose: str, token_id: str, keys: auth.Keys) -> None:
    """Raise Forbidden unless the form was made for this purpose in the visitor's session, by any current key."""
    matches = [hmac.compare_digest(token.encode(), form_token(key, purpose, token_id).encode()) for _, key in keys]
    if not any(matches):
        raise errors.Forbidden("This form was not made for your session.")
