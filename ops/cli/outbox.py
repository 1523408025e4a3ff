"""`ecom outbox`: events that wait to be published. Only click and the standard library are imported here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ops.cli.console import COULD_NOT, FOUND, complain, json_option, print_json
from ops.cli.home import read
from ops.cli.tables import Table
from shared.config import OPERATOR
from shared.errors import CannotWork, EcomError
from shared.rights import READER
from topology.services import PUBLISHERS

if TYPE_CHECKING:
    from sqlalchemy import URL

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000

OUTBOXES = Table(("service", "unpublished", "oldest", "held"))
HELD = Table(
    ("service", "id", "event_type", "aggregate_id", "attempts", "behind", "last_error"),
    optional=("attempts", "behind", "event_type"),
)

# Unpublished rows, and those among them that the broker refused, each with how many wait behind it.
_OUTBOX = (
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM outbox WHERE published_at IS NULL"
)
_HELD = (
    "SELECT id, message_id, aggregate_id, event_type, created_at, attempts, last_error, held_until,"
    " (SELECT count(*) FROM outbox later WHERE later.aggregate_id = o.aggregate_id AND later.id > o.id"
    "  AND later.published_at IS NULL) AS behind"
    " FROM outbox o WHERE published_at IS NULL AND attempts > 0 ORDER BY id LIMIT :limit"
)


@click.group()
def outbox() -> None:
    """Events that wait to be published."""


@outbox.command("ls")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Held rows of each service.")
@json_option
def outbox_ls(limit: int, as_json: bool) -> None:
    """Count unpublished events, and list those that the broker refused.

    Exit 1 if the broker refused any.
    """
    from ops.roles import url_as

    settings = read(OPERATOR)
    found: list[dict[str, Any]] = []
    away: list[EcomError] = []
    for service in PUBLISHERS:
        url = url_as(settings, service, READER)
        try:
            found.append({"service": service, **_outbox_of(service, url, limit)})
        except EcomError as absence:
            away.append(absence)  # the other services' rows are still worth seeing
    held = [{"service": one["service"], **row} for one in found for row in one["held"]]
    if as_json:
        print_json({"outboxes": found})
    elif found:
        OUTBOXES.show(
            (one["service"], one["unpublished"], f"{one['oldest_age_s']:.0f} s", len(one["held"])) for one in found
        )
        if held:
            HELD.show(([row[name] for name in HELD.columns] for row in held), title="held")
    for fault in away:
        complain(fault)
    sys.exit(COULD_NOT if away else FOUND if held else 0)


def _outbox_of(service: str, url: URL, limit: int) -> dict[str, Any]:
    """One service's outbox. Raises CannotWork when its database is away or has no outbox yet."""
    from sqlalchemy import NullPool, create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(
            url,
            poolclass=NullPool,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
                "application_name": "ecom outbox ls",
            },
        )
        with engine.connect() as connection:
            unpublished, oldest_age_s = connection.execute(text(_OUTBOX)).one()
            held = connection.execute(text(_HELD), {"limit": limit}).mappings().all()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise CannotWork(f"the database of {service} cannot be used: {reason}") from error
    return {"unpublished": unpublished, "oldest_age_s": float(oldest_age_s), "held": [dict(row) for row in held]}
