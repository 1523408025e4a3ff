"""The copy of the catalog's offers: read with each order, and kept up to date by events and by asking."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.orm import Session

from order_service.judging import Offer
from order_service.models import OfferRow
from shared.bulk import columns_of, insert_of, is_given, table_of
from shared.events import OfferChanged
from shared.prices import Price
from shared.schema import decoder, encode

_OFFERS = table_of(OfferRow)
_NAMES = ("sku", "version", "item_id", "name", "sellable", "prices")

# An outer join, so that there is a moment also where no sku is known.
_OFFERS_OF = text(
    """
    SELECT now() AS at, offers.sku, version, item_id, name, sellable, prices
    FROM (SELECT) AS one LEFT JOIN offers ON sku = ANY(CAST(:skus AS text[]))
    """
).execution_options(prepared=True)

_decode_prices = decoder(tuple[Price, ...])

# Offers by sku and version: what a version says never changes, and decoding it takes longer than reading it.
_KNOWN: dict[tuple[str, int], Offer] = {}
MOST_KNOWN = 5_000


def offers_of(session: Session, skus: Collection[str]) -> tuple[dict[str, Offer], datetime]:
    """The offers of those of these skus that are known, and the moment of this transaction. One statement."""
    rows = session.execute(_OFFERS_OF, {"skus": list(skus)}).all()
    return {row.sku: _offer(row) for row in rows if row.sku is not None}, rows[0].at


def _offer(row: Any) -> Offer:
    key = (row.sku, row.version)
    known = _KNOWN.get(key)
    if known is None:
        prices = _decode_prices(row.prices, "prices")
        known = Offer(row.sku, row.version, row.item_id, row.name, row.sellable, prices)
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = known
    return known


def as_said(offers: Iterable[Mapping[str, Any]]) -> dict[str, Offer]:
    """Offers as the catalog's RPC gives them, by sku."""
    return {
        offer["sku"]: Offer(
            offer["sku"],
            offer["version"],
            UUID(offer["item_id"]),
            offer["name"],
            offer["sellable"],
            _decode_prices(offer["prices"], "prices"),
        )
        for offer in offers
    }


def newest(heard: Iterable[OfferChanged]) -> list[Offer]:
    """Of each sku the newest that was heard."""
    found: dict[str, OfferChanged] = {}
    for event in heard:
        known = found.get(event.sku)
        if known is None or known.version < event.version:
            found[event.sku] = event
    return [
        Offer(event.sku, event.version, event.item_id, event.name, event.sellable, event.prices)
        for event in found.values()
    ]


def _upsert() -> Insert:
    statement = insert_of(OfferRow, *_NAMES)
    said = {name: statement.excluded[name] for name in _NAMES[1:]}
    return statement.on_conflict_do_update(
        index_elements=["sku"], set_={**said, "heard_at": text("now()")}, where=_OFFERS.c.version < said["version"]
    )


_SAVE = _upsert()


def save(session: Session, offers: Iterable[Offer]) -> None:
    """Keep what is newer than what is known. At most one statement.

    A withdrawal is a version too, so an older "sellable" that comes late raises nothing again. In the order of the
    skus, so that transactions cannot deadlock.
    """
    rows = [{**vars(offer), "prices": encode(offer.prices)} for offer in sorted(offers, key=lambda offer: offer.sku)]
    if rows:
        session.execute(_SAVE, columns_of(rows, _NAMES))


_VERSIONS_OF = select(_OFFERS.c.sku, _OFFERS.c.version).where(is_given(_OFFERS.c.sku))


def versions_of(session: Session, skus: Collection[str]) -> dict[str, int]:
    """The versions that are known of skus. One statement."""
    return {row.sku: row.version for row in session.execute(_VERSIONS_OF, {"given_sku": list(skus)})}
