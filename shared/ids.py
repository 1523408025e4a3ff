"""Ids that we make, and how clients may write ids."""

from __future__ import annotations

import os
import re
import time
import uuid

# A UUID as clients write it: with hyphens, in either case.
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# A trace id as clients write it: 32 hex digits, or the UUID that errors show.
TRACE_ID_TEXT = re.compile(rf"[0-9a-fA-F]{{32}}|{UUID_TEXT.pattern}")

AGGREGATE_NAMESPACE = uuid.UUID("b0d2b8a4-54d1-5b52-8a53-0c6a2d3a9f10")


def uuid7() -> uuid.UUID:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits.

    Rows made one after another lie beside each other in an index, which random ids do not.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def aggregate_of(kind: str, name: str) -> uuid.UUID:
    """The aggregate of something that is known by a name and has no UUID: ("sku", "lamp"), ("user", "ann")."""
    return uuid.uuid5(AGGREGATE_NAMESPACE, f"{kind}:{name}")


def new_trace_id() -> str:
    """32 hex digits: the W3C trace id of a request that brought none."""
    return uuid7().hex
