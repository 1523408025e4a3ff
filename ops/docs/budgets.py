"""What each piece of work costs in statements, transactions and messages, and the table of it in docs/performance.md.

Tests compare each number with what they measure, so that none grows unnoticed. `python -m ops.docs.contracts` writes
the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGINS, ENDS = "<!-- budgets: written by ops/docs/budgets.py -->\n", "<!-- end of budgets -->\n"

HEAD = """\
| work | batch of | SQL statements | transactions | events published | AMQP frames to publish them |
|---|---|---|---|---|---|
"""


class Cost(NamedTuple):
    """What a batch costs: of SQL statements without BEGIN and COMMIT, of frames those that are sent."""

    statements: int
    transactions: int
    events: int
    frames: int


POST, RELAY = "POST /api/orders", "the relay"

# For a batch of one message, and for one of fifty that drives every branch of the handler.
BUDGETS: dict[str, tuple[Cost, Cost]] = {
    POST: (Cost(4, 1, 1, 3), Cost(4, 1, 50, 150)),
    RELAY: (Cost(2, 0, 1, 3), Cost(2, 0, 50, 150)),
    "q.inventory.order-created": (Cost(7, 1, 1, 3), Cost(8, 1, 50, 150)),
    "q.payment.inventory-reserved": (Cost(5, 1, 1, 3), Cost(5, 1, 45, 135)),
    "q.order.inventory-result": (Cost(5, 1, 0, 0), Cost(6, 1, 10, 30)),
    "q.order.payment-result": (Cost(6, 1, 2, 6), Cost(6, 1, 100, 300)),
    "q.inventory.commit-requested": (Cost(7, 1, 1, 3), Cost(7, 1, 45, 135)),
    "q.inventory.release-requested": (Cost(9, 1, 1, 3), Cost(9, 1, 45, 135)),
    "q.payment.order-cancelled": (Cost(2, 1, 0, 0), Cost(4, 1, 0, 0)),
    "q.payment.refund-requested": (Cost(8, 1, 1, 3), Cost(8, 1, 50, 150)),
    "q.order.catalog-offers": (Cost(2, 1, 0, 0), Cost(2, 1, 0, 0)),
    "q.catalog.stock-availability": (Cost(2, 1, 0, 0), Cost(2, 1, 0, 0)),
}


def table() -> str:
    """The table, one line for each batch."""
    lines = (
        f"| {work} | {size} | {' | '.join(str(number) for number in cost)} |\n"
        for work, costs in BUDGETS.items()
        for size, cost in zip((1, 50), costs, strict=True)
    )
    return HEAD + "".join(lines)


def with_budgets(text: str) -> str:
    """docs/performance.md with the table as it must be. Raises ValueError where its place is not marked once."""
    before, begins, rest = text.partition(BEGINS)
    ends, after = rest.partition(ENDS)[1:]
    if not (begins and ends) or BEGINS in rest:
        raise ValueError("docs/performance.md must mark the place of the table of budgets once")
    return before + begins + table() + ends + after


def main() -> None:
    """Bring docs/performance.md up to date."""
    FILE.write_text(with_budgets(FILE.read_text(encoding="utf-8")), encoding="utf-8")
