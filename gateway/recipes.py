"""Recipes: what a sku that is made takes of the stock."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from gateway.api.fields import (
    AnswerSchema,
    RequestSchema,
    WholeNumber,
    datetime_field,
    integer_field,
    list_field,
    text_field,
)
from gateway.api.http import Call, api
from gateway.stock import sku_field, sku_or
from shared.auth import ADMIN, AUDITOR, OPERATOR
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import HasStock, NotFound, ValidationFailed, VersionMoved

MAX_COMPONENTS = 50
MAX_QUANTITY = 10**6
MAX_VERSION = 2**63 - 1

COOKS = (OPERATOR, AUDITOR, ADMIN)


class ComponentRequest(RequestSchema):
    """How much of a stocked sku goes into one piece, in its unit."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_QUANTITY, 250, required=True)


class RecipeRequest(RequestSchema):
    """What one piece takes. With no components it is made of nothing, and never short."""

    components = fields.List(
        fields.Nested(ComponentRequest), validate=validate.Length(0, MAX_COMPONENTS), required=True
    )
    version = WholeNumber(
        0, MAX_VERSION, 1768386600123, "the version that was read, 0 for none; 409 if the recipe has changed since"
    )


class Component(AnswerSchema):
    """How much of a stocked sku goes into one piece, in its unit."""

    sku = text_field("flour")
    quantity = integer_field(250)


class Recipe(AnswerSchema):
    """What one piece of a sku takes of the stock."""

    sku = text_field("pizza")
    components = list_field(Component)
    version = integer_field(1768386600123, "grows with each change")
    changed_by = text_field("admin")
    changed_at = datetime_field()


class Recipes:
    """Routes under /api/inventory/recipes."""

    inventory = RpcProxy("inventory_service")

    @api(
        "PUT",
        "/api/inventory/recipes/<sku>",
        in_path={"sku": sku_field()},
        roles=(ADMIN,),
        body=RecipeRequest,
        answer=Recipe,
        fails=(HasStock, VersionMoved),
        summary="Set what a sku is made of",
    )
    def put_recipe(self, call: Call, sku: str) -> dict[str, Any]:
        """The recipe after the change. Orders under way hold what they held; new ones are held by the new recipe.

        A component must be a sku with stock, and the sku itself must have none: what is made cannot be a component.
        """
        sku = sku_or(ValidationFailed, sku)
        return self.inventory.put_recipe(sku, call.body["components"], call.body.get("version"))

    @api(
        "GET",
        "/api/inventory/recipes/<sku>",
        in_path={"sku": sku_field()},
        roles=COOKS,
        answer=Recipe,
        summary="Read what a sku is made of",
    )
    def get_recipe(self, call: Call, sku: str) -> dict[str, Any]:
        """404 for a sku that is not made."""
        return self.inventory.get_recipe(sku_or(NotFound, sku))

    @api(
        "DELETE",
        "/api/inventory/recipes/<sku>",
        in_path={"sku": sku_field()},
        roles=(ADMIN,),
        answer="It is not made any more.",
        status=204,
        summary="Remove a recipe",
    )
    def delete_recipe(self, call: Call, sku: str) -> None:
        """New orders of the sku are refused until it has stock or a recipe again."""
        self.inventory.delete_recipe(sku_or(NotFound, sku))
