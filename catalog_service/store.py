"""Loading items with their prices, and saving what has become of them. The number of statements is that of no list."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from catalog_service import domain
from catalog_service.domain import Item, Variant
from catalog_service.models import CategoryRow, ItemRow, ItemVersionRow, PriceRow, VariantRow
from shared import outbox
from shared.bulk import insert_many, is_given, table_of, update_many
from shared.enumerations import ItemStatus as Status
from shared.envelope import envelope
from shared.errors import NotFound, ValidationFailed
from shared.events import Identity, OfferChanged
from shared.prices import Price
from shared.tables import NOW

SERVICE = "catalog_service"

_CATEGORIES, _ITEMS, _VARIANTS = table_of(CategoryRow), table_of(ItemRow), table_of(VariantRow)

Prices = dict[str, tuple[Price, ...]]


def clock(session: Session) -> datetime:
    """When this transaction began, in whole milliseconds: as events carry times."""
    return session.execute(text("SELECT date_trunc('milliseconds', now())")).scalar_one()


_ITEMS_OF = (
    select(
        _ITEMS.c.item_id,
        _ITEMS.c.name,
        _ITEMS.c.description,
        _CATEGORIES.c.slug,
        _ITEMS.c.images,
        _ITEMS.c.position,
        _ITEMS.c.status,
        _ITEMS.c.version,
        _ITEMS.c.published_at,
    )
    .select_from(_ITEMS.outerjoin(_CATEGORIES, _CATEGORIES.c.category_id == _ITEMS.c.category_id))
    .where(is_given(_ITEMS.c.item_id))
    .order_by(_ITEMS.c.item_id)
    .execution_options(prepared=True)
)
_LOCKED_ITEMS_OF = _ITEMS_OF.with_for_update(of=_ITEMS)
# A statement of its own: it sees the variants as they are when the items are locked.
_VARIANTS_OF = (
    select(
        _VARIANTS.c.item_id,
        _VARIANTS.c.sku,
        _VARIANTS.c.name,
        _VARIANTS.c.position,
        _VARIANTS.c.on_sale,
        _VARIANTS.c.offer_version,
    )
    .where(is_given(_VARIANTS.c.item_id))
    .order_by(_VARIANTS.c.item_id, _VARIANTS.c.position, _VARIANTS.c.sku)
    .execution_options(prepared=True)
)
_OWNERS_OF = (
    select(_VARIANTS.c.sku, _VARIANTS.c.item_id).where(is_given(_VARIANTS.c.sku)).execution_options(prepared=True)
)


@dataclass(frozen=True)
class Stored:
    """Items as they are stored, and the versions of their offers by sku."""

    items: Mapping[UUID, Item]
    offer_versions: Mapping[str, int]


def items_of(session: Session, item_ids: Collection[UUID], lock: bool = False) -> Stored:
    """Load items. `lock=True` locks their rows by item_id, so that transactions cannot deadlock. Two statements."""
    if not item_ids:
        return Stored({}, {})
    wanted = {"given_item_id": list(item_ids)}
    rows = session.execute(_LOCKED_ITEMS_OF if lock else _ITEMS_OF, wanted).all()
    variants: dict[UUID, list[Variant]] = {row.item_id: [] for row in rows}
    versions: dict[str, int] = {}
    for item_id, sku, name, position, on_sale, version in session.execute(_VARIANTS_OF, wanted):
        variants[item_id].append(Variant(sku, name, position, on_sale))
        versions[sku] = version
    items = {
        row.item_id: Item(
            row.item_id,
            row.name,
            row.description,
            row.slug,
            tuple(row.images),
            row.position,
            Status(row.status),
            tuple(variants[row.item_id]),
            row.version,
            row.published_at,
        )
        for row in rows
    }
    return Stored(items, versions)


def item_of(session: Session, item_id: str, lock: bool = False) -> tuple[Item, Mapping[str, int]]:
    """One item, with the versions of its offers. Raises NotFound. Two statements."""
    stored = items_of(session, [UUID(item_id)], lock)
    if not stored.items:
        raise NotFound
    return stored.items[UUID(item_id)], stored.offer_versions


def owners_of(session: Session, skus: Collection[str]) -> dict[str, UUID]:
    """The items to which skus belong. One statement."""
    rows = session.execute(_OWNERS_OF, {"given_sku": list(skus)})
    return {row.sku: row.item_id for row in rows}


# For each tier the price in force, and of those to come the last that was set for its moment. Both read the index
# ix_prices_in_force in its order.
_PRICES_OF = text(
    """
    SELECT sku, currency, min_quantity, unit_price, valid_from FROM (
        SELECT DISTINCT ON (sku, currency, min_quantity) sku, currency, min_quantity, unit_price, valid_from
        FROM prices WHERE sku = ANY(CAST(:skus AS text[])) AND valid_from <= now()
        ORDER BY sku, currency, min_quantity, valid_from DESC, id DESC
    ) AS in_force
    UNION ALL
    SELECT sku, currency, min_quantity, unit_price, valid_from FROM (
        SELECT DISTINCT ON (sku, currency, min_quantity, valid_from) sku, currency, min_quantity, unit_price, valid_from
        FROM prices WHERE sku = ANY(CAST(:skus AS text[])) AND valid_from > now()
        ORDER BY sku, currency, min_quantity, valid_from, id DESC
    ) AS to_come
    ORDER BY sku, currency, min_quantity, valid_from
    """
).execution_options(prepared=True)


def prices_of(session: Session, skus: Collection[str]) -> Prices:
    """The prices of skus: those in force and those to come. One statement."""
    found: dict[str, list[Price]] = {}
    for sku, currency, min_quantity, unit_price, valid_from in session.execute(_PRICES_OF, {"skus": list(skus)}):
        found.setdefault(sku, []).append(Price(currency, min_quantity, unit_price, valid_from))
    return {sku: tuple(prices) for sku, prices in found.items()}


def categories_of(session: Session, slugs: Iterable[str | None]) -> dict[str | None, UUID | None]:
    """The ids of categories by their slugs; that of no category is None. At most one statement.

    Raises ValidationFailed for a slug that no category has. The categories stay until this transaction ends.
    """
    wanted = {slug for slug in slugs if slug is not None}
    found: dict[str | None, UUID | None] = {None: None}
    if wanted:
        rows = session.execute(
            select(_CATEGORIES.c.slug, _CATEGORIES.c.category_id)
            .where(_CATEGORIES.c.slug.in_(sorted(wanted)))
            .order_by(_CATEGORIES.c.slug)
            .with_for_update(key_share=True, read=True)
        )
        found |= {row.slug: row.category_id for row in rows}
    if unknown := sorted(wanted - set(found)):
        raise ValidationFailed(details={"category": [f"There is no category {', '.join(unknown)}."]})
    return found


@dataclass
class Change:
    """What becomes of one item: None before it is made, and after it is thrown away."""

    before: Item | None
    after: Item | None
    prices_before: Prices
    prices: Prices
    new_prices: Sequence[tuple[str, Price]] = ()


@dataclass(frozen=True)
class Editor:
    """Who changes something, in which request, and when."""

    identity: Identity
    trace_id: str
    now: datetime


def save(session: Session, changes: Sequence[Change], versions: Mapping[str, int], editor: Editor) -> dict[UUID, Item]:
    """Save what has become of items, and tell who must hear of it; the items as they are then, with their versions.

    `versions` are those of the offers so far. The rows of the items must be locked. At most nine statements.
    """
    saved = {change.after.item_id: _counted(change) for change in changes if change.after}
    slugs = {item.category for item in saved.values()}
    categories = categories_of(session, slugs)
    _save_items(session, changes, saved, categories)
    told = _save_variants(session, changes, saved, versions, editor)
    insert_many(
        session,
        PriceRow,
        [
            {
                "sku": sku,
                **vars(price),
                "offer_version": told.versions[sku],
                "set_by": editor.identity.user_id,
            }
            for change in changes
            for sku, price in change.new_prices
        ],
    )
    insert_many(
        session,
        ItemVersionRow,
        [
            {
                "item_id": item.item_id,
                "version": item.version,
                "document": item.document,
                "changed_by": editor.identity.user_id,
                "trace_id": editor.trace_id,
            }
            for change in changes
            if change.after and (item := saved[change.after.item_id]) and _is_new_version(change)
        ],
    )
    outbox.emit(session, [envelope(SERVICE, event, editor.trace_id, editor.identity) for event in told.events])
    return saved


def _is_new_version(change: Change) -> bool:
    return change.before is None or (change.after is not None and change.before.document != change.after.document)


def _counted(change: Change) -> Item:
    """The item after a change, with its next version if it differs from the one before."""
    assert change.after
    values = {**vars(change.after), "version": change.after.version + _is_new_version(change)}
    return Item(**values)


def _save_items(
    session: Session,
    changes: Sequence[Change],
    saved: Mapping[UUID, Item],
    categories: Mapping[str | None, UUID | None],
) -> None:
    """At most four statements."""
    gone = [change.before.item_id for change in changes if change.before and change.after is None]
    if gone:
        session.execute(delete(VariantRow).where(VariantRow.item_id.in_(gone)))
        session.execute(delete(ItemRow).where(ItemRow.item_id.in_(gone)))

    def row(item: Item) -> dict[str, Any]:
        return {
            "item_id": item.item_id,
            "name": item.name,
            "description": item.description,
            "category_id": categories[item.category],
            "images": [dict(image) for image in item.images],
            "position": item.position,
            "status": item.status.value,
            "version": item.version,
            "published_at": item.published_at,
        }

    kept = [(change, saved[change.after.item_id]) for change in changes if change.after and _is_new_version(change)]
    insert_many(session, ItemRow, [row(item) for change, item in kept if change.before is None])
    changed = [row(item) for change, item in kept if change.before is not None]
    update_many(session, ItemRow, "item_id", changed, {"updated_at": NOW})


@dataclass(frozen=True)
class _Told:
    """The versions of all offers after a change, and the events about those that others must hear of."""

    versions: dict[str, int]
    events: list[OfferChanged]


def _save_variants(
    session: Session,
    changes: Sequence[Change],
    saved: Mapping[UUID, Item],
    versions: Mapping[str, int],
    editor: Editor,
) -> _Told:
    """Save variants and the versions of their offers. At most three statements."""
    told = _Told(dict(versions), [])
    gone: list[str] = []
    new, changed = [], []
    for change in changes:
        after = saved[change.after.item_id] if change.after else None
        before = domain.offers(change.before, change.prices_before)
        stored = {variant.sku: variant for variant in change.before.variants} if change.before else {}
        priced = {sku for sku, _ in change.new_prices}
        for variant in after.variants if after else ():
            offer = domain.offers(after, change.prices)[variant.sku]
            words = domain.changes(before.get(variant.sku), offer)
            if words or variant.sku in priced or variant.sku not in stored:
                told.versions[variant.sku] = domain.next_version(versions.get(variant.sku, 0), editor.now)
            if words:
                told.events.append(domain.as_event(offer, told.versions[variant.sku], words))
            row = {**vars(variant), "offer_version": told.versions[variant.sku]}
            if variant.sku not in stored:
                new.append({"item_id": offer.item_id, **row})
            elif variant != stored[variant.sku] or row["offer_version"] != versions[variant.sku]:
                changed.append(row)
        if after:
            gone += stored.keys() - {variant.sku for variant in after.variants}
    if gone:
        session.execute(delete(VariantRow).where(VariantRow.sku.in_(gone)))
    insert_many(session, VariantRow, new)
    update_many(session, VariantRow, "sku", changed)
    return told
