"""The site for people: the dashboard of the release audit, and the documentation of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from gateway.api import openapi
from gateway.api.answering import Answer
from gateway.api.cursors import Cursors
from gateway.api.fields import MAX_EMAIL, MAX_ROW_ID, RequestSchema, Text, filters_in
from gateway.api.http import AUDITORS, Call, api
from gateway.combined import Combined
from gateway.export import orders_in
from gateway.origins import origin_of
from gateway.site import sessions
from gateway.site.dashboard import EXPORTS_SHOWN, Audit, filtered_page, overview, release_page
from gateway.site.filters import DashboardFilters, DashboardQuery, dashboard_filters
from gateway.site.pages import docs_route, home, home_page, page_beside
from gateway.site.sessions import Visitor, session_export, session_page, sign_in_page
from gateway.tokens import MAX_PASSWORD
from shared import auth
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import CannotWork, Forbidden, NotFound, ServiceUnavailable


class SignInQuery(RequestSchema):
    """The page to go to after signing in."""

    next = fields.String(load_default="")


class SignInForm(RequestSchema):
    """The sign-in form. `next` is the page that was requested first."""

    username = Text("auditor", "a name, or an e-mail address", at_most=MAX_EMAIL, required=True)
    password = Text("demo-auditor", at_most=MAX_PASSWORD, required=True, load_only=True)
    next = fields.String(load_default="")


class OwnForm(RequestSchema):
    """A form whose token proves that it was made for the session of the visitor who sends it."""

    token = fields.String(load_default="")


class Site(Combined):
    """Routes under /dashboard, /docs, and the OpenAPI document."""

    auth = RpcProxy("auth_service")
    inventory = RpcProxy("inventory_service")

    @session_page("GET", "/dashboard/sign-in", roles=None, query=SignInQuery, answer=None, summary="The sign-in form")
    def sign_in_form(self, call: Call) -> Answer:
        """The form with name and password."""
        return sessions.sign_in_form(sessions.own_path(call.query["next"]))

    @sign_in_page("POST", "/dashboard/sign-in", roles=None, body=SignInForm, answer=None, summary="Sign in")
    def sign_in(self, call: Call) -> Answer:
        """Start a session of one hour and redirect to the page that was requested first."""
        given, origin = call.body, origin_of(call)
        session = self.auth.issue_session(given["username"], given["password"], given["device_token"], origin)
        token = session["access_token"]
        claims = auth.verify(token, self.settings.auth_keys, audience=auth.DASHBOARD)
        if set(AUDITORS).isdisjoint(claims.identity.roles):
            self.auth.revoke_token(token, origin)  # nobody will use it
            raise Forbidden("The dashboard is for auditors and administrators.")
        production = self.settings.production
        cookies = sessions.cookie(token, production), sessions.device_cookie(session["device_token"], production)
        return sessions.redirect(sessions.own_path(given["next"]), *cookies)

    @session_page("POST", "/dashboard/sign-out", roles=AUDITORS, body=OwnForm, answer=None, summary="Sign out")
    def sign_out(self, call: Call) -> Answer:
        """End the session if the form was made for it. No gateway accepts its cookie within 2 s."""
        sessions.check_form(call.body["token"], sessions.SIGN_OUT, call.token_id, self.settings.auth_keys)
        self.auth.sign_out(False, origin_of(call))
        return sessions.redirect("/dashboard/sign-in", sessions.cookie("", self.settings.production))

    @filtered_page("GET", "/dashboard", roles=AUDITORS, query=DashboardQuery, answer=None, summary="The release audit")
    def dashboard(self, call: Call) -> Answer:
        """Releases that match every filter, their totals, and the state of the chain of seals."""
        filters = dashboard_filters(call.query)
        releases = self._page(filters, call.query)
        # Read before the chain, so that the ledger cannot be ahead of the chain.
        witness = self._ask_ops("audit_status")
        # If ops_service did not answer, do not wait for it a second time.
        operations = witness and self._ask_ops("operations_of", orders_in(releases["items"]))
        audit = Audit(
            releases=releases,
            operations=operations,
            totals=self.inventory.release_totals(filters),
            chain=self.inventory.release_chain(),
            witness=witness,
            exports=self.inventory.release_exports(EXPORTS_SHOWN)["items"],
        )
        return overview(self._visitor(call), call.query, audit)

    @session_page("GET", "/dashboard/releases/<int:event_id>", roles=AUDITORS, answer=None, summary="One release")
    def dashboard_release(self, call: Call, event_id: int) -> Answer:
        """One release, the operations before it, and the timeline of its order."""
        if event_id > MAX_ROW_ID:
            raise NotFound
        release = self.inventory.release_event(event_id)
        timeline, missing = None, ""
        try:
            timeline = self.orders.timeline(release["order_id"])
        except NotFound:
            missing = "This order is not in the system: the stock was reserved manually."
        except (CannotWork, ServiceUnavailable):
            missing = "Unknown: the order service is unavailable."
        operations = self._ask_ops("operations_of", [release["order_id"]])
        return release_page(self._visitor(call), release, operations, timeline, missing)

    @session_export(
        "POST",
        "/dashboard/export",
        roles=AUDITORS,
        query=DashboardFilters,
        body=OwnForm,
        answer=None,
        summary="The releases as CSV",
    )
    def dashboard_export(self, call: Call) -> dict[str, Any]:
        """The same file as the export of the API with `for=spreadsheets`.

        An export is recorded under the name of the user. So it needs a form of their session: a link on another site
        could make them export something.
        """
        sessions.check_form(call.body["token"], sessions.EXPORT, call.token_id, self.settings.auth_keys)
        return self.inventory.open_release_export(filters_in(call.query))

    @home_page("GET", "/", roles=None, answer=None, summary="The first page")
    def first_page(self, call: Call) -> Answer:
        """Links to the documents and to the dashboard, as a page or as JSON."""
        return home()

    @page_beside("GET", "/favicon.ico", roles=None, answer=None, status=204, summary="No icon")
    def icon(self, call: Call) -> Answer:
        """There is none. Every browser asks for one."""
        return Answer("")

    @api("GET", "/api/openapi.json", roles=None, answer=None, summary="Read this document")
    def openapi_document(self, call: Call) -> dict[str, Any]:
        """The OpenAPI document of the API."""
        return self._document(call.version)

    @docs_route("GET", "/docs", roles=None, answer=None, summary="Read about the API")
    def docs_page(self, call: Call) -> dict[str, Any]:
        """The same document as a page for people. It loads nothing from other servers."""
        return self._document(call.version)

    def _page(self, filters: dict[str, Any], query: Mapping[str, Any]) -> dict[str, Any]:
        limit, before, cursor = query["limit"], query["before"], query["cursor"]
        if before is not None:
            page = self.inventory.release_events_before(filters, limit, before)
        else:
            page = {**self.inventory.release_events(filters, limit, cursor), "is_first": cursor is None}
        following = page["next_cursor"]
        return {**page, "next_cursor": following and Cursors(self.settings.auth_keys, sessions.HOME).sign(following)}

    def _document(self, version: int) -> dict[str, Any]:
        service: type = type(self)
        return openapi.document(service, version)

    def _visitor(self, call: Call) -> Visitor:
        assert call.identity is not None
        return Visitor.of(call.identity, call.token_id, self.settings.auth_keys)
