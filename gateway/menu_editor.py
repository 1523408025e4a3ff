"""The menu as its editors change it: categories, items, prices, and the short way to list skus."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import fields, validate

from gateway.api.answering import Answer, keyed
from gateway.api.currencies import currency_field
from gateway.api.enumerations import ITEM_STATUS
from gateway.api.fields import (
    SPACES,
    TRACE_ID,
    AnswerSchema,
    Flag,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    WholeNumber,
    Word,
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
from gateway.api.http import AUDITORS, Call, api, for_editors
from gateway.menu import Category, Image, Offer, slug_field, slug_in
from gateway.stock import sku_field, sku_or
from shared.auth import ADMIN
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import Conflict, ValidationFailed, VersionMoved
from shared.schema import MAX_AMOUNT

MAX_NAME, MAX_VARIANT_NAME, MAX_DESCRIPTION = 120, 60, 4000
MAX_IMAGES, MAX_URL, MAX_ALT = 10, 500, 300
MAX_VARIANTS = 20
MAX_POSITION = 10**6
MAX_TIER = 10**6
MAX_OFFERS = 200
HTTPS = re.compile(rf"https://[^{SPACES}]+")


def position_field() -> WholeNumber:
    """A new field for a place in the menu's order."""
    return WholeNumber(0, MAX_POSITION, 1, "the smallest is shown first", load_default=0)


class CategoryRequest(RequestSchema):
    """A heading of the menu. `version` guards against changes made since it was read; 0 is one that is not there."""

    name = Text("Lamps", at_most=MAX_NAME, required=True)
    position = position_field()
    version = WholeNumber(0, 2**63 - 1, 2)


class ImageInDocument(RequestSchema):
    """A picture by its address."""

    url = Text("https://pictures.example/lamp.jpg", at_most=MAX_URL, pattern=HTTPS, required=True)
    alt = Text("A red lamp", at_most=MAX_ALT, at_least=0, load_default="")


class VariantInDocument(RequestSchema):
    """What is sold under a sku."""

    sku = sku_field(required=True)
    name = Text("large", at_most=MAX_VARIANT_NAME, at_least=0, load_default="")
    position = position_field()
    on_sale = Flag("whether it is sold now", load_default=True)


class Draft(RequestSchema):
    """A new item, which nobody but editors sees until it is published."""

    name = Text("A red lamp", at_most=MAX_NAME, required=True)
    description = Text("It glows.", at_most=MAX_DESCRIPTION, at_least=0, load_default="")
    category = slug_field(load_default=None, allow_none=True)
    images = fields.List(fields.Nested(ImageInDocument), validate=validate.Length(0, MAX_IMAGES), load_default=list)
    position = position_field()
    variants = fields.List(
        fields.Nested(VariantInDocument), validate=validate.Length(0, MAX_VARIANTS), load_default=list
    )


class Document(Draft):
    """The whole of an item. What is left out becomes its default; `version` is the one that was read."""

    status = Word(
        ITEM_STATUS, validate=validate.OneOf(ITEM_STATUS.words), required=True, metadata=field_metadata("published")
    )
    version = WholeNumber(1, 2**63 - 1, 2, required=True)


class RevertRequest(RequestSchema):
    """The version to go back to, and the one that was read."""

    to_version = WholeNumber(1, 2**63 - 1, 1, required=True)
    version = WholeNumber(1, 2**63 - 1, 2, required=True)


class OfferRequest(RequestSchema):
    """A price of a sku, now or from a date."""

    currency = currency_field(required=True)
    unit_price = WholeNumber(
        0, MAX_AMOUNT, 1999, "in minor units, tax included; null ends the price", required=True, allow_none=True
    )
    min_quantity = WholeNumber(1, MAX_TIER, 1, "the price holds for so many and more", load_default=1)
    valid_from = Timestamp("the price holds from then on; now if it is left out", load_default=None)
    name = Text("A red lamp", at_most=MAX_NAME, load_default=None)
    category = slug_field(load_default=None)
    on_sale = Flag("whether it is sold; stays as it is if it is left out", load_default=None)


class ListedOffer(OfferRequest):
    """A price of one of many skus."""

    sku = sku_field(required=True)


class OffersRequest(RequestSchema):
    """Prices of many skus. All are set, or none is."""

    offers = fields.List(fields.Nested(ListedOffer), validate=validate.Length(1, MAX_OFFERS), required=True)


class EditorQuery(PageQuery):
    """Items that fulfil every condition."""

    status = Word(ITEM_STATUS, validate=validate.OneOf(ITEM_STATUS.words), metadata=field_metadata("draft"))
    category = slug_field()
    q = Text("red lamp", "words of name and description; the last one may be the beginning of one", at_most=100)
    sku = sku_field()


class PutOffers(AnswerSchema):
    """The offers as they are now, and what has become of them."""

    offers = list_field(Offer)
    created = integer_field(1, "so many skus are new")
    changed = integer_field(1, "so many skus are another")


class EditedVariant(AnswerSchema):
    """What is sold under a sku."""

    sku = text_field("lamp")
    name = text_field("large")
    position = integer_field(1)
    on_sale = fields.Boolean(required=True, metadata=field_metadata(True))
    offer_version = integer_field(1768386600123, "grows with each change of what the sku is, costs or is called")


class EditedItem(AnswerSchema):
    """An item in any status."""

    item_id = uuid_field()
    name = text_field("A red lamp")
    description = text_field("It glows.")
    category = text_field("lamps", allow_none=True)
    images = list_field(Image)
    position = integer_field(1)
    status = word_field(ITEM_STATUS, "draft")
    variants = list_field(EditedVariant)
    version = integer_field(2, "send it with the next change")
    published_at = datetime_field("for the first time", allow_none=True)


class EditedPage(AnswerSchema):
    """Items in menu order."""

    items = list_field(EditedItem)
    next_cursor = cursor_field()


class ItemVersion(AnswerSchema):
    """An item as it was after a change."""

    version = integer_field(2)
    document = fields.Dict(required=True, metadata=field_metadata({"name": "A red lamp", "status": "published"}))
    changed_by = text_field("admin")
    trace_id = text_field(TRACE_ID)
    at = datetime_field()


class VersionPage(AnswerSchema):
    """The versions of an item, newest first."""

    items = list_field(ItemVersion)
    next_cursor = cursor_field()


class SetPrice(AnswerSchema):
    """A price as somebody set it."""

    sku = text_field("lamp")
    currency = text_field("EUR")
    min_quantity = integer_field(1)
    unit_price = fields.Integer(
        required=True, allow_none=True, metadata=field_metadata(1999, "null: not sold so any more", format="int64")
    )
    valid_from = datetime_field()
    offer_version = integer_field(1768386600123)
    set_by = text_field("admin")
    set_at = datetime_field()


class LowestPrice(AnswerSchema):
    """The lowest price of one unit in the last 30 days."""

    sku = text_field("lamp")
    currency = text_field("EUR")
    unit_price = integer_field(1799)


class PricePage(AnswerSchema):
    """The prices of an item's skus, newest first."""

    items = list_field(SetPrice)
    next_cursor = cursor_field()
    lowest_30d = list_field(LowestPrice)


class MenuEditor:
    """Routes under /api/menu for those who write it."""

    catalog = RpcProxy("catalog_service")

    @api(
        "PUT",
        "/api/menu/categories/<slug>",
        in_path={"slug": slug_field()},
        roles=(ADMIN,),
        body=CategoryRequest,
        answer=Category,
        also={201: Category},
        fails=(VersionMoved,),
        summary="Make or change a category",
    )
    def put_category(self, call: Call, slug: str) -> Answer:
        """The category after the change. 201 if it is new."""
        put = self.catalog.put_category(slug_in(slug), **call.body)
        return Answer(put["category"], 201 if put["created"] else 200)

    @api(
        "DELETE",
        "/api/menu/categories/<slug>",
        in_path={"slug": slug_field()},
        roles=(ADMIN,),
        answer="It is off the menu.",
        status=204,
        fails=(Conflict,),
        summary="Take a category off the menu",
    )
    def delete_category(self, call: Call, slug: str) -> None:
        """409 while items are in it."""
        self.catalog.delete_category(slug_in(slug))

    @api(
        "PUT",
        "/api/menu/offers/<sku>",
        in_path={"sku": sku_field()},
        roles=(ADMIN,),
        body=OfferRequest,
        answer=Offer,
        also={201: Offer},
        summary="List a sku at a price",
    )
    def put_offer(self, call: Call, sku: str) -> Answer:
        """The short way. A sku that is not on the menu becomes a published item with one variant: 201.

        The same again changes nothing. A price from a date before now is refused: nobody changes the past.
        """
        put = self.catalog.put_offer(sku_or(ValidationFailed, sku), **call.body)
        return Answer(put["offer"], 201 if put["created"] else 200)

    @api(
        "PUT",
        "/api/menu/offers",
        roles=(ADMIN,),
        body=OffersRequest,
        answer=PutOffers,
        summary="List many skus at prices",
    )
    def put_offers(self, call: Call) -> dict[str, Any]:
        """All or none of at most 200. A sku may have several lines: currencies, quantities, dates."""
        return self.catalog.put_offers(call.body["offers"])

    @api(
        "POST",
        "/api/menu/items",
        roles=(ADMIN,),
        body=Draft,
        idempotent=True,
        located=True,
        answer=EditedItem,
        status=201,
        fails=(Conflict,),
        summary="Make a draft",
    )
    def create_item(self, call: Call) -> Answer:
        """A draft, which a PUT publishes. A sku belongs to one item for ever."""
        return keyed(self.catalog.create_item(call.body, call.key))

    @for_editors(
        "PUT",
        "/api/menu/items/<uuid:item_id>",
        roles=(ADMIN,),
        body=Document,
        answer=EditedItem,
        fails=(Conflict, VersionMoved),
        summary="Write an item",
    )
    def put_item(self, call: Call, item_id: UUID) -> dict[str, Any]:
        """The item after the change. A change of what is published is live at once."""
        return self.catalog.put_item(str(item_id), call.body)

    @api(
        "DELETE",
        "/api/menu/items/<uuid:item_id>",
        roles=(ADMIN,),
        answer="It is off the menu.",
        status=204,
        summary="Take an item off the menu",
    )
    def delete_item(self, call: Call, item_id: UUID) -> None:
        """A draft that was never published is gone, unless it has a price; all else is withdrawn."""
        self.catalog.delete_item(str(item_id))

    @for_editors(
        "POST",
        "/api/menu/items/<uuid:item_id>/revert",
        roles=(ADMIN,),
        body=RevertRequest,
        answer=EditedItem,
        fails=(VersionMoved,),
        summary="Go back to an earlier version of an item",
    )
    def revert_item(self, call: Call, item_id: UUID) -> dict[str, Any]:
        """A new version like the old one. Skus that came later stay, off sale. Prices are not reverted."""
        return self.catalog.revert_item(str(item_id), call.body["to_version"], call.body["version"])

    @for_editors(
        "GET",
        "/api/menu/editor/items",
        roles=AUDITORS,
        query=EditorQuery,
        answer=EditedPage,
        summary="List items in any status",
    )
    def editor_items(self, call: Call) -> dict[str, Any]:
        """A page of items in menu order, drafts and withdrawn ones too."""
        return self.catalog.editor_items(call.query["limit"], call.query["cursor"], filters_in(call.query))

    @for_editors(
        "GET",
        "/api/menu/editor/items/<uuid:item_id>",
        roles=AUDITORS,
        answer=EditedItem,
        summary="Read an item in any status",
    )
    def editor_item(self, call: Call, item_id: UUID) -> dict[str, Any]:
        """The item with the version that the next change must name."""
        return self.catalog.editor_item(str(item_id))

    @for_editors(
        "GET",
        "/api/menu/editor/items/<uuid:item_id>/versions",
        roles=AUDITORS,
        query=PageQuery,
        answer=VersionPage,
        summary="See who changed an item",
    )
    def item_versions(self, call: Call, item_id: UUID) -> dict[str, Any]:
        """What the item was after each change, newest first, and who made it."""
        return self.catalog.item_versions(str(item_id), call.query["limit"], call.query["cursor"])

    @for_editors(
        "GET",
        "/api/menu/editor/items/<uuid:item_id>/prices",
        roles=AUDITORS,
        query=PageQuery,
        answer=PricePage,
        summary="See who set which price when",
    )
    def item_prices(self, call: Call, item_id: UUID) -> dict[str, Any]:
        """Every price that was set, newest first, and the lowest of each sku and currency in the last 30 days."""
        return self.catalog.item_prices(str(item_id), call.query["limit"], call.query["cursor"])
