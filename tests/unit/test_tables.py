"""The tables of `ecom` at a terminal of 80 columns and elsewhere: nothing that an operator may want to copy is cut."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ops.cli import main  # noqa: F401 - it imports every command
from ops.cli.console import bar, heading
from ops.cli.tables import Table
from ops.domain import Fate
from shared.events import CATALOGUE
from shared.order_states import Status
from tests.terminal import at_a_terminal
from topology.services import NAMES
from topology.table import DELIVERY_LIMIT, QUEUES

ROOT = Path(__file__).resolve().parents[2]
ID = "01a1fe8e-3799-7d0a-bd27-53385327afcc"
TIME = "2026-11-21T14:41:35.693Z"
EVENT = max(CATALOGUE, key=len)
QUEUE = max((queue.name for queue in QUEUES), key=len)
STATE = max(Status, key=len)
ERROR = "payload.reason: one of payment_failed, order_cancelled, deadline is expected"

# The longest value that each column of any table may have.
LONGEST: dict[str, Any] = {
    "": "",
    "actor": "ann.surname@ops-7f9c4d5b6-x2x9z",
    "aggregate_id": ID,
    "at": TIME,
    "attempts": DELIVERY_LIMIT,
    "available": 10**9,
    "begun (UTC)": "2026-11-21 14:41",
    "behind": 1000,
    "client": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "email": "somebody.with.a.long.name@example.org",
    "cause": "stock_out",
    "by": "ann.surname",
    "change": -(10**9),
    "consumers": 100,
    "count": "109 messages of 99 ids",
    "counted": 10**9,
    "details": f"payment_id {ID}, total 90000, currency EUR",
    "died at": TIME,
    "died of": "unexpected_event",
    "difference": -(10**9),
    "error": ERROR,
    "event": EVENT,
    "expires": TIME,
    "event type": EVENT,
    "event_type": EVENT,
    "fate": max(Fate, key=len),
    "finished_at": TIME,
    "first failed": "59 min ago",
    "for example": ID,
    "held": 100,
    "id": 1_000_000,
    "its error": ERROR,
    "key_id": "01a1fcf80515791291397154577473a5",
    "kind": "verification",
    "last_error": "unroutable: no queue for inventory.release.requested",
    "last used": "2026-11-21",
    "low at": 10**9,
    "made (UTC)": "2026-11-21 14:41",
    "message_id": ID,
    "messages": 100_000,
    "name": "somebody.with.a.long.name@example.org",
    "network": "2001:db8:1234:5678::/64",
    "newest": "59 min ago",
    "oldest": "59 min ago",
    "note": "the fridge stood open, and nobody knows since when",
    "on hand": 10**9,
    "on order": 10**9,
    "operation_id": ID,
    "order_id": ID,
    "outcome": f"3 dead again, as invalid_schema ({ERROR}); sha256 {'0123456789abcdef' * 4}",
    "prediction": "already applied",
    "problem": "has moved since it was read",
    "queue": f"{QUEUE}.dlq",
    "ready": 100_000,
    "reason": "unexpected_event",
    "reasons": "1000 unexpected_event, 100 invalid_schema, 10 unknown_order",
    "replays": 3,
    "reserved": 10**9,
    "revoked": TIME,
    "roles": "customer, operator, auditor, admin",
    "service": max(NAMES, key=len),
    "session_id": ID,
    "sku": "a" * 64,
    "started_at": TIME,
    "state": "sold out, low, made",
    "status": f"{STATE} -> {STATE}",
    "subject": "Your e-mail address is about to change",
    "to": "somebody.with.a.long.name@customers.example",
    "told by": "inventory_service",
    "tries": 4,
    "unit": "piece",
    "unpublished": 100_000,
    "used (UTC)": "2026-11-21 14:41",
    "user_id": "somebody.with.a.long.name@example.org",
    "waiting to be retried": "1000 for 1 s, 100 for 2 s, 10 for 4 s",
    "when": TIME,
    "when (UTC)": "2026-11-21 14:41:07",
    "why": "unknown_order: order ... has no reservation to commit",
}


def tables() -> dict[str, Table]:
    """Every table of `ecom` by its name."""
    modules = [module for name, module in sys.modules.items() if name.startswith("ops.cli.")]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Table)
    }


def print_everything() -> None:
    """Print each table with the longest values, a title and a bar; of the process at the terminal."""
    for name, table in tables().items():
        print(f"\n== {name}")
        table.show([[LONGEST[column] for column in table.columns]] * 2, title="title")
    print("\n== end")
    heading("heading")
    with bar("rows") as seen:
        seen(1, 2)


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """What a terminal of 80 columns showed, by table."""
    return dict(_sections(NO_COLOR="1"))


def _sections(**environment: str) -> Iterator[tuple[str, str]]:
    code = "from tests.unit.test_tables import print_everything; print_everything()"
    environment = {**os.environ, "TERM": "xterm-256color", **environment}
    for name in ("COLUMNS", "FORCE_COLOR"):
        environment.pop(name, None)
    ended, text = at_a_terminal([sys.executable, "-c", code], (), (), columns=80, cwd=ROOT, env=environment)
    assert ended == 0, text
    for section in text.replace("\r\n", "\n").split("\n== ")[1:]:
        name, _, body = section.partition("\n")
        yield name, body


@pytest.mark.parametrize("name", tables())
def test_no_word_of_a_table_is_cut_at_80_columns(name: str, shown: dict[str, str]) -> None:
    table, body = tables()[name], shown[name]
    assert "…" not in body
    words = body.split()
    for column in table.columns:
        if column not in table.optional:
            assert set(str(LONGEST[column]).split()) <= set(words), f"{column} is cut:\n{body}"
    for line in body.splitlines():  # a record is wrapped by the terminal
        assert len(line) <= 80 or line.startswith(table.columns), body


def test_without_colours_no_escape_sequence_is_printed(shown: dict[str, str]) -> None:
    assert not [name for name, body in shown.items() if "\x1b" in body]
    assert "\x1b[1m" in dict(_sections(NO_COLOR=""))["end"]


def drawn(table: Table, *rows: list[Any], width: int, terminal: bool = True) -> str:
    out = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    table.show(rows, on=out)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


TABLE = Table(("id", "age", "error"), optional=("age",), empty="nothing is here")
ROW = [ID, "2 s ago", "one two three four five six"]


def test_a_sentence_is_wrapped_before_a_column_is_left_out() -> None:
    text = drawn(TABLE, ROW, width=36 + 7 + 16 + 8)
    assert "2 s ago" in text
    assert "one two three" in text
    assert "one two three four" not in text


def test_a_column_is_left_out_before_rows_become_records() -> None:
    text = drawn(TABLE, ROW, width=36 + 16 + 5)
    assert "age" not in text
    assert ID in text
    assert "─" in text


def test_below_that_rows_become_records_of_all_columns() -> None:
    record = f"id     {ID}\nage    2 s ago\nerror  one two three four five six\n"
    assert drawn(TABLE, ROW, ROW, width=36 + 16 + 4) == f"{record}\n{record}"


def test_a_pipe_gets_each_row_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.show([[ID, "2 s ago", "word " * 300 + "end"]])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if ID in line]
    assert line.rstrip().endswith("end")


def test_no_rows_are_a_sentence() -> None:
    assert drawn(TABLE, width=80) == "nothing is here\n"


def test_a_row_with_letters_of_double_width_is_not_cut() -> None:
    text = drawn(TABLE, ["倉庫" * 10, "2 s ago", "x"], width=80)
    assert "倉庫" * 10 in text
