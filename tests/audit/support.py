"""Shared by the tests of the audit: sealed rows, and exports as clients read them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from typing import Any

import requests

from shared import exports, seals
from tests import releases
from tests.e2e.system import System, eventually

EVENTS = "/api/stocks/release-events"
EXPORT = f"{EVENTS}/export"
BATCH = 50_000
# The time of the first planted row; filters can begin before it.
FIRST = 10_000


def plant(system: System, count: int) -> None:
    """Have at least this many rows in the audit, all of them sealed."""
    (there,) = system.databases.rows("inventory", "SELECT count(*) AS n FROM inventory_release_events")
    for first in range(there["n"], count, BATCH):
        releases.write(system.databases, min(BATCH, count - first), FIRST + first)
    wait_sealed(system)


def wait_sealed(system: System, patience_s: float = 600.0) -> None:
    """Return when a seal covers every row."""
    statement = (
        "SELECT (SELECT count(*) FROM inventory_release_events) - (SELECT coalesce(max(total), 0) FROM release_seals)"
        " AS waiting"
    )
    eventually(
        lambda: system.databases.rows("inventory", statement)[0]["waiting"], lambda n: n == 0, patience_s, "not sealed"
    )


def begin(system: System, query: str = "") -> requests.Response:
    """An export that has begun and of which only the head was read."""
    flow = system.flow()
    headers = {"Authorization": f"Bearer {flow.token('auditor')}"}
    answer = requests.get(f"{flow.url}{EXPORT}{query}", headers=headers, stream=True, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def proved(system: System, file: bytes) -> dict[str, Any]:
    """The manifest of a file, checked against its signature and its bytes."""
    place = file.rindex(f'"{exports.MANIFEST}",'.encode())
    signed, last = file[:place], file[place:]
    ((_, cell, *_),) = csv.reader([last.decode()], strict=True)
    manifest = dict(json.loads(cell))
    assert manifest["sha256"] == hashlib.sha256(signed).hexdigest()
    assert manifest["mac"] == seals.manifest_mac(system.settings.audit_key, manifest)
    return manifest


def verified(system: System, file: bytes) -> tuple[list[list[str]], dict[str, Any]]:
    """The lines of a file and its manifest, which proves it complete and unaltered."""
    manifest = proved(system, file)
    header, *lines, last = csv.reader(io.StringIO(file.decode(), newline=""), strict=True)
    assert tuple(header) == exports.COLUMNS
    assert (last[0], len(last)) == (exports.MANIFEST, len(exports.COLUMNS))
    assert manifest["rows"] == len(lines)
    return lines, manifest
