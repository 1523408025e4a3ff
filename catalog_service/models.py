"""The catalog service's tables."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Computed, ForeignKey, Index, text
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from shared.rights import Rights
from shared.tables import MESSAGING_RIGHTS, NOW, Base

# The words of an item that a search finds, whatever language they are of.
SEARCHED = "to_tsvector('simple', name || ' ' || description)"


class CategoryRow(Base):
    """A heading of the menu. Categories are not nested."""

    __tablename__ = "categories"

    category_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    position: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")


class ItemRow(Base):
    """What is on the menu, as it is now. Its variants are what is sold."""

    __tablename__ = "items"

    item_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    category_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey(CategoryRow.category_id))
    images: Mapped[list[dict[str, str]]] = mapped_column(JSONB, server_default=text("'[]'"))
    position: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    published_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    search: Mapped[str] = mapped_column(TSVECTOR, Computed(SEARCHED, persisted=True))

    __table_args__ = (
        Index(None, "status", "category_id", "position", "item_id"),  # the menu of one category
        Index(None, "status", "position", "item_id"),  # the whole menu
        Index(None, "category_id"),  # whether a category is empty
        Index("ix_items_search", "search", postgresql_using="gin"),
    )


class VariantRow(Base):
    """What is sold under a sku. `offer_version` grows with each change of what the sku is, costs or is called."""

    __tablename__ = "variants"

    sku: Mapped[str] = mapped_column(primary_key=True)
    item_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(ItemRow.item_id))
    name: Mapped[str] = mapped_column(server_default="")
    position: Mapped[int] = mapped_column(server_default="0")
    on_sale: Mapped[bool] = mapped_column(server_default=text("true"))
    offer_version: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index(None, "item_id", "position", "sku"),)


class PriceRow(Base):
    """A price as somebody set it. Append only: a later row takes the place of an earlier one."""

    __tablename__ = "prices"

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    sku: Mapped[str] = mapped_column(ForeignKey(VariantRow.sku))
    currency: Mapped[str]
    min_quantity: Mapped[int]
    valid_from: Mapped[datetime]  # whole milliseconds, as events carry them
    unit_price: Mapped[int | None] = mapped_column(BigInteger)  # NULL: not sold so any more
    offer_version: Mapped[int] = mapped_column(BigInteger)
    set_by: Mapped[str]
    set_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (
        Index("ix_prices_in_force", "sku", "currency", "min_quantity", "valid_from", "id"),
        CheckConstraint("min_quantity >= 1", name="min_quantity_from_one"),
        CheckConstraint("unit_price >= 0", name="unit_price_not_negative"),
    )


class ItemVersionRow(Base):
    """An item as it was after one of its changes, and who made it. Append only."""

    __tablename__ = "item_versions"

    item_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)  # no reference: it outlives a draft
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    document: Mapped[dict[str, Any]] = mapped_column(JSONB)
    changed_by: Mapped[str]
    trace_id: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=NOW)


class AvailabilityRow(Base):
    """Whether a sku is sold out, as the inventory service said last. Also for skus that are in no item."""

    __tablename__ = "availability"

    sku: Mapped[str] = mapped_column(primary_key=True)
    sold_out: Mapped[bool]
    few: Mapped[int | None] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger)


RIGHTS = MESSAGING_RIGHTS | {
    "categories": Rights(
        changed=("name", "position", "version"),
        deleted_because="an empty category may be taken off the menu",
        read=("category_id", "slug", "name", "position", "version"),
    ),
    "items": Rights(
        changed=(
            "name",
            "description",
            "category_id",
            "images",
            "position",
            "status",
            "version",
            "published_at",
            "updated_at",
        ),
        deleted_because="a draft that was never published may be thrown away",
        read=("item_id", "name", "category_id", "position", "status", "version", "published_at", "updated_at"),
    ),
    "variants": Rights(
        changed=("name", "position", "on_sale", "offer_version"),
        deleted_because="the skus of a draft that was never published go with it",
        read=("sku", "item_id", "name", "position", "on_sale", "offer_version"),
    ),
    "prices": Rights(
        read=("id", "sku", "currency", "min_quantity", "valid_from", "unit_price", "offer_version", "set_by", "set_at")
    ),
    "item_versions": Rights(read=("item_id", "version", "changed_by", "trace_id", "at")),
    "availability": Rights(changed=("sold_out", "few", "version"), read=("sku", "sold_out", "few", "version")),
    "idempotency_keys": Rights(deleted_because="a stored answer is deleted after 48 hours"),
}
TABLES = frozenset(RIGHTS)
