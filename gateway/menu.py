"""The menu as anyone may read it: categories, items, and offers by their skus."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import ValidationError, fields

from gateway.api.currencies import currency_field
from gateway.api.enumerations import ITEM_STATUS
from gateway.api.fields import (
    AnswerSchema,
    FlagInQuery,
    PageQuery,
    RequestSchema,
    Text,
    cursor_field,
    datetime_field,
    field_metadata,
    filters_in,
    integer_field,
    list_field,
    text_field,
    uuid_field,
    word_field,
)
from gateway.api.http import Call, for_anyone
from gateway.stock import SKU, sku_field
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import NotFound

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
MAX_SLUG = 64
MAX_SKUS = 100
MAX_SEARCH = 100


def slug_field(**kwargs: Any) -> Text:
    """A new field for the slug of a category."""
    return Text("lamps", at_most=MAX_SLUG, pattern=SLUG, **kwargs)


def slug_in(slug: str) -> str:
    """The slug of a path. Raises NotFound when it is no valid slug."""
    if not SLUG.fullmatch(slug):
        raise NotFound
    return slug


class SkusInQuery(fields.String):
    """Skus, separated by commas; loaded as a list without repetitions."""

    def __init__(self, **kwargs: Any) -> None:
        shape = f"^(?:{SKU.pattern})(?:,(?:{SKU.pattern})){{0,{MAX_SKUS - 1}}}$"
        super().__init__(
            metadata=field_metadata("lamp,desk", f"at most {MAX_SKUS} skus", pattern=shape), required=True, **kwargs
        )

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        skus = value.split(",")
        if len(skus) > MAX_SKUS or not all(SKU.fullmatch(sku) for sku in skus):
            raise ValidationError(f"Must be 1 to {MAX_SKUS} skus, separated by commas.")
        return list(dict.fromkeys(skus))


class MenuQuery(PageQuery):
    """Items that fulfil every condition."""

    category = slug_field()
    q = Text("red lamp", "words of name and description; the last one may be the beginning of one", at_most=MAX_SEARCH)
    sku = sku_field()
    available = FlagInQuery("whether a variant is on sale and not sold out")
    currency = currency_field()


class OffersQuery(RequestSchema):
    """The skus of a cart."""

    skus = SkusInQuery()


class Category(AnswerSchema):
    """A heading of the menu."""

    slug = text_field("lamps")
    name = text_field("Lamps")
    position = integer_field(1, "headings are shown by position, then by slug")
    version = integer_field(2, "the number of changes")


class CategoryList(AnswerSchema):
    """The headings of the menu, in its order."""

    items = list_field(Category)


class Image(AnswerSchema):
    """A picture. It is never fetched here."""

    url = text_field("https://pictures.example/lamp.jpg")
    alt = text_field("A red lamp", "what it shows, as text")


class Tier(AnswerSchema):
    """The price of one unit, of so many and more."""

    min_quantity = integer_field(1)
    unit_price = integer_field(1999, "in minor units, tax included")


def prices_field() -> fields.Dict:
    """A new field for the prices of a sku now."""
    return fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.Nested(Tier)),
        required=True,
        metadata=field_metadata(
            {"EUR": [{"min_quantity": 1, "unit_price": 1999}]},
            "the prices now, by currency; that of the greatest min_quantity reached by all lines of the sku holds",
        ),
    )


class Availability(AnswerSchema):
    """Whether a sku can be had, for show: an order asks the stock itself."""

    sold_out = fields.Boolean(required=True, metadata=field_metadata(False))
    few = fields.Integer(
        required=True, allow_none=True, metadata=field_metadata(3, "what is left where that is 1 to 10", format="int64")
    )


class MenuVariant(Availability):
    """What is sold under a sku."""

    sku = text_field("lamp")
    name = text_field("", "beside the name of the item")
    position = integer_field(1)
    on_sale = fields.Boolean(required=True, metadata=field_metadata(True))
    prices = prices_field()


class MenuItem(AnswerSchema):
    """An item of the menu. A withdrawn one has no prices; old orders link to it."""

    item_id = uuid_field()
    name = text_field("A red lamp", "text, never HTML")
    description = text_field("It glows.", "text, never HTML")
    category = text_field("lamps", "the slug of one, or null", allow_none=True)
    images = list_field(Image)
    position = integer_field(1)
    status = word_field(ITEM_STATUS, "published")
    variants = list_field(MenuVariant)
    updated_at = datetime_field()


class MenuPage(AnswerSchema):
    """Items in menu order: by position."""

    items = list_field(MenuItem)
    next_cursor = cursor_field()


class Offer(Availability):
    """What is sold under a sku, and at which prices now."""

    sku = text_field("lamp")
    item_id = uuid_field()
    name = text_field("A red lamp, large")
    sellable = fields.Boolean(required=True, metadata=field_metadata(True, "whether an order may name it"))
    prices = prices_field()


class OfferList(AnswerSchema):
    """Offers, and the skus that are not on the menu."""

    offers = list_field(Offer)
    unknown_skus = fields.List(fields.String(metadata=field_metadata("chair")), required=True, data_key="unknown")


class Menu:
    """Public routes under /api/menu."""

    catalog = RpcProxy("catalog_service")

    @for_anyone("GET", "/api/menu/categories", roles=None, answer=CategoryList, summary="List categories")
    def menu_categories(self, call: Call) -> dict[str, Any]:
        """The headings of the menu, in its order; at most 200."""
        return self.catalog.list_categories()

    @for_anyone(
        "GET", "/api/menu/items", roles=None, query=MenuQuery, answer=MenuPage, summary="Browse and search the menu"
    )
    def menu_items(self, call: Call) -> dict[str, Any]:
        """A page of the items that are published, in menu order. `currency` leaves out the prices in others."""
        return self.catalog.list_items(call.query["limit"], call.query["cursor"], filters_in(call.query))

    @for_anyone(
        "GET", "/api/menu/items/<uuid:item_id>", roles=None, answer=MenuItem, summary="Read an item of the menu"
    )
    def menu_item(self, call: Call, item_id: UUID) -> dict[str, Any]:
        """One item that is or was published."""
        return self.catalog.get_item(str(item_id))

    @for_anyone("GET", "/api/menu/offers", roles=None, query=OffersQuery, answer=OfferList, summary="Check a cart")
    def offers(self, call: Call) -> dict[str, Any]:
        """What is sold under these skus, and at which prices now."""
        return self.catalog.get_offers(call.query["skus"])
