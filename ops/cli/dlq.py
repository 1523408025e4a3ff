"""`ecom dlq`: what operators do with dead messages. QUEUE is a main queue or its .dlq.

Only click and the standard library are imported here, and the engine where a command needs it: it patches first.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from ops.cli.console import (
    FOUND,
    Command,
    Plain,
    actor_option,
    complain,
    confirm,
    harmless,
    json_option,
    login,
    print_json,
    print_table,
)
from ops.cli.home import read
from ops.domain import DEFAULT_RATE, NEVER, Fate, Filter, Pace, Status, dlq_of, parse_ramp, parse_rate
from shared.errors import NotFound, ValidationFailed
from topology.table import BY_NAME

if TYPE_CHECKING:
    from ops.dlq.operator_session import OperatorSession, Run
    from ops.dlq.selection import Held

TOP_REASONS = 3
HISTORY_COLUMNS = ("started_at", "kind", "queue", "actor", "status", "outcome", "why", "operation_id")
FATE_COLUMNS = ("message_id", "event_type", "order_id", "fate", "reason", "at")


# --- options ------------------------------------------------------------------------------------------------------


class Moment(click.ParamType[datetime]):
    """A time with its zone, or how long ago: 2026-01-14T10:30:00Z, 90s, 30m, 2h, 3d."""

    name = "time"
    _units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        number, unit = value[:-1], value[-1:]
        try:
            if number.isdecimal() and unit in self._units:
                return datetime.now(UTC) - timedelta(**{self._units[unit]: int(number)})
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time with its zone, like 2026-01-14T10:30:00Z, nor how long ago, like 2h")


def filter_options(command: Command) -> Command:
    """Which messages are meant. Those given together must all hold."""
    options: Sequence[Callable[[Command], Command]] = (
        click.option("--id", "ids", multiple=True, type=click.UUID, help="This message_id; may be given again."),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=Plain(),
            help="Why it died, as `groups` shows; may be given again.",
        ),
        click.option("--error", default="", type=Plain(), metavar="TEXT", help="Text in its error."),
        click.option(
            "--type", "types", multiple=True, type=Plain(), metavar="EVENT", help="Its event type; may be given again."
        ),
        click.option("--order-id", type=click.UUID, help="The order it is about."),
        click.option("--trace-id", default="", type=Plain(), help="Its trace."),
        click.option("--since", type=Moment(), help="First failed then or later: 2026-01-14T10:30:00Z, or 2h ago."),
        click.option("--until", type=Moment(), help="First failed before then."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def selection_options(command: Command) -> Command:
    """How many of those: a command that changes something is never about `whatever is there` by accident."""
    command = click.option("--all", "everything", is_flag=True, help="All of them.")(command)
    return click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most the N oldest.")(command)


def actor_options(command: Command) -> Command:
    """Who does it and why, for the ledger."""
    why = click.option("--reason-text", "why", default="", type=Plain(), metavar="TEXT", help="Why, for the ledger.")
    return actor_option(why(command))


def ask_options(command: Command) -> Command:
    """The same, for what is asked before it is done."""
    return actor_options(click.option("--yes", is_flag=True, help="Do not ask.")(command))


def scan_option(command: Command) -> Command:
    """Read the queue itself."""
    return click.option("--scan", is_flag=True, help="Read the queues themselves, and not what was written down.")(
        command
    )


def complete_queue(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The main queues and DLQs whose names begin with what is typed, for the shell's completion."""
    return [name for queue in BY_NAME for name in dlq_of(queue) if name.startswith(typed)]


queue_argument = click.argument("queue", metavar="QUEUE", shell_complete=complete_queue)


def _filter(**given: Any) -> Filter:
    for name in ("ids", "reasons", "types"):
        given[name] = frozenset(given[name])
    return Filter(**given)


def _most(chosen: Filter, most: int | None, everything: bool) -> int | None:
    """How many at most. Raises UsageError when nothing says which are meant."""
    if most is not None and everything:
        raise click.UsageError("--max or --all, not both")
    if most is None and not everything and not chosen.ids:
        raise click.UsageError("say which: --id, --max N or --all (with filters: all that match)")
    return most


@contextmanager
def _misuse() -> Iterator[None]:
    """What was given wrongly is misuse; what is not there is a finding."""
    try:
        yield
    except ValidationFailed as error:
        raise click.UsageError(str(error)) from error
    except NotFound as error:
        complain(error)
        sys.exit(FOUND)


@contextmanager
def _operator(actor: str | None = None, why: str = "", progress: bool = False) -> Iterator[OperatorSession]:
    """The engine. Once anything may be changed, Ctrl-C asks it to stop after what it has in hand; a second one ends it
    at once, as the first does where it only looks or asks."""
    # isort: off
    from ops.cli import green  # noqa: F401

    # isort: on
    from ops.dlq.operator_session import Actor, OperatorSession, Watch

    asked: list[int] = []

    def ask_to_stop(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def begun(operation_id: UUID) -> None:
        if not asked:
            for number in before:
                signal.signal(number, ask_to_stop)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with _bars(progress and sys.stderr.isatty()) as (seen, told), _misuse():
        watch = Watch(seen=seen, begun=begun, told=told, stopping=lambda: bool(asked))
        operator = OperatorSession(read(), Actor(actor or login(), why), watch)
        try:
            yield operator
        finally:
            operator.close()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _bars(shown: bool) -> Iterator[tuple[Callable[[int, int], None], Callable[[Run], None]]]:
    """A bar for the reading of a DLQ and one for the work, on a terminal. Between them there is none: it would hide
    the question that is asked there.
    """
    if not shown:
        yield lambda read, total: None, lambda run: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)
    try:
        reading = bars.add_task("reading", total=None, note="")
        working = bars.add_task("", total=None, note="", visible=False)

        def seen(read: int, total: int) -> None:
            bars.update(reading, completed=read, total=total)
            if read < total:
                bars.start()
            else:
                bars.stop()

        def told(run: Run) -> None:
            bars.update(reading, visible=False)
            fates = run.tally.fates
            settled = sum(fates.values()) - fates[Fate.SENT] if run.kind == "replay" else sum(fates.values())
            bars.update(
                working,
                description=run.kind,
                completed=settled,
                total=run.tally.chosen,
                note=run.sentence(),
                visible=True,
            )
            bars.start()

        yield seen, told
    finally:
        bars.stop()


# --- looking ------------------------------------------------------------------------------------------------------


@click.group()
def dlq() -> None:
    """Dead messages: why they died, and how they come back.

    QUEUE is a main queue or its .dlq. Nothing is lost by looking: what is read goes back.
    """


@dlq.command("ls")
@scan_option
@json_option
def dlq_ls(scan: bool, as_json: bool) -> None:
    """Every DLQ with its count, oldest, newest and top reasons; exit 1 when any is not empty."""
    with _operator() as operator:
        from ops.dlq.overview import overview

        found = overview(operator, scan)
    if as_json:
        print_json({"queues": found})
    else:
        print_table(
            ("queue", "messages", "oldest", "newest", "reasons", ""),
            [
                (
                    one["dlq"],
                    one["messages"],
                    _ago(one["oldest"]),
                    _ago(one["newest"]),
                    ", ".join(f"{item['count']} {item['reason']}" for item in one["reasons"][:TOP_REASONS]),
                    one["note"],
                )
                for one in found
            ],
        )
    sys.exit(FOUND if any(one["messages"] or one["recorded"] for one in found) else 0)


@dlq.command("groups")
@queue_argument
@scan_option
@json_option
def dlq_groups(queue: str, scan: bool, as_json: bool) -> None:
    """Count what lies in a DLQ by reason, error and event type."""
    with _operator() as operator:
        from ops.dlq.overview import groups

        found = groups(operator, queue, scan)
    if as_json:
        print_json({"queue": dlq_of(queue)[1], "groups": found})
    else:
        print_table(
            ("count", "reason", "error", "event type", "oldest", "newest", "for example"),
            [
                (
                    one["count"],
                    one["reason"],
                    one["error_class"],
                    one["event_type"],
                    _ago(one["oldest"]),
                    _ago(one["newest"]),
                    f"{one['example_id']} {one['example_error'][:80]}",
                )
                for one in found
            ],
        )
    sys.exit(FOUND if found else 0)


@dlq.command("peek")
@queue_argument
@click.option("-n", "--max", "most", type=click.IntRange(1), default=20, show_default=True, help="The N oldest.")
@filter_options
@json_option
def dlq_peek(queue: str, most: int, as_json: bool, **given: Any) -> None:
    """One line a message, the oldest first."""
    with _operator(progress=True) as operator, operator.look_into(queue, _filter(**given)) as selection:
        chosen, total = selection.count, selection.total
        held = selection.take(most)
    if as_json:
        print_json({"messages": [_line(one) for one in held], "matching": chosen, "in_queue": total})
        return
    print_table(
        ("message_id", "event type", "reason", "tries", "replays", "first failed", "error"),
        [
            (
                one.letter.message_id,
                one.letter.event_type,
                one.letter.reason,
                one.letter.attempts,
                one.letter.replays,
                _ago(one.letter.first_failed_at),
                one.letter.error_message[:80],
            )
            for one in held
        ],
    )
    click.echo(f"{len(held)} of {chosen} that match, {total} in {dlq_of(queue)[1]}")


@dlq.command("show")
@queue_argument
@click.option("--id", "message_id", type=click.UUID, required=True, help="Its message_id.")
@json_option
def dlq_show(queue: str, message_id: UUID, as_json: bool) -> None:
    """All of one message: envelope, headers, error, and what its order is now."""
    with _operator(progress=True) as operator:
        from ops.dlq.overview import whole

        found = whole(operator, queue, message_id)
    if as_json:
        print_json(found)
        return
    for title in ("message", "error", "properties", "headers", "event", "order_now"):
        click.secho(title.replace("_", " "), bold=True)
        part = found[title]
        if isinstance(part, dict):
            width = max((len(name) for name in part), default=0)
            for name, value in part.items():
                click.echo(f"  {name:<{width}}  {_plain(value)}")
        else:
            click.echo(f"  {_plain(part)}")


@dlq.command("diagnose")
@queue_argument
@filter_options
@json_option
def dlq_diagnose(queue: str, as_json: bool, **given: Any) -> None:
    """What a replay of each message would do now: apply, nothing (applied already, stale), or die again."""
    with _operator(progress=True) as operator:
        from ops.dlq.diagnose import diagnose

        found = diagnose(operator, queue, _filter(**given))
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
    elif rows:
        print_table(
            ("count", "prediction", "why", "died of", "event type", "for example"), [[*row.values()] for row in rows]
        )
    else:
        click.echo("nothing to diagnose")


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
    """Who did what to dead messages, when and why; with OPERATION, what became of each message."""
    with _operator() as operator, operator.ledger() as ledger:
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
        for name, value in shown.items():
            click.echo(f"{name:<13} {_plain(value)}")
        print_table(FATE_COLUMNS, [[row[name] for name in FATE_COLUMNS] for row in fates])
    elif as_json:
        print_json({"operations": rows})
    else:
        print_table(HISTORY_COLUMNS, [[row[name] for name in HISTORY_COLUMNS] for row in rows])


# --- changing -----------------------------------------------------------------------------------------------------


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
    """Send messages back to the queue they died in, and to no other.

    Each is confirmed there before it leaves the DLQ. What its consumer has done already it does not do again.
    """
    chosen = _filter(**given)
    most = _most(chosen, most, everything)
    with _operator(actor, why, progress=True) as operator:
        from ops.dlq.replay import plan, replay

        pace = Pace(parse_rate(rate), parse_ramp(ramp) if ramp else ())
        if dry_run or not yes:
            planned = plan(operator, queue, chosen, most, force)
            if dry_run or not as_json:
                _say_plan(planned, as_json)
            if dry_run:
                return
            if not planned["chosen"]:
                return _end([], as_json)
            confirm(
                f"Replay {planned['chosen'] - sum(planned['refused'].values())} of them to {dlq_of(queue)[0]}?", yes
            )
        run = replay(operator, queue, chosen, most, pace, force, stop_on_redeath)
    _end([run], as_json)


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
    """Write messages to a new FILE, one line of JSON each; they stay where they are."""
    with _operator(actor, why, progress=True) as operator:
        from ops.dlq.files import export

        run = export(operator, queue, file, _filter(**given), most)
    _end([run], as_json)


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
    """Take messages out of a DLQ, into a file: written, on the disk and read again before any is gone.

    `ecom dlq import FILE` puts them back.
    """
    chosen = _filter(**given)
    most = _most(chosen, most, everything)
    with _operator(actor, why, progress=True) as operator:
        from ops.dlq.files import discard
        from ops.dlq.replay import plan

        if not yes:
            planned = plan(operator, queue, chosen, most, force=True)
            _say_plan(planned, False)
            if not planned["chosen"]:
                return _end([], as_json)
            confirm(f"Discard {planned['chosen']} messages into {file}?", yes)
        run = discard(operator, queue, file, chosen, most)
    _end([run], as_json)


@dlq.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--edited", is_flag=True, help="Their bodies were corrected: each gets a message_id of its own.")
@ask_options
@json_option
def dlq_import(file: Path, edited: bool, actor: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Put the messages of FILE back into their DLQs; `replay` then sends them on."""
    with _operator(actor, why, progress=True) as operator:
        from ops.dlq.files import put_back, survey

        queues, sha256, count = survey(file, edited)
        known = _exported_as(operator, sha256)
        if not yes:
            click.echo(f"{file}: {count} messages of {', '.join(queues)}; sha256 {sha256}, {known}", err=True)
            confirm("Put them back?", yes)
        runs = put_back(operator, file, edited)
    _end(runs, as_json)


def _exported_as(operator: OperatorSession, sha256: str) -> str:
    from ops import models

    with operator.ledger() as ledger:
        found = models.exported_as(ledger, sha256)
    if found is None:
        return "which no export of this system has"
    return f"as written by {found['actor']} ({found['kind']} {found['operation_id']})"


# --- saying -------------------------------------------------------------------------------------------------------


def _say_plan(planned: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    click.echo(f"{planned['chosen']} of {planned['in_queue']} messages in {planned['queue']} are meant", err=True)
    for reason, count in planned["reasons"].items():
        click.echo(f"  {count} {reason}", err=True)
    for reason, count in planned["refused"].items():
        click.echo(f"  {count} refused: {reason} (--force takes them too)", err=True)


def _end(runs: Sequence[Run], as_json: bool) -> None:
    """How operations ended: 0 done, 1 when something died again, was refused or is still out."""
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


def _line(one: Held) -> dict[str, Any]:
    import json

    from ops.dlq.dead_messages import to_line

    line: dict[str, Any] = json.loads(to_line(one.content))
    return {**line, "reason": one.letter.reason, "order_id": one.letter.order_id}


def _plain(value: Any) -> str:
    import json

    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return "" if value is None else harmless(str(value))


def _ago(moment: datetime | None) -> str:
    if moment is None or moment == NEVER:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
