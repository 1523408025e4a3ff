"""Where a person's request came from, as auth_service keeps it beside what they did."""

from __future__ import annotations

import re
from typing import Any

from gateway.api.http import Call
from shared.edge.shares import network_of

MAX_CLIENT = 100

# Header bytes arrive as Latin-1. PostgreSQL cannot store a NUL, and people read this text in a list of their sessions.
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def origin_of(call: Call) -> dict[str, Any]:
    """The network (an IPv4 address, or an IPv6 /64), the client's name for itself (100 characters) and the session."""
    client = _UNPRINTABLE.sub(" ", call.client).strip()[:MAX_CLIENT]
    return {"network": network_of(call.address), "client": client, "session_id": call.session_id}
