"""Examples of the schemas of an OpenAPI document, put together from the examples of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NULL = {"type": "null"}

Schema = Mapping[str, Any]


def resolved(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """The schema behind a reference; for a schema of several kinds, the schema of the first."""
    if "$ref" in schema:
        return resolved(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    return resolved(schema["anyOf"][0], schemas) if "anyOf" in schema else schema


def example_of(schema: Schema, schemas: Mapping[str, Schema]) -> Any:
    """An example of a schema; `schemas` are those of the document, by name."""
    schema = schema if "examples" in schema else resolved(schema, schemas)
    if "examples" in schema:
        return schema["examples"][0]
    if "oneOf" in schema:
        return example_of(schema["oneOf"][0], schemas)
    if "properties" in schema:
        return {name: example_of(inner, schemas) for name, inner in schema["properties"].items()}
    if "items" in schema:
        return [example_of(schema["items"], schemas)]
    return {}
