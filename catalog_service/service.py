"""The catalog service: owns what is sold, and at which price."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from catalog_service import availability, domain, editor, menu, store
from catalog_service.domain import Listing
from catalog_service.store import Editor
from shared import idempotency
from shared.edge.consumer import handles
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.http import Probes
from shared.edge.rpc import rpc
from shared.edge.settings import Setting
from shared.edge.timer import every
from shared.edge.tx import Events, Tx
from shared.enumerations import ItemStatus as Status
from shared.errors import ValidationFailed
from shared.idempotency import KeyedAnswer, KeyedRequest
from shared.prices import Price
from shared.relay import Relay
from shared.schema import Currency, decoder, encode

ITEM_ROUTE = "POST /api/menu/items"
DEFAULT_CURRENCY = "EUR"


class CatalogService(Probes):
    """Keeps the menu and its prices, and publishes each change of an offer.

    Anyone may read the menu. Every other call is made by a user whom a rule of domain.py allows it; to anybody else it
    raises RoleMissing.
    """

    name = "catalog_service"

    settings = Setting()
    db = Database()
    relay = Relay()
    context = Context()

    # What anyone may read

    @rpc
    def list_categories(self) -> dict[str, Any]:
        """The headings of the menu, in its order: {items}."""
        with self.db.read() as session:
            return {"items": menu.categories(session)}

    @rpc
    def list_items(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of what is published, in menu order: {items, next_cursor}. Raises InvalidCursor.

        `filters`: category, sku, q, available, currency (which only chooses the prices that are shown).
        """
        asked = filters or {}
        with self.db.read() as session:
            rows, next_cursor = menu.items_page(session, limit, cursor, asked, Status.PUBLISHED)
            return {"items": menu.public_items(session, rows, asked.get("currency")), "next_cursor": next_cursor}

    @rpc
    def get_item(self, item_id: str) -> dict[str, Any]:
        """One item that is or was published. Raises NotFound, also for a draft."""
        with self.db.read() as session:
            (item,) = menu.public_items(session, [menu.item(session, item_id)])
        return item

    @rpc
    def get_offers(self, skus: list[str]) -> dict[str, Any]:
        """What is sold under skus, and at which prices now: {offers, unknown}."""
        with self.db.read() as session:
            found = menu.offers(session, skus)
        return {
            "offers": [found[sku] for sku in dict.fromkeys(skus) if sku in found],
            "unknown": [sku for sku in dict.fromkeys(skus) if sku not in found],
        }

    # What the order service reads

    @rpc
    def offers_of(self, skus: list[str]) -> dict[str, Any]:
        """The offers of skus as catalog.offer_changed tells them: {offers, unknown}."""
        with self.db.read() as session:
            found = menu.told_offers(session, skus)
        known = {offer.sku for offer, _ in found}
        return {
            "offers": [encode(domain.as_event(offer, version)) for offer, version in found],
            "unknown": sorted(set(skus) - known),
        }

    @rpc
    def offer_versions(self, after: str, limit: int) -> dict[str, Any]:
        """The versions of the offers after a sku: {versions: {sku: version}, more}."""
        with self.db.read() as session:
            found = menu.offer_versions(session, after, limit + 1)
        return {"versions": dict(list(found.items())[:limit]), "more": len(found) > limit}

    # The short way

    @rpc
    def put_offer(
        self,
        sku: str,
        unit_price: int | None,
        currency: str = DEFAULT_CURRENCY,
        name: str | None = None,
        min_quantity: int = 1,
        valid_from: str | None = None,
        category: str | None = None,
        on_sale: bool | None = None,
    ) -> dict[str, Any]:
        """Sell a sku at a price, now or from a date: {offer, created}. An unknown sku becomes an item with one variant.

        `unit_price` None ends the price. The same again changes nothing. Raises ValidationFailed.
        """
        asked = {
            "sku": sku,
            "unit_price": unit_price,
            "currency": currency,
            "name": name,
            "min_quantity": min_quantity,
            "valid_from": valid_from,
            "category": category,
            "on_sale": on_sale,
        }
        answer = self.put_offers([asked])
        return {"offer": answer["offers"][0], "created": bool(answer["created"])}

    @rpc
    def put_offers(self, offers: list[dict[str, Any]]) -> dict[str, Any]:
        """List many skus as `put_offer` does, all or none: {offers, created, changed}, the last two as numbers.

        Raises ValidationFailed, and CannotWork while somebody else lists one of the skus.
        """
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            by = self._editor(session)
            created, touched = editor.put_offers(session, [_listing(offer, by.now) for offer in offers], by)
            skus = list(dict.fromkeys(offer["sku"] for offer in offers))
            found = menu.offers(session, skus, drafts=True)
        return {
            "offers": [found[sku] for sku in skus],
            "created": len(created),
            "changed": len(set(touched) - set(created)),
        }

    # The editor

    @rpc
    def put_category(self, slug: str, name: str, position: int, version: int | None = None) -> dict[str, Any]:
        """Make or change a category: {category, created}. Raises VersionMoved."""
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            return editor.put_category(session, slug, name, position, version)

    @rpc
    def delete_category(self, slug: str) -> None:
        """Take an empty category off the menu. Raises NotFound, Conflict."""
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            editor.delete_category(session, slug)

    @rpc
    def create_item(self, item: dict[str, Any], key: str) -> dict[str, Any]:
        """Make a draft, once for each key: {status, body, location, replayed}.

        Raises ValidationFailed, Conflict, IdempotencyKeyReused, IdempotencyInProgress.
        """
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            by = self._editor(session)
            draft = editor.new_item(item, by)
            request = KeyedRequest(by.identity.user_id, ITEM_ROUTE, key, item)
            versions = {variant.sku: domain.next_version(0, by.now) for variant in draft.variants}
            stored = domain.as_stored(draft)
            answer = KeyedAnswer(201, editor.body(stored, versions), f"/api/menu/editor/items/{draft.item_id}")
            if known := idempotency.claim_key(session, request, answer):
                return known.as_dict()
            editor.add_item(session, draft, by)
        return answer.as_dict()

    @rpc
    def put_item(self, item_id: str, document: dict[str, Any]) -> dict[str, Any]:
        """Make an item what the whole document says. What is published is live at once.

        Raises NotFound, VersionMoved, ValidationFailed, Conflict.
        """
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            editor.write_item(session, item_id, document, self._editor(session))
            return editor.item_body(session, item_id)

    @rpc
    def revert_item(self, item_id: str, to_version: int, version: int) -> dict[str, Any]:
        """Make an item what it was in an earlier version. Raises NotFound, VersionMoved, ValidationFailed."""
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            editor.revert_item(session, item_id, to_version, version, self._editor(session))
            return editor.item_body(session, item_id)

    @rpc
    def delete_item(self, item_id: str) -> None:
        """Throw a draft away, and withdraw what was published or has a price. Raises NotFound."""
        self.context.require(domain.may_edit)
        with self.db.begin() as session:
            editor.remove_item(session, item_id, self._editor(session))

    @rpc
    def editor_item(self, item_id: str) -> dict[str, Any]:
        """One item in any status. Raises NotFound."""
        self.context.require(domain.may_read_editor)
        with self.db.read() as session:
            return editor.item_body(session, item_id)

    @rpc
    def editor_items(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of items in any status, in menu order: {items, next_cursor}. Raises InvalidCursor."""
        self.context.require(domain.may_read_editor)
        with self.db.read() as session:
            rows, next_cursor = menu.items_page(session, limit, cursor, filters or {}, None)
            stored = store.items_of(session, [row.item_id for row in rows])
        items = [editor.body(stored.items[row.item_id], stored.offer_versions) for row in rows]
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def item_versions(self, item_id: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """What an item was, newest version first, and who made it that: {items, next_cursor}. Raises InvalidCursor."""
        self.context.require(domain.may_read_editor)
        with self.db.read() as session:
            return editor.versions_page(session, item_id, limit, cursor)

    @rpc
    def item_prices(self, item_id: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """Who set which price when, newest first: {items, next_cursor, lowest_30d}. Raises NotFound, InvalidCursor."""
        self.context.require(domain.may_read_editor)
        with self.db.read() as session:
            return editor.prices_page(session, item_id, limit, cursor)

    # What the inventory service says

    @handles("q.catalog.stock-availability")
    def learn_availability(self, events: Events, tx: Tx) -> None:
        """Keep whether skus are sold out. What is older than what is known changes nothing."""
        availability.learn(tx.session, domain.newest(event.payload for event in events))

    @every(3600)
    def forget_keys(self) -> None:
        """Delete the stored answers of idempotency keys that are older than promised."""
        with self.db.begin() as session:
            idempotency.purge(session)

    def _editor(self, session: Session) -> Editor:
        return Editor(self.context.identity, self.context.trace_id, store.clock(session))


def _listing(offer: dict[str, Any], now: datetime) -> Listing:
    """A row of `put_offers`. Raises ValidationFailed for a moment that is none."""
    given = offer.get("valid_from")
    price = Price(
        decoder(Currency)(offer.get("currency", DEFAULT_CURRENCY), "currency"),
        offer.get("min_quantity", 1),
        offer["unit_price"],
        _moment(given) if given is not None else now,
    )
    return Listing(
        offer["sku"], price, given is not None, offer.get("name"), offer.get("category"), offer.get("on_sale")
    )


def _moment(given: str) -> datetime:
    """A moment in whole milliseconds. Raises ValidationFailed."""
    try:
        moment: datetime = decoder(datetime)(given, "valid_from")
    except Exception as error:
        raise ValidationFailed(details={"valid_from": [str(error)]}) from error
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
