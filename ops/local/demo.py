"""`make demo`: orders and what became of them, on the stack whose gateway is at GATEWAY_URL."""

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

ON_HAND = 10
PRICE, NEW_PRICE = 1999, 2499


@dataclass(frozen=True)
class Scene:
    """One order: its request, its expected end, and the step after which nothing more happens."""

    title: str
    quantity: int
    payment: str
    status: str
    reason: str | None
    last: str


SCENES = (
    Scene("A customer buys 2 of 10", 2, "mock_ok", "PAID", None, "inventory.committed"),
    Scene("A customer wants more than there is", 1000, "mock_ok", "CANCELLED", "out_of_stock", "inventory.failed"),
    Scene("A card is declined", 3, "mock_declined", "CANCELLED", "payment_failed", "inventory.released"),
)
RELEASED = 3
# Once the price has changed.
SEEN = Scene("A customer who has seen the new price buys 1", 1, "mock_ok", "PAID", None, "inventory.committed")
AGREED = Scene("The customer agrees and posts again, with the same key", 1, "mock_ok", "PAID", None, SEEN.last)
LEFT_ON_HAND = 6


class Demo:
    """Plays scenes with one sku. `wrong` holds what is not as it must be."""

    def __init__(self, flow: Flow, console: Console) -> None:
        self.flow = flow
        self.console = console
        self.sku = f"demo-{uuid.uuid4().hex[:8]}"
        self.wrong: list[str] = []

    def run(self) -> None:
        """Everything, in its order."""
        stock = self.flow.stock(self.sku, ON_HAND, PRICE)
        self.console.print(f"\nThe menu has {self.sku} at {_euros(PRICE)}; {stock['on_hand']} are on hand\n")
        for scene in SCENES:
            self.play(scene, PRICE)
        self.change_price()
        self.audit()

    def play(self, scene: Scene, price: int, key: str | None = None) -> None:
        """Post the order of a scene, wait for its end and print its way."""
        began = time.monotonic()
        posted = self.flow.order(self.sku, scene.quantity, scene.payment, unit_price=price, key=key)
        order = self.flow.at_rest(posted["order_id"])
        took_s = time.monotonic() - began
        timeline = self.flow.timeline(order["order_id"], last=scene.last)
        print_timeline(self.console, timeline, f"{scene.title}: {_end(timeline)} after {took_s * 1000:.0f} ms")
        if (order["status"], order["reason"]) != (scene.status, scene.reason):
            self.wrong.append(f"{scene.title}: {order['status']} ({order['reason']})")

    def change_price(self) -> None:
        """Raise the price. Who names the new one is charged it; who names the old one is refused and told the new one.

        The order at the new price comes first: with it the order service learns the price, event or no event.
        """
        self.flow.sell({self.sku: NEW_PRICE})
        self.console.print(f"An admin raises the price from {_euros(PRICE)} to {_euros(NEW_PRICE)}\n")
        self.play(SEEN, NEW_PRICE)
        key = str(uuid.uuid4())
        answer = self.flow.post_order(self.sku, AGREED.quantity, AGREED.payment, unit_price=PRICE, key=key)
        told = answer.json().get("error", {})
        self.console.print(f"A customer has seen {_euros(PRICE)} and posts 1: {answer.status_code} {told.get('code')}")
        if (answer.status_code, told.get("code")) != (409, "price_changed"):
            self.wrong.append(f"the old price: {answer.status_code} {answer.text}")
            return
        (line,) = told["details"]["lines"]
        self.console.print(f"Nothing is ordered. The answer says that it costs {_euros(line['unit_price'])} now\n")
        self.play(AGREED, line["unit_price"], key)

    def audit(self) -> None:
        """Print the stock that is left and the releases, and compare them with what is expected."""
        stock = self.flow.get(f"/api/stocks/{self.sku}")
        releases = self.flow.get(f"/api/stocks/release-events?sku={self.sku}", user="auditor")["items"]
        self.console.print(f"Stock of {self.sku}: {stock['on_hand']} on hand, {stock['reserved']} reserved")
        for item in releases:
            self.console.print(
                f"Release event {item['id']}: {item['quantity']} of {item['sku']} back, {item['reason']},"
                f" for {item['requested_by']}, trace {item['trace_id']}"
            )
        if (stock["on_hand"], stock["reserved"]) != (LEFT_ON_HAND, 0):
            self.wrong.append(f"stock is {stock}")
        if [item["quantity"] for item in releases] != [RELEASED]:
            self.wrong.append(f"release events are {releases}")


def main() -> int:
    """Run the scenes; 0 when each order ended as it must, 1 otherwise."""
    outlive_readers()
    console = terminal()
    demo = Demo(Flow(os.environ["GATEWAY_URL"]), console)
    try:
        demo.run()
    except (requests.RequestException, TimeoutError) as error:
        demo.wrong.append(f"{type(error).__name__}: {error}")
    for line in demo.wrong:
        console.print(f"[bold red]wrong:[/] {line}")
    console.print("\n[bold red]Failed.[/]" if demo.wrong else "\n[bold green]All orders ended as they must.[/]")
    return 1 if demo.wrong else 0


def _euros(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02} EUR"


def _end(timeline: dict[str, Any]) -> str:
    return str(timeline["status"]) + (f" ({timeline['reason']})" if timeline["reason"] else "")


if __name__ == "__main__":
    sys.exit(main())
