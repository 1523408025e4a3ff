"""What editors read, and how they change the menu: each function is one change in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import delete, exists, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from catalog_service import domain, store
from catalog_service.domain import Item, Listing
from catalog_service.models import CategoryRow, ItemRow, ItemVersionRow
from catalog_service.store import Change, Editor
from shared.bulk import table_of
from shared.enumerations import ItemStatus as Status
from shared.errors import CannotWork, Conflict, NotFound, VersionMoved
from shared.ids import uuid7
from shared.paging import decode_cursor, encode_cursor, page_of, row_position
from shared.prices import Price
from shared.times import timestamp

_CATEGORIES = table_of(CategoryRow)


def put_category(session: Session, slug: str, name: str, position: int, version: int | None) -> dict[str, Any]:
    """Make or change a category: {category, created}. Raises VersionMoved."""
    row = session.execute(select(_CATEGORIES).where(_CATEGORIES.c.slug == slug).with_for_update()).one_or_none()
    if version is not None and (row.version if row else 0) != version:
        raise VersionMoved(details={"version": row.version if row else 0})
    saved = session.execute(
        insert(_CATEGORIES)
        .values(category_id=uuid7(), slug=slug, name=name, position=position)
        .on_conflict_do_update(
            index_elements=["slug"],
            set_={"name": name, "position": position, "version": _CATEGORIES.c.version + 1},
        )
        .returning(_CATEGORIES.c.slug, _CATEGORIES.c.name, _CATEGORIES.c.position, _CATEGORIES.c.version)
    ).one()
    return {"category": saved._asdict(), "created": saved.version == 1}


def delete_category(session: Session, slug: str) -> None:
    """Take an empty category off the menu. Raises NotFound, and Conflict while items are in it."""
    row = session.execute(
        select(_CATEGORIES.c.category_id).where(_CATEGORIES.c.slug == slug).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound
    if session.scalar(select(exists().where(ItemRow.category_id == row.category_id))):
        raise Conflict("There are items in this category.")
    session.execute(delete(CategoryRow).where(CategoryRow.category_id == row.category_id))


def put_offers(session: Session, listings: Sequence[Listing], editor: Editor) -> tuple[list[str], list[str]]:
    """List skus at prices, the short way; the skus that are new and those that changed.

    All or none. At most fifteen statements, whatever the number. Raises ValidationFailed, and CannotWork when somebody
    else has just listed one of the skus: repeat it then.
    """
    owners = store.owners_of(session, {listing.sku for listing in listings})
    stored = store.items_of(session, set(owners.values()), lock=True)
    skus = {variant.sku for item in stored.items.values() for variant in item.variants}
    prices_before = store.prices_of(session, skus | owners.keys())
    prices = dict(prices_before)
    items: dict[UUID, Item] = dict(stored.items)
    new_prices: dict[UUID, list[tuple[str, Price]]] = {}
    for listing in listings:
        owner = owners.get(listing.sku)
        item = domain.listed(items[owner] if owner else None, listing, uuid7(), editor.now)
        owners[listing.sku] = item.item_id
        items[item.item_id] = item
        known = prices.get(listing.sku, ())
        prices[listing.sku] = domain.with_price(known, listing.price, listing.is_dated, editor.now)
        if prices[listing.sku] is not known:
            new_prices.setdefault(item.item_id, []).append((listing.sku, listing.price))
    changed = [
        Change(stored.items.get(item_id), item, prices_before, prices, new_prices.get(item_id, ()))
        for item_id, item in items.items()
        if item != stored.items.get(item_id) or item_id in new_prices
    ]
    _claim(session, [item for item in items.values() if item.item_id not in stored.items])
    store.save(session, changed, stored.offer_versions, editor)
    new = [change.after.item_id for change in changed if change.before is None and change.after]
    created = [sku for sku, owner in owners.items() if owner in new]
    touched = {change.after.item_id for change in changed if change.after}
    return created, [listing.sku for listing in listings if owners[listing.sku] in touched]


def _claim(session: Session, items: Sequence[Item]) -> None:
    """Whoever lists a new sku first has it: lock their names until this transaction ends, in one order. One statement.

    Raises CannotWork when one of them is not new any more.
    """
    skus = sorted(variant.sku for item in items for variant in item.variants)
    if not skus:
        return
    session.execute(_LOCK_SKUS, {"skus": skus})
    if store.owners_of(session, skus):
        raise CannotWork("a sku has just been listed by somebody else")


# The advisory locks of new skus, beside others in this database.
NEW_SKUS = 1
_LOCK_SKUS = text(
    f"""
    SELECT pg_advisory_xact_lock({NEW_SKUS}, turn) FROM (
        SELECT DISTINCT hashtext(sku) AS turn FROM unnest(CAST(:skus AS text[])) AS given (sku) ORDER BY 1
    ) AS turns
    """
)


def new_item(document: Mapping[str, Any], editor: Editor) -> Item:
    """A draft as it is posted, with an id. Raises ValidationFailed."""
    drafted = {**document, "status": Status.DRAFT.value}
    return domain.as_written(Item(uuid7(), document["name"]), drafted, (), editor.now)


def add_item(session: Session, item: Item, editor: Editor) -> Item:
    """Save a new draft. Raises Conflict if one of its skus belongs to another item."""
    skus = {variant.sku for variant in item.variants}
    domain.check_owner(item.item_id, store.owners_of(session, skus) if skus else {})
    _claim(session, [item])
    return store.save(session, [Change(None, item, {}, {})], {}, editor)[item.item_id]


def write_item(session: Session, item_id: str, document: Mapping[str, Any], editor: Editor) -> Item:
    """Make an item what the whole document says; `document["version"]` is the one that was read.

    Raises NotFound, VersionMoved, ValidationFailed, and Conflict if a sku belongs to another item.
    """
    before, versions = store.item_of(session, item_id, lock=True)
    domain.check_version(before, document["version"])
    prices = store.prices_of(session, {variant.sku for variant in before.variants})
    after = domain.as_written(before, document, prices, editor.now)
    known = {variant.sku for variant in before.variants}
    new = tuple(variant for variant in after.variants if variant.sku not in known)
    if new:
        domain.check_owner(before.item_id, store.owners_of(session, {variant.sku for variant in new}))
        _claim(session, [replace(after, variants=new)])
    return store.save(session, [Change(before, after, prices, prices)], versions, editor)[before.item_id]


def revert_item(session: Session, item_id: str, to_version: int, version: int, editor: Editor) -> Item:
    """Make an item what it was in an earlier version, as a new version; variants that came later stay, off sale.

    Raises NotFound also for a version that was never there, VersionMoved, ValidationFailed.
    """
    past = session.scalar(
        select(ItemVersionRow.document).where(
            ItemVersionRow.item_id == UUID(item_id), ItemVersionRow.version == to_version
        )
    )
    if past is None:
        raise NotFound
    before, _ = store.item_of(session, item_id, lock=True)
    return write_item(session, item_id, {**domain.kept_by_revert(before, past), "version": version}, editor)


def remove_item(session: Session, item_id: str, editor: Editor) -> None:
    """Throw a draft away, or withdraw what was published or has a price. Raises NotFound."""
    before, versions = store.item_of(session, item_id, lock=True)
    prices = store.prices_of(session, {variant.sku for variant in before.variants})
    after = replace(before, status=Status.WITHDRAWN) if before.published_at or prices else None
    if after != before:
        store.save(session, [Change(before, after, prices, prices)], versions, editor)


def body(item: Item, offer_versions: Mapping[str, int]) -> dict[str, Any]:
    """An item as its editors see it."""
    variants = [{**vars(variant), "offer_version": offer_versions[variant.sku]} for variant in item.variants]
    return {
        "item_id": str(item.item_id),
        **item.document,
        "variants": variants,
        "version": item.version,
        "published_at": timestamp(item.published_at) if item.published_at else None,
    }


def item_body(session: Session, item_id: str) -> dict[str, Any]:
    """One item in any status. Raises NotFound. Two statements."""
    return body(*store.item_of(session, item_id))


def versions_page(session: Session, item_id: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """The versions of an item, newest first: {items, next_cursor}. Raises InvalidCursor."""
    query = (
        select(
            ItemVersionRow.version,
            ItemVersionRow.document,
            ItemVersionRow.changed_by,
            ItemVersionRow.trace_id,
            ItemVersionRow.at,
        )
        .where(ItemVersionRow.item_id == UUID(item_id))
        .order_by(ItemVersionRow.version.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        (before,) = decode_cursor(cursor, {"versions": item_id}, (row_position,))
        query = query.where(ItemVersionRow.version < before)
    rows, more = page_of(session.execute(query).all(), limit)
    items = [{**row._asdict(), "at": timestamp(row.at)} for row in rows]
    return {
        "items": items,
        "next_cursor": encode_cursor([rows[-1].version], {"versions": item_id}) if more else None,
    }


# First all prices of the skus, by the index ix_prices_in_force. If the database chose a page at once, it would read
# back from the newest price of all: past those of all other skus, if these are old.
_PRICES_SET = text(
    """
    WITH of_skus AS MATERIALIZED (
        SELECT id, sku, currency, min_quantity, unit_price, valid_from, offer_version, set_by, set_at
        FROM prices WHERE sku = ANY(CAST(:skus AS text[])) AND id < :before
    )
    SELECT * FROM of_skus ORDER BY id DESC LIMIT :limit
    """
)
NEWEST = 2**63 - 1  # no price has this id


def prices_page(session: Session, item_id: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """Every price that was set for an item's skus, newest first, and what each cost least in the last 30 days.

    {items, next_cursor, lowest_30d}. Raises NotFound, InvalidCursor.
    """
    item, _ = store.item_of(session, item_id)
    skus = [variant.sku for variant in item.variants]
    before = NEWEST
    if cursor is not None:
        (before,) = decode_cursor(cursor, {"prices": item_id}, (row_position,))
    asked = {"skus": skus, "before": before, "limit": limit + 1}
    rows, more = page_of(session.execute(_PRICES_SET, asked).all(), limit)
    items = [
        {
            "sku": row.sku,
            "currency": row.currency,
            "min_quantity": row.min_quantity,
            "unit_price": row.unit_price,
            "valid_from": timestamp(row.valid_from),
            "offer_version": row.offer_version,
            "set_by": row.set_by,
            "set_at": timestamp(row.set_at),
        }
        for row in rows
    ]
    lowest = [row._asdict() for row in session.execute(_LOWEST, {"skus": skus})]
    return {
        "items": items,
        "next_cursor": encode_cursor([rows[-1].id], {"prices": item_id}) if more else None,
        "lowest_30d": lowest,
    }


# A price holds until the next one of its tier begins.
_LOWEST = text(
    """
    SELECT sku, currency, min(unit_price) AS unit_price FROM (
        SELECT sku, currency, unit_price, valid_from,
               lead(valid_from) OVER (PARTITION BY sku, currency ORDER BY valid_from, id) AS ended
        FROM prices WHERE sku = ANY(CAST(:skus AS text[])) AND min_quantity = 1 AND valid_from <= now()
    ) AS held
    WHERE unit_price IS NOT NULL AND (ended IS NULL OR (ended > valid_from AND ended > now() - interval '30 days'))
    GROUP BY sku, currency ORDER BY sku, currency
    """
)
