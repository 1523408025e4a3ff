"""`ecom menu`: prices of many skus, from a file. Only click and the standard library are imported here."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from ops.cli.api import Api, as_body, own_gateway
from ops.cli.console import COULD_NOT, FOUND, bar, complain, json_option, print_json
from shared.errors import CannotWork, EcomError, ValidationFailed

# So many of one request, and so many requests at once: more only wait for each other.
MAX_OFFERS, AT_ONCE = 200, 4
# A gateway takes 64 kB, in which 200 offers with long names have no room.
MAX_BYTES = 60_000

MOST_SHOWN = 20


@click.group()
def menu() -> None:
    """What is sold, and at which prices."""


@menu.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", metavar="URL", help="The gateway; else the one of this machine.")
@click.option("--dry-run", is_flag=True, help="Check the file and send nothing.")
@json_option
def menu_import(file: Path, url: str | None, dry_run: bool, as_json: bool) -> None:
    """List the skus of a file at its prices.

    FILE is JSON: a list of offers as PUT /api/menu/offers takes them, or {"offers": [...]}. The whole file is checked
    first. The same file again changes nothing. ECOM_TOKEN holds an admin's token; in development none is needed.
    """
    try:
        offers = read_offers(file)
        counts = {"offers": len(offers), "created": 0, "changed": 0}
        if not dry_run:
            counts |= _send(offers, url or own_gateway())
    except ValidationFailed as error:
        complain(error)
        for place, problem in list(error.details.items())[:MOST_SHOWN]:
            click.echo(f"  offer {place}: {json.dumps(problem)}", err=True)
        sys.exit(FOUND)
    except EcomError as error:
        complain(error)
        sys.exit(COULD_NOT)
    if as_json:
        print_json(counts | {"dry_run": dry_run})
    elif dry_run:
        click.echo(f"{counts['offers']} offers are well written; nothing was sent")
    else:
        click.echo(f"{counts['offers']} offers: {counts['created']} skus are new, {counts['changed']} have changed")


def read_offers(file: Path) -> list[dict[str, Any]]:
    """The offers of a file. Raises ValidationFailed with each bad one by its place, counted from 1."""
    import marshmallow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eventlet says on each start that it is old
        from gateway.menu_editor import ListedOffer

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is not UTF-8
        raise ValidationFailed(f"{file} is not JSON: {error}") from error
    rows = content.get("offers") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValidationFailed(f"{file} holds no list of offers")
    schema, wrong = ListedOffer(), {}
    for place, row in enumerate(rows, start=1):
        try:
            schema.load(row)
        except marshmallow.ValidationError as error:
            wrong[str(place)] = error.messages
    if wrong:
        raise ValidationFailed(f"{len(wrong)} of {len(rows)} offers of {file} are not well written", wrong)
    # Those of one sku stand together, so that no two requests wait for each other.
    return sorted(rows, key=lambda row: str(row["sku"]))


def _send(offers: Sequence[Mapping[str, Any]], url: str) -> dict[str, int]:
    with Api(url) as api:
        done, counts = 0, {"created": 0, "changed": 0}
        lists = list(lists_of(offers))
        with ThreadPoolExecutor(AT_ONCE) as pool, bar("listing") as show:
            for some, answer in zip(lists, pool.map(lambda some: _put(api, some), lists), strict=True):
                done += len(some)
                show(done, len(offers))
                for name in counts:
                    counts[name] += answer[name]
    return counts


def lists_of(offers: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The offers, sorted by sku, in lists that a gateway takes: neither too many nor too long.

    All of a sku are in one list: in two at once, each would wait for the other, and the sku would be counted twice.
    They fit, since the catalog keeps fifty prices of a sku.
    """
    some: list[Mapping[str, Any]] = []
    size = 0
    for _, group in groupby(offers, key=itemgetter("sku")):
        of_sku = list(group)
        length = len(as_body(of_sku))
        if some and (len(some) + len(of_sku) > MAX_OFFERS or size + length > MAX_BYTES):
            yield some
            some, size = [], 0
        some += of_sku
        size += length
    if some:
        yield some


def _put(api: Api, offers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """List some offers. Raises CannotWork when they are refused, or the gateway does not answer."""
    try:
        return api.send("PUT", "/api/menu/offers", {"offers": offers})
    except EcomError as error:
        raise CannotWork(
            f"the offers from {offers[0]['sku']} on were not listed, those before them were: {error}"
            f" {json.dumps(error.details) if error.details else ''}".rstrip()
        ) from error
