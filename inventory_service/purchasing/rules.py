"""The statements on rules of stock and on suppliers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from inventory_service.domain import check_version
from inventory_service.models import SupplierRow
from inventory_service.purchasing import domain
from shared.bulk import table_of
from shared.enumerations import Unit
from shared.errors import Conflict, NotFound, VersionMoved
from shared.paging import decode_cursor, encode_cursor, name_position, page_of
from shared.times import timestamp

_SUPPLIERS = table_of(SupplierRow)

# Rules of stock

_RULE_COLUMNS = "unit, low_at, reorder_at, reorder_to, supplier_id, pack_size, snoozed_until, rules.version"
_RULE = text(
    f"SELECT sku, {_RULE_COLUMNS} FROM stock_items LEFT JOIN stock_rules AS rules USING (sku) WHERE sku = :sku"
)
_BEFORE_RULE = text(
    """
    SELECT coalesce(rules.version, 0) AS version, suppliers.active
    FROM stock_items LEFT JOIN stock_rules AS rules USING (sku)
    LEFT JOIN suppliers ON suppliers.supplier_id = CAST(:supplier_id AS uuid)
    WHERE stock_items.sku = :sku
    """
)
# The version guards the row in the statement, too: of two that change it at once the second is told so.
_PUT_RULE = text(
    f"""
    INSERT INTO stock_rules AS rules (sku, unit, low_at, reorder_at, reorder_to, supplier_id, pack_size)
    VALUES (:sku, :unit, :low_at, :reorder_at, :reorder_to, CAST(:supplier_id AS uuid), :pack_size)
    ON CONFLICT (sku) DO UPDATE
    SET unit = excluded.unit, low_at = excluded.low_at, reorder_at = excluded.reorder_at,
        reorder_to = excluded.reorder_to, supplier_id = excluded.supplier_id, pack_size = excluded.pack_size,
        version = rules.version + 1
    WHERE CAST(:version AS bigint) IS NULL OR rules.version = :version
    RETURNING sku, {_RULE_COLUMNS}
    """
)


def find_rule(session: Session, sku: str) -> dict[str, Any]:
    """The rule of a stocked sku; version 0 if nobody has set one. Raises NotFound. One statement."""
    row = session.execute(_RULE, {"sku": sku}).one_or_none()
    if row is None:
        raise NotFound(f"There is no stock of {sku}.")
    return _rule_body(row)


def put_rule(session: Session, sku: str, rule: Mapping[str, Any], version: int | None) -> dict[str, Any]:
    """Set the rule of a stocked sku; the rule as it is then. Two statements, or three when it is refused.

    Raises NotFound, VersionMoved if it has changed since `version`, and ValidationFailed without an active supplier.
    """
    before = session.execute(_BEFORE_RULE, {"sku": sku, "supplier_id": rule["supplier_id"]}).one_or_none()
    if before is None:
        raise NotFound(f"There is no stock of {sku}.")
    check_version(before.version, version)
    domain.check_active(rule["supplier_id"] is None or before.active)
    row = session.execute(_PUT_RULE, {**rule, "sku": sku, "version": version}).one_or_none()
    if row is None:
        raise VersionMoved(details={"version": find_rule(session, sku)["version"]})
    return _rule_body(row)


def _rule_body(row: Row[Any]) -> dict[str, Any]:
    return {
        "sku": row.sku,
        "unit": row.unit or Unit.PIECE.value,
        "low_at": row.low_at,
        "reorder_at": row.reorder_at,
        "reorder_to": row.reorder_to,
        "supplier_id": row.supplier_id and str(row.supplier_id),
        "pack_size": row.pack_size or 1,
        "snoozed_until": row.snoozed_until and timestamp(row.snoozed_until),
        "version": row.version or 0,
    }


# Suppliers

_SUPPLIER_COLUMNS = "supplier_id, name, email, phone, lead_days, active, version"
_ADD_SUPPLIER = text(
    f"""
    INSERT INTO suppliers (supplier_id, name, email, phone, lead_days, active)
    VALUES (:supplier_id, :name, :email, :phone, :lead_days, :active)
    RETURNING {_SUPPLIER_COLUMNS}
    """
)
_PUT_SUPPLIER = text(
    f"""
    UPDATE suppliers
    SET name = :name, email = :email, phone = :phone, lead_days = :lead_days, active = :active, version = version + 1
    WHERE supplier_id = :supplier_id AND version = :version
    RETURNING {_SUPPLIER_COLUMNS}
    """
)


def add_supplier(session: Session, supplier_id: uuid.UUID, supplier: Mapping[str, Any]) -> None:
    """Save a new supplier. Raises Conflict if another has the name. One statement."""
    _with_its_name(session, _ADD_SUPPLIER, {**supplier, "supplier_id": supplier_id})


def put_supplier(session: Session, supplier_id: str, supplier: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Change a supplier; the supplier as it is then. One statement.

    Raises NotFound, VersionMoved if it has changed since `version`, and Conflict if another has the name.
    """
    values = {**supplier, "supplier_id": uuid.UUID(supplier_id), "version": version}
    row = _with_its_name(session, _PUT_SUPPLIER, values)
    if row is None:
        raise VersionMoved(details={"version": find_supplier(session, supplier_id)["version"]})
    return supplier_body(row._asdict())


def _with_its_name(session: Session, statement: Any, values: Mapping[str, Any]) -> Row[Any] | None:
    try:
        return session.execute(statement, values).one_or_none()
    except IntegrityError as error:
        raise Conflict("There is a supplier of that name.", {"name": values["name"]}) from error


def find_supplier(session: Session, supplier_id: str) -> dict[str, Any]:
    """One supplier. Raises NotFound. One statement."""
    row = session.execute(select(_SUPPLIERS).where(_SUPPLIERS.c.supplier_id == uuid.UUID(supplier_id))).one_or_none()
    if row is None:
        raise NotFound
    return supplier_body(row._asdict())


def suppliers_page(session: Session, limit: int, cursor: str | None) -> dict[str, Any]:
    """A page of suppliers by name: {items, next_cursor}. Raises InvalidCursor. One statement."""
    query = select(_SUPPLIERS).order_by(_SUPPLIERS.c.name).limit(limit + 1)
    if cursor is not None:
        (last,) = decode_cursor(cursor, {}, [name_position])
        query = query.where(_SUPPLIERS.c.name > last)
    rows, more = page_of(session.execute(query).all(), limit)
    return {
        "items": [supplier_body(row._asdict()) for row in rows],
        "next_cursor": encode_cursor([rows[-1].name], {}) if more else None,
    }


def supplier_body(supplier: Mapping[str, Any]) -> dict[str, Any]:
    """A supplier in the form that clients see."""
    names = ("name", "email", "phone", "lead_days", "active", "version")
    return {"supplier_id": str(supplier["supplier_id"]), **{name: supplier[name] for name in names}}
