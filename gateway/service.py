"""The one door for clients: checks who asks and what, calls the services by RPC, and decides nothing else."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from nameko.dependency_providers import Config

from gateway import answers, openapi, schemas, sessions
from gateway.dashboard import EXPORTS_SHOWN, filtered_page, overview, release_page
from gateway.export import export, linked, orders_in
from gateway.following import stream, waiting
from gateway.http import SIGNED_IN, Answer, Call, api
from gateway.pages import docs, page
from gateway.schemas import sku_or
from gateway.sessions import Visitor, session_export, session_page, sign_in_page
from shared import auth
from shared.auth import ADMIN, AUDITOR, CUSTOMER, OPERATOR, SERVICE
from shared.config import Settings
from shared.edge.http import Probes
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import (
    BelowReserved,
    CannotWork,
    Conflict,
    Forbidden,
    NotFound,
    ServiceUnavailable,
    Unauthenticated,
    ValidationFailed,
    VersionMoved,
)

# Whose order or payment it is, the services check: the gateway passes on who asks.
READERS = (CUSTOMER, OPERATOR, AUDITOR, ADMIN)
OPERATORS = (OPERATOR, ADMIN)
AUDITORS = (AUDITOR, ADMIN)
# What can do without the operators' tools does not wait for them longer.
SOON_S = 3.0


class GatewayService(Probes):
    """Everything under /api."""

    name = "gateway"

    config = Config()
    auth = RpcProxy("auth_service")
    orders = RpcProxy("order_service")
    inventory = RpcProxy("inventory_service")
    payments = RpcProxy("payment_service")
    ops = RpcProxy("ops_service")
    ops_soon = RpcProxy("ops_service", SOON_S)

    # --- tokens ------------------------------------------------------------------------------------------------

    @api(
        "POST",
        "/api/auth/token",
        roles=None,
        body=schemas.TokenRequest,
        answer=answers.Token,
        fails=(Unauthenticated, Forbidden),
        summary="Sign in",
    )
    def token(self, call: Call) -> dict[str, Any]:
        """A bearer token for a name and its password or, in mock mode, for whom it names."""
        if "username" in call.body:
            return self.auth.issue_token(**call.body)
        return self.auth.issue_mock_token(**call.body)

    @api(
        "POST",
        "/api/auth/introspect",
        roles=(SERVICE, ADMIN),
        body=schemas.IntrospectionRequest,
        answer=answers.Introspection,
        summary="Look into a token",
    )
    def introspect(self, call: Call) -> dict[str, Any]:
        """What RFC 7662 answers; a bad token is `{"active": false}`."""
        return self.auth.introspect(call.body["token"])

    # --- orders ------------------------------------------------------------------------------------------------

    @api(
        "POST",
        "/api/orders",
        roles=(CUSTOMER,),
        body=schemas.OrderRequest,
        idempotent=True,
        located=True,
        answer=answers.PostedOrder,
        status=201,
        also={200: answers.Order},
        summary="Post an order",
    )
    def create_order(self, call: Call) -> Answer:
        """The order as it was made, now or when this key was first used.

        A repeat of a key is marked `Idempotent-Replayed: true` and has the status, the body and the Location of its
        first answer; past 24 hours it may be 200 with the order as it is now. Another body under the same key is 422.
        """
        order = schemas.with_payment_method(call.body, self._settings.production)
        return _keyed(self.orders.create_order(order, call.key))

    @api(
        "GET",
        "/api/orders",
        roles=READERS,
        query=schemas.Orders,
        answer=answers.OrderPage,
        summary="List orders",
    )
    def list_orders(self, call: Call) -> dict[str, Any]:
        """A page of the orders that the caller may see: a customer's own, all for the others."""
        return self.orders.list_orders(call.query["limit"], call.query["cursor"], schemas.filters_in(call.query))

    @waiting(
        "GET",
        "/api/orders/<uuid:order_id>",
        roles=READERS,
        query=schemas.Wait,
        answer=answers.Order,
        summary="Read an order",
    )
    def get_order(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """One order; somebody else's is 404. With `wait` it is answered as soon as it is in one of those states.

        When the time is over first, or we must stop, it is answered as it is: look at its status.
        """
        return self.orders.get_order(str(order_id))

    @stream(
        "GET",
        "/api/orders/<uuid:order_id>/events",
        roles=READERS,
        answer=None,
        summary="Hear of an order's steps",
    )
    def order_events(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """Server-Sent Events: the steps of the timeline, those so far and each new one.

        Come again with the `Last-Event-ID` that was heard last, and nothing is missed. After 10 minutes the stream
        ends.
        """
        return self.orders.steps(str(order_id), call.query["after"])

    @api(
        "GET",
        "/api/orders/<uuid:order_id>/timeline",
        roles=READERS,
        answer=answers.Timeline,
        summary="Follow an order",
    )
    def timeline(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """Every step so far, what the order waits for, and its messages that died; somebody else's order is 404.

        `dead_messages` is null while nobody can say whether there are any.
        """
        return self._timeline(str(order_id))

    @api(
        "POST",
        "/api/orders/<uuid:order_id>/cancel",
        roles=(CUSTOMER, ADMIN),
        idempotent=True,
        answer=answers.Order,
        status=202,
        summary="Cancel an order",
    )
    def cancel_order(self, call: Call, order_id: UUID) -> Answer:
        """The order as it is after that: CANCELLED, or REFUND_PENDING while its money is on the way back.

        What is cancelled already stays so. Somebody else's order is 404. A repeat of a key has the answer of its
        first use, marked `Idempotent-Replayed: true`.
        """
        return _keyed(self.orders.cancel_order(str(order_id), call.key))

    @api(
        "POST",
        "/api/orders/<uuid:order_id>/refund/retry",
        roles=(OPERATOR, ADMIN),
        answer=answers.Order,
        status=202,
        fails=(Conflict,),
        summary="Retry a refund",
    )
    def retry_refund(self, call: Call, order_id: UUID) -> Answer:
        """Ask once more for a refund that failed, or whose answer does not come; 409 where there is none."""
        return _keyed(self.orders.retry_refund(str(order_id)))

    # --- stock -------------------------------------------------------------------------------------------------

    @api(
        "PUT",
        "/api/stocks/<sku>",
        roles=(ADMIN,),
        body=schemas.StockRequest,
        answer=answers.Stock,
        fails=(BelowReserved, VersionMoved),
        summary="Set what is on hand",
    )
    def put_stock(self, call: Call, sku: str) -> dict[str, Any]:
        """The stock as it is now; the difference is a movement. `reserve` and `release-events` cannot be skus."""
        sku = sku_or(ValidationFailed, sku)
        return self.inventory.put_stock(sku, call.body["on_hand"], call.body.get("version"))

    @api("GET", "/api/stocks", roles=SIGNED_IN, query=schemas.Page, answer=answers.StockPage, summary="List stock")
    def list_stocks(self, call: Call) -> dict[str, Any]:
        """A page of the stock."""
        return self.inventory.list_stocks(**call.query)

    @api("GET", "/api/stocks/<sku>", roles=SIGNED_IN, answer=answers.Stock, summary="Read the stock of a sku")
    def get_stock(self, call: Call, sku: str) -> dict[str, Any]:
        """The stock of one sku."""
        return self.inventory.get_stock(sku_or(NotFound, sku))

    @api(
        "POST",
        "/api/stocks/reserve",
        roles=(ADMIN, SERVICE),
        body=schemas.ReserveRequest,
        answer=answers.Reservation,
        fails=(Conflict,),
        summary="Reserve by hand",
    )
    def reserve(self, call: Call) -> dict[str, Any]:
        """A reservation that no order of ours made; after 15 minutes it expires. Short of stock is 409."""
        return self.inventory.reserve_manually(call.body["order_id"], call.body["items"])

    @api(
        "POST",
        "/api/stocks/reservations/<uuid:reservation_id>/release",
        roles=(ADMIN, SERVICE),
        answer=answers.SettledReservation,
        fails=(Conflict,),
        summary="Release a reservation made by hand",
    )
    def release_reservation(self, call: Call, reservation_id: UUID) -> dict[str, Any]:
        """What it held is available again."""
        return self.inventory.release_reservation(str(reservation_id))

    @api(
        "POST",
        "/api/stocks/reservations/<uuid:reservation_id>/commit",
        roles=(ADMIN, SERVICE),
        answer=answers.SettledReservation,
        fails=(Conflict,),
        summary="Commit a reservation made by hand",
    )
    def commit_reservation(self, call: Call, reservation_id: UUID) -> dict[str, Any]:
        """What it held has left the stock."""
        return self.inventory.commit_reservation(str(reservation_id))

    @api(
        "GET",
        "/api/stocks/release-events",
        roles=AUDITORS,
        query=schemas.ReleaseEvents,
        answer=answers.ReleaseEventPage,
        summary="Audit what was released",
    )
    def release_events(self, call: Call) -> dict[str, Any]:
        """A page of the releases that pass every filter."""
        query = call.query
        page = self.inventory.release_events(
            schemas.filters_in(query), query["limit"], query["cursor"], query.get("offset", 0), query["include_total"]
        )
        return {**page, "items": self._linked(page["items"])}

    @export(
        "GET",
        "/api/stocks/release-events/export",
        roles=AUDITORS,
        query=schemas.Releases,
        answer=None,
        summary="Export what was released",
    )
    def export_release_events(self, call: Call) -> dict[str, Any]:
        """A CSV of all releases that pass every filter, as they are now: what is released later is not in it.

        It is UTF-8, and has a header. Its last line begins with `manifest` and holds the signed manifest: `ecom audit
        verify-export` proves by it that the file is complete and unaltered. A cell that a spreadsheet would take for
        a formula begins with an apostrophe. Who exports is written down.
        """
        return self.inventory.open_release_export(schemas.filters_in(call.query))

    @api(
        "GET",
        "/api/stocks/release-events/<int:event_id>",
        roles=AUDITORS,
        answer=answers.ReleaseEventDetail,
        summary="Read a release",
    )
    def release_event(self, call: Call, event_id: int) -> dict[str, Any]:
        """One release, the seal that covers it, and the timeline of its order."""
        if event_id > schemas.MAX_ROW_ID:
            raise NotFound
        found = self.inventory.release_event(event_id)
        try:
            timeline = self._timeline(found["order_id"])
        except NotFound:
            timeline = None  # reserved by hand, for an order made elsewhere
        (release,) = self._linked([found])
        return {**release, "timeline": timeline}

    # --- payments ----------------------------------------------------------------------------------------------

    @api("GET", "/api/payments/<uuid:payment_id>", roles=READERS, answer=answers.Payment, summary="Read a payment")
    def get_payment(self, call: Call, payment_id: UUID) -> dict[str, Any]:
        """One payment; somebody else's is 404."""
        return self.payments.get_payment(str(payment_id))

    @api(
        "GET",
        "/api/payments",
        roles=READERS,
        query=schemas.PaymentOf,
        answer=answers.Payment,
        fails=(NotFound,),
        summary="Read the payment of an order",
    )
    def payment_of_order(self, call: Call) -> dict[str, Any]:
        """The one payment an order can have."""
        order_id = schemas.uuid_in(call.query["order_id"])
        if order_id is None:
            raise NotFound
        return self.payments.payment_of_order(order_id)

    # --- dead messages -----------------------------------------------------------------------------------------

    @api("GET", "/api/ops/queues", roles=OPERATORS, answer=answers.QueueList, summary="Count dead messages")
    def queues(self, call: Call) -> dict[str, Any]:
        """Every DLQ, also those that are empty."""
        return {"items": self.ops.queues()}

    @api(
        "GET",
        "/api/ops/dlq/<queue>",
        roles=OPERATORS,
        query=schemas.DeadLetters,
        answer=answers.DeadLetterPage,
        summary="List dead messages",
    )
    def dead_letters(self, call: Call, queue: str) -> dict[str, Any]:
        """A page of what lies in a DLQ and passes every filter."""
        filters = schemas.filters_in(call.query)
        return self.ops.dead_letters(schemas.queue_in(queue), filters, call.query["limit"], call.query["cursor"])

    @api(
        "POST",
        "/api/ops/dlq/<queue>/replays",
        roles=OPERATORS,
        body=schemas.ReplayRequest,
        answer=answers.Replay,
        status=202,
        located=True,
        fails=(Conflict,),
        summary="Replay dead messages",
    )
    def start_replay(self, call: Call, queue: str) -> Answer:
        """Dead messages go back to the queue they died in, oldest first; what becomes of them is at its Location.

        While somebody works on a DLQ the answer is 409, and says who.
        """
        replay = self.ops.start_replay(schemas.queue_in(queue), call.body)
        return Answer(replay, headers=(("Location", f"/api/ops/replays/{replay['replay_id']}"),))

    @api("GET", "/api/ops/replays/<uuid:replay_id>", roles=OPERATORS, answer=answers.Replay, summary="Follow a replay")
    def get_replay(self, call: Call, replay_id: UUID) -> dict[str, Any]:
        """A replay as it is now."""
        return self.ops.get_replay(str(replay_id))

    # --- the dashboard -----------------------------------------------------------------------------------------

    @session_page("GET", "/dashboard/sign-in", roles=None, answer=None, summary="The sign-in form")
    def sign_in_form(self, call: Call) -> Answer:
        """The form with name and password."""
        return sessions.sign_in_form()

    @sign_in_page("POST", "/dashboard/sign-in", roles=None, body=schemas.SignIn, answer=None, summary="Sign in")
    def sign_in(self, call: Call) -> Answer:
        """A session of an hour, and on to the page that was asked for first."""
        session = self.auth.issue_session(call.body["username"], call.body["password"])
        claims = auth.verify(session["access_token"], self._settings.auth_keys, audience=auth.DASHBOARD)
        if set(AUDITORS).isdisjoint(claims.identity.roles):
            raise Forbidden("The dashboard is for auditors and administrators.")
        cookie = sessions.cookie(session["access_token"], secure=self._settings.production)
        return sessions.redirect(sessions.own_path(call.body["next"]), cookie)

    @session_page("POST", "/dashboard/sign-out", roles=AUDITORS, body=schemas.SignOut, answer=None, summary="Sign out")
    def sign_out(self, call: Call) -> Answer:
        """The browser forgets the session, when the form was made for it."""
        if not sessions.may_sign_out(call.body["token"], call.token_id, self._settings.auth_keys):
            raise Forbidden("This form was not made for your session.")
        return sessions.redirect("/dashboard/sign-in", sessions.cookie("", secure=self._settings.production))

    @filtered_page(
        "GET", "/dashboard", roles=AUDITORS, query=schemas.Dashboard, answer=None, summary="The release audit"
    )
    def dashboard(self, call: Call) -> Answer:
        """Releases that pass every filter, their totals, and how the chain of seals stands."""
        filters = schemas.filters_in(call.query)
        releases = self.inventory.release_events(filters, call.query["limit"], call.query["cursor"])
        # Before the chain: what the ledger knows cannot be ahead of it then.
        witness = self._of_ops("audit_status")
        # Who did not answer once is not waited for again.
        operations = witness and self._of_ops("operations_of", orders_in(releases["items"]))
        return overview(
            self._visitor(call),
            call.query,
            filters,
            releases,
            operations,
            self.inventory.release_totals(filters),
            self.inventory.release_chain(),
            witness,
            self.inventory.release_exports(EXPORTS_SHOWN)["items"],
        )

    @session_page("GET", "/dashboard/releases/<int:event_id>", roles=AUDITORS, answer=None, summary="One release")
    def dashboard_release(self, call: Call, event_id: int) -> Answer:
        """One release, what operators did before it, and the timeline of its order."""
        if event_id > schemas.MAX_ROW_ID:
            raise NotFound
        release = self.inventory.release_event(event_id)
        timeline, missing = None, ""
        try:
            timeline = self.orders.timeline(release["order_id"])
        except NotFound:
            missing = "There is no such order here: the stock was reserved by hand."
        except (CannotWork, ServiceUnavailable):
            missing = "Unknown: the order service does not answer now."
        operations = self._of_ops("operations_of", [release["order_id"]])
        return release_page(self._visitor(call), release, operations, timeline, missing)

    @session_export(
        "GET", "/dashboard/export", roles=AUDITORS, query=schemas.Days, answer=None, summary="The releases as CSV"
    )
    def dashboard_export(self, call: Call) -> dict[str, Any]:
        """The same file as from the API."""
        return self.inventory.open_release_export(schemas.filters_in(call.query))

    # --- documents ---------------------------------------------------------------------------------------------

    @api("GET", "/api/openapi.json", roles=None, answer=None, summary="Read this document")
    def openapi_document(self, call: Call) -> dict[str, Any]:
        """The OpenAPI document of everything here."""
        return openapi.document(GatewayService)

    @page("GET", "/docs", roles=None, answer=None, summary="Read about the API")
    def docs_page(self, call: Call) -> Answer:
        """The same as a page for people, which needs nothing from elsewhere."""
        return docs(openapi.document(GatewayService))

    # --- what more than one of them answers --------------------------------------------------------------------

    @property
    def _settings(self) -> Settings:
        settings: Settings = self.config["settings"]
        return settings

    def _visitor(self, call: Call) -> Visitor:
        assert call.identity is not None
        return Visitor.of(call.identity, call.token_id, self._settings.auth_keys)

    def _timeline(self, order_id: str) -> dict[str, Any]:
        return {**self.orders.timeline(order_id), "dead_messages": self._of_ops("dead_of_order", order_id)}

    def _linked(self, releases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return linked(releases, self._of_ops("operations_of", orders_in(releases)) if releases else {})

    def _of_ops(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.ops_soon, method)(*args)
        except (CannotWork, ServiceUnavailable):
            return None  # whoever reads need not wait for the operators' tools


def _keyed(made: dict[str, Any]) -> Answer:
    """What a command has made, now or when its key was first used."""
    replayed = [("Idempotent-Replayed", "true")] if made["replayed"] else []
    return Answer(made["body"], made["status"], (("Location", made["location"]), *replayed))
