"""The databases of a version, read from its code: tables as they are mapped, rights, and migrations."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import ColumnCollectionConstraint

from shared.tables import Base
from topology.services import DATABASES, SERVICES

ROOT = Path(__file__).resolve().parents[2]
DIALECT = postgresql.dialect()

EXPAND, CONTRACT = "expand", "contract"
KINDS: dict[type, str] = {
    PrimaryKeyConstraint: "primary key",
    UniqueConstraint: "unique",
    ForeignKeyConstraint: "refers",
}

# The operations of Alembic that take away what an older version may still use.
TAKES_AWAY = frozenset({"drop_column", "drop_table", "rename_table"})


def tables() -> dict[str, dict[str, Any]]:
    """Every table, as `<database>.<table>`: its columns, its keys, and what the service's own role may do with it."""
    found = {}
    for service in SERVICES:
        if not service.has_database:
            continue
        models = importlib.import_module(f"{service.package}.models")
        for name in sorted(models.TABLES):
            found[f"{service.name}.{name}"] = {
                "columns": columns_of(Base.metadata.tables[name]),
                "keys": keys_of(Base.metadata.tables[name]),
                "rights": _rights(models, name),
            }
    return found


def migrations() -> dict[str, dict[str, Any]]:
    """For each database the newest revision, and every revision: the one before it, its phase, what it takes away."""
    packages = {service.name: service.package for service in SERVICES}
    found = {}
    for database in DATABASES:
        directory = ScriptDirectory(str(ROOT / packages[database] / "migrations"))
        found[database] = {
            "heads": sorted(directory.get_heads()),
            "revisions": {
                script.revision: {
                    "before": script.down_revision,
                    "phase": getattr(script.module, "phase", EXPAND),
                    "takes_away": sorted(taken_away(Path(script.path))),
                }
                for script in reversed(list(directory.walk_revisions()))
            },
        }
    return found


def columns_of(table: Table) -> dict[str, dict[str, Any]]:
    """A column that the models have and no class maps is neither read nor written: only the database still has it."""
    mapped = {
        column.name
        for mapper in Base.registry.mappers
        for column in mapper.columns
        if mapper.local_table is table and isinstance(column, Column)
    }
    return {
        column.name: {
            "type": column.type.compile(DIALECT),
            "nullable": bool(column.nullable),
            "default": _default(column),
            "mapped": column.name in mapped,
        }
        for column in table.columns
    }


def _default(column: Column[Any]) -> str | None:
    """What the database puts in where an INSERT names no value. None: nothing."""
    if column.identity is not None:
        return "identity"
    given = getattr(column.server_default, "arg", None)
    return None if given is None else str(given)


def keys_of(table: Table) -> list[str]:
    """What the rows of a table must satisfy, in words; also what ON CONFLICT may name."""
    found = []
    for constraint in table.constraints:
        if isinstance(constraint, CheckConstraint):
            found.append(f"check {constraint.sqltext}")
        elif isinstance(constraint, ColumnCollectionConstraint) and constraint.columns:
            kind = KINDS[type(constraint)]
            found.append(f"{kind} ({', '.join(column.name for column in constraint.columns)})")
    for index in table.indexes:
        if index.unique:
            where = index.dialect_options["postgresql"]["where"]
            columns = ", ".join(str(one) for one in index.expressions)
            found.append(f"unique ({columns})" + (f" where {where}" if where is not None else ""))
    return sorted(found)


def _rights(models: ModuleType, table: str) -> list[str]:
    """What the service's own role and the operators may do, one right a line."""
    rights = models.RIGHTS[table]
    return sorted(
        [
            *(["add"] if rights.added else []),
            *(["delete"] if rights.deleted_because else []),
            *(f"change {column}" for column in rights.changed),
            *([f"call {rights.purged_by}"] if rights.purged_by else []),
            *(f"reader: see {column}" for column in rights.read),
            *(f"operator: add {column}" for column in rights.operator_adds),
            *(f"operator: change {column}" for column in rights.operator_changes),
        ]
    )


def taken_away(path: Path) -> set[str]:
    """What `upgrade` of a migration drops or renames, by the operations of Alembic."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    upgrade = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade")
    return {
        ".".join(str(arg.value) for arg in node.args[:2] if isinstance(arg, ast.Constant))
        for node in ast.walk(upgrade)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKES_AWAY
    }
