"""Many rows in one statement: arrays cross as parameters and PostgreSQL turns them into rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, TableValuedAlias, bindparam, func, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.tables import Base


def columns_of(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Rows turned into one list for each column, as `unnest` takes them: many rows cross in one statement."""
    rows = list(rows)
    return {f"given_{name}": [row[name] for row in rows] for name in names}


def unnest(model: type[Base], *names: str) -> TableValuedAlias:
    """A FROM item with one row for each element of the array parameters `given_<name>`, typed like the model."""
    table = model.__table__
    arrays = [bindparam(f"given_{name}", type_=ARRAY(table.c[name].type)) for name in names]
    return func.unnest(*arrays).table_valued(*(table.c[name] for name in names), name="given").render_derived()


def update_many(
    session: Session,
    model: type[Base],
    key: str,
    rows: Sequence[Mapping[str, Any]],
    also: Mapping[str, Any] | None = None,
    returning: InstrumentedAttribute[Any] | None = None,
) -> dict[Any, Any]:
    """Set the named columns of many rows, found by `key`, in one statement; `also` is the same for all of them.

    Returns by key what the column `returning` holds afterwards.
    """
    if not rows:
        return {}
    names = [key, *(name for name in rows[0] if name != key)]
    given = unnest(model, *names)
    statement = (
        update(model)
        .where(model.__table__.c[key] == given.c[key])
        .values({**{name: given.c[name] for name in names[1:]}, **(also or {})})
        .execution_options(synchronize_session=False)
    )
    if returning is None:
        session.execute(statement, columns_of(rows, names))
        return {}
    found = session.execute(statement.returning(model.__table__.c[key], returning), columns_of(rows, names))
    return {row[0]: row[1] for row in found}
