"""`ecom order`: one order, read in the services' databases. Only click and the standard library are imported here."""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

import click

from ops.cli.console import COULD_NOT, FOUND, complain, heading, json_option, print_json
from ops.cli.home import read
from ops.cli.tables import Table, show_record
from shared.config import OPERATOR
from shared.errors import CannotWork, NotFound

DEAD = Table(("queue", "message_id", "event type", "reason", "died at"), optional=("event type", "died at"))
SHOWN = (
    "order_id", "status", "items", "total", "currency", "payment_method", "reason", "created_at", "updated_at",
    "user_id", "trace_id",
)  # fmt: skip


@click.group()
def order() -> None:
    """Orders: what became of one, and what it waits for."""


@order.command("show")
@click.argument("order_id", metavar="ID", type=click.UUID)
@json_option
def order_show(order_id: UUID, as_json: bool) -> None:
    """Show the steps of an order, and what it waits for.

    With its deadline, and its messages that are in a DLQ: then the exit code is 1. Reads the databases and nothing
    else, so it works while services are away.
    """
    # isort: off
    from ops.cli import green  # noqa: F401

    # isort: on
    from ops.dlq.service_databases import ServiceDatabases
    from ops.orders import order_now

    settings = read(OPERATOR)
    databases = ServiceDatabases(settings, "ecom order")
    dead: list[dict[str, Any]] | None = None
    away: CannotWork | None = None
    try:
        found = order_now(databases, order_id, settings.order_deadline_s)
        try:
            dead = databases.of_order(order_id)
        except CannotWork as error:
            away = error  # the order itself is still worth seeing
    except NotFound as error:
        complain(error)
        sys.exit(FOUND)
    finally:
        databases.close()
    if as_json:
        print_json({**found, "dead_messages": dead})
    else:
        _show(found, dead)
    if away:
        complain(away)
    sys.exit(COULD_NOT if away else FOUND if dead else 0)


def _show(found: dict[str, Any], dead: list[dict[str, Any]] | None) -> None:
    from ops.cli.timeline import show_steps

    told = {**found, "items": ", ".join(f"{item['quantity']} {item['sku']}" for item in found["items"])}
    show_record({name: told[name] for name in SHOWN if told[name] is not None})
    click.echo()
    show_steps(found)
    if found["deadline"]:
        click.echo(f"cancelled by itself at {found['deadline']} if it is not paid by then")
    if dead:
        heading("dead messages")
        DEAD.show((one["queue"], one["message_id"], one["event_type"], one["reason"], one["died_at"]) for one in dead)
