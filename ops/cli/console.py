"""The output of `ecom`: tables for people, JSON for programs, one line for an error.

Only click and the standard library are imported here: `ecom --help` answers at once.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import click

from shared.errors import EcomError

FOUND, COULD_NOT = 1, 3  # and 2 is misuse, which click reports itself

# A pipe has no terminal width: no cell is cut there, and a row that wraps could not be searched with grep.
PIPE_WIDTH = 200

Command = TypeVar("Command", bound=Callable[..., Any])


def complain(error: EcomError) -> None:
    """Print an error as one line on stderr."""
    click.echo(f"ecom: {' '.join(str(error).split())}", err=True)


def json_option(command: Command) -> Command:
    """--json, which every command takes."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


class Plain(click.ParamType[str]):
    """Refuse text that cannot be stored: bytes of another encoding."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text.encode('utf-8', 'replace').decode()!r} is not UTF-8")
        return text


def actor_option(command: Command) -> Command:
    """--actor, which every command takes that writes into the ledger."""
    return click.option("--actor", type=Plain(), metavar="NAME", help="Who, for the ledger; else your login and host.")(
        command
    )


def login() -> str:
    """The user of this machine: name@host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user id that has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{os.uname().nodename}"


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """JSON for programs: one document on stdout, times as RFC 3339."""

    def plain(item: Any) -> str:
        return item.isoformat() if isinstance(item, datetime) else str(item)

    click.echo(json.dumps(value, indent=2, default=plain))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table for people."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        # Text and not str: a value with brackets is no markup.
        table.add_row(*(Text("" if value is None else harmless(str(value)).replace("\n", " ")) for value in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def harmless(text: str) -> str:
    """Text from a message, without the control characters that would command a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def confirm(question: str, yes: bool) -> None:
    """Ask before something is changed. Without a terminal --yes is required. Raises UsageError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to be asked: say --yes")
    click.confirm(question, abort=True, err=True)
