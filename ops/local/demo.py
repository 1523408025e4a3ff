"""`make demo`: three orders and what became of them, on the stack whose gateway is at GATEWAY_URL."""

from __future__ import annotations

import os
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

import requests
from rich.console import Console

from ops.cli.flow import Flow
from ops.cli.timeline import console as terminal
from ops.cli.timeline import print_timeline
from ops.closed_pipes import outlive_readers


@dataclass(frozen=True)
class Scene:
    """One order: its request, its expected end, and the step after which nothing more happens."""

    title: str
    quantity: int
    payment: str
    status: str
    reason: str | None
    last: str


ON_HAND = 10
SCENES = (
    Scene("A customer buys 2 of 10", 2, "mock_ok", "PAID", None, "inventory.committed"),
    Scene("A customer wants more than there is", 1000, "mock_ok", "CANCELLED", "out_of_stock", "inventory.failed"),
    Scene("A card is declined", 3, "mock_declined", "CANCELLED", "payment_failed", "inventory.released"),
)
LEFT_ON_HAND = 8


def main() -> int:
    """Run the scenes; 0 when each order ended as it must, 1 otherwise."""
    outlive_readers()
    flow = Flow(os.environ["GATEWAY_URL"])
    console = terminal()
    sku = f"demo-{uuid.uuid4().hex[:8]}"
    wrong = []
    try:
        stock = flow.stock(sku, ON_HAND)
        console.print(f"\nStock of {sku}: {stock['on_hand']} on hand\n")
        for scene in SCENES:
            began = time.monotonic()
            posted = flow.order(sku, scene.quantity, scene.payment)
            order = flow.at_rest(posted["order_id"])
            took = time.monotonic() - began
            show(console, scene, flow.timeline(order["order_id"], last=scene.last), took)
            if (order["status"], order["reason"]) != (scene.status, scene.reason):
                wrong.append(f"{scene.title}: {order['status']} ({order['reason']})")
        wrong += audit(console, flow, sku)
    except (requests.RequestException, TimeoutError) as error:
        wrong.append(f"{type(error).__name__}: {error}")
    for line in wrong:
        console.print(f"[bold red]wrong:[/] {line}")
    console.print("\n[bold green]All three orders ended as they must.[/]" if not wrong else "\n[bold red]Failed.[/]")
    return 1 if wrong else 0


def show(console: Console, scene: Scene, timeline: dict[str, Any], took_s: float) -> None:
    """Print one order's way."""
    end = timeline["status"] + (f" ({timeline['reason']})" if timeline["reason"] else "")
    print_timeline(console, timeline, f"{scene.title}: {end} after {took_s * 1000:.0f} ms")


def audit(console: Console, flow: Flow, sku: str) -> list[str]:
    """Print the stock that is left and the releases; returns the differences from what is expected."""
    stock = flow.get(f"/api/stocks/{sku}")
    releases = flow.get(f"/api/stocks/release-events?sku={sku}", user="auditor")["items"]
    console.print(f"Stock of {sku}: {stock['on_hand']} on hand, {stock['reserved']} reserved")
    for item in releases:
        console.print(
            f"Release event {item['id']}: {item['quantity']} of {item['sku']} back, {item['reason']},"
            f" for {item['requested_by']}, trace {item['trace_id']}"
        )
    wrong = []
    if (stock["on_hand"], stock["reserved"]) != (LEFT_ON_HAND, 0):
        wrong.append(f"stock is {stock}")
    if [item["quantity"] for item in releases] != [SCENES[2].quantity]:
        wrong.append(f"release events are {releases}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
