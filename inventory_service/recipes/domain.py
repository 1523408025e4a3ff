"""The rules of recipes: who may write them, and what one may take.

A sku is stocked or made, never both. What is made takes stocked skus only: one level, so there is no circle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from inventory_service import domain as stock_rules
from shared.errors import HasStock, ValidationFailed
from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, OPERATOR, has_role

MAX_COMPONENTS = 50


@dataclass(frozen=True)
class Recipe:
    """What one piece of a sku takes of each component. `version` grows with each change; 0 is no recipe."""

    sku: str
    components: Mapping[str, int]
    version: int = 0


def may_write_recipes(caller: Identity) -> bool:
    """Whether someone may write and remove recipes."""
    return has_role(caller, ADMIN)


def may_read_recipes(caller: Identity) -> bool:
    """Whether someone may read recipes."""
    return has_role(caller, OPERATOR, AUDITOR, ADMIN)


def components_of(lines: list[dict[str, Any]]) -> dict[str, int]:
    """The components of the lines {sku, quantity} of a recipe. Raises ValidationFailed for two lines of one sku."""
    components: dict[str, int] = {}
    for place, line in enumerate(lines):
        if line["sku"] in components:
            raise ValidationFailed(details=_at(place, "Is in another line already."))
        components[line["sku"]] = line["quantity"]
    return components


def check_version(present: Recipe | None, version: int | None) -> None:
    """Raises VersionMoved unless the recipe is the one that was read. 0 is one that is not there, None is any."""
    stock_rules.check_version(present.version if present else 0, version)


def check(sku: str, components: Collection[str], stocked: Collection[str], made: Collection[str]) -> None:
    """Check what a recipe says, by which of its skus are stocked, and which of its components are made.

    Raises HasStock where the sku itself is stocked, ValidationFailed where a component is not.
    """
    if sku in stocked:
        raise HasStock()
    wrong: dict[str, Any] = {}
    for place, component in enumerate(components):
        if component in made or component == sku:
            wrong |= _at(place, "Is made by a recipe itself: a component must be a sku with stock.")["components"]
        elif component not in stocked:
            wrong |= _at(place, "Is unknown: a component must be a sku with stock, even if there is none left.")[
                "components"
            ]
    if wrong:
        raise ValidationFailed(details={"components": wrong})


def _at(place: int, words: str) -> dict[str, Any]:
    return {"components": {str(place): {"sku": [words]}}}
