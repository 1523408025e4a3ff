"""The entrypoints of the books: what people take in, take out and count, and what is on hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from inventory_service import domain as stock_rules
from inventory_service.books import domain, pages, queries
from inventory_service.books.domain import Booked, Line
from inventory_service.queries import stock_body, stock_of
from inventory_service.recipes.queries import made
from shared import idempotency
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.enumerations import MovementCause
from shared.errors import BelowReserved, IdempotencyInProgress, ValidationFailed
from shared.idempotency import KeyedAnswer, KeyedRequest

ROUTES = {
    MovementCause.STOCK_IN: "POST /api/inventory/stock-in",
    MovementCause.STOCK_OUT: "POST /api/inventory/stock-out",
    MovementCause.COUNTED: "POST /api/inventory/adjust",
}
# So many orders are named to a person who has to cancel some.
MOST_HOLDERS = 20


class Books:
    """Base of the inventory service: books what people move, and tells what is on hand.

    The service provides its dependencies.
    """

    db: Database
    context: Context

    @rpc
    def stock_in(self, lines: list[dict[str, Any]], reason: str, key: str, note: str | None = None) -> dict[str, Any]:
        """Take stock in: [{sku, quantity}], once for each key, all lines or none: {status, body, location, replayed}.

        The body is {movements, stock}. A sku that is new gets its first stock. Raises ValidationFailed, HasRecipe,
        IdempotencyKeyReused, IdempotencyInProgress.
        """
        return self._book(MovementCause.STOCK_IN, lines, reason, note, key)

    @rpc
    def stock_out(self, lines: list[dict[str, Any]], reason: str, key: str, note: str | None = None) -> dict[str, Any]:
        """Take stock out, as `stock_in` takes it in. Raises also UnknownSku, BelowReserved."""
        return self._book(MovementCause.STOCK_OUT, lines, reason, note, key)

    @rpc
    def adjust_stock(
        self, lines: list[dict[str, Any]], reason: str, key: str, note: str | None = None
    ) -> dict[str, Any]:
        """Set stock to what was counted: [{sku, counted, version?}]; else as `stock_out`. Raises also VersionMoved."""
        return self._book(MovementCause.COUNTED, lines, reason, note, key)

    @rpc
    def stock_levels(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of what is on hand and of what could be made, by sku: {items, next_cursor}. Raises InvalidCursor.

        `filters`: sku, low, sold_out.
        """
        self.context.require(domain.may_read_books)
        with self.db.read() as session:
            items, next_cursor = pages.levels(session, limit, cursor, filters or {})
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def stock_movements(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of movements, newest first: {items, next_cursor}. Without a sku they are people's.

        `filters`: sku, cause, from, to. Raises InvalidCursor, and ValidationFailed for sales or returns without a sku.
        """
        self.context.require(domain.may_read_books)
        asked = filters or {}
        if not asked.get("sku") and asked.get("cause") in domain.BY_ORDERS:
            raise ValidationFailed(
                "Sales and returns are listed of one sku.",
                {"cause": ["Needs sku, since orders move stock all the time."]},
            )
        with self.db.read() as session:
            items, next_cursor = pages.movements(session, limit, cursor, asked)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def availability(self, skus: list[str]) -> dict[str, Any]:
        """How much of these skus can be sold now: {items: [{sku, available, sold_out}], unknown}.

        `available` is None for what is made of nothing.
        """
        self.context.require(stock_rules.may_read_stock)
        asked = list(dict.fromkeys(skus))
        with self.db.read() as session:
            found = pages.availability(session, asked)
        return {
            "items": [
                {"sku": sku, "available": found[sku], "sold_out": pages.is_sold_out(found[sku])}
                for sku in asked
                if sku in found
            ],
            "unknown": [sku for sku in asked if sku not in found],
        }

    def _book(
        self, cause: MovementCause, lines: Sequence[Mapping[str, Any]], reason: str, note: str | None, key: str
    ) -> dict[str, Any]:
        self.context.require(domain.may_move_stock)
        identity, trace_id = self.context.identity, self.context.trace_id
        wanted = [
            Line(line["sku"], line["counted" if cause == MovementCause.COUNTED else "quantity"], line.get("version"))
            for line in lines
        ]
        domain.check(cause, wanted, reason)
        content = {"lines": list(lines), "reason": reason, "note": note}
        request = KeyedRequest(identity.user_id, ROUTES[cause], key, content)
        # The answer is known at the end only, so the key is claimed then. Until then the locks on the stock keep equal
        # requests waiting. Nothing is locked after a key, so nobody waits in a circle.
        with self.naming_holders(), self.db.begin() as session:
            skus = {line.sku for line in wanted}
            if domain.TABLE[cause].makes_sku:
                stock = queries.lock_or_make(session, skus)
                by_recipe = skus - stock.keys()
            else:
                stock = stock_of(session, skus, lock=True)
                by_recipe = made(session, skus - stock.keys()) if skus - stock.keys() else set()
            if known := idempotency.known_answers(session, [request]).get(request.claim):
                return known.to(request).as_dict()
            booked = domain.book(cause, wanted, stock, by_recipe, reason, note)
            ids = queries.save_bookings(session, _changed(booked), booked.movements, identity, trace_id)
            answer = KeyedAnswer(200, _body(booked, ids), "")
            if idempotency.claim_key(session, request, answer):
                raise IdempotencyInProgress
        return answer.as_dict()

    @contextmanager
    def naming_holders(self) -> Iterator[None]:
        """Let BelowReserved say which orders hold the sku, read after its transaction has let go of the stock."""
        try:
            yield
        except BelowReserved as error:
            with self.db.read() as session:
                holders = queries.holders(session, error.details["sku"], MOST_HOLDERS)
            raise BelowReserved(error.message, error.details | {"holders": holders}) from error


def _changed(booked: Booked) -> list[stock_rules.Stock]:
    moved = {movement.sku for movement in booked.movements}
    return [item for item in booked.stock if item.sku in moved]


def _body(booked: Booked, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "movements": [
            {
                "id": movement_id,
                "sku": movement.sku,
                "change": movement.change,
                "on_hand_after": movement.on_hand_after,
                "cause": movement.cause.value,
                "reason": movement.reason,
            }
            for movement_id, movement in zip(ids, booked.movements, strict=True)
        ],
        "stock": [stock_body(item) for item in booked.stock],
    }
