"""W3C trace context (https://www.w3.org/TR/trace-context/): always on, no library needed."""

from __future__ import annotations

import os
import re
import uuid

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def traceparent(trace_id: str) -> str:
    """A header for the next hop of a trace, with a new span id."""
    return f"00-{trace_id}-{os.urandom(8).hex()}-01"


def trace_id_of(header: str | None) -> str | None:
    """The trace id in a traceparent header, or None when there is none that is well formed."""
    match = _TRACEPARENT.fullmatch((header or "").strip().lower())
    return match[1] if match and match[1].strip("0") else None


def trace_id_from_correlation(header: str | None) -> str | None:
    """A correlation id that is a UUID is a trace id; any other is not."""
    if not header:
        return None
    try:
        return uuid.UUID(header.strip()).hex
    except ValueError:
        return None


def as_uuid(trace_id: str) -> str:
    """A trace id as clients see it in errors: a UUID."""
    return str(uuid.UUID(hex=trace_id))
