"""Suppliers, and the rules of a sku: when it is low, and when and from whom it is ordered again."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import fields, validate

from gateway.api.answering import Answer, keyed
from gateway.api.enumerations import UNIT
from gateway.api.fields import (
    MAX_EMAIL,
    SPACES,
    AnswerSchema,
    Flag,
    Id,
    PageQuery,
    RequestSchema,
    Text,
    WholeNumber,
    Word,
    cursor_field,
    datetime_field,
    field_metadata,
    integer_field,
    list_field,
    text_field,
    uuid_field,
    word_field,
)
from gateway.api.http import OPERATORS, Call, api
from gateway.stock import MAX_ON_HAND, sku_field, sku_or
from shared.auth import ADMIN, AUDITOR, OPERATOR
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import Conflict, NotFound, VersionMoved

MAX_NAME, MAX_PHONE = 120, 32
MAX_PACK = 10**6
MAX_LEAD_DAYS = 365
EMAIL = re.compile(rf"[^@{SPACES}]+@[^@{SPACES}]+")
PHONE = re.compile(r"\+?[0-9][0-9 ()./-]{1,30}")


def version_field(description: str = "the version that was read", at_least: int = 1, **kwargs: Any) -> WholeNumber:
    """A new field for the version that was read."""
    return WholeNumber(at_least, 2**63 - 1, 3, f"{description}; 409 if it has changed since", **kwargs)


def level_field(example: int, description: str) -> WholeNumber:
    """A new field for a level of stock, or null for none."""
    return WholeNumber(0, MAX_ON_HAND, example, description, load_default=None, allow_none=True)


def optional_integer(example: int, description: str = "") -> fields.Integer:
    """An integer that every answer has, or null."""
    return integer_field(example, description, allow_none=True)


class RuleRequest(RequestSchema):
    """The whole rule of a sku. What is left out becomes its default."""

    unit = Word(
        UNIT, validate=validate.OneOf(UNIT.words), load_default="piece", metadata=field_metadata("piece", "counted in")
    )
    low_at = level_field(10, "low is told when no more than this is available; null: never")
    reorder_at = level_field(20, "more is proposed when no more than this is available or to come; null: never")
    reorder_to = level_field(100, "then so much of it is to be there")
    supplier_id = Id("whom it is bought from", load_default=None, allow_none=True)
    pack_size = WholeNumber(1, MAX_PACK, 12, "it is bought in multiples of this", load_default=1)
    version = version_field("the version that was read, 0 if there was none", at_least=0, load_default=None)


class SupplierInDocument(RequestSchema):
    """Whom stock is bought from."""

    name = Text("Lamps and more", "no two have the same", at_most=MAX_NAME, required=True)
    email = Text("orders@lamps.example", at_most=MAX_EMAIL, pattern=EMAIL, load_default=None, allow_none=True)
    phone = Text("+49 30 1234567", at_most=MAX_PHONE, pattern=PHONE, load_default=None, allow_none=True)
    lead_days = WholeNumber(0, MAX_LEAD_DAYS, 3, "days from order to delivery", required=True)
    active = Flag("whether anything is bought there now", load_default=True)


class SupplierRequest(SupplierInDocument):
    """The whole of a supplier. What is left out becomes its default."""

    version = version_field(required=True)


class Rule(AnswerSchema):
    """When a sku is low, and when and how much of it is ordered again."""

    sku = text_field("lamp")
    unit = word_field(UNIT, "piece", "counted in")
    low_at = optional_integer(10, "null: low is never told")
    reorder_at = optional_integer(20, "null: nothing is proposed")
    reorder_to = optional_integer(100)
    supplier_id = uuid_field(allow_none=True)
    pack_size = integer_field(12)
    snoozed_until = datetime_field("nothing is proposed before, because a proposal was cancelled", allow_none=True)
    version = integer_field(3, "send it with the next change; 0: nobody has set a rule")


class Supplier(AnswerSchema):
    """Whom stock is bought from."""

    supplier_id = uuid_field()
    name = text_field("Lamps and more")
    email = text_field("orders@lamps.example", allow_none=True)
    phone = text_field("+49 30 1234567", allow_none=True)
    lead_days = integer_field(3)
    active = fields.Boolean(required=True, metadata=field_metadata(True))
    version = integer_field(3, "send it with the next change")


class SupplierPage(AnswerSchema):
    """Suppliers by name."""

    items = list_field(Supplier)
    next_cursor = cursor_field()


class Suppliers:
    """Routes under /api/inventory/suppliers and /api/inventory/rules."""

    inventory = RpcProxy("inventory_service")

    @api(
        "GET",
        "/api/inventory/rules/<sku>",
        in_path={"sku": sku_field()},
        roles=(OPERATOR, AUDITOR, ADMIN),
        answer=Rule,
        summary="Read when a sku is low and ordered again",
    )
    def get_rule(self, call: Call, sku: str) -> dict[str, Any]:
        """The rule of a sku. A sku that has stock and no rule shows the defaults with version 0."""
        return self.inventory.get_rule(sku_or(NotFound, sku))

    @api(
        "PUT",
        "/api/inventory/rules/<sku>",
        in_path={"sku": sku_field()},
        roles=(ADMIN,),
        body=RuleRequest,
        answer=Rule,
        fails=(VersionMoved,),
        summary="Set when a sku is low and ordered again",
    )
    def put_rule(self, call: Call, sku: str) -> dict[str, Any]:
        """The rule after the change. To reorder needs an active supplier. 404 for a sku without stock."""
        rule = dict(call.body)
        version = rule.pop("version")
        return self.inventory.put_rule(sku_or(NotFound, sku), rule, version)

    @api(
        "GET",
        "/api/inventory/suppliers",
        roles=OPERATORS,
        query=PageQuery,
        answer=SupplierPage,
        summary="List suppliers",
    )
    def list_suppliers(self, call: Call) -> dict[str, Any]:
        """A page of the suppliers, active or not, by name."""
        return self.inventory.list_suppliers(**call.query)

    @api(
        "GET",
        "/api/inventory/suppliers/<uuid:supplier_id>",
        roles=OPERATORS,
        answer=Supplier,
        summary="Read a supplier",
    )
    def get_supplier(self, call: Call, supplier_id: UUID) -> dict[str, Any]:
        """The supplier with the version that the next change must name."""
        return self.inventory.get_supplier(str(supplier_id))

    @api(
        "POST",
        "/api/inventory/suppliers",
        roles=(ADMIN,),
        body=SupplierInDocument,
        idempotent=True,
        located=True,
        answer=Supplier,
        status=201,
        fails=(Conflict,),
        summary="Add a supplier",
    )
    def create_supplier(self, call: Call) -> Answer:
        """The supplier, added once for each key. 409 if another has the name."""
        return keyed(self.inventory.create_supplier(call.body, call.key))

    @api(
        "PUT",
        "/api/inventory/suppliers/<uuid:supplier_id>",
        roles=(ADMIN,),
        body=SupplierRequest,
        answer=Supplier,
        fails=(Conflict, VersionMoved),
        summary="Change a supplier",
    )
    def put_supplier(self, call: Call, supplier_id: UUID) -> dict[str, Any]:
        """The supplier after the change. One that nothing is bought from any more is not active; none is deleted."""
        supplier = dict(call.body)
        return self.inventory.put_supplier(str(supplier_id), supplier, supplier.pop("version"))
