"""The feed of the steps of all orders: what order_service and the gateway must agree about."""

from __future__ import annotations

# Instead of a position: before the first step, and after the last one that is in the feed now.
BEGINNING, NOW = "0", "now"

# Steps that a stream of the feed reads at once. It holds no more in memory.
STREAM_PAGE = 200
