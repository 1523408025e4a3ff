"""Many rows in one statement: arrays cross as parameters and PostgreSQL turns them into rows.

Each statement is made once for its table and columns, and is the same for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Table,
    TableValuedAlias,
    Update,
    any_,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.types import TypeEngine

from shared.tables import Base

# Many more than there are tables and lists of columns.
_STATEMENTS = 256


def table_of(model: type[Base]) -> Table:
    """The model's table: a statement on the model itself would pass through the ORM, which costs more."""
    return cast(Table, model.__table__)


def columns_of(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Rows turned into one list for each column, as `unnest` takes them: many rows cross in one statement."""
    rows = list(rows)
    return {f"given_{name}": [row[name] for row in rows] for name in names}


def unnest(model: type[Base], *names: str, place: str | None = None) -> TableValuedAlias:
    """A FROM item with one row for each element of the array parameters `given_<name>`, typed like the model.

    `place` names a further column: the number of the row.
    """
    columns = [table_of(model).c[name] for name in names]
    arrays = [bindparam(f"given_{column.name}", type_=ARRAY(_crosses_as(column), dimensions=1)) for column in columns]
    return func.unnest(*arrays).table_valued(*columns, with_ordinality=place).render_derived(name="given")


def is_given(column: Column[Any]) -> ColumnElement[bool]:
    """A condition: the column has one of the values of the array parameter `given_<name>`."""
    return column == any_(bindparam(f"given_{column.name}", type_=ARRAY(column.type)))


def insert_of(model: type[Base], *names: str) -> Insert:
    """An INSERT of the rows of the array parameters `given_<name>`, in their order: identity columns grow with them.

    Make it once, at import, with what else it needs, such as `on_conflict_do_nothing()` or `returning(...)`.
    """
    given = unnest(model, *names, place="place")
    values = [_taken(given, table_of(model).c[name]) for name in names]
    statement = insert(table_of(model)).execution_options(prepared=True)
    return statement.from_select(names, select(*values).order_by(given.c.place), include_defaults=False)


def insert_many(session: Session, model: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, all with the columns of the first one, in one statement and in their order."""
    if rows:
        names = tuple(rows[0])
        session.execute(_insert_statement(model, names), columns_of(rows, names))


def update_many(
    session: Session,
    model: type[Base],
    key: str,
    rows: Sequence[Mapping[str, Any]],
    also: Mapping[str, Any] | None = None,
    returning: InstrumentedAttribute[Any] | None = None,
) -> dict[Any, Any]:
    """Set the named columns of many rows, found by `key`, in one statement; `also` is the same for all of them.

    Returns by key what the column `returning` holds afterwards. Make the expressions in `also` once, at import: the
    statement is found again by them.
    """
    if not rows:
        return {}
    names = (key, *(name for name in rows[0] if name != key))
    statement = _update_statement(model, names, tuple((also or {}).items()), returning)
    found = session.execute(statement, columns_of(rows, names))
    return {row[0]: row[1] for row in found} if returning is not None else {}


@lru_cache(_STATEMENTS)
def _insert_statement(model: type[Base], names: tuple[str, ...]) -> Insert:
    return insert_of(model, *names)


@lru_cache(_STATEMENTS)
def _update_statement(
    model: type[Base],
    names: tuple[str, ...],
    also: tuple[tuple[str, Any], ...],
    returning: InstrumentedAttribute[Any] | None,
) -> Update:
    table, given, key = table_of(model), unnest(model, *names), names[0]
    values = {name: given.c[name] for name in names[1:]}
    statement = (
        update(table)
        .execution_options(prepared=True)
        .where(table.c[key] == given.c[key])
        .values({**values, **dict(also)})
    )
    return statement if returning is None else statement.returning(table.c[key], table.c[returning.key])


def _crosses_as(column: Column[Any]) -> TypeEngine[Any]:
    """The type of one element; an array crosses as JSON, because PostgreSQL unnests arrays of arrays completely."""
    return JSONB() if isinstance(column.type, ARRAY) else column.type


def _taken(given: TableValuedAlias, column: Column[Any]) -> Any:
    if not isinstance(column.type, ARRAY):
        return given.c[column.name]
    elements = func.jsonb_array_elements_text(given.c[column.name]).column_valued("element")
    return func.array(select(elements).scalar_subquery())
