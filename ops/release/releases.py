"""The frozen releases: docs/releases/VERSION.json, one file each, never changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ops.release.comparisons import Tree
from ops.release.semver import Version, version
from shared.errors import Conflict, NotFound

IN_REPOSITORY = Path("docs", "releases")
FOLDER = Path(__file__).resolve().parents[2] / IN_REPOSITORY

# A value that fits is one line, so that a change of it is one line of a diff.
MAX_LINE = 160


def freeze(tree: Tree, folder: Path = FOLDER) -> Path:
    """Write a version's file. Raises Conflict if there is one with other content: a release is never changed."""
    path = folder / f"{tree['version']}.json"
    text = as_text(tree)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise Conflict(f"{path.name} is frozen and this version differs from it: raise the version in setup.cfg")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def every(folder: Path = FOLDER) -> list[Tree]:
    """All frozen releases, the oldest first."""
    versions = sorted(version(path.stem) for path in folder.glob("*.json"))
    return [_read(one, folder) for one in versions]


def last(folder: Path = FOLDER) -> Tree:
    """The newest frozen release. Raises NotFound if there is none."""
    versions = [version(path.stem) for path in folder.glob("*.json")]
    if not versions:
        raise NotFound(f"there is no release in {folder}; `ecom release freeze` makes the first one")
    return _read(max(versions), folder)


def check_step(running: str, wanted: str, folder: Path = FOLDER) -> None:
    """Raise Conflict unless one version may replace another that runs: the same, the next or the one before.

    `wanted` may be newer than every frozen release. Raises NotFound for a running version that is not frozen.
    """
    frozen = [one["version"] for one in every(folder)]
    versions = frozen if wanted in frozen else [*frozen, wanted]
    if running not in frozen:
        raise NotFound(f"release {running} is not in {folder}")
    here, there = versions.index(running), versions.index(wanted)
    if abs(there - here) > 1:
        between = versions[here + (1 if there > here else -1)]
        raise Conflict(f"{running} runs, and {wanted} is {abs(there - here)} releases away: go to {between} first")


def _read(one: Version, folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / f"{one}.json").read_text(encoding="utf-8")))


def as_text(tree: Tree) -> str:
    """A tree as the text of its file: the same text for the same tree."""
    return _lines(tree, "") + "\n"


def _lines(value: Any, indent: str) -> str:
    short = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(indent) + len(short) <= MAX_LINE or not isinstance(value, dict | list):
        return short
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [f"{deeper}{json.dumps(name)}: {_lines(value[name], deeper)}" for name in sorted(value)]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _lines(one, deeper) for one in value) + f"\n{indent}]"
