"""An order_service that SIGKILLs itself between a commit and its answer, once, and a parent that starts it again.

python -m tests.integration.order_killer FILE    the file says whether it has died already; a line for each death
"""

from __future__ import annotations

# isort: off
from shared.edge import patched  # noqa: F401

# isort: on
import os
import signal
import sys
from pathlib import Path
from typing import Any

from order_service.service import OrderService
from shared.edge.rpc import rpc
from tests.integration.killer import live_again_and_again


class DyingOrderService(OrderService):
    """Makes the orders of its first list, and dies before it answers."""

    name = "order_service"
    has_died: Path

    @rpc
    def create_orders(self, posts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As OrderService does."""
        answers: list[dict[str, Any]] = super().create_orders(posts)
        if not self.has_died.exists():
            self.has_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answers


if __name__ == "__main__":
    DyingOrderService.has_died = Path(sys.argv[1])
    live_again_and_again(DyingOrderService, "order")
