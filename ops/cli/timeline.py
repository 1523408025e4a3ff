"""An order's timeline as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ops.cli.console import console as console
from ops.cli.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

STEPS = Table(("at", "event", "status", "told by", "by", "details"), optional=("told by", "by"), empty="no step yet")


def print_timeline(console: Console, timeline: dict[str, Any], title: str) -> None:
    """Every step, what the order waits for if it does, and its ids."""
    show_steps(timeline, title, console)
    console.print(f"order {timeline['order_id']}  trace {timeline['trace_id']}\n")


def show_steps(order: dict[str, Any], title: str = "", on: Console | None = None) -> None:
    """Print every step of an order so far, and what it waits for, from whom and for how long."""
    on = on or console()
    STEPS.show((_row(step) for step in order["steps"]), title, on)
    awaits = order["awaits"]
    if awaits:
        on.print(f"waits for {' or '.join(awaits['events'])} from {awaits['from']} for {awaits['for_s']} s")


def _row(step: dict[str, Any]) -> tuple[str, ...]:
    change = step["to"] if step["from"] in (None, step["to"]) else f"{step['from']} -> {step['to']}"
    details = ", ".join(f"{name} {value}" for name, value in step["details"].items() if name != "shortages")
    return step["at"][11:23], step["event"], change, step["source"], step["by"], details
