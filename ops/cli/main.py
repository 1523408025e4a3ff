"""`ecom`, the command line of people who run this.

Every command takes --json. Exit codes: 0 done, 1 found something or some failed, 2 misuse, 3 could not be done
(broker or database away, refused by a guard). A failure is one line on stderr; a traceback is a defect.

Only click and the standard library are imported here: `ecom --help` answers at once, and `ecom run` must patch
the standard library before anything else is imported.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn

import click

from ops.cli.audit import audit
from ops.cli.console import COULD_NOT, FOUND, complain, json_option, print_json
from ops.cli.dlq.commands import dlq
from ops.cli.home import environment, hint, read
from ops.cli.mail import mail
from ops.cli.menu import menu
from ops.cli.orders import order
from ops.cli.outbox import outbox
from ops.cli.queues import queues
from ops.cli.release import release
from ops.cli.stock import stock
from ops.cli.tables import show_record
from ops.cli.topology import topology
from ops.cli.user import user
from ops.closed_pipes import outlive_readers
from shared import unsafe
from shared.config import MIGRATE, ROLES, SERVICES, masked
from shared.config import read as read_settings
from shared.errors import CannotWork, ConfigurationFault, EcomError
from shared.revisions import PHASES
from shared.version import VERSION
from topology.services import DATABASES, REPLICAS


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Ends the process with one of the exit codes above."""
    outlive_readers()
    try:
        ecom.main(args=arguments, prog_name="ecom")
    except ConfigurationFault as error:
        advice = hint() if str(error).endswith("_URL is not set") else ""  # a stack has the URLs
        complain(ConfigurationFault(f"{error}; {advice}") if advice else error)
    except EcomError as error:
        complain(error)
    except Exception:
        traceback.print_exc()
    sys.exit(COULD_NOT)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="%(prog)s %(version)s")
def ecom() -> None:
    """Run, look into and repair the order management back end."""


@ecom.command()
@click.option("--replicas", type=click.IntRange(1, 9), metavar="N", help="How many of each service.")
@json_option
def up(replicas: int | None, as_json: bool) -> None:
    """Start broker, databases and services on this machine.

    The command stays in the foreground and restarts what dies.
    """
    _stack("up", *(["--replicas", str(replicas)] if replicas else []), as_json=as_json)


@ecom.command()
@json_option
def down(as_json: bool) -> None:
    """Stop what `up` started."""
    _stack("down", as_json=as_json)


@ecom.command()
@json_option
def demo(as_json: bool) -> None:
    """Start everything here, show how orders end, and stop."""
    _stack("demo", as_json=as_json)


@ecom.command()
@json_option
def status(as_json: bool) -> None:
    """Show each service and server, and what is wrong with it.

    Exit 1 if anything is wrong, or if nothing runs.
    """
    _stack("status", as_json=as_json)


def _stack(*arguments: str, as_json: bool) -> NoReturn:
    """Run a command of ops.local. `status` prints JSON itself; for the others --json prints the exit code.

    Raises CannotWork where ops.local is absent, as in the production image.
    """
    try:
        from ops.local import commands
    except ModuleNotFoundError as error:
        if error.name != "ops.local":
            raise
        raise CannotWork(f"`ecom {arguments[0]}` works in a checkout of the project only") from None

    if not as_json or arguments == ("status",):
        sys.exit(commands.main([*arguments, *(["--json"] if as_json else [])]))
    with redirect_stdout(sys.stderr):
        code = commands.main(arguments)
    print_json({"command": arguments[0], "exit_code": code})
    sys.exit(code)


@ecom.command()
@click.argument("service", type=click.Choice(SERVICES))
@click.option("--replica", type=click.IntRange(0), default=0, show_default=True, metavar="N")
@json_option
def run(service: str, replica: int, as_json: bool) -> None:
    """Run one replica of one service in the foreground."""
    from shared.edge import runner  # first of all: it patches the standard library

    sys.exit(runner.run(service, replica))


@ecom.command()
@click.option("--role", type=click.Choice(ROLES), help="Only those of a service, or of the commands of a role.")
@click.option("--check", is_flag=True, help="List what production refuses; exit 1 if there is anything.")
@json_option
def config(role: str | None, check: bool, as_json: bool) -> None:
    """Show the settings, with secrets masked."""
    environ = environment()
    found = read_settings(environ, role)
    if check:
        _check_settings(unsafe.unsafe(found, role, environ), as_json)
        return
    settings = masked(found, role)
    if as_json:
        print_json(settings)
        return
    shown: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):  # a line for each of its keys: five database URLs on one line are not for people
            shown |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            shown[name] = ", ".join(value) if isinstance(value, list | tuple) else value
    show_record(shown)


def _check_settings(refused: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"refused": refused})
    else:
        click.echo("\n".join(refused) or "production accepts these settings")
    if refused:
        sys.exit(FOUND)


@ecom.command()
@click.argument("service", required=False)
@click.option(
    "--replicas",
    type=click.IntRange(1),
    default=REPLICAS,
    show_default=True,
    help="How many replicas of each service may be connected to its database at one time.",
)
@click.option(
    "--own-cluster",
    is_flag=True,
    help="Nobody else uses this database server: close the databases postgres and template1 to all other roles.",
)
@click.option(
    "--phase",
    type=click.Choice((*PHASES, "all")),
    default="all",
    show_default=True,
    help="expand adds what this version needs; contract takes away what neither it nor the version before needs.",
)
@json_option
def migrate(service: str | None, replicas: int, own_cluster: bool, phase: str, as_json: bool) -> None:
    """Bring all databases, or that of SERVICE, to the newest version. A database of a newer version is left as it is.

    With DATABASE_ADMIN_URL it also makes the databases and their roles, and gives each role its rights and no others.
    """
    from ops.cli import migrate as migrations

    if service and service not in DATABASES:
        raise click.BadParameter(f"{service!r} is not one of {', '.join(DATABASES)}", param_hint="SERVICE")
    chosen = [service] if service else DATABASES
    done = migrations.migrate(read(MIGRATE), chosen, replicas, own_cluster=own_cluster, phase=phase)
    if as_json:
        print_json({"migrated": done})
    else:
        click.echo("\n".join(done))


ecom.add_command(topology)
ecom.add_command(outbox)
ecom.add_command(order)
ecom.add_command(queues)
ecom.add_command(dlq)
ecom.add_command(audit)
ecom.add_command(release)
ecom.add_command(mail)
ecom.add_command(menu)
ecom.add_command(stock)
ecom.add_command(user)


if __name__ == "__main__":
    main()
