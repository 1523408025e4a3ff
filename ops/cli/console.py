"""The output of `ecom`: JSON for programs, progress bars for people, one line for an error.

Only click and the standard library are imported here: `ecom --help` answers at once.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shared.errors import EcomError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

FOUND, COULD_NOT = 1, 3  # and 2 is misuse, which click reports itself

# A pipe has no terminal width: a row is one line there, however long, so that grep finds all of it.
PIPE_WIDTH = 10_000

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


def is_plain() -> bool:
    """Whether the user wants text without any escape sequence, by https://no-color.org."""
    return bool(os.environ.get("NO_COLOR"))


def console() -> Console:
    """Standard output: a terminal with its width, or a pipe."""
    from rich.console import Console

    return Console(
        width=None if sys.stdout.isatty() else PIPE_WIDTH, color_system=None if is_plain() else "auto", highlight=False
    )


def progress_bars(*columns: str) -> Progress | None:
    """Bars on standard error that vanish at the end, with columns of one's own after the usual ones.

    None where nobody would see them, and where escape sequences are not wanted: a bar moves the cursor.
    """
    if not sys.stderr.isatty() or is_plain():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    usual = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*usual, *columns, console=Console(stderr=True), transient=True)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    bars = progress_bars()
    if bars is None:
        yield lambda done, total: None
        return
    with bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def heading(text: str) -> None:
    """Print the title of what follows."""
    click.echo(text if is_plain() else click.style(text, bold=True))


def print_json(value: Any) -> None:
    """JSON for programs: one document on stdout, times as RFC 3339."""

    def plain(item: Any) -> str:
        return item.isoformat() if isinstance(item, datetime) else str(item)

    click.echo(json.dumps(value, indent=2, default=plain))


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
