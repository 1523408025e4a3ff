"""The statements on recipes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from inventory_service.domain import Recipes, Stock, needs
from inventory_service.models import RecipeLine, RecipeRow
from inventory_service.queries import stock_of
from inventory_service.recipes.domain import Recipe
from shared.bulk import is_given, table_of
from shared.errors import NotFound
from shared.times import timestamp

_RECIPES, _LINES = table_of(RecipeRow), table_of(RecipeLine)

# Advisory locks of this class are on skus, by their hashes: two skus of one hash only wait for each other.
LOCK_CLASS = 0x6D616465
_LOCK = text(
    "SELECT pg_advisory_xact_lock(:lock_class, key)"
    " FROM (SELECT DISTINCT hashtext(sku) AS key FROM unnest(CAST(:skus AS text[])) AS sku ORDER BY key) AS given"
)
_MADE_OF = select(_RECIPES.c.sku).where(is_given(_RECIPES.c.sku)).execution_options(prepared=True)


def decide_alone(session: Session, skus: Collection[str]) -> None:
    """Until this transaction ends, no other one decides whether one of these skus is stocked or made.

    For those that make a stock row or a recipe: without it each of two could miss what the other makes. One statement.
    """
    session.execute(_LOCK, {"lock_class": LOCK_CLASS, "skus": list(skus)})


def made(session: Session, skus: Collection[str]) -> set[str]:
    """Those of the skus that have a recipe. One statement."""
    return set(session.scalars(_MADE_OF, {"given_sku": list(skus)}))


_RECIPES_OF = (
    select(_RECIPES.c.sku, _LINES.c.component, _LINES.c.quantity)
    .select_from(_RECIPES.outerjoin(_LINES, _LINES.c.sku == _RECIPES.c.sku))
    .where(is_given(_RECIPES.c.sku))
    .execution_options(prepared=True)
)


def recipes_of(session: Session, skus: Iterable[str]) -> Recipes:
    """Load the recipes of those of the skus that are made. At most one statement."""
    wanted = list(set(skus))
    if not wanted:
        return {}
    found: dict[str, dict[str, int]] = {}
    for sku, component, quantity in session.execute(_RECIPES_OF, {"given_sku": wanted}):
        recipe = found.setdefault(sku, {})
        if component is not None:
            recipe[component] = quantity
    return found


def lock_for(session: Session, skus: Collection[str]) -> tuple[Recipes, dict[str, Stock]]:
    """Load the recipes of these skus, and lock and load what they take of the stock. At most two statements.

    The recipes are read first and by one statement, so that all are of one moment. Whatever becomes of them then, what
    they took is locked, and is what this transaction holds: a recipe that changes meanwhile can make nothing oversold.
    A component keeps its row of stock for as long as there is stock at all.
    """
    recipes = recipes_of(session, skus)
    return recipes, stock_of(session, needs(dict.fromkeys(skus, 1), recipes), lock=True)


def find(session: Session, sku: str) -> Recipe | None:
    """The recipe of a sku, or None. One statement."""
    rows = session.execute(
        select(_RECIPES.c.version, _LINES.c.component, _LINES.c.quantity)
        .select_from(_RECIPES.outerjoin(_LINES, _LINES.c.sku == _RECIPES.c.sku))
        .where(_RECIPES.c.sku == sku)
    ).all()
    if not rows:
        return None
    components = {row.component: row.quantity for row in rows if row.component is not None}
    return Recipe(sku, components, rows[0].version)


_BODY = text(
    """
    SELECT recipes.version, recipes.changed_by, recipes.changed_at,
           coalesce(
               (SELECT json_agg(json_build_object('sku', component, 'quantity', quantity) ORDER BY component)
                FROM recipe_lines WHERE recipe_lines.sku = recipes.sku),
               '[]'
           ) AS components
    FROM recipes WHERE sku = :sku
    """
)


def body_of(session: Session, sku: str) -> dict[str, Any]:
    """A recipe in the form that clients see. Raises NotFound. One statement."""
    row = session.execute(_BODY, {"sku": sku}).one_or_none()
    if row is None:
        raise NotFound(f"There is no recipe for {sku}.")
    return {
        "sku": sku,
        "components": row.components,
        "version": row.version,
        "changed_by": row.changed_by,
        "changed_at": timestamp(row.changed_at),
    }


# A version never comes again, also where a recipe was removed: nobody overwrites one that they have not read.
_SAVE = text(
    """
    INSERT INTO recipes (sku, version, changed_by)
    VALUES (:sku, CAST(extract(epoch FROM now()) * 1000 AS bigint), :changed_by)
    ON CONFLICT (sku) DO UPDATE
    SET version = greatest(recipes.version + 1, excluded.version), changed_by = excluded.changed_by, changed_at = now()
    """
)
_FORGET_LINES = text("DELETE FROM recipe_lines WHERE sku = :sku")
# Sorted as `stock_of` sorts: the foreign key locks the components' rows of stock, one after the other.
_SAVE_LINES = text(
    """
    INSERT INTO recipe_lines (sku, component, quantity)
    SELECT :sku, component, quantity
    FROM unnest(CAST(:components AS text[]), CAST(:quantities AS bigint[])) AS given (component, quantity)
    ORDER BY component
    """
)
_FORGET = text("DELETE FROM recipes WHERE sku = :sku")


def save(session: Session, sku: str, components: Mapping[str, int], changed_by: str) -> None:
    """Save the recipe of a sku for which this transaction decides alone. At most three statements."""
    session.execute(_SAVE, {"sku": sku, "changed_by": changed_by})
    session.execute(_FORGET_LINES, {"sku": sku})
    if components:
        lines = {"components": list(components), "quantities": list(components.values())}
        session.execute(_SAVE_LINES, {"sku": sku, **lines})


def forget(session: Session, sku: str) -> None:
    """Remove the recipe of a sku for which this transaction decides alone. Two statements."""
    session.execute(_FORGET_LINES, {"sku": sku})
    session.execute(_FORGET, {"sku": sku})
