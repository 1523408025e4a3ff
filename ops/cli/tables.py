"""The tables of `ecom`. On a narrow terminal nothing that an operator may want to copy is cut.

Rich draws them and is imported when one is printed: `ecom --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ops.cli.console import console, harmless

if TYPE_CHECKING:
    from rich.console import Console

# A sentence in a narrower column is hard to read.
READABLE = 16
# Between two columns, and at both edges together.
GAP, EDGES = 3, 2


@dataclass(frozen=True)
class Table:
    """The columns of one of the tables.

    A sentence is wrapped between its words, and no word is ever cut: no id, queue or time. Where the terminal is too
    narrow for that, the `optional` columns are left out, the first of them first. Where it is still too narrow, each
    row becomes a record with all columns, one a line. A pipe gets all columns, and each row on one line.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    empty: str = ""  # what is said instead of a table without rows

    def show(
        self,
        rows: Iterable[Sequence[Any]],
        title: str = "",
        on: Console | None = None,
        styles: Sequence[str] = (),
    ) -> None:
        """Print the rows, one value for each column. `styles` are Rich's, one for each row; a pipe gets none."""
        on = on or console()
        cells = [dict(zip(self.columns, map(one_line, row), strict=True)) for row in rows]
        if title:
            on.print(title, style="bold", markup=False)
        if not cells:
            if self.empty:
                on.out(self.empty, highlight=False)
            return
        shown = list(self.columns)
        for name in (*self.optional, None):
            natural, least = _widths(shown, cells)
            room = on.width - EDGES - GAP * (len(shown) - 1)
            if sum(least.values()) <= room:
                _draw(on, cells, _shared_out(natural, least, room), styles or [""] * len(cells))
                return
            if name is not None:
                shown.remove(name)
        on.out("\n\n".join("\n".join(_lines(record)) for record in cells), highlight=False)


def show_record(values: Mapping[str, Any], indent: str = "") -> None:
    """Print names and values, one pair a line."""
    for line in _lines(values):
        click.echo(f"{indent}{line}")


def one_line(value: Any) -> str:
    """A value as a cell: on one line, and without what would command a terminal."""
    return "" if value is None else harmless(str(value)).replace("\n", " ")


def _lines(values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"{name:<{width}}  {one_line(value)}".rstrip() for name, value in values.items()]


def _widths(columns: Sequence[str], cells: Sequence[Mapping[str, str]]) -> tuple[dict[str, int], dict[str, int]]:
    """For each column the width at which nothing is wrapped, and the least at which it is readable and no word cut."""
    from rich.cells import cell_len

    texts = {name: [name, *(row[name] for row in cells)] for name in columns}
    natural = {name: max(map(cell_len, found)) for name, found in texts.items()}
    words = {
        name: max(cell_len(word) for text in found for word in text.split() or [""]) for name, found in texts.items()
    }
    return natural, {name: max(words[name], min(natural[name], READABLE)) for name in columns}


def _shared_out(natural: Mapping[str, int], least: Mapping[str, int], room: int) -> dict[str, int]:
    """The widths of the columns: each has its least, and the first ones what is left until nothing is wrapped there."""
    spare = room - sum(least.values())
    widths = {}
    for name, width in least.items():
        widths[name] = width + min(natural[name] - width, spare)
        spare -= widths[name] - width
    return widths


def _draw(on: Console, cells: Sequence[Mapping[str, str]], widths: Mapping[str, int], styles: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False)
    for name, width in widths.items():
        drawn.add_column(name, width=width)
    for row, style in zip(cells, styles, strict=True):
        drawn.add_row(
            *(Text(row[name], style) for name in widths)
        )  # Text and not str: a value with brackets is no markup
    on.print(drawn)
