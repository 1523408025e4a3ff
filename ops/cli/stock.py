"""`ecom stock`: what is on hand, taken in, taken out and counted, and what has moved it.

Only click and the standard library are imported.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import click

from ops.cli.api import Api, own_gateway
from ops.cli.console import COULD_NOT, FOUND, Plain, complain, json_option, print_json
from ops.cli.counts import SKU, differences, read_counts
from ops.cli.tables import Table
from shared.enumerations import CountReason, StockInReason, StockOutReason
from shared.errors import CannotWork, EcomError, NotFound

MAX_LINES, PAGE = 100, 200
SHOWN, SHOWN_MOVEMENTS = 200, 50
# So many skus are asked for one by one; to find more, every page is read.
FEW_SKUS = 50
MOST_SHOWN = 20

SOLD_OUT, LOW = "red", "yellow"

LEVELS = Table(
    ("sku", "available", "unit", "state", "low at", "on hand", "reserved", "on order"),
    optional=("reserved", "on hand", "low at", "on order"),
    empty="no sku",
)
MOVED = Table(("sku", "change", "on hand"), empty="nothing has moved")
MOVEMENTS = Table(
    ("when", "sku", "change", "on hand", "cause", "reason", "by", "note"),
    optional=("by", "reason", "note"),
    empty="nothing has moved",
)
DIFFERENCES = Table(("sku", "on hand", "counted", "difference", "problem"), empty="no line")

Command = TypeVar("Command", bound=Callable[..., Any])


def url_option(command: Command) -> Command:
    """--url, which every command takes that calls a gateway."""
    return click.option("--url", metavar="URL", help="The gateway; else the one of this machine.")(command)


def limit_option(default: int, what: str) -> Callable[[Command], Command]:
    """--limit, which every command takes that lists."""
    kind = click.IntRange(1, 100_000)
    return click.option("--limit", type=kind, default=default, show_default=True, help=f"So many {what} at most.")


def reason_option(reasons: type[StrEnum], default: StrEnum | None = None) -> Callable[[Command], Command]:
    """--reason, with the words of the API: click would take an enumeration by the names that its members have here."""
    words = click.Choice([reason.value for reason in reasons])
    if default is None:
        return click.option("--reason", type=words, required=True, help="Why; kept with the movements.")
    return click.option("--reason", type=words, default=default.value, show_default=True, help="Why it is set.")


def note_options(command: Command) -> Command:
    """What every command takes that moves stock, beside its reason."""
    for option in (
        click.option("--note", type=Plain(), metavar="TEXT", help="Kept with the movements."),
        click.option("--key", type=Plain(), metavar="KEY", help="To repeat a command that may have been done already."),
    ):
        command = option(command)
    return command


@click.group()
def stock() -> None:
    """Stock: on hand, low, taken in or out, counted; what has moved.

    ECOM_TOKEN holds the token of an operator or admin; in development none is needed.
    """


@stock.command("levels")
@click.argument("skus", metavar="[SKU]...", nargs=-1)
@click.option("--low", "only_low", is_flag=True, help="Only what is low.")
@limit_option(SHOWN, "skus")
@url_option
@json_option
def stock_levels(skus: Sequence[str], only_low: bool, limit: int, url: str | None, as_json: bool) -> None:
    """Show what is on hand, and first what is low.

    Then comes what is sold out, then the rest, each by sku. With SKUs, these alone. Of one that is made by a recipe,
    `available` says how much could be made of what is there.
    """
    _check_skus(skus)
    with _told(), Api(url or own_gateway()) as api:
        every = _named_levels(api, skus, only_low) if skus else _all_levels(api, only_low)
        found = list(islice(every, limit + 1))
    levels = found[:limit]
    if as_json:
        print_json({"items": levels, "more": len(found) > limit})
        return
    LEVELS.show(
        [
            (
                *(level["sku"], _number(level["available"]), level["unit"], _state(level), level["low_at"]),
                *(level["on_hand"], level["reserved"], level["on_order"] or None),
            )
            for level in levels
        ],
        styles=[SOLD_OUT if level["sold_out"] else LOW if level["low"] else "" for level in levels],
    )
    if len(found) > limit:
        click.echo(f"the first {limit} skus; --limit shows more")


@stock.command("in")
@click.argument("quantities", metavar="SKU=QUANTITY...", nargs=-1, required=True)
@reason_option(StockInReason)
@note_options
@url_option
@json_option
def stock_in(quantities: Sequence[str], reason: str, **how: Any) -> None:
    """Take stock in, all of it or nothing.

    A sku that is new gets its first stock.
    """
    _move("stock-in", quantities, reason, **how)


@stock.command("out")
@click.argument("quantities", metavar="SKU=QUANTITY...", nargs=-1, required=True)
@reason_option(StockOutReason)
@note_options
@url_option
@json_option
def stock_out(quantities: Sequence[str], reason: str, **how: Any) -> None:
    """Take stock out, all of it or nothing.

    What orders hold cannot be taken; the answer names them.
    """
    _move("stock-out", quantities, reason, **how)


@stock.command("count")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@reason_option(CountReason, CountReason.COUNT)
@note_options
@url_option
@json_option
def stock_count(
    file: Path, dry_run: bool, reason: str, note: str | None, key: str | None, url: str | None, as_json: bool
) -> None:
    """Set stock to what was counted.

    FILE is CSV: a first line `sku,counted`, then a line for each sku. A third column `version`, as `levels --json`
    shows it, refuses what has moved since then. The whole file is checked first. It is booked in parts of 100 lines,
    each all or none.
    """
    with _told():
        lines = read_counts(file)
        with Api(url or own_gateway()) as api:
            if dry_run:
                shown = differences(lines, _levels_of(api, {line["sku"] for line in lines}))
                _show_differences(shown, as_json)
                sys.exit(FOUND if any(row["problem"] for row in shown) else 0)
            _book(api, "adjust", lines, reason, note, key, as_json)


@stock.command("movements")
@click.argument("sku", required=False)
@limit_option(SHOWN_MOVEMENTS, "movements")
@url_option
@json_option
def stock_movements(sku: str | None, limit: int, url: str | None, as_json: bool) -> None:
    """Show what has moved, newest first, and what was on hand then.

    Of one SKU these are all its movements, without it those that people made: no sales and no returns.
    """
    _check_skus([sku] if sku else [])
    with _told(), Api(url or own_gateway()) as api:
        every = _pages(api, "movements", {"sku": sku} if sku else {})
        found = list(islice(every, limit + 1))
    if as_json:
        print_json({"items": found[:limit], "more": len(found) > limit})
        return
    names = ("on_hand_after", "cause", "reason", "moved_by", "note")
    MOVEMENTS.show((one["moved_at"], one["sku"], _signed(one["change"]), *map(one.get, names)) for one in found[:limit])
    if len(found) > limit:
        click.echo(f"the last {limit} movements; --limit shows more")


def _show_differences(shown: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"items": shown, "dry_run": True})
        return
    rows = [row for row in shown if row["difference"] or row["problem"]]
    if rows:
        DIFFERENCES.show(
            [
                (row["sku"], row["on_hand"], row["counted"], _signed(row["difference"]), row["problem"] or None)
                for row in rows
            ],
            styles=["red" if row["problem"] else "yellow" for row in rows],
        )
    click.echo(f"{len(shown)} lines, {len(rows)} of them differ; nothing was changed")


def _move(
    route: str,
    quantities: Sequence[str],
    reason: str,
    note: str | None,
    key: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    lines: list[dict[str, Any]] = []
    for given in quantities:
        sku, _, quantity = given.partition("=")
        if not (SKU.fullmatch(sku) and re.fullmatch(r"0*[1-9][0-9]{0,11}", quantity)):
            raise click.UsageError(f"{given!r} is not SKU=QUANTITY with a whole number from 1, such as lamp=12")
        if any(line["sku"] == sku for line in lines):
            raise click.UsageError(f"{sku} is given twice")
        lines.append({"sku": sku, "quantity": int(quantity)})
    if len(lines) > MAX_LINES:
        raise click.UsageError(f"at most {MAX_LINES} skus at once")
    with _told(), Api(url or own_gateway()) as api:
        _book(api, route, lines, reason, note, key, as_json)


def _book(
    api: Api,
    route: str,
    lines: Sequence[Mapping[str, Any]],
    reason: str,
    note: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Book lines in parts, and show what has moved. A part has a key of its own, made from the given one."""
    key = key or str(uuid.uuid4())
    moved: list[dict[str, Any]] = []
    for place in range(0, len(lines), MAX_LINES):
        body = {"lines": lines[place : place + MAX_LINES], "reason": reason, "note": note}
        part = f"{key}.{place // MAX_LINES}" if place else key
        try:
            moved += api.send("POST", f"/api/inventory/{route}", body, part)["movements"]
        except CannotWork as error:
            raise CannotWork(f"{error}; to repeat it without booking twice: --key {key}") from error
        except EcomError:
            if place:
                complain(
                    CannotWork(f"the first {place} lines are booked; correct the rest, and repeat with --key {key}")
                )
            raise
    if as_json:
        print_json({"movements": moved})
        return
    MOVED.show((one["sku"], _signed(one["change"]), one["on_hand_after"]) for one in moved)


def _pages(api: Api, route: str, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    cursor: str | None = ""
    while cursor is not None:
        asked = {**filters, "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
        page = api.send("GET", f"/api/inventory/{route}?{urlencode(asked)}")
        yield from page["items"]
        cursor = page["next_cursor"]


def _all_levels(api: Api, only_low: bool) -> Iterator[dict[str, Any]]:
    parts = [{"low": "true"}, {"low": "false", "sold_out": "true"}, {"low": "false", "sold_out": "false"}]
    for part in parts[:1] if only_low else parts:
        yield from _pages(api, "levels", part)


def _named_levels(api: Api, skus: Sequence[str], only_low: bool) -> list[dict[str, Any]]:
    """The levels of these skus in the order of all. Raises NotFound if one has neither stock nor a recipe."""
    levels = _levels_of(api, set(skus))
    if unknown := sorted({*skus} - {*levels}):
        raise NotFound(f"neither in stock nor made by a recipe: {', '.join(unknown)}")
    found = [level for level in levels.values() if level["low"] or not only_low]
    return sorted(found, key=lambda level: (not level["low"], not level["sold_out"], level["sku"]))


def _levels_of(api: Api, skus: set[str]) -> dict[str, dict[str, Any]]:
    if len(skus) <= FEW_SKUS:
        return {level["sku"]: level for sku in sorted(skus) for level in _pages(api, "levels", {"sku": sku})}
    return {level["sku"]: level for level in _pages(api, "levels", {}) if level["sku"] in skus}


def _check_skus(skus: Iterable[str]) -> None:
    for sku in skus:
        if not SKU.fullmatch(sku):
            raise click.UsageError(f"{sku!r} is no sku")


@contextmanager
def _told() -> Iterator[None]:
    """Say why something could not be done, and end with its exit code."""
    try:
        yield
    except CannotWork as error:
        complain(error)
        sys.exit(COULD_NOT)
    except EcomError as error:
        complain(error)
        reasons = list(_reasons(error.details))
        for reason in reasons[:MOST_SHOWN]:
            click.echo(f"  {reason}", err=True)
        if len(reasons) > MOST_SHOWN:
            click.echo(f"  and {len(reasons) - MOST_SHOWN} more", err=True)
        sys.exit(FOUND)


def _reasons(details: Mapping[str, Any]) -> Iterator[str]:
    """What an error's details say beside its message: of each bad line its own, and which orders hold the stock."""
    for name, found in details.items():
        if name == "lines" and isinstance(found, list):
            yield from (line["message"] for line in found if len(found) > 1)
        elif name == "holders":
            yield from (f"order {holder['order_id']} holds {holder['quantity']}" for holder in found)
        elif name not in ("sku", "reserved"):  # which the message names
            yield f"{name}: {found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)}"


def _state(level: Mapping[str, Any]) -> str:
    words = [word for word in ("sold_out", "low", "made") if level[word]]
    return ", ".join(words).replace("_", " ")


def _number(available: int | None) -> str:
    return "always" if available is None else str(available)


def _signed(number: int | None) -> str | None:
    return None if number is None else f"{number:+d}"
