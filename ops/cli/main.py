"""`ecom`, the command line of people who run this.

Every command takes --json. Exit codes: 0 done, 1 found something or some failed, 2 misuse, 3 could not be done
(broker or database away, refused by a guard). A failure is one line on stderr; a traceback is a defect.

Only click and the standard library are imported here: `ecom --help` answers at once, and `ecom run` must patch
the standard library before anything else is imported.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn

import click

from ops.cli.audit import audit
from ops.cli.console import COULD_NOT, FOUND, complain, json_option, print_json, print_table
from ops.cli.dlq.commands import dlq
from ops.cli.home import hint, read
from ops.output import outlive_readers
from shared.config import SERVICES, masked
from shared.errors import CannotWork, ConfigurationFault, Conflict, EcomError, NotFound, TopologyDrift, ValidationFailed
from shared.version import VERSION
from topology.services import DATABASES, PUBLISHERS

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000

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
    """Start broker, databases and services on this machine; stay in the foreground and restart what dies."""
    _stack("up", *(["--replicas", str(replicas)] if replicas else []), as_json=as_json)


@ecom.command()
@json_option
def down(as_json: bool) -> None:
    """Stop what `up` started."""
    _stack("down", as_json=as_json)


@ecom.command()
@json_option
def demo(as_json: bool) -> None:
    """Start everything on this machine, show how three orders end, and stop."""
    _stack("demo", as_json=as_json)


@ecom.command()
@json_option
def status(as_json: bool) -> None:
    """What runs, and what is wrong with each service and server; exit 1 if anything is, or if nothing runs."""
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
@json_option
def config(as_json: bool) -> None:
    """Show the settings that the commands use, with secrets masked."""
    settings = masked(read())
    if as_json:
        print_json(settings)
        return
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, dict):  # a row for each of its keys: five database URLs on one line are not for people
            rows += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            rows.append((name, ", ".join(value) if isinstance(value, list) else value))
    print_table(("setting", "value"), rows)


@ecom.command()
@click.argument("service", required=False)
@json_option
def migrate(service: str | None, as_json: bool) -> None:
    """Bring the databases of all services, or of one, to the newest version."""
    from ops.cli import migrate as migrations

    if service and service not in DATABASES:
        raise click.BadParameter(f"{service!r} is not one of {', '.join(DATABASES)}", param_hint="SERVICE")
    done = migrations.migrate(read(), [service] if service else DATABASES)
    if as_json:
        print_json({"migrated": done})
    else:
        click.echo("\n".join(done))


@ecom.group()
def topology() -> None:
    """Exchanges, queues and bindings."""


@topology.command()
@json_option
def apply(as_json: bool) -> None:
    """Declare what the broker lacks. What differs from the table is reported and not changed."""
    from topology import declare

    try:
        declare.apply(read().amqp_uri)
    except TopologyDrift as error:
        _report([declare.Drift(**found) for found in error.details["drift"]], as_json, "applied")
    else:
        _report([], as_json, "applied")


@topology.command()
@click.option("--management", metavar="URL", default="", help="http://host:15672, to compare the bindings as well.")
@json_option
def check(management: str, as_json: bool) -> None:
    """Show where the broker differs from the table. Changes nothing."""
    from topology import declare

    _report(declare.check(read().amqp_uri, management), as_json, "clean", bindings_seen=bool(management))


def _report(drift: Sequence[Any], as_json: bool, done: str, bindings_seen: bool = True) -> None:
    """Print the drift, or that there is none with what was looked at; exit 1 when there is any."""
    from topology import table

    seen = {
        "exchanges": len(table.exchanges()),
        "queues": len(table.queue_arguments()),
        # None: AMQP alone cannot see them.
        "bindings": len(table.bindings()) if bindings_seen else None,
    }
    if as_json:
        print_json({"drift": [vars(found) for found in drift], "compared": seen})
    elif drift:
        for found in drift:
            click.echo(found)
    else:
        unseen = "" if bindings_seen else " (bindings not seen: give --management, or apply again, which is harmless)"
        counts = ", ".join(f"{count} {name}" for name, count in seen.items() if count is not None)
        click.echo(f"{done}: {counts}{unseen}")
    if drift:
        sys.exit(FOUND)


@ecom.group()
def user() -> None:
    """Users who may sign in. These commands write to the database of auth."""


@user.command("add")
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, help="A role of the user; may be given again.")
@json_option
def user_add(name: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Make a user. On a terminal it asks for the password; otherwise it reads one line of standard input.

    In production a password has at least 12 characters.
    """
    from ops.cli import users

    settings = read()
    with _user_faults():
        users.check_name(name)  # before the password is asked for
        users.check_roles(roles)
        made = users.add(settings, name, roles, _password())
    _say_user(made, f"{name} may sign in as {', '.join(made['roles'])}", as_json)


@user.command("password")
@click.argument("name")
@json_option
def user_password(name: str, as_json: bool) -> None:
    """Change the password of a user. It is asked for or read as by `add`."""
    from ops.cli import users

    settings = read()
    with _user_faults():
        changed = users.set_password(settings, name, _password())
    _say_user(changed, f"{name} has a new password", as_json)


@user.command("disable")
@click.argument("name")
@json_option
def user_disable(name: str, as_json: bool) -> None:
    """Refuse further logins of a user. An open session or token stays valid: a token for up to 15 minutes."""
    from ops.cli import users

    with _user_faults():
        changed = users.set_disabled(read(), name, True)
    _say_user(changed, f"{name} is disabled", as_json)


@user.command("enable")
@click.argument("name")
@json_option
def user_enable(name: str, as_json: bool) -> None:
    """Let a disabled user sign in again."""
    from ops.cli import users

    with _user_faults():
        changed = users.set_disabled(read(), name, False)
    _say_user(changed, f"{name} is enabled", as_json)


@user.command("ls")
@json_option
def user_ls(as_json: bool) -> None:
    """All users with their roles, the disabled as well."""
    from ops.cli import users

    found = users.everybody(read())
    if as_json:
        print_json({"users": found})
        return
    rows = [
        (one["name"], ", ".join(one["roles"]), "disabled" if one["disabled"] else "", f"{one['created_at']:%F %R}")
        for one in found
    ]
    print_table(("name", "roles", "", "made (UTC)"), rows)


def _password() -> str:
    """A password typed twice, unseen, or one line of standard input. Raises UsageError when there is none."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt="Once more", err=True))
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise click.UsageError("there is no password on standard input")
    return password


def _say_user(shown: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print_json(shown)
    else:
        click.echo(text)


@contextmanager
def _user_faults() -> Iterator[None]:
    """Misuse is 2; a user that is not there, or is there already, is a finding."""
    try:
        yield
    except ValidationFailed as error:
        raise click.UsageError(str(error)) from error
    except (Conflict, NotFound) as error:
        complain(error)
        sys.exit(FOUND)


@ecom.group()
def outbox() -> None:
    """Events that wait to be published."""


@outbox.command("ls")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Held rows of each service.")
@json_option
def outbox_ls(limit: int, as_json: bool) -> None:
    """Count unpublished events by service and list those that the broker refused; exit 1 if there are any."""
    settings = read()
    found: list[dict[str, Any]] = []
    away: list[EcomError] = []
    for service in PUBLISHERS:
        url = settings.database_url(service)
        try:
            found.append({"service": service, **_outbox_of(service, url, limit)})
        except EcomError as absence:
            away.append(absence)  # the other services' rows are still worth seeing
    held = [{"service": one["service"], **row} for one in found for row in one["held"]]
    if as_json:
        print_json({"outboxes": found})
    elif found:
        print_table(
            ("service", "unpublished", "oldest", "held"),
            [(one["service"], one["unpublished"], f"{one['oldest_age_s']:.0f} s", len(one["held"])) for one in found],
        )
        if held:
            columns = ("service", "id", "event_type", "aggregate_id", "attempts", "behind", "last_error")
            print_table(columns, [[row[name] for name in columns] for row in held], title="held")
    for fault in away:
        complain(fault)
    sys.exit(COULD_NOT if away else FOUND if held else 0)


def _outbox_of(service: str, url: str, limit: int) -> dict[str, Any]:
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


ecom.add_command(dlq)
ecom.add_command(audit)


if __name__ == "__main__":
    main()
