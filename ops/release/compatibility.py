"""Writes docs/compatibility.md from the frozen releases: which versions may run side by side, and what each one adds.

`python -m ops.docs.contracts` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.release.comparisons import Tree
from ops.release.releases import FOLDER, every
from ops.release.rules import RULES, breaches

FILE = FOLDER.parent / "compatibility.md"

# The page shows the newest releases only; every file stays in docs/releases.
SHOWN = 8

HEAD = """\
# Compatibility
`python -m ops.docs.contracts` writes this page from docs/releases, where each release has a file with all that it
shares with others. `ecom release check` compares the code with the newest of them.

## Which versions may run side by side
A row is the version that runs, a column the one that is to replace it. An upgrade runs both for a while; a rollback
goes from the column back to the row, by image alone. Go one release at a time.

"""

RULES_HEAD = """
## What one release may change
| shared by both versions | allowed in one release | what needs two |
|---|---|---|
"""

NEWS_HEAD = """
## What each release brought
What an operator meets: new queues need `ecom topology apply`, new migrations `ecom migrate`, each before the new
version starts. A migration of the phase "expand" only adds; one of the phase "contract" takes away what neither its own
version nor the one before uses.
"""

# What a release has by name: the place in its file, and how it is called here.
NAMED = (
    ("events", "event types"),
    ("queues", "queues"),
    ("exchanges", "exchanges"),
    ("rpc", "RPC methods"),
    ("errors", "errors"),
    ("tables", "tables"),
    ("settings", "settings"),
)


def document(folder: Path = FOLDER) -> str:
    """The page."""
    shown = every(folder)[-SHOWN:]
    return HEAD + _matrix(shown) + RULES_HEAD + _rules() + NEWS_HEAD + "".join(_news(shown))


def _matrix(shown: Sequence[Tree]) -> str:
    versions = [one["version"] for one in shown]
    lines = [f"| | {' | '.join(versions)} |", "|---" * (len(versions) + 1) + "|"]
    for row, old in enumerate(shown):
        cells = [_cell(shown, row, column) for column in range(len(shown))]
        lines.append(f"| **{old['version']}** | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(shown: Sequence[Tree], row: int, column: int) -> str:
    if column == row:
        return "itself"
    if column < row:
        return "" if row - column > 1 else "rollback"
    if column - row > 1:
        return f"by {shown[row + 1]['version']}"
    return "no" if breaches(shown[row], shown[column]) else "yes"


def _rules() -> str:
    return "".join(f"| {rule.shared} | {rule.one} | {rule.two} |\n" for rule in RULES)


def _news(shown: Sequence[Tree]) -> Iterator[str]:
    """The newest release first."""
    for at in reversed(range(len(shown))):
        yield f"\n### {shown[at]['version']}\n"
        yield from _migrations(shown[at], shown[at - 1] if at else None)
        if at:
            yield from _changes(shown[at - 1], shown[at])
        else:
            yield "- The first release that is kept here.\n"


def _migrations(now: Tree, before: Tree | None) -> Iterator[str]:
    for database, about in now["migrations"].items():
        known = before["migrations"].get(database, {"revisions": {}})["revisions"] if before else {}
        added = {number: one for number, one in about["revisions"].items() if number not in known}
        if before is None or not added:
            yield f"- {database} is at migration {', '.join(about['heads'])}.\n"
        else:
            listed = ", ".join(f"{number} ({one['phase']})" for number, one in sorted(added.items()))
            yield f"- {database} gets {listed}.\n"


def _changes(before: Tree, now: Tree) -> Iterator[str]:
    for place, called in NAMED:
        for verb, names in (
            ("New", _missing(now[place], before[place])),
            ("Gone", _missing(before[place], now[place])),
        ):
            if names:
                yield f"- {verb} {called}: {', '.join(f'`{name}`' for name in names)}.\n"


def _missing(names: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    return sorted(names.keys() - others.keys())


def main() -> None:
    """Write the page."""
    FILE.write_text(document(), encoding="utf-8")
