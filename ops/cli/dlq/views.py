"""What `ecom dlq` prints: plans, results and lines, for people and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ops.cli.console import FOUND, harmless, print_json
from ops.domain import NEVER, Fate, Status, counted

if TYPE_CHECKING:
    from ops.dlq.operator_session import Run
    from ops.dlq.selection import Held


def print_plan(planned: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    lying = counted(planned["in_queue"], planned["ids"], "messages")
    click.echo(f"{planned['chosen']} of {lying} in {planned['queue']} are meant", err=True)
    for reason, count in planned["reasons"].items():
        click.echo(f"  {count} {reason}", err=True)
    for reason, count in planned["refused"].items():
        click.echo(f"  {count} refused: {reason} (--force takes them too)", err=True)


def end(runs: Sequence[Run], as_json: bool) -> None:
    """Print how operations ended. Exit code 0 if all is done; 1 if any message died again, was refused or is out."""
    told = [
        {
            "operation_id": str(run.operation_id),
            "kind": run.kind.value,
            "queue": run.queue,
            "status": run.status.value,
            "outcome": run.outcome,
            **run.tally.as_dict(),
            **({"sha256": run.sha256} if run.sha256 else {}),
        }
        for run in runs
    ]
    if as_json:
        print_json({"operations": told})
    else:
        for one, run in zip(told, runs, strict=True):
            sums = f"; sha256 {run.sha256}" if run.sha256 else ""
            click.echo(f"{one['kind']} {one['queue']}: {one['status']}: {one['outcome']}{sums}")
            for reason, count in run.tally.reasons.most_common():
                click.echo(f"  {count} {reason}")
            click.echo(f"  details: ecom dlq history {one['operation_id']}")
    clean = all(
        run.status == Status.DONE and not run.tally.fates[Fate.DEAD_AGAIN] and not run.tally.fates[Fate.REFUSED]
        for run in runs
    )
    sys.exit(0 if clean else FOUND)


def exported_line(one: Held) -> dict[str, Any]:
    from ops.dlq.dead_messages import to_line

    line: dict[str, Any] = json.loads(to_line(one.content))
    copies = len(one.slot.tags)
    return {**line, "reason": one.dead_letter.reason, "order_id": one.dead_letter.order_id, "copies": copies}


def plain(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return "" if value is None else harmless(str(value))


def ago(moment: datetime | None) -> str:
    if moment is None or moment == NEVER:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
