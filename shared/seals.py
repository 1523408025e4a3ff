"""Tamper evidence: seals over runs of rows, each bound to the seal before it, and signed manifests of exports.

Both are HMAC-SHA256 (RFC 2104) under AUDIT_KEY, which is in no database: write access to the tables makes no seal.
The hashed text is JSON, one value a line, so that no two different runs of rows have the same bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

# What the first seal is bound to.
GENESIS = "0" * 64

# What a MAC is of stands first in what is hashed, so that a seal can never pass for a manifest.
_SEAL = "ecom seal v1"
_MANIFEST = "ecom export manifest v1"
_KEY_ID = b"ecom audit key"


@dataclass(frozen=True)
class Seal:
    """A link of the chain: it covers the `rows` rows after the seal before it, up to the position (xid, id).

    `total` counts the rows of the whole chain so far; `key_id` names the key that made `mac`.
    """

    seq: int
    until_xid: int
    until_id: int
    rows: int
    total: int
    sealed_at: datetime
    key_id: str
    mac: str


def key_id(key: str) -> str:
    """A name for a key that reveals nothing of it."""
    return hmac.new(key.encode(), _KEY_ID, hashlib.sha256).hexdigest()[:16]


def key_of(keys: Sequence[str], wanted: str) -> str | None:
    """The key with this id, or None when we have it not."""
    return next((key for key in keys if key_id(key) == wanted), None)


class Place(NamedTuple):
    """Where a seal stands in the chain: its number, its last row, the rows up to it, and its time."""

    seq: int
    until: tuple[int, int]
    total: int
    sealed_at: datetime


def seal_mac(
    key: str,
    before: str,
    place: Place,
    rows: Sequence[Sequence[Any]],
) -> str:
    """The MAC of a seal over rows of plain values, bound to the MAC of the seal before it."""
    head = [_SEAL, before, place.seq, *place.until, len(rows), place.total, moment(place.sealed_at)]
    return _mac(key, (head, *rows))


def manifest_mac(key: str, manifest: Mapping[str, Any]) -> str:
    """The MAC of a manifest: of everything in it but the MAC itself."""
    told = {name: value for name, value in manifest.items() if name != "mac"}
    return _mac(key, (_MANIFEST, told))


def same(mac: str, other: str) -> bool:
    """Whether two MACs are equal; takes the same time wherever they differ."""
    # A file may hold a lone surrogate, which UTF-8 cannot.
    return hmac.compare_digest(mac.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def moment(at: datetime) -> str:
    """A time in UTC to the microsecond: what PostgreSQL keeps."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _mac(key: str, values: Iterable[Any]) -> str:
    made = hmac.new(key.encode(), digestmod=hashlib.sha256)
    for value in values:
        made.update(json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return made.hexdigest()
