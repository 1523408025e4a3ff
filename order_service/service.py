"""The order service owns the orders and decides their life. Inventory and payment answer it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from order_service import catching_up, creation, domain, feed, judging, models, new_orders, notes, offers, queries
from order_service.creation import InDoubt
from order_service.judging import Offer
from order_service.new_orders import PostedOrder
from shared import idempotency, outbox
from shared.edge.admission import Admission
from shared.edge.consumer import handles
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.hints import Hints
from shared.edge.http import Probes
from shared.edge.rpc import rpc, serialized
from shared.edge.rpc_proxy import RpcProxy
from shared.edge.settings import Setting
from shared.edge.timer import each_alone, every
from shared.edge.tx import Events, Tx
from shared.envelope import envelope
from shared.errors import (
    CannotWork,
    Conflict,
    EcomError,
    ServiceUnavailable,
    UnexpectedEvent,
    UnknownOrder,
)
from shared.events import Identity
from shared.idempotency import KeyedAnswer, KeyedRequest
from shared.ids import uuid7
from shared.relay import Relay

CANCEL_ROUTE = "POST /api/orders/{order_id}/cancel"

# This timer cancels an order that has not ended in time.
CLOCK = Identity("system:deadline", ("system",))
DEADLINE_EVERY_S = 5
DEADLINE_BATCH = 100

# Somebody waits for the answer.
ASK_CATALOG_S = 2.0
# Two numbers are equal once in a million orders, if there are a million.
NUMBERS_TRIED = 3

# The copy of the offers is compared with the catalog so often, for events that are dead or lost.
CATCH_UP_EVERY_S = 60


class OrderService(Probes):
    """Takes orders, applies the results of inventory and payment to them, and emits the next events.

    Every call is made by a user whom a rule of domain.py allows it; to anybody else it raises RoleMissing.
    """

    name = "order_service"

    settings = Setting()
    db = Database()
    relay = Relay()
    context = Context()
    hints = Hints()
    catalog = RpcProxy("catalog_service", ASK_CATALOG_S)
    admission = Admission(new_orders.under_way, lambda settings: settings.max_orders_under_way)

    @rpc
    def create_order(self, order: dict[str, Any], key: str) -> dict[str, Any]:
        """Make an order as `place_order` does, for gateways of the version before and for shells.

        Where that refuses prices by errors that these callers do not know, this raises Conflict or ValidationFailed.
        """
        outcome = self._place(order, key)
        if isinstance(outcome, EcomError):
            raise judging.as_of_old(outcome)
        return outcome.as_dict()

    @rpc
    def place_order(self, order: dict[str, Any], key: str) -> dict[str, Any]:
        """Make an order: idempotency key, order and event in one transaction. `place_orders` makes many.

        `order` is {currency, payment_method, items: [{sku, quantity, unit_price?, note?}], note?}, already validated.
        It is charged the prices of the catalog; a unit_price is what the client has seen, and is compared. Returns
        {status, body, location, replayed}. Raises IdempotencyKeyReused, IdempotencyInProgress, ValidationFailed,
        UnknownSku, NotForSale, NoPrice, PriceChanged, TooManyOrders for one order more than the user may have open,
        and CannotWork while MAX_ORDERS_UNDER_WAY are under way, or where the catalog must be asked and does not answer.
        """
        outcome = self._place(order, key)
        if isinstance(outcome, EcomError):
            raise outcome
        return outcome.as_dict()

    def _place(self, order: dict[str, Any], key: str) -> creation.Outcome:
        posted = new_orders.posted_order(order, key, self.context.identity, self.context.trace_id)
        (outcome,) = self._make([posted])
        if isinstance(outcome, InDoubt):
            (outcome,) = self._make([posted], self._ask(outcome.skus))
        assert not isinstance(outcome, InDoubt)  # whoever has asked is in doubt no more
        return outcome

    def _ask(self, skus: Collection[str]) -> dict[str, Offer]:
        """What the catalog says of skus now, which is kept. Raises CannotWork where it does not answer."""
        try:
            said = offers.as_said(self.catalog.offers_of(sorted(skus))["offers"])
        except ServiceUnavailable as error:
            raise CannotWork(
                f"the catalog does not answer, and the copy of its offers leaves a doubt: {error}"
            ) from error
        with self.db.begin() as session:
            offers.save(session, said.values())
        return said

    @rpc
    def create_orders(self, posts: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Make the orders of many users in one transaction, for a gateway that gathers posts.

        As `place_orders`, whose errors a list of the version before never holds: such a post is to be made alone.
        """
        self.context.require(domain.may_post_for_others)
        return self._place_all(posts)

    @rpc
    def place_orders(self, posts: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Make the orders of many users in one transaction, for a gateway that gathers posts.

        A post is {order, key, user_id, roles, trace_id}. Returns {result, error} of each: what `place_order` returns
        to its user, or the error that it raises; None for a post about which the catalog must be asked, so that the
        others need not wait: post it alone. Where the whole list fails, nothing is made: post each alone then, because
        one of them may be the reason.
        """
        self.context.require(domain.may_post_for_others)
        return self._place_all(posts)

    def _place_all(self, posts: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        posted = [_posted(post) for post in posts]
        outcomes = iter(self._make([order for order in posted if isinstance(order, PostedOrder)]))
        return [_as_reply(next(outcomes) if isinstance(order, PostedOrder) else order) for order in posted]

    def _make(
        self, orders: list[PostedOrder], asked: Mapping[str, Offer] | None = None
    ) -> list[creation.Outcome | InDoubt]:
        """Judge and make orders, with new numbers if another order has one of theirs."""
        if not orders:
            return []
        for _ in range(NUMBERS_TRIED):
            try:
                with self.db.begin() as session:
                    return creation.post(session, orders, self._most_open(), self.admission.is_full(), asked)
            except IntegrityError as error:
                if new_orders.NUMBERS_INDEX not in str(error.orig):
                    raise
        raise CannotWork("the numbers of new orders are all taken")

    def _most_open(self) -> domain.Open | None:
        """The most that one user may have open; None if nothing is limited, so that nothing has to be counted."""
        orders, units = self.settings.max_open_orders_per_user, self.settings.max_held_units_per_user
        return domain.Open(orders, units) if orders or units else None

    @rpc
    def cancel_order(self, order_id: str, key: str) -> dict[str, Any]:
        """Cancel an order; one that is paid gets its money back. Done once for each key.

        Returns {status, body, location, replayed}, the body being the order as it is after that. Raises NotFound,
        also for the order of another customer, RoleMissing for one that the caller may only see, IdempotencyKeyReused,
        IdempotencyInProgress.
        """
        return self._command(order_id, domain.CANCEL, domain.may_cancel, key)

    @rpc
    def retry_refund(self, order_id: str) -> dict[str, Any]:
        """Ask once more for a refund that failed, or whose answer is awaited; the same answer as `cancel_order`.

        Raises NotFound, Conflict for an order that has no refund to retry.
        """
        self.context.require(domain.may_retry_refund)
        return self._command(order_id, domain.REFUND_RETRY, domain.may_see)

    def _command(
        self, order_id: str, hears: str, rule: Callable[[Identity, str], bool], key: str = ""
    ) -> dict[str, Any]:
        """One transaction: the order's new state by the table, its step, its events, and the answer under its key."""
        identity = self.context.identity
        try:
            with self.db.begin() as session:
                row = queries.visible_order(session, order_id, identity)
                self.context.require(rule, row.user_id)
                self._apply(session, [row.order_id], hears, identity)
                session.refresh(row)
                (body,) = queries.order_bodies(session, [row])
                answer = KeyedAnswer(202, body, f"/api/orders/{order_id}")
                if key:
                    request = KeyedRequest(identity.user_id, CANCEL_ROUTE, key, {"order_id": str(row.order_id)})
                    if stored := idempotency.claim_key(session, request, answer):
                        raise _Answered(stored)
        except _Answered as known:
            return known.answer.as_dict()
        except UnexpectedEvent as error:
            raise Conflict(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
        return answer.as_dict()

    def _apply(self, session: Session, order_ids: list[UUID], hears: str, identity: Identity) -> None:
        """Apply a command to orders. Raises UnexpectedEvent where the table has no row."""
        steps, events = [], []
        for before in models.orders_of(session, order_ids, lock=True).values():
            step = domain.command(before, hears, uuid7())
            if step.changes(before):
                steps.append((models.Heard(hears, self.name, identity.user_id), before, step))
                events += [envelope(self.name, payload, before.trace_id, identity) for payload in step.emits]
        models.save_steps(session, steps)
        outbox.emit(session, events)

    @rpc
    def get_order(self, order_id: str) -> dict[str, Any]:
        """One order as it is now. Raises NotFound, also for the order of another customer."""
        with self.db.read() as session:
            row = queries.visible_order(session, order_id, self.context.identity)
            (body,) = queries.order_bodies(session, [row])
        return body

    @rpc
    def list_orders(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of orders: {items, next_cursor}. Raises InvalidCursor, BadRequest.

        `filters` are those of `queries.orders_page`.
        """
        self.context.require(domain.may_list)
        with self.db.read() as session:
            items, next_cursor = queries.orders_page(session, self.context.identity, limit, cursor, filters or {})
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def timeline(self, order_id: str) -> dict[str, Any]:
        """Every step of an order so far. Raises NotFound, also for the order of another customer."""
        with self.db.read() as session:
            return queries.timeline(session, queries.visible_order(session, order_id, self.context.identity))

    @rpc
    def steps(self, order_id: str, after: int) -> dict[str, Any]:
        """The steps after step `after`: {version, steps, status, ended}.

        Raises NotFound, also for the order of another customer.
        """
        with self.db.read() as session:
            row = queries.visible_order(session, order_id, self.context.identity)
            return {"version": row.version, **queries.steps_after(session, row.order_id, after)}

    @rpc
    def notes(self, order_id: str) -> dict[str, Any]:
        """The notes on an order that the caller may read: {items}. Raises NotFound."""
        with self.db.read() as session:
            row = queries.visible_order(session, order_id, self.context.identity)
            return {"items": notes.notes_of(session, row.order_id, self.context.identity)}

    @rpc
    def add_note(self, order_id: str, text: str, shown: bool, key: str) -> dict[str, Any]:
        """Write a note on an order, once for each key: {status, body, location, replayed}.

        Raises NotFound, IdempotencyKeyReused, IdempotencyInProgress.
        """
        self.context.require(domain.may_write_notes)
        try:
            with self.db.begin() as session:
                row = queries.visible_order(session, order_id, self.context.identity)
                answer = notes.add(session, row.order_id, text, shown, self.context.identity, key)
                if answer.replayed:
                    raise _Answered(answer)
        except _Answered as known:
            return known.answer.as_dict()
        return answer.as_dict()

    @rpc
    def changed_orders(self, known: dict[str, int]) -> list[dict[str, Any]]:
        """Those of these orders that have changed since a known version, for a gateway whose clients wait for them."""
        self.context.require(domain.may_ask_for_changes)
        with self.db.read() as session:
            return queries.orders_newer_than(session, known)

    @rpc
    def all_steps(self, after: str, limit: int) -> dict[str, Any]:
        """A page of the steps of all orders: {items, after, more}.

        Raises BadRequest for a position that the feed never gave.
        """
        self.context.require(domain.may_read_feed)
        with self.db.read() as session:
            return feed.steps_page(session, after, limit)

    @rpc
    def next_steps(self, known: dict[str, int]) -> list[dict[str, Any]]:
        """The pages after these positions, for a gateway whose clients stream the steps of all orders."""
        self.context.require(domain.may_ask_for_changes)
        with self.db.read() as session:
            return feed.pages_after(session, known)

    @handles("q.order.catalog-offers")
    def learn_offers(self, events: Events, tx: Tx) -> None:
        """Keep what the catalog says. What is older than what is known changes nothing."""
        offers.save(tx.session, offers.newest(event.payload for event in events))

    @every(CATCH_UP_EVERY_S)
    def catch_up(self) -> None:
        """Compare the copy of the offers with the catalog, and fetch what differs."""
        catching_up.catch_up(self.db, self.catalog)

    @handles("q.order.inventory-result")
    def follow_inventory(self, events: Events, tx: Tx) -> None:
        """Apply the results of inventory_service."""
        self._follow(events, tx)

    @handles("q.order.payment-result")
    def follow_payment(self, events: Events, tx: Tx) -> None:
        """Apply the results of payment_service."""
        self._follow(events, tx)

    def _follow(self, events: Events, tx: Tx) -> None:
        orders = models.orders_of(tx.session, [event.payload.order_id for event in events], lock=True)
        steps = []
        for event in events:
            before = orders.get(event.payload.order_id)
            if before is None:
                tx.fail(event, UnknownOrder(f"there is no order {event.payload.order_id}"))
                continue
            try:
                step = domain.follow(before, event.payload, uuid7())
            except UnexpectedEvent as error:
                tx.fail(event, error)
                continue
            if not step.repeated:
                orders[before.order_id] = step.order
                steps.append((models.heard_of(event), before, step))
                tx.emit(event, *step.emits)
        models.save_steps(tx.session, steps)

    @every(DEADLINE_EVERY_S)
    def cancel_overdue(self) -> None:
        """Cancel the orders that have not ended in time, also when their messages are dead or lost."""
        with self.db.read() as session:
            overdue = models.overdue(session, self.settings.order_deadline_s, DEADLINE_BATCH)
        try:
            self._cancel_overdue(overdue)
        except CannotWork:  # a lock on one order, perhaps: the others are cancelled without it
            if held_up := each_alone(overdue, lambda order_id: self._cancel_overdue([order_id])):
                raise held_up from None

    def _cancel_overdue(self, order_ids: list[UUID]) -> None:
        if order_ids:
            with self.db.begin() as session:
                self._apply(session, order_ids, domain.DEADLINE, CLOCK)

    @every(3600)
    def forget_keys(self) -> None:
        """Delete the stored answers of idempotency keys that are older than promised."""
        with self.db.begin() as session:
            idempotency.purge(session)


class _Answered(Exception):
    """The key has been used: roll back, and give the answer that was stored with it."""

    def __init__(self, answer: KeyedAnswer) -> None:
        self.answer = answer


def _posted(post: dict[str, Any]) -> PostedOrder | EcomError:
    """The order that a post asks for, or why it cannot be made."""
    identity = Identity(post["user_id"], tuple(post["roles"]))
    try:
        return new_orders.posted_order(post["order"], post["key"], identity, post["trace_id"])
    except EcomError as error:
        return error


def _as_reply(outcome: creation.Outcome | InDoubt) -> dict[str, Any] | None:
    """As one call would be answered; None for a call that has to be made alone."""
    if isinstance(outcome, InDoubt):
        return None
    if isinstance(outcome, EcomError):
        return {"result": None, "error": serialized(outcome)}
    return {"result": outcome.as_dict(), "error": None}
