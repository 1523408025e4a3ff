"""`ecom topology`: exchanges, queues and bindings of the broker, and its users."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeVar
from urllib.parse import unquote, urlsplit

import click

from ops.cli.console import FOUND, json_option, print_json
from ops.cli.home import read
from shared.config import TOPOLOGY, Settings
from shared.errors import CannotWork, ConfigurationFault, TopologyDrift

if TYPE_CHECKING:
    from topology.permissions import Users

T = TypeVar("T")

AGAIN_S = 2.0

UNSEEN_BINDINGS = (
    "bindings were not compared, because AMQP cannot read them: `ecom topology apply` makes those that are missing,\n"
    "and `ecom topology check --management URL` compares them where the broker has a management API"
)

management_option = click.option(
    "--management", metavar="URL", default="", help="The management API: http://host:15672."
)


@click.group()
def topology() -> None:
    """Exchanges, queues, bindings and users of the broker."""


@topology.command()
@click.option("--users", is_flag=True, help="Make the users of the services too, and delete guest; needs --management.")
@management_option
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0,
    help="Try again for so long while the broker, or its management API, does not answer.",
)
@json_option
def apply(users: bool, management: str, wait_s: float, as_json: bool) -> None:
    """Declare what the broker lacks. What differs from the table is reported and not changed.

    A queue of calls that has another type than RPC_QUEUE_TYPE is reported, and is no reason to exit with 1.
    With --users it also creates or changes the users whose URIs are set as ORDER_AMQP_URI and so on, with their
    passwords and rights, and deletes users of ours that are not in the table. Where the broker has no management API,
    `ecom topology users` prints what rabbitmqctl can load.
    """
    from topology import declare, permissions

    if users and not management:
        raise click.UsageError("--users needs --management URL; without a management API see `ecom topology users`")
    settings = read(TOPOLOGY)
    wanted = wanted_users(settings) if users else None

    def declared() -> tuple[list[declare.Drift], list[declare.Drift]]:
        drift, left = [], []
        try:
            left = declare.apply(settings.administrator_uri, settings.rpc_queue_type)
        except TopologyDrift as error:
            drift = [declare.Drift(**found) for found in error.details["drift"]]
        if wanted:
            drift += permissions.apply(wanted, declare.management_of(management, settings.administrator_uri))
        return drift, left

    drift, left = _patiently(declared, wait_s)
    _report(drift, as_json, "applied", left=left, users=wanted)


def _patiently(act: Callable[[], T], wait_s: float) -> T:
    """Act, and again for so many seconds while that raises CannotWork. For what may be repeated."""
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            return act()
        except CannotWork as error:
            if time.monotonic() + AGAIN_S > give_up_at:
                raise
            click.echo(f"tries again: {error}", err=True)
        time.sleep(AGAIN_S)


@topology.command()
@management_option
@click.option(
    "--definitions",
    metavar="FILE",
    type=click.File("rb"),
    help="Compare the users in what `rabbitmqctl export_definitions FILE` wrote; - for standard input.",
)
@json_option
def check(management: str, definitions: TextIO | None, as_json: bool) -> None:
    """Show where the broker differs from the table.

    Changes nothing. AMQP cannot read bindings: they are compared only with --management. `ecom topology apply` binds
    again what is bound already, which changes nothing. Users and their rights are compared with --management or
    --definitions, if the URIs of the services are set (ORDER_AMQP_URI and so on).
    """
    from topology import declare, permissions

    settings = read(TOPOLOGY)
    wanted = wanted_users(settings) if settings.amqp_uris and (management or definitions) else None
    seen = _definitions_in(definitions) if definitions else None
    drift = declare.check(settings.administrator_uri, management, settings.rpc_queue_type)
    if wanted:
        if seen is None:
            seen = declare.management_of(management, settings.administrator_uri).definitions()
        drift += permissions.drift(wanted, seen)
    _report(drift, as_json, "clean", bindings_seen=bool(management), users=wanted)


@topology.command()
@json_option
def users(as_json: bool) -> None:
    """Print the users with hashes for `rabbitmqctl import_definitions`.

    It is always JSON. Importing creates and changes users and deletes none: `rabbitmqctl delete_user guest` does.
    """
    from topology import definitions

    wanted = wanted_users(read(TOPOLOGY))
    print_json(definitions.definitions(wanted.vhost, wanted.passwords, wanted.rights))


@topology.command()
@click.argument("queue")
@click.option("--management", metavar="URL", required=True, help="The management API: http://host:15672.")
@json_option
def retire(queue: str, management: str, as_json: bool) -> None:
    """Take QUEUE out of the broker, in two releases.

    It unbinds a queue that the table does not bind any more. It deletes the queue when the table does not have it any
    more and it is empty.

    Run it when the release that took the bindings out of the table runs everywhere, and again with the release that
    took the queue out. Its retry queues and its DLQ go with it.
    """
    from topology import retire as retiring

    done = retiring.retire(read(TOPOLOGY).administrator_uri, management, queue)
    if as_json:
        print_json({"unbound": done.unbound, "deleted": done.deleted})
        return
    click.echo(f"unbound from {', '.join(done.unbound)}" if done.unbound else f"{queue} was not bound")
    click.echo(f"deleted {', '.join(done.deleted)}" if done.deleted else "nothing deleted: the next release may")


def wanted_users(settings: Settings) -> Users:
    """The users of the services, by the URIs that are set. Raises ConfigurationFault where one is missing or wrong."""
    from shared.events import CATALOGUE
    from topology.permissions import Users
    from topology.services import NAMES
    from topology.users import SHELL, broker_user, rights

    missing = [f"{name.upper()}_AMQP_URI" for name in NAMES if name not in settings.amqp_uris]
    if missing:
        raise ConfigurationFault(f"each service's user has a URI of its own; not set: {', '.join(missing)}")
    administrator = urlsplit(settings.administrator_uri)
    passwords = {}
    for name, uri in settings.amqp_uris.items():
        parts = urlsplit(uri)
        variable, user = f"{name.upper()}_AMQP_URI", broker_user(name)
        if unquote(parts.username or "") != user or not parts.password:
            raise ConfigurationFault(f"{variable} must have the user {user} and a password")
        if parts.path != administrator.path:
            raise ConfigurationFault(f"{variable} has another vhost than the administrator's URI")
        passwords[user] = unquote(parts.password)
    return Users(
        vhost=unquote(administrator.path[1:]) or "/",
        administrator=unquote(administrator.username or "guest"),
        passwords=passwords,
        rights=rights(CATALOGUE, with_shell=SHELL in settings.amqp_uris),
    )


def _definitions_in(file: TextIO) -> Mapping[str, Any]:
    try:
        found = json.load(file)
    except ValueError as error:
        raise click.UsageError(f"--definitions: {file.name} is not JSON: {error}") from None
    if not isinstance(found, dict) or "users" not in found:
        raise click.UsageError(f"--definitions: {file.name} holds no users")
    return found


def _report(
    drift: Sequence[Any],
    as_json: bool,
    done: str,
    *,
    left: Sequence[Any] = (),
    bindings_seen: bool = True,
    users: Users | None = None,
) -> None:
    """Print the drift, or that there is none with what was looked at; exit 1 when there is any.

    What is `left` is printed as well, and is no reason to exit with 1.
    """
    from topology import table

    seen = {
        "exchanges": len(table.exchanges()),
        "queues": len(table.queue_arguments()) + len(table.rpc_queues()),
        # None: not looked at. AMQP alone cannot see bindings and users.
        "bindings": len(table.bindings()) if bindings_seen else None,
        "users": len(users.rights) if users else None,
    }
    if as_json:
        lists = {name: [vars(found) for found in rows] for name, rows in (("drift", drift), ("left", left))}
        print_json({**lists, "compared": seen})
    else:
        for found in (*drift, *left):
            click.echo(found)
        if not drift:
            counts = ", ".join(f"{count} {name}" for name, count in seen.items() if count is not None)
            click.echo(f"{done}: {counts}")
            if not bindings_seen:
                click.echo(UNSEEN_BINDINGS)
    if drift:
        sys.exit(FOUND)
