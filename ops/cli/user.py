"""`ecom user`: who may sign in, as what, and with which sessions. For operators with access to the database of auth.

Only click and the standard library are imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ops.cli.console import FOUND, Plain, actor_option, complain, json_option, login, print_json
from ops.cli.home import read
from ops.cli.tables import Table
from shared.config import USER
from shared.errors import Conflict, NotFound, ValidationFailed
from shared.roles import ROLES

SHOWN = 200

USERS = Table(
    ("name", "roles", "state", "made (UTC)", "user_id", "email"),
    optional=("user_id", "email"),
    empty="no user; `ecom user add` makes one",
)
SESSIONS = Table(
    ("session_id", "kind", "client", "network", "begun (UTC)", "used (UTC)"),
    optional=("client", "network"),
    empty="no session is open",
)
KEYS = Table(
    ("key_id", "roles", "expires", "last used", "revoked"),
    optional=("last used",),
    empty="no key; `ecom user keys add` makes one",
)


@click.group()
def user() -> None:
    """Users who may sign in. These commands write to the database of auth.

    NAME is the name of a user who was made here, an address, or a user_id. Gateways notice a change within 2 s.
    """


reason_option = click.option("--reason", type=Plain(), default="", metavar="TEXT", help="Kept in the record.")
roles_option = click.option("--role", "roles", multiple=True, required=True, help="A role; may be given again.")


@user.command("add")
@click.argument("name")
@roles_option
@click.option("--email", type=Plain(), metavar="ADDRESS", help="The user may sign in by it, and reset the password.")
@actor_option
@json_option
def add(name: str, roles: tuple[str, ...], email: str | None, actor: str | None, as_json: bool) -> None:
    """Make a user. On a terminal it asks for the password; otherwise it reads one line of standard input.

    In production a password has at least 12 characters.
    """
    from ops.cli import users

    settings = read(USER)
    with _faults():
        users.check_new_name(name)  # before the password is asked for
        users.check_roles(roles)
        made = users.add(settings, actor or login(), name, roles, _password(), email)
    _say(made, f"{name} may sign in as {', '.join(made['roles'])}", as_json)


@user.command("password")
@click.argument("name")
@actor_option
@json_option
def password(name: str, actor: str | None, as_json: bool) -> None:
    """Change the password of a user, which ends all their sessions. It is asked for or read as by `add`."""
    from ops.cli import users

    settings = read(USER)
    with _faults():
        changed = users.set_password(settings, actor or login(), name, _password())
    _say(changed, f"{name} has a new password", as_json)


@user.command("roles")
@click.argument("name")
@roles_option
@reason_option
@actor_option
@json_option
def set_roles(name: str, roles: tuple[str, ...], reason: str, actor: str | None, as_json: bool) -> None:
    """Give a user these roles and no others. Tokens with the old ones are refused."""
    from ops.cli import users

    with _faults():
        changed = users.set_roles(read(USER), actor or login(), name, roles, reason)
    _say(changed, f"{name} may sign in as {', '.join(changed['roles'])}", as_json)


@user.command("disable")
@click.argument("name")
@reason_option
@actor_option
@json_option
def disable(name: str, reason: str, actor: str | None, as_json: bool) -> None:
    """Shut a user out at once.

    All their sessions and tokens end, and further sign-ins are refused.
    """
    from ops.cli import users

    with _faults():
        changed = users.set_disabled(read(USER), actor or login(), name, True, reason)
    _say(changed, f"{name} is disabled", as_json)


@user.command("enable")
@click.argument("name")
@reason_option
@actor_option
@json_option
def enable(name: str, reason: str, actor: str | None, as_json: bool) -> None:
    """Let a disabled user sign in again."""
    from ops.cli import users

    with _faults():
        changed = users.set_disabled(read(USER), actor or login(), name, False, reason)
    _say(changed, f"{name} is enabled", as_json)


@user.command("ls")
@click.option("--role", type=Plain(), help="Only users with this role.")
@click.option("--email", type=Plain(), metavar="ADDRESS", help="Only the user with this address.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=SHOWN, show_default=True, help="So many at most.")
@json_option
def ls(role: str | None, email: str | None, limit: int, as_json: bool) -> None:
    """Users with their roles, the disabled as well, by user_id."""
    from ops.cli import users

    with _faults():
        found, more = users.listed(read(USER), limit, role, email)
    if as_json:
        print_json({"users": found, "more": more})
        return
    USERS.show(
        (
            one["name"],
            ", ".join(one["roles"]),
            "disabled" if one["disabled"] else "",
            f"{one['created_at']:%F %R}",
            one["user_id"],
            one["email"],
        )
        for one in found
    )
    if more:
        click.echo(f"and more: --limit, or --role ({', '.join(ROLES)})", err=True)


@user.command("sessions")
@click.argument("name")
@click.option("--end", is_flag=True, help="End them all, and every token.")
@actor_option
@json_option
def sessions(name: str, end: bool, actor: str | None, as_json: bool) -> None:
    """The open sessions of a user.

    The newest comes first; with --end they are over.
    """
    from ops.cli import users

    with _faults():
        if end:
            ended = users.end_sessions(read(USER), actor or login(), name)
            _say({"ended": ended}, f"{name} has no session any more; {ended} were open", as_json)
            return
        found = users.sessions(read(USER), name, SHOWN)
    if as_json:
        print_json({"sessions": found})
        return
    SESSIONS.show(
        (
            one["session_id"],
            one["kind"],
            one["client"],
            one["network"],
            f"{one['created_at']:%F %R}",
            f"{one['used_at']:%F %R}",
        )
        for one in found
    )


@user.group("keys")
def keys() -> None:
    """The keys by which services sign in."""


@keys.command("add")
@click.argument("service")
@roles_option
@click.option("--days", type=click.IntRange(1, 366), default=365, show_default=True, help="Then it ends.")
@actor_option
@json_option
def add_key(service: str, roles: tuple[str, ...], days: int, actor: str | None, as_json: bool) -> None:
    """Make a key of a service and show it, once.

    Nobody can read it again. The first key makes the service.
    """
    from ops.cli import users

    with _faults():
        made = users.create_key(read(USER), actor or login(), service, roles, days)
    _say(made, f"{made['key']}\nis {made['key_id']} of {service} until {made['expires_at']}", as_json)


@keys.command("ls")
@click.argument("service")
@json_option
def list_keys(service: str, as_json: bool) -> None:
    """The keys of a service, the newest first."""
    from ops.cli import users

    with _faults():
        found = users.keys(read(USER), service, SHOWN)
    if as_json:
        print_json({"keys": found})
        return
    KEYS.show(
        (one["key_id"], ", ".join(one["roles"]), one["expires_at"], one["last_used_on"], one["revoked_at"])
        for one in found
    )


@keys.command("revoke")
@click.argument("service")
@click.argument("key_id")
@actor_option
@json_option
def revoke_key(service: str, key_id: str, actor: str | None, as_json: bool) -> None:
    """Revoke a key, and all tokens of its service."""
    from ops.cli import users

    with _faults():
        users.revoke_key(read(USER), actor or login(), service, key_id)
    _say({"revoked": key_id}, f"{key_id} of {service} is revoked", as_json)


def _password() -> str:
    """A password typed twice, unseen, or one line of standard input. Raises UsageError when there is none."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt="Once more", err=True))
    typed = sys.stdin.readline().rstrip("\r\n")
    if not typed:
        raise click.UsageError("there is no password on standard input")
    return typed


def _say(shown: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print_json(shown)
    else:
        click.echo(text)


@contextmanager
def _faults() -> Iterator[None]:
    """Misuse is 2; a user that is not there, is there already or must stay is a finding."""
    try:
        yield
    except ValidationFailed as error:
        reasons = [f"{field}: {' '.join(words)}" for field, words in error.details.items()]
        raise click.UsageError(" ".join(reasons) or str(error)) from error
    except (Conflict, NotFound) as error:
        complain(error)
        sys.exit(FOUND)
