"""`ecom queues`: the working queues, by the broker's count. Only click and the standard library are imported here."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from ops.cli.console import FOUND, json_option, print_json
from ops.cli.home import read
from ops.cli.tables import Table
from shared.config import OPERATOR

QUEUES = Table(("queue", "ready", "consumers", "waiting to be retried"))


@click.group()
def queues() -> None:
    """Working queues: their messages, retries and consumers."""


@queues.command("ls")
@json_option
def queues_ls(as_json: bool) -> None:
    """Count messages and consumers of each working queue.

    Exit 1 when a queue has no consumer. Messages that a consumer holds are not counted; dead ones are in `dlq ls`.
    """
    # isort: off
    from ops.cli import green  # noqa: F401

    # isort: on
    from ops.dlq.dlq_reader import QueueCounter
    from ops.queues import working_queues

    settings = read(OPERATOR)
    with closing(QueueCounter(settings.amqp_uri_of("ops"), settings.heartbeat_s)) as counter:
        found = working_queues(counter)
    idle = [one for one in found if not one["consumers"]]
    if as_json:
        print_json({"queues": found})
    else:
        QUEUES.show(
            (
                one["queue"],
                one["ready"],
                one["consumers"],
                ", ".join(
                    f"{level['messages']} for {level['wait_s']} s" for level in one["retrying"] if level["messages"]
                ),
            )
            for one in found
        )
        for one in idle:
            click.echo(f"{one['queue']} has no consumer: is {one['service']} running?")
    sys.exit(FOUND if idle else 0)
