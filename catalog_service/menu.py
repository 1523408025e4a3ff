"""What anyone may read: the menu, its categories and offers. Each page is a fixed number of statements."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, any_, exists, func, select, text, union_all
from sqlalchemy.orm import Session

from catalog_service import domain, store
from catalog_service.models import AvailabilityRow, CategoryRow, ItemRow, VariantRow
from shared.bulk import is_given, table_of
from shared.enumerations import ItemStatus as Status
from shared.errors import NotFound
from shared.paging import decode_cursor, encode_cursor, id_position, page_of
from shared.times import timestamp

_CATEGORIES, _ITEMS, _VARIANTS = table_of(CategoryRow), table_of(ItemRow), table_of(VariantRow)
_AVAILABILITY = table_of(AvailabilityRow)

# What anyone may see. The status does not say it: a draft may be withdrawn, too, and stays unseen.
_WAS_PUBLISHED = _ITEMS.c.published_at.is_not(None)

MAX_CATEGORIES = 200

# {sku: {currency: [{min_quantity, unit_price}]}}
Tiers = dict[str, dict[str, list[dict[str, int]]]]


def categories(session: Session) -> list[dict[str, Any]]:
    """The categories in menu order. One statement."""
    rows = session.execute(
        select(_CATEGORIES.c.slug, _CATEGORIES.c.name, _CATEGORIES.c.position, _CATEGORIES.c.version)
        .order_by(_CATEGORIES.c.position, _CATEGORIES.c.slug)
        .limit(MAX_CATEGORIES)
    )
    return [row._asdict() for row in rows]


_SHOWN = (
    _ITEMS.c.item_id,
    _ITEMS.c.name,
    _ITEMS.c.description,
    _CATEGORIES.c.slug,
    _ITEMS.c.images,
    _ITEMS.c.position,
    _ITEMS.c.status,
    _ITEMS.c.version,
    _ITEMS.c.updated_at,
)
_FROM_ITEMS = _ITEMS.outerjoin(_CATEGORIES, _CATEGORIES.c.category_id == _ITEMS.c.category_id)


def items_page(
    session: Session, limit: int, cursor: str | None, filters: Mapping[str, Any], status: Status | None
) -> tuple[Sequence[Row[Any]], str | None]:
    """A page of items in menu order, and the cursor of the next page. One statement.

    `filters`: category, sku, q (words, the last one may be the beginning of one), available. Raises InvalidCursor.
    """
    query = select(*_SHOWN).select_from(_FROM_ITEMS).where(*_conditions(filters))
    if status is not None:
        query = query.where(_ITEMS.c.status == status.value)
    if cursor is not None:
        position, item_id = decode_cursor(cursor, filters, (_position, id_position))
        after = _ITEMS.c.position, _ITEMS.c.item_id
        query = query.where(func.row(*after) > func.row(position, item_id))
    if q := filters.get("q"):
        query = _searched(query, q, limit + 1)
    else:
        query = query.order_by(_ITEMS.c.position, _ITEMS.c.item_id).limit(limit + 1)
    rows, more = page_of(session.execute(query).all(), limit)
    return rows, encode_cursor((rows[-1].position, str(rows[-1].item_id)), filters) if more else None


def _position(value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise ValueError("not a position on the menu")
    return value


def _conditions(filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if slug := filters.get("category"):
        # By its id: so the index of the category's menu is used.
        found.append(
            _ITEMS.c.category_id
            == select(_CATEGORIES.c.category_id).where(_CATEGORIES.c.slug == slug).scalar_subquery()
        )
    if status := filters.get("status"):
        found.append(_ITEMS.c.status == status)
    if sku := filters.get("sku"):
        found.append(_ITEMS.c.item_id == select(_VARIANTS.c.item_id).where(_VARIANTS.c.sku == sku).scalar_subquery())
    if filters.get("available") is not None:
        there = exists(
            select(_VARIANTS.c.sku)
            .select_from(_VARIANTS.join(_AVAILABILITY, _AVAILABILITY.c.sku == _VARIANTS.c.sku))
            .where(_VARIANTS.c.item_id == _ITEMS.c.item_id, _VARIANTS.c.on_sale, ~_AVAILABILITY.c.sold_out)
        )
        found.append(there if filters["available"] else ~there)
    return found


# Up to so many items with the words of a search are sorted. If there are more, the menu is read in its order until a
# page is full, which is soon.
MOST_SORTED = 1_000


def _searched(query: Select[Any], q: str, limit: int) -> Select[Any]:
    """A page, in menu order, of those items of a query that have the words of `q`.

    The database cannot know how many items have a word that begins so. It would read the whole menu in its order,
    where few have it, or sort the whole menu, where all have it. So it looks first.
    """
    has_words = _ITEMS.c.search.op("@@")(func.to_tsquery("simple", as_tsquery(q)))
    # With the limit in it, it would read the table until it has found so many.
    having = select(_ITEMS.c.item_id).where(has_words).cte("having").prefix_with("MATERIALIZED", dialect="postgresql")
    found = select(having.c.item_id).limit(MOST_SORTED + 1).cte("found")
    number = select(func.count()).select_from(found).scalar_subquery()
    in_order = _ITEMS.c.position, _ITEMS.c.item_id
    # Of the two only one is executed.
    few = query.where(_ITEMS.c.item_id == any_(func.array(select(found.c.item_id).scalar_subquery())))
    few = few.where(number <= MOST_SORTED).order_by(*in_order).limit(limit)
    many = query.where(has_words, number > MOST_SORTED).order_by(*in_order).limit(limit)
    page = union_all(few, many).subquery()
    return select(page).order_by(page.c.position, page.c.item_id).limit(limit)


def as_tsquery(q: str) -> str:
    """What people write into a search, as a query of PostgreSQL: all words, the last one as a beginning.

    Only letters and digits are left, so nothing of it is an operator.
    """
    words = re.findall(r"[^\W_]+", q)
    return " & ".join(f"{word}:*" if word is words[-1] else word for word in words)


def item(session: Session, item_id: str) -> Any:
    """One item that is or was published. Raises NotFound. One statement."""
    row = session.execute(
        select(*_SHOWN).select_from(_FROM_ITEMS).where(_ITEMS.c.item_id == UUID(item_id), _WAS_PUBLISHED)
    ).one_or_none()
    if row is None:
        raise NotFound
    return row


# What a sku without a row of availability says: inventory has never heard of it.
_SOLD_OUT = func.coalesce(_AVAILABILITY.c.sold_out, True).label("sold_out")
_VARIANTS_SHOWN = (
    select(
        _VARIANTS.c.item_id,
        _VARIANTS.c.sku,
        _VARIANTS.c.name,
        _VARIANTS.c.position,
        _VARIANTS.c.on_sale,
        _SOLD_OUT,
        _AVAILABILITY.c.few,
    )
    .select_from(_VARIANTS.outerjoin(_AVAILABILITY, _AVAILABILITY.c.sku == _VARIANTS.c.sku))
    .where(is_given(_VARIANTS.c.item_id))
    .order_by(_VARIANTS.c.item_id, _VARIANTS.c.position, _VARIANTS.c.sku)
    .execution_options(prepared=True)
)
_IN_FORCE = text(
    """
    SELECT sku, currency, min_quantity, unit_price FROM (
        SELECT DISTINCT ON (sku, currency, min_quantity) sku, currency, min_quantity, unit_price
        FROM prices WHERE sku = ANY(CAST(:skus AS text[])) AND valid_from <= now()
        ORDER BY sku, currency, min_quantity, valid_from DESC, id DESC
    ) AS in_force WHERE unit_price IS NOT NULL ORDER BY sku, currency, min_quantity
    """
).execution_options(prepared=True)


def tiers_of(session: Session, skus: Collection[str], currency: str | None = None) -> Tiers:
    """The prices in force of skus, of one currency if it is given. One statement."""
    found: Tiers = {}
    for row in session.execute(_IN_FORCE, {"skus": list(skus)}):
        if currency in (None, row.currency):
            of_sku = found.setdefault(row.sku, {})
            of_sku.setdefault(row.currency, []).append({"min_quantity": row.min_quantity, "unit_price": row.unit_price})
    return found


def public_items(session: Session, rows: Sequence[Row[Any]], currency: str | None = None) -> list[dict[str, Any]]:
    """Items with their variants as anyone may see them. Two statements; a withdrawn item has no prices."""
    variants: dict[UUID, list[dict[str, Any]]] = {row.item_id: [] for row in rows}
    if not rows:
        return []
    shown = session.execute(_VARIANTS_SHOWN, {"given_item_id": list(variants)}).all()
    sold = {row.item_id for row in rows if row.status == Status.PUBLISHED}
    tiers = tiers_of(session, [variant.sku for variant in shown if variant.item_id in sold], currency)
    for variant in shown:
        variants[variant.item_id].append(
            {
                "sku": variant.sku,
                "name": variant.name,
                "position": variant.position,
                "on_sale": variant.on_sale,
                "sold_out": variant.sold_out,
                "few": variant.few,
                "prices": tiers.get(variant.sku, {}),
            }
        )
    return [
        {
            "item_id": str(row.item_id),
            "name": row.name,
            "description": row.description,
            "category": row.slug,
            "images": row.images,
            "position": row.position,
            "status": row.status,
            "variants": variants[row.item_id],
            "updated_at": timestamp(row.updated_at),
        }
        for row in rows
    ]


_OFFERS = (
    select(
        _VARIANTS.c.sku,
        _VARIANTS.c.item_id,
        _ITEMS.c.name,
        _VARIANTS.c.name.label("variant"),
        (_VARIANTS.c.on_sale & (_ITEMS.c.status == Status.PUBLISHED.value)).label("sellable"),
        _SOLD_OUT,
        _AVAILABILITY.c.few,
    )
    .select_from(
        _VARIANTS.join(_ITEMS, _ITEMS.c.item_id == _VARIANTS.c.item_id).outerjoin(
            _AVAILABILITY, _AVAILABILITY.c.sku == _VARIANTS.c.sku
        )
    )
    .where(is_given(_VARIANTS.c.sku))
    .execution_options(prepared=True)
)
_PUBLIC_OFFERS = _OFFERS.where(_WAS_PUBLISHED)


def offers(session: Session, skus: Collection[str], drafts: bool = False) -> dict[str, dict[str, Any]]:
    """What is sold under skus, as anyone may see it, by sku; `drafts` are for editors alone. Two statements."""
    rows = session.execute(_OFFERS if drafts else _PUBLIC_OFFERS, {"given_sku": list(skus)}).all()
    tiers = tiers_of(session, [row.sku for row in rows if row.sellable])
    return {
        row.sku: {
            "sku": row.sku,
            "item_id": str(row.item_id),
            "name": domain.offer_name(row.name, row.variant),
            "sellable": row.sellable,
            "sold_out": row.sold_out,
            "few": row.few,
            "prices": tiers.get(row.sku, {}),
        }
        for row in rows
    }


_VERSIONS = (
    select(_VARIANTS.c.sku, _VARIANTS.c.offer_version)
    .select_from(_VARIANTS.join(_ITEMS, _ITEMS.c.item_id == _VARIANTS.c.item_id))
    .where(_WAS_PUBLISHED)
    .order_by(_VARIANTS.c.sku)
)


def offer_versions(session: Session, after: str, limit: int) -> dict[str, int]:
    """The versions of the offers that others know, of so many skus after this one. One statement."""
    rows = session.execute(_VERSIONS.where(_VARIANTS.c.sku > after).limit(limit))
    return {row.sku: row.offer_version for row in rows}


def told_offers(session: Session, skus: Collection[str]) -> list[tuple[domain.Offer, int]]:
    """The offers of these skus that others know, each with its version. Four statements."""
    owners = store.owners_of(session, skus)
    stored = store.items_of(session, set(owners.values()))
    prices = store.prices_of(session, owners)
    return [
        (offer, stored.offer_versions[sku])
        for known in stored.items.values()
        if known.published_at
        for sku, offer in domain.offers(known, prices).items()
        if sku in owners
    ]
