"""An order's timeline as people read it."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from ops.cli.console import PIPE_WIDTH


def console() -> Console:
    """The terminal, or a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_timeline(console: Console, timeline: dict[str, Any], title: str) -> None:
    """Every step, what the order waits for if it does, and its ids."""
    table = Table("at", "event", "status", "told by", "details", title=title)
    for step in timeline["steps"]:
        change = step["to"] if step["from"] in (None, step["to"]) else f"{step['from']} -> {step['to']}"
        details = ", ".join(f"{name} {value}" for name, value in step["details"].items() if name != "shortages")
        table.add_row(step["at"][11:23], step["event"], change, step["source"], details)
    console.print(table)
    awaited = timeline["awaits"]
    if awaited:
        console.print(f"waits for {' or '.join(awaited['events'])} from {awaited['from']} for {awaited['for_s']} s")
    console.print(f"order {timeline['order_id']}  trace {timeline['trace_id']}\n")
