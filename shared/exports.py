"""The release audit as CSV (RFC 4180, UTF-8): what an export writes and `ecom audit verify-export` reads.

A header, a line for each release, and a last line with the signed manifest, by which a file proves itself complete.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = (
    "id",
    "order_id",
    "reservation_id",
    "sku",
    "quantity",
    "reason",
    "requested_by",
    "roles",
    "trace_id",
    "released_at",
    "operations",
)

# The first cell of the last line; the second is the manifest. No release has such an id.
MANIFEST = "manifest"

# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def header_line() -> bytes:
    """The names of the columns."""
    return _lines([COLUMNS])


def release_lines(releases: Iterable[Mapping[str, Any]]) -> bytes:
    """A line for each release, which has its `operations`."""
    return _lines(_cells(release) for release in releases)


def manifest_line(manifest: Mapping[str, Any]) -> bytes:
    """The last line."""
    told = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return _lines([(MANIFEST, told, *("" for _ in COLUMNS[2:]))])


def neutral(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _cells(release: Mapping[str, Any]) -> Sequence[str]:
    told = {
        **release,
        "roles": " ".join(release["roles"]),
        "operations": "; ".join(_operation(one) for one in release["operations"]),
    }
    return [neutral(str(told[name])) for name in COLUMNS]


def _operation(one: Mapping[str, Any]) -> str:
    why = f": {one['why']}" if one["why"] else ""
    return f"{one['kind']} {one['operation_id']} by {one['actor']}{why}"


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
