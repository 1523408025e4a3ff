"""The statements on people's movements of stock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from inventory_service.domain import Movement, Stock
from inventory_service.models import StockMovement
from inventory_service.queries import movement_row, save_stock, stock_of
from inventory_service.recipes.queries import decide_alone, made
from inventory_service.signals import SERVICE
from shared import outbox
from shared.bulk import columns_of, insert_of, table_of
from shared.envelope import envelope
from shared.events import Identity, StockMoved

_COLUMNS = (
    "sku",
    "change",
    "cause",
    "order_id",
    "moved_by",
    "trace_id",
    "on_hand_after",
    "reason",
    "note",
    "purchase_order_id",
)
_ADD = insert_of(StockMovement, *_COLUMNS).returning(table_of(StockMovement).c.id)


def save_bookings(
    session: Session, stock: Iterable[Stock], movements: Sequence[Movement], identity: Identity, trace_id: str
) -> list[int]:
    """Save stock that a person has changed and their movements, and tell of each; the movements' ids, in their order.

    The rows of the stock must be locked: so the movements of one sku have their balances in the order of their ids.
    Three statements.
    """
    save_stock(session, stock)
    if not movements:
        return []
    rows = [
        movement_row(movement, None, identity, trace_id)
        | {
            "reason": movement.reason,
            "note": movement.note,
            "purchase_order_id": movement.purchase_order_id,
        }
        for movement in movements
    ]
    ids = list(session.scalars(_ADD, columns_of(rows, _COLUMNS)))
    events = [
        StockMoved(
            movement.sku,
            movement_id,
            movement.change,
            movement.on_hand_after,
            movement.cause.value,
            movement.reason,
            movement.purchase_order_id,
        )
        for movement, movement_id in zip(movements, ids, strict=True)
    ]
    outbox.emit(session, [envelope(SERVICE, event, trace_id, identity) for event in events])
    return ids


_MAKE = text(
    "INSERT INTO stock_items (sku, on_hand, reserved, version)"
    " SELECT sku, 0, 0, 0 FROM unnest(CAST(:skus AS text[])) AS sku ORDER BY sku ON CONFLICT DO NOTHING"
)


def lock_or_make(session: Session, skus: Collection[str]) -> dict[str, Stock]:
    """Lock and return the stock of these skus; one that is new gets a row with nothing on hand, of version 0.

    A sku that is made by a recipe gets none, and is not returned. Two statements when all have stock, else five. Rows
    are made before any row is locked: whoever waits for a sku to be made holds no stock, so nobody waits for them.
    """
    missing = set(skus) - stock_of(session, skus).keys()
    if missing:
        decide_alone(session, missing)
        session.execute(_MAKE, {"skus": sorted(missing - made(session, missing))})
    return stock_of(session, skus, lock=True)


# The database reads the held reservations, those of the orders under way, by ix_reservations_expiring. Then it looks
# each up by the key of reservation_items. With a million reservations, none of them vacuumed since it was sold, that
# took 65 ms where 5,000 were held and 100 ms where 100,000 were. An index on (sku) would cost every reservation an
# entry for each of its lines, for a question that people ask when they were refused.
_HOLDERS = text(
    """
    SELECT item.order_id, item.quantity
    FROM reservations AS held JOIN reservation_items AS item ON item.order_id = held.order_id AND item.sku = :sku
    WHERE held.state = 'RESERVED'
    ORDER BY held.created_at DESC, held.order_id DESC
    LIMIT :most
    """
)


def holders(session: Session, sku: str, most: int) -> list[dict[str, Any]]:
    """The newest orders that hold something of a sku: [{order_id, quantity}]. One statement; lock nothing meanwhile."""
    rows = session.execute(_HOLDERS, {"sku": sku, "most": most})
    return [{"order_id": str(row.order_id), "quantity": row.quantity} for row in rows]
