"""Keyset pages: an opaque cursor that remembers where a page ended and for which filters.

The gateway signs what it hands out, and refuses what it has not signed (`gateway/api/cursors.py`). A service reads each
value of a position by the parser of its column, so that no cursor of any caller reaches a query with another value.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from shared.errors import InvalidCursor

Parser = Callable[[Any], Any]


def encode_cursor(position: Sequence[Any], filters: Mapping[str, Any]) -> str:
    """A cursor for the rows after `position`."""
    text = json.dumps([_hash(filters), *position], separators=(",", ":"), default=str)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, filters: Mapping[str, Any], parsers: Sequence[Parser]) -> list[Any]:
    """The position in a cursor, each value as its parser returns it.

    Raises InvalidCursor unless the cursor was made for these filters and every value is one that its column can hold.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        made_for, *position = json.loads(text)
        if made_for != _hash(filters):
            raise InvalidCursor()
        return [parse(value) for parse, value in zip(parsers, position, strict=True)]
    except (binascii.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidCursor() from error


# The parsers of positions raise ValueError, TypeError or OverflowError for what a column cannot hold.


def name_position(value: Any) -> str:
    """A text that PostgreSQL can store."""
    if type(value) is not str or "\0" in value:
        raise ValueError("not a text without NUL")
    value.encode()  # a lone surrogate is no text
    return value


def row_position(value: Any) -> int:
    """The number of a row, a bigint."""
    if type(value) is not int or not 0 < value < 2**63:
        raise ValueError("not the number of a row")
    return value


def time_position(value: Any) -> datetime:
    """A moment with a zone, in UTC."""
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a moment without a zone")
    return moment.astimezone(UTC)


def id_position(value: Any) -> uuid.UUID:
    """A UUID."""
    if type(value) is not str:
        raise TypeError("not a UUID")
    return uuid.UUID(value)


def page_of(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """The page's rows, and whether there are more: read one row more than the limit."""
    return rows[:limit], len(rows) > limit


def _hash(filters: Mapping[str, Any]) -> str:
    text = json.dumps(filters, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
