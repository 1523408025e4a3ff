"""Answers that combine what several services know."""

from __future__ import annotations

from typing import Any

from gateway.export import linked, orders_in
from shared.config import Settings
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import CannotWork, ServiceUnavailable

# Answers that are useful without ops_service wait for it no longer than this.
SOON_S = 3.0


class Combined:
    """Base of the subjects whose answers come from more than one service."""

    settings: Settings
    orders = RpcProxy("order_service")
    ops_soon = RpcProxy("ops_service", SOON_S)

    def _timeline(self, order_id: str) -> dict[str, Any]:
        return {**self.orders.timeline(order_id), "dead_messages": self._ask_ops("dead_of_order", order_id)}

    def _linked(self, releases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return linked(releases, self._ask_ops("operations_of", orders_in(releases)) if releases else {})

    def _ask_ops(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.ops_soon, method)(*args)
        except (CannotWork, ServiceUnavailable):
            return None  # the rest of the answer is useful without it
