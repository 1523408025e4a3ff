"""The commands of `ecom dlq`. QUEUE is a main queue or its .dlq.

Only click and the standard library are imported here, and the engine where a command needs it: it patches the
standard library first.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from ops.cli.console import FOUND, Plain, confirm, heading, json_option, print_json
from ops.cli.dlq.options import (
    Moment,
    actor_options,
    ask_options,
    complete_queue,
    filter_of,
    filter_options,
    limit_of,
    queue_argument,
    scan_option,
    selection_options,
)
from ops.cli.dlq.session import operator_session
from ops.cli.dlq.views import ago, end, exported_line, plain, print_plan
from ops.cli.tables import Table, show_record
from ops.cli.timeline import show_steps
from ops.domain import Pace, counted, dlq_of, parse_ramp, parse_rate
from shared.replays import DEFAULT_RATE

if TYPE_CHECKING:
    from ops.dlq.operator_session import OperatorSession

TOP_REASONS = 3

DLQS = Table(("queue", "messages", "oldest", "newest", "reasons"), optional=("newest", "oldest"))
GROUPS = Table(
    ("count", "reason", "error", "event type", "oldest", "newest", "for example", "its error"),
    optional=("oldest", "newest"),
    empty="no dead messages",
)
MESSAGES = Table(
    ("message_id", "event type", "reason", "tries", "replays", "first failed", "error"),
    optional=("replays", "tries", "event type", "first failed"),
)
PREDICTIONS = Table(("count", "prediction", "why", "died of", "event type", "for example"), empty="nothing to diagnose")
HISTORY = Table(
    ("started_at", "kind", "queue", "actor", "status", "outcome", "why", "operation_id"), empty="no operation"
)
FATES = Table(
    ("message_id", "event_type", "order_id", "fate", "reason", "at"),
    optional=("event_type", "order_id", "at"),
    empty="no message was touched",
)


@click.group()
def dlq() -> None:
    """Dead messages: why they died, and how they come back.

    QUEUE is a main queue or its .dlq. Nothing is lost by looking: what is read goes back.
    """


@dlq.command("ls")
@scan_option
@json_option
def dlq_ls(scan: bool, as_json: bool) -> None:
    """Count the messages of each DLQ, with their ages and reasons.

    Exit 1 when any DLQ has messages.
    """
    with operator_session() as operator:
        from ops.dlq.overview import overview

        found = overview(operator, scan)
    if as_json:
        print_json({"queues": found})
    else:
        DLQS.show(
            (
                one["queue"],
                one["messages"],
                ago(one["oldest"]),
                ago(one["newest"]),
                ", ".join(f"{item['count']} {item['reason']}" for item in one["reasons"][:TOP_REASONS]),
            )
            for one in found
        )
        for one in found:
            if one["note"]:
                click.echo(f"{one['dlq']}: {one['note']}")
    sys.exit(FOUND if any(one["messages"] or one["recorded"] for one in found) else 0)


@dlq.command("groups")
@queue_argument
@scan_option
@json_option
def dlq_groups(queue: str, scan: bool, as_json: bool) -> None:
    """Count what lies in a DLQ by reason, error and event type."""
    with operator_session() as operator:
        from ops.dlq.overview import groups

        found = groups(operator, queue, scan)
    if as_json:
        print_json({"queue": dlq_of(queue)[1], "groups": found})
    else:
        GROUPS.show(
            (
                counted(one["count"], one["ids"]),
                one["reason"],
                one["error_class"],
                one["event_type"],
                ago(one["oldest"]),
                ago(one["newest"]),
                one["example_id"],
                one["example_error"],
            )
            for one in found
        )
    sys.exit(FOUND if found else 0)


@dlq.command("peek")
@queue_argument
@click.option("-n", "--max", "most", type=click.IntRange(1), default=20, show_default=True, help="The N oldest.")
@filter_options
@json_option
def dlq_peek(queue: str, most: int, as_json: bool, **given: Any) -> None:
    """List messages, the oldest first."""
    with operator_session(progress=True) as operator, operator.look_into(queue, filter_of(**given)) as selection:
        chosen, total, ids = selection.count, selection.total, selection.ids
        held = selection.take(most)
    if as_json:
        lines = [exported_line(one) for one in held]
        print_json({"messages": lines, "matching": chosen, "in_queue": total, "ids": ids})
        return
    MESSAGES.show(
        (
            one.dead_letter.message_id,
            one.dead_letter.event_type,
            one.dead_letter.reason,
            one.dead_letter.attempts,
            one.dead_letter.replays,
            ago(one.dead_letter.first_failed_at),
            one.dead_letter.error_message,
        )
        for one in held
    )
    click.echo(f"{len(held)} of {chosen} that match, {counted(total, ids)} in {dlq_of(queue)[1]}")


@dlq.command("show")
@queue_argument
@click.option("--id", "message_id", type=click.UUID, required=True, help="Its message_id.")
@json_option
def dlq_show(queue: str, message_id: UUID, as_json: bool) -> None:
    """Show all of one message, and what its order is now."""
    with operator_session(progress=True) as operator:
        from ops.dlq.overview import full_message

        found = full_message(operator, queue, message_id)
    if as_json:
        print_json(found)
        return
    for title in ("message", "error", "properties", "headers", "event", "order_now"):
        heading(title.replace("_", " "))
        part = found[title]
        if title == "order_now" and isinstance(part, dict):
            show_record({name: part[name] for name in ("order_id", "status", "reason")}, indent="  ")
            show_steps(part)
        elif isinstance(part, dict):
            show_record({name: plain(value) for name, value in part.items()}, indent="  ")
        else:
            click.echo(f"  {plain(part)}")


@dlq.command("diagnose")
@queue_argument
@filter_options
@json_option
def dlq_diagnose(queue: str, as_json: bool, **given: Any) -> None:
    """Predict what a replay of each message would do now.

    It would apply, do nothing (applied already, stale), or die again.
    """
    with operator_session(progress=True) as operator:
        from ops.dlq.diagnose import diagnose

        found = diagnose(operator, queue, filter_of(**given))
    rows = [
        {
            "count": count,
            "prediction": group.prediction.value,
            "why": group.why,
            "reason": group.reason,
            "event_type": group.event_type,
            "example_id": str(found.examples[group]),
        }
        for group, count in found.groups.most_common()
    ]
    if as_json:
        print_json({"queue": dlq_of(queue)[1], "groups": rows})
    else:
        PREDICTIONS.show([*row.values()] for row in rows)


@dlq.command("history")
@click.argument("operation", required=False, type=click.UUID)
@click.option("--queue", shell_complete=complete_queue, help="Of one queue.")
@click.option("--actor", type=Plain(), help="Of one operator.")
@click.option("--since", type=Moment(), help="Since then: 2026-01-14T10:30:00Z, or 2h ago.")
@click.option("--max", "most", type=click.IntRange(1, 1000), default=50, show_default=True, help="The N newest.")
@json_option
def dlq_history(
    operation: UUID | None, queue: str | None, actor: str | None, since: datetime | None, most: int, as_json: bool
) -> None:
    """List operations, or what OPERATION did to each message."""
    with operator_session() as operator, operator.ledger() as ledger:
        from ops import models

        if operation is not None:
            shown = models.operation(ledger, operation)
            fates = list(models.fates(ledger, operation))
        else:
            filters = {"queue": queue and dlq_of(queue)[1], "actor": actor, "since": since}
            rows, _ = models.history(ledger, filters, most)
    if operation is not None:
        if as_json:
            print_json({**shown, "messages": fates})
            return
        show_record({name: plain(value) for name, value in shown.items()})
        FATES.show([row[name] for name in FATES.columns] for row in fates)
    elif as_json:
        print_json({"operations": rows})
    else:
        HISTORY.show([row[name] for name in HISTORY.columns] for row in rows)


@dlq.command("replay")
@queue_argument
@filter_options
@selection_options
@click.option("--rate", default=DEFAULT_RATE, show_default=True, metavar="N/s", help="How fast: 10/s, 30/m, max.")
@click.option("--ramp", metavar="N,N,...", help="In waves, each consumed before the next: 1,2,5,20. The last repeats.")
@click.option("--stop-on-redeath", is_flag=True, help="Stop as soon as one dies again.")
@click.option("--force", is_flag=True, help="Also what was replayed 3 times, or is older than the inbox remembers.")
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and change nothing.")
@ask_options
@json_option
def dlq_replay(
    queue: str,
    most: int | None,
    everything: bool,
    rate: str,
    ramp: str | None,
    stop_on_redeath: bool,
    force: bool,
    dry_run: bool,
    actor: str | None,
    why: str,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Send messages back to the queue in which they died.

    Each is confirmed there before it leaves the DLQ. What its consumer has done already it does not do again.
    """
    chosen = filter_of(**given)
    most = limit_of(chosen, most, everything)
    with operator_session(actor, why, progress=True) as operator:
        from ops.dlq.replay import plan, replay
        from ops.dlq.replay_request import ReplayRequest

        pace = Pace(parse_rate(rate), parse_ramp(ramp) if ramp else ())
        if dry_run or not yes:
            planned = plan(operator, queue, chosen, most, force)
            if dry_run or not as_json:
                print_plan(planned, as_json)
            if dry_run:
                return
            if not planned["chosen"]:
                return end([], as_json)
            confirm(
                f"Replay {planned['chosen'] - sum(planned['refused'].values())} of them to {dlq_of(queue)[0]}?", yes
            )
        run = replay(operator, queue, ReplayRequest(chosen, most, pace, force, stop_on_redeath, why))
    end([run], as_json)


@dlq.command("export")
@queue_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@filter_options
@click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most the N oldest.")
@actor_options
@json_option
def dlq_export(
    queue: str, file: Path, most: int | None, actor: str | None, why: str, as_json: bool, **given: Any
) -> None:
    """Write messages to a new FILE, and leave them where they are.

    Each message is one line of JSON.
    """
    with operator_session(actor, why, progress=True) as operator:
        from ops.dlq.files import export

        run = export(operator, queue, file, filter_of(**given), most)
    end([run], as_json)


@dlq.command("discard")
@queue_argument
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A new file.")
@filter_options
@selection_options
@ask_options
@json_option
def dlq_discard(
    queue: str,
    file: Path,
    most: int | None,
    everything: bool,
    actor: str | None,
    why: str,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Take messages out of a DLQ and into a file.

    The file is on the disk and read again before any message is gone. `ecom dlq import FILE` puts them back.
    """
    chosen = filter_of(**given)
    most = limit_of(chosen, most, everything)
    with operator_session(actor, why, progress=True) as operator:
        from ops.dlq.files import discard
        from ops.dlq.replay import plan

        if not yes:
            planned = plan(operator, queue, chosen, most, force=True)
            print_plan(planned, False)
            if not planned["chosen"]:
                return end([], as_json)
            confirm(f"Discard {planned['chosen']} messages into {file}?", yes)
        run = discard(operator, queue, file, chosen, most)
    end([run], as_json)


@dlq.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--edited", is_flag=True, help="Their bodies were corrected: each gets a message_id of its own.")
@ask_options
@json_option
def dlq_import(file: Path, edited: bool, actor: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Put the messages of FILE back into their DLQs.

    `replay` then sends them on.
    """
    with operator_session(actor, why, progress=True) as operator:
        from ops.dlq.files import put_back, survey

        queues, sha256, count = survey(file, edited)
        known = export_known_as(operator, sha256)
        if not yes:
            click.echo(f"{file}: {count} messages of {', '.join(queues)}; sha256 {sha256}, {known}", err=True)
            confirm("Put them back?", yes)
        runs = put_back(operator, file, edited)
    end(runs, as_json)


def export_known_as(operator: OperatorSession, sha256: str) -> str:
    from ops import models

    with operator.ledger() as ledger:
        found = models.exported_as(ledger, sha256)
    if found is None:
        return "which no export of this system has"
    return f"as written by {found['actor']} ({found['kind']} {found['operation_id']})"
