"""Answers that combine what several services know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.export import linked, orders_in
from shared.config import Settings
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import CannotWork, ServiceUnavailable

# What can do without the operators' tools does not wait for them longer.
SOON_S = 3.0


class Combined:
    """Mixed into routes whose answers come from more than one service."""

    config: Mapping[str, Any]
    orders = RpcProxy("order_service")
    ops_soon = RpcProxy("ops_service", SOON_S)

    @property
    def settings(self) -> Settings:
        settings: Settings = self.config["settings"]
        return settings

    def _timeline(self, order_id: str) -> dict[str, Any]:
        return {**self.orders.timeline(order_id), "dead_messages": self._of_ops("dead_of_order", order_id)}

    def _linked(self, releases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return linked(releases, self._of_ops("operations_of", orders_in(releases)) if releases else {})

    def _of_ops(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.ops_soon, method)(*args)
        except (CannotWork, ServiceUnavailable):
            return None  # whoever reads need not wait for the operators' tools
