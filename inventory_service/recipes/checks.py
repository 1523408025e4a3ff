"""What must always hold of recipes and of what is told about skus, each as a query that names what breaks it."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from inventory_service.signals import UNTOLD

# `watch` looks each second.
TOLD_WITHIN_S = 10

# Every component has a row of stock, so this names those of them that are made, too.
_MADE_AND_STOCKED = text("SELECT sku FROM recipes WHERE sku IN (SELECT sku FROM stock_items) ORDER BY sku")
_UNTOLD = text(
    f"""
    SELECT sku FROM ({UNTOLD}) AS untold
    WHERE written_at IS NULL OR written_at < now() - make_interval(secs => :within_s) ORDER BY sku
    """
)


def made_components(session: Session) -> list[str]:
    """The skus that are made although they have stock, which is what a component is: none of them may be made."""
    return list(session.scalars(_MADE_AND_STOCKED))


def untold(session: Session) -> list[str]:
    """The skus of which others do not know how they stand: stock_signals has something else than is computed.

    Not those whose stock, components or recipe were written in the last TOLD_WITHIN_S. A removed recipe and a changed
    rule are told within a minute, and until then are named here.
    """
    return list(session.scalars(_UNTOLD, {"within_s": TOLD_WITHIN_S}))
