"""The engine behind `ecom dlq`: opened for one command, with progress bars on a terminal.

The engine is imported when a command needs it: it patches the standard library first.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from ops.cli.console import FOUND, complain, login, progress_bars
from ops.cli.home import read
from ops.domain import Fate
from shared.config import OPERATOR
from shared.errors import NotFound, ValidationFailed

if TYPE_CHECKING:
    from ops.dlq.operator_session import OperatorSession, Run


@contextmanager
def misuse() -> Iterator[None]:
    """Turn ValidationFailed into misuse (exit code 2) and NotFound into a finding (exit code 1)."""
    try:
        yield
    except ValidationFailed as error:
        raise click.UsageError(str(error)) from error
    except NotFound as error:
        complain(error)
        sys.exit(FOUND)


@contextmanager
def operator_session(actor: str | None = None, why: str = "", progress: bool = False) -> Iterator[OperatorSession]:
    """The engine for one command.

    While an operation runs, the first Ctrl-C lets it finish the messages in hand and the second ends it at once. Before
    it begins, and for commands that only read, the first Ctrl-C ends it at once.
    """
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
    with _bars(progress) as (seen, told), misuse():
        watch = Watch(seen=seen, begun=begun, progressed=told, stopping=lambda: bool(asked))
        command = click.get_current_context().command_path
        operator = OperatorSession(read(OPERATOR), Actor(actor or login(), why, command), watch)
        try:
            yield operator
        finally:
            operator.close()
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _bars(wanted: bool) -> Iterator[tuple[Callable[[int, int], None], Callable[[Run], None]]]:
    """Show one progress bar while a DLQ is read and one during the operation; none between them, where a question may
    be asked that a bar would hide.
    """
    bars = progress_bars("{task.fields[note]}") if wanted else None
    if bars is None:
        yield lambda read, total: None, lambda run: None
        return
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
