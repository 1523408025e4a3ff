"""Keyset pages: an opaque cursor that remembers where a page ended and for which filters."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import InvalidCursor


def encode_cursor(position: Sequence[Any], filters: Mapping[str, Any]) -> str:
    """A cursor for the rows after `position`."""
    text = json.dumps([_hash(filters), *position], separators=(",", ":"), default=str)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, filters: Mapping[str, Any], kinds: Sequence[type]) -> list[Any]:
    """The position in a cursor. Raises InvalidCursor unless it was made for these filters."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        made_for, *position = json.loads(text)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidCursor() from error
    fits = len(position) == len(kinds) and all(type(p) is kind for p, kind in zip(position, kinds, strict=False))
    if made_for != _hash(filters) or not fits:
        raise InvalidCursor()
    return list(position)


def page_of(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """The page's rows, and whether there are more: read one row more than the limit."""
    return rows[:limit], len(rows) > limit


def _hash(filters: Mapping[str, Any]) -> str:
    text = json.dumps(filters, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
