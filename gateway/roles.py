"""Roles as requests write them."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from gateway.api.enumerations import WRITTEN_ROLE
from gateway.api.fields import Word, field_metadata
from shared.roles import ROLES, role_of


class RoleField(Word):
    """A role, loaded as the word that is kept: `ROLE_ADMIN` as `admin`."""

    def __init__(self, description: str = "", **kwargs: Any) -> None:
        words = WRITTEN_ROLE.words
        metadata = field_metadata("customer", description)
        super().__init__(WRITTEN_ROLE, validate=validate.OneOf(words), metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return role_of(super()._deserialize(value, attr, data, **kwargs))


def roles_field(at_least: int = 1, **kwargs: Any) -> fields.List:
    """A new field for the roles of somebody."""
    return fields.List(RoleField(), validate=validate.Length(at_least, len(ROLES)), **kwargs)
