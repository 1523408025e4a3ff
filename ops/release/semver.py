"""The least version number that says to clients and operators what a change means for them. Pure.

By semver.org: a change that breaks a client raises the first number, anything new the second one, the rest the third.
Below 1.0.0 the first number stays: a break raises the second number and everything else the third.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ops.release.comparisons import Tree, without

MAJOR, MINOR, PATCH = "major", "minor", "patch"


class Version(NamedTuple):
    """Three numbers; they compare as semver does."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def version(text: str) -> Version:
    """The version of a text like 1.2.3. Raises ValueError for another."""
    numbers = text.split(".")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is no version like 1.2.3")
    return Version(*map(int, numbers))


def least(old: Tree, new: Tree) -> Version:
    """The least version of a tree that follows a release."""
    major, minor, patch = version(old["version"])
    level = bump(old, new)
    if major == 0:
        return Version(0, minor + 1, 0) if level == MAJOR else Version(0, minor, patch + 1)
    return {
        MAJOR: Version(major + 1, 0, 0),
        MINOR: Version(major, minor + 1, 0),
        PATCH: Version(major, minor, patch + 1),
    }[level]


def bump(old: Tree, new: Tree) -> str:
    """How much a change means: MAJOR, MINOR or PATCH."""
    if breaks(old, new):
        return MAJOR
    return MINOR if without(old, {"version"}) != without(new, {"version"}) else PATCH


def breaks(old: Tree, new: Tree) -> list[str]:
    """What clients, operators and readers of events must change with the new version, one thing a line."""
    return [*_lost_settings(old, new), *_lost_events(old, new), *_routes(old, new), *_schemas(old, new)]


def _lost_settings(old: Tree, new: Tree) -> Iterator[str]:
    for name in old["settings"].keys() - new["settings"].keys():
        yield f"setting {name} is gone"


def _lost_events(old: Tree, new: Tree) -> Iterator[str]:
    for type_, was in old["events"].items():
        now = new["events"].get(type_)
        if now is None:
            yield f"event {type_} is gone"
        else:
            yield from (f"event {type_} lost {path}" for path in was["fields"].keys() - now["fields"].keys())


def _routes(old: Tree, new: Tree) -> Iterator[str]:
    for route, was in old["http"]["routes"].items():
        now = new["http"]["routes"].get(route)
        if now is None:
            yield f"{route} is gone"
            continue
        for role in sorted(set(was["roles"] or ()) - set(now["roles"] or was["roles"] or ())):
            yield f"{route} refuses {role}"
        if was["roles"] is None and now["roles"] is not None:
            yield f"{route} needs a token"
        for name in was["parameters"].keys() - now["parameters"].keys():
            yield f"{route} lost the parameter {name}"
        for name, about in now["parameters"].items():
            if about["required"] and not was["parameters"].get(name, {"required": False})["required"]:
                yield f"{route} requires the parameter {name}"
        if now["body"] != was["body"]:
            yield f"{route} reads another body"
        for status, shape in was["answers"].items():
            if status[0] == "2" and not _has(now["answers"].get(status), shape):
                yield f"{route} answers {status} in another form"


def _has(now: Mapping[str, Any] | None, was: Mapping[str, Any]) -> bool:
    """Whether an answer still has every content type that it had, in the same form."""
    return now is not None and all(now.get(kind) == form for kind, form in was.items())


def _schemas(old: Tree, new: Tree) -> Iterator[str]:
    """Fields and words that went, and fields that a body must have now."""
    bodies = {route["body"] for route in old["http"]["routes"].values() if isinstance(route["body"], str)}
    for name, was in old["http"]["schemas"].items():
        now = new["http"]["schemas"].get(name, {})
        yield from (
            f"schema {name} lost the word {word}" for word in was.get("enum", ()) if word not in now.get("enum", ())
        )
        for field, shape in was.get("properties", {}).items():
            if field not in now.get("properties", {}):
                yield f"schema {name} lost the field {field}"
            elif now["properties"][field] != shape:
                yield f"schema {name}, field {field}: another form"
        if name in bodies:
            for field in set(now.get("required", ())) - set(was.get("required", ())):
                yield f"schema {name} requires {field}"
