"""The options of `ecom dlq`: which messages, how many, who and why. Click and the standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from ops.cli.console import Command, Plain, actor_option
from ops.domain import Filter, dlq_of, require_choice
from shared.errors import ValidationFailed
from topology.table import BY_NAME


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
    """Filters. A message is chosen if it matches all of them."""
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
    """Limits. A command that changes messages needs ids or a limit, so that nobody takes a whole DLQ by accident."""
    command = click.option("--all", "everything", is_flag=True, help="All of them.")(command)
    return click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most the N oldest.")(command)


def actor_options(command: Command) -> Command:
    """The actor and the reason, which the ledger records."""
    why = click.option("--reason-text", "why", default="", type=Plain(), metavar="TEXT", help="Why, for the ledger.")
    return actor_option(why(command))


def ask_options(command: Command) -> Command:
    """The same, with --yes for a command that asks before it changes anything."""
    return actor_options(click.option("--yes", is_flag=True, help="Do not ask.")(command))


def scan_option(command: Command) -> Command:
    """--scan, which reads the queues instead of the database."""
    return click.option("--scan", is_flag=True, help="Read the queues themselves, and not what was recorded.")(command)


def complete_queue(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The main queues and DLQs whose names begin with what is typed, for the shell's completion."""
    return [name for queue in BY_NAME for name in dlq_of(queue) if name.startswith(typed)]


queue_argument = click.argument("queue", metavar="QUEUE", shell_complete=complete_queue)


def filter_of(**given: Any) -> Filter:
    for name in ("ids", "reasons", "types"):
        given[name] = frozenset(given[name])
    return Filter(**given)


def limit_of(chosen: Filter, most: int | None, everything: bool) -> int | None:
    """The limit; None for all. Raises UsageError if neither ids nor a limit nor --all are given."""
    try:
        require_choice(chosen.ids, most, everything, ("--id", "--max N", "--all"))
    except ValidationFailed as error:
        raise click.UsageError(str(error)) from error
    return most
