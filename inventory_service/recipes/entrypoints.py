"""The entrypoints of recipes."""

from __future__ import annotations

from typing import Any

from inventory_service import queries as stock_queries
from inventory_service.recipes import domain, queries
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.errors import NotFound


class Recipes:
    """Base of the inventory service: keeps the recipes of what is made. The service provides its dependencies.

    What orders hold was taken by the recipe of then; no change of a recipe touches it.
    """

    db: Database
    context: Context

    @rpc
    def put_recipe(self, sku: str, components: list[dict[str, Any]], version: int | None = None) -> dict[str, Any]:
        """Set what one piece of a sku takes: {sku, components: [{sku, quantity}], version, changed_by, changed_at}.

        The same again changes nothing. Raises ValidationFailed where a component is not stocked, HasStock where the sku
        is, VersionMoved.
        """
        self.context.require(domain.may_write_recipes)
        wanted = domain.components_of(components)
        with self.db.begin() as session:
            queries.decide_alone(session, [sku])
            present = queries.find(session, sku)
            domain.check_version(present, version)
            if present is None or present.components != wanted:
                stocked = stock_queries.stock_of(session, [sku, *wanted])
                domain.check(sku, wanted, stocked, queries.made(session, wanted))
                queries.save(session, sku, wanted, self.context.identity.user_id)
            return queries.body_of(session, sku)

    @rpc
    def get_recipe(self, sku: str) -> dict[str, Any]:
        """Return a recipe, in the form that `put_recipe` returns. Raises NotFound."""
        self.context.require(domain.may_read_recipes)
        with self.db.read() as session:
            return queries.body_of(session, sku)

    @rpc
    def delete_recipe(self, sku: str) -> None:
        """Remove a recipe: the sku is not made any more. Raises NotFound."""
        self.context.require(domain.may_write_recipes)
        with self.db.begin() as session:
            queries.decide_alone(session, [sku])
            if queries.find(session, sku) is None:
                raise NotFound(f"There is no recipe for {sku}.")
            queries.forget(session, sku)
