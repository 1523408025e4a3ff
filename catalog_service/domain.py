"""Rules of the catalog: who may do what, what an item may become, and which changes the order service must hear of.

No clock, no I/O, no SQL.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.enumerations import ItemStatus as Status
from shared.errors import Conflict, ValidationFailed, VersionMoved
from shared.events import AvailabilityChanged, Identity, OfferChanged
from shared.prices import Price
from shared.roles import ADMIN, AUDITOR, has_role

MAX_VARIANTS = 20
# Of one sku, in force and to come: an event carries all of them.
MAX_PRICES = 50


def may_edit(identity: Identity) -> bool:
    """Whether a user may change the menu and its prices."""
    return has_role(identity, ADMIN)


def may_read_editor(identity: Identity) -> bool:
    """Whether a user may see drafts, versions and who set which price when."""
    return has_role(identity, ADMIN, AUDITOR)


@dataclass(frozen=True)
class Variant:
    """What is sold under a sku."""

    sku: str
    name: str = ""
    position: int = 0
    on_sale: bool = True


@dataclass(frozen=True)
class Item:
    """An item of the menu. `version` counts its changes; an item that is not stored yet has 0."""

    item_id: UUID
    name: str
    description: str = ""
    category: str | None = None  # the slug of one
    images: tuple[Mapping[str, str], ...] = ()
    position: int = 0
    status: Status = Status.DRAFT
    variants: tuple[Variant, ...] = ()
    version: int = 0
    published_at: datetime | None = None  # for the first time

    @property
    def document(self) -> dict[str, Any]:
        """All of it that people write, as plain JSON values."""
        return {
            "name": self.name,
            "description": self.description,
            "category": self.category,
            "images": [dict(image) for image in self.images],
            "position": self.position,
            "status": self.status.value,
            "variants": [dict(vars(variant)) for variant in self.variants],
        }


def as_written(item: Item, document: Mapping[str, Any], priced: Collection[str], now: datetime) -> Item:
    """The item as the whole document says; `priced` are its skus that have a price.

    Raises ValidationFailed where it may not become that.
    """
    variants = tuple(Variant(**variant) for variant in document["variants"])
    after = replace(
        item,
        name=document["name"],
        description=document["description"],
        category=document["category"],
        images=tuple(document["images"]),
        position=document["position"],
        status=Status(document["status"]),
        variants=tuple(sorted(variants, key=lambda variant: (variant.position, variant.sku))),
    )
    skus = [variant.sku for variant in variants]
    if len(skus) > MAX_VARIANTS:
        raise _refused("variants", f"An item has at most {MAX_VARIANTS} variants.")
    if len(skus) > len(set(skus)):
        raise _refused("variants", "Each sku stands here once.")
    if item.published_at and after.status == Status.DRAFT:
        raise _refused("status", "An item that was published is no draft any more. Withdraw it.")
    kept = {variant.sku for variant in item.variants} if item.published_at else set(priced)
    if gone := sorted(kept - set(skus)):
        raise _refused(
            "variants", f"{', '.join(gone)} was published or has a price, so it stays. Set on_sale to false."
        )
    return published(after, now)


def as_stored(draft: Item) -> Item:
    """A new item with the version that it is stored with."""
    return replace(draft, version=1)


def published(item: Item, now: datetime) -> Item:
    """The item, which knows since when it is published if it is."""
    if item.status == Status.PUBLISHED and not item.published_at:
        return replace(item, published_at=now)
    return item


def kept_by_revert(item: Item, past: Mapping[str, Any]) -> dict[str, Any]:
    """A past document of an item that may still become one: an item once published is no draft, and keeps its skus."""
    there = {variant["sku"] for variant in past["variants"]}
    later = [{**vars(variant), "on_sale": False} for variant in item.variants if variant.sku not in there]
    draft_again = item.published_at is not None and past["status"] == Status.DRAFT
    return {
        **past,
        "status": (Status.WITHDRAWN if draft_again else Status(past["status"])).value,
        "variants": [*past["variants"], *later],
    }


def check_version(item: Item, version: int) -> None:
    """Raises VersionMoved unless the item has the version that its editor has read."""
    if item.version != version:
        raise VersionMoved(details={"version": item.version})


def check_owner(item_id: UUID, owners: Mapping[str, UUID]) -> None:
    """Raises Conflict if one of these skus, with the items that have them, belongs to another item."""
    if taken := sorted(sku for sku, owner in owners.items() if owner != item_id):
        raise Conflict("A sku belongs to one item for ever.", {"taken": taken})


def _refused(name: str, why: str) -> ValidationFailed:
    return ValidationFailed(details={name: [why]})


@dataclass(frozen=True)
class Offer:
    """What is sold under a sku, and at which prices: those in force and those to come, as they were set."""

    item_id: UUID
    sku: str
    name: str
    category: str | None
    published: bool
    on_sale: bool
    prices: tuple[Price, ...]

    @property
    def sellable(self) -> bool:
        """Whether orders may name it."""
        return self.published and self.on_sale


def offer_name(item: str, variant: str) -> str:
    """What an order's line is called: "Pizza", or "Pizza, large"."""
    return f"{item}, {variant}" if variant else item


def offers(item: Item | None, prices: Mapping[str, tuple[Price, ...]]) -> dict[str, Offer]:
    """The offers of an item by their skus."""
    if item is None:
        return {}
    return {
        variant.sku: Offer(
            item.item_id,
            variant.sku,
            offer_name(item.name, variant.name),
            item.category,
            item.status == Status.PUBLISHED,
            variant.on_sale,
            prices.get(variant.sku, ()),
        )
        for variant in item.variants
    }


def changes(before: Offer | None, after: Offer) -> tuple[str, ...]:
    """What has changed of an offer, in words of the event; nothing if nobody but editors has known it or does now."""
    was_published = before is not None and before.published
    if before is None or not was_published:
        return ("listed",) if after.published else ()
    found = {
        "withdrawn": not after.published,
        "name": (after.name, after.category) != (before.name, before.category),
        "price": after.prices != before.prices,
        "availability": after.on_sale != before.on_sale,
    }
    return tuple(word for word, is_so in found.items() if is_so)


def next_version(version: int, now: datetime) -> int:
    """The next version of an offer. It also grows after a backup was restored, which has forgotten some versions."""
    return max(version + 1, int(now.timestamp() * 1000))


def as_event(offer: Offer, version: int, changed: Sequence[str] = ()) -> OfferChanged:
    """An offer as others hear of it."""
    return OfferChanged(
        offer.item_id, offer.sku, version, offer.name, offer.category, offer.sellable, offer.prices, tuple(changed)
    )


@dataclass(frozen=True)
class Listing:
    """The short way: a price of a sku, and what else is said of it. None leaves a thing as it is."""

    sku: str
    price: Price
    is_dated: bool  # whether somebody said from when it holds
    name: str | None = None
    category: str | None = None
    on_sale: bool | None = None


def listed(item: Item | None, listing: Listing, new_id: UUID, now: datetime) -> Item:
    """The item of a sku after it was listed. A sku without one becomes a published item with one variant."""
    if item is None:
        item = Item(new_id, listing.sku, status=Status.PUBLISHED, variants=(Variant(listing.sku),))
    single = len(item.variants) == 1
    variants = tuple(
        replace(
            variant,
            name=listing.name if listing.name is not None and not single else variant.name,
            on_sale=variant.on_sale if listing.on_sale is None else listing.on_sale,
        )
        if variant.sku == listing.sku
        else variant
        for variant in item.variants
    )
    return published(
        replace(
            item,
            name=listing.name if listing.name is not None and single else item.name,
            category=item.category if listing.category is None else listing.category,
            variants=variants,
        ),
        now,
    )


def with_price(prices: tuple[Price, ...], price: Price, is_dated: bool, now: datetime) -> tuple[Price, ...]:
    """The prices of a sku after one was set; the same tuple if it says nothing new.

    Raises ValidationFailed for a price from before now, and for more than MAX_PRICES.
    """
    same = [known for known in prices if _place(known) == _place(price)]
    if is_dated and same and same[-1].unit_price == price.unit_price:
        return prices
    if not is_dated:
        in_force = [known for known in in_force_and_to_come(prices, now) if known.valid_from <= now]
        if any(_tier(known) == _tier(price) and known.unit_price == price.unit_price for known in in_force):
            return prices
    if price.valid_from < now:
        raise _refused("valid_from", "A price cannot change the past.")
    after = in_force_and_to_come((*prices, price), now)
    if len(after) > MAX_PRICES:
        raise _refused("prices", f"A sku has at most {MAX_PRICES} prices in force and to come.")
    return after


def in_force_and_to_come(prices: Iterable[Price], now: datetime) -> tuple[Price, ...]:
    """Without prices whose time is over, and without those that a later one of the same moment has replaced."""
    last = {_place(price): price for price in prices}
    newest: dict[tuple[str, int], datetime] = {}
    for price in last.values():
        if price.valid_from <= now:
            newest[_tier(price)] = max(price.valid_from, newest.get(_tier(price), price.valid_from))
    kept = [price for price in last.values() if price.valid_from > now or price.valid_from == newest[_tier(price)]]
    return tuple(sorted(kept, key=lambda price: (price.currency, price.min_quantity, price.valid_from)))


def _tier(price: Price) -> tuple[str, int]:
    return price.currency, price.min_quantity


def _place(price: Price) -> tuple[str, int, datetime]:
    return price.currency, price.min_quantity, price.valid_from


def newest(heard: Iterable[AvailabilityChanged]) -> list[AvailabilityChanged]:
    """Of each sku the newest that was heard, sorted by sku."""
    found: dict[str, AvailabilityChanged] = {}
    for event in heard:
        known = found.get(event.sku)
        if known is None or known.version < event.version:
            found[event.sku] = event
    return [found[sku] for sku in sorted(found)]
