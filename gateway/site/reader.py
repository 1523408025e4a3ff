"""Describes an OpenAPI document for people: puts examples together and says types in a few words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.api.examples import NULL, example_of, resolved

MAX_WORDS_SHOWN = 24
MAX_PATTERN_SHOWN = 64
# The pattern of a text that may hold all but NUL.
NO_NUL = r"[^\x00]*"


@dataclass(frozen=True)
class Item:
    """A parameter or a field: its name, whether it is required, its type in words and pattern, and where it is sent."""

    name: str
    required: bool
    shape: str
    pattern: str
    description: str
    place: str = ""


@dataclass(frozen=True)
class Body:
    """One shape of a request body: what it is, unless a body has one shape only, and its fields."""

    description: str
    fields: tuple[Item, ...]


class DocumentReader:
    """Describes one document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.schemas = document["components"]["schemas"]

    def operation(self, method: str, path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
        """What the page shows about one operation."""
        content = operation.get("requestBody", {}).get("content", {})
        body = content["application/json"]["schema"] if content else None
        return {
            "id": operation["operationId"],
            "method": method,
            "path": path,
            "summary": operation["summary"],
            "paragraphs": operation["description"].split("\n\n"),
            "roles": operation.get("x-roles"),
            "parameters": [
                self.item(item["name"], item["required"], item["schema"], item.get("description", ""), item["in"])
                for item in operation["parameters"]
            ],
            "bodies": list(self.bodies(body)) if body else [],
            "answers": [self.answer(status, answer) for status, answer in operation["responses"].items()],
            "curl": self.curl(method, path, operation, body),
            "samples": operation.get("x-codeSamples", []),
        }

    def answer(self, status: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        """What the page shows about one answer: an example and its fields, or the codes of an error."""
        content: Mapping[str, Any] = next(iter(answer.get("content", {}).values()), {"schema": {}})
        good = int(status) < 400
        example = self.example(content["schema"]) if good and "$ref" in content["schema"] else None
        example = content.get("example", example)
        return {
            "status": status,
            "lines": [line.removeprefix("- ") for line in answer["description"].splitlines()],
            "good": good,
            "example": json.dumps(example, indent=2) if example is not None else "",
            "fields": list(self.fields(content["schema"])) if good else [],
        }

    def curl(self, method: str, path: str, operation: Mapping[str, Any], body: Mapping[str, Any] | None) -> str:
        """The call as a curl command."""
        for item in operation["parameters"]:
            if item["in"] == "path":
                path = path.replace(f"{{{item['name']}}}", str(item["schema"]["examples"][0]))
        query = [
            f"{item['name']}={item['schema']['examples'][0]}"
            for item in operation["parameters"]
            if item["in"] == "query" and item["required"]
        ]
        address = path + ("?" + "&".join(query) if query else "")
        words = [f"curl -i {'' if method == 'GET' else f'-X {method} '}$api{address}"]
        if operation.get("security"):
            words.append('-H "Authorization: Bearer $token"')
        for item in operation["parameters"]:
            if item["in"] == "header" and item["required"]:
                words.append(f"-H '{item['name']}: {item['schema']['examples'][0]}'")
        if body is not None:
            words.append("-H 'Content-Type: application/json'")
            words.append(f"-d '{json.dumps(self.example(body))}'")
        return " \\\n  ".join(words)

    def example(self, schema: Mapping[str, Any]) -> Any:
        """An example of a schema, put together from the examples of its fields."""
        return example_of(schema, self.schemas)

    def item(self, name: str, required: bool, schema: Mapping[str, Any], description: str, place: str = "") -> Item:
        """A parameter or a field."""
        return Item(name, required, self.shape(schema), _pattern(self.resolved(schema)), description, place)

    def bodies(self, schema: Mapping[str, Any]) -> Iterator[Body]:
        """Every shape of a request body."""
        shapes = self.resolved(schema).get("oneOf", ())
        for shape in shapes or [schema]:
            yield Body(self.resolved(shape)["description"] if shapes else "", tuple(self.fields(shape)))

    def fields(self, schema: Mapping[str, Any], prefix: str = "") -> Iterator[Item]:
        """Every field. Fields of inner objects have dotted names."""
        schema = self.resolved(schema)
        for name, inner in schema.get("properties", {}).items():
            whole = self.resolved(inner)
            required = name in schema.get("required", ())
            # A list of objects has a description of its own; an object is described by its fields.
            description = inner.get("description") or ("" if "properties" in whole else whole.get("description", ""))
            yield self.item(prefix + name, required, inner, description)
            if "items" in whole:
                yield from self.fields(whole["items"], f"{prefix}{name}[].")
            else:
                yield from self.fields(inner, f"{prefix}{name}.")

    def resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema behind a reference; for a nullable schema, the schema of its other values."""
        return resolved(schema, self.schemas)

    def shape(self, schema: Mapping[str, Any]) -> str:
        """The type of a value, in a few words."""
        kinds = schema.get("anyOf", [schema])
        words = " or ".join(self._shape(self.resolved(kind)) for kind in kinds if kind != NULL)
        return words + (" or null" if NULL in kinds else "")

    def _shape(self, schema: Mapping[str, Any]) -> str:
        words = self.resolved(schema.get("items", {}))
        return _shape(schema) + (f"; each is {_shape(words)}" if "enum" in words else "")


def _shape(schema: Mapping[str, Any]) -> str:
    types = schema.get("type", "anything")
    kind, *others = types if isinstance(types, list) else [types]
    if len(schema.get("enum", ())) in range(1, MAX_WORDS_SHOWN + 1):
        words = "one of " + ", ".join(str(value) for value in schema["enum"] if value is not None)
    elif "enum" in schema:
        words = f"one of {len(schema['enum'])} words"
    elif schema.get("format") == "uuid":
        words = "UUID"
    elif schema.get("format") == "date-time":
        words = "time"
    elif kind == "integer":
        words = "integer" + _range(schema, "minimum", "maximum")
    elif kind == "array":
        words = "list" + _range(schema, "minItems", "maxItems")
    else:
        words = {"string": "text", "boolean": "true or false"}.get(str(kind), str(kind))
        words += _range(schema, "minLength", "maxLength", " characters")
    return words + (" or null" if "null" in others else "")


def _pattern(schema: Mapping[str, Any]) -> str:
    """The pattern of a text without its anchors. A long one is left out: its field is described in words."""
    match = re.fullmatch(r"\^(?:\(\?:(.*)\)|(.*))\$", schema.get("pattern", ""))
    pattern = (match[1] or match[2]) if match else ""
    return "" if pattern == NO_NUL or len(pattern) > MAX_PATTERN_SHOWN else pattern


def _range(schema: Mapping[str, Any], least: str, most: str, unit: str = "") -> str:
    if least in schema and most in schema:
        return f", {schema[least]:,} to {schema[most]:,}{unit}"
    return ""
