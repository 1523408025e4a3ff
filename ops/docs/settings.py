"""Writes docs/settings.md from the table of settings. `python -m ops.docs.contracts` calls it."""

from __future__ import annotations

from pathlib import Path

from shared.config import ROLES, SERVICES, TABLE
from shared.setting import Row

FILE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

HEAD = """\
# Settings
`python -m ops.docs.contracts` writes this page from the table in shared/config.py.

Each setting is an environment variable, or a file that NAME_FILE names. A process reads the settings of its role only.
A role is a service, or a group of commands: `migrate` (`ecom migrate`), `topology` (`ecom topology`), `audit`
(`ecom audit`), `user` (`ecom user`), `operator` (`ecom dlq`, `order`, `outbox`, `queues`) and `shell` (`make shell`).
`ecom config --role payment` shows the settings of a role.

A process of which nothing is said is in production. `make up` sets ECOM_ENV=development where you have not set it.
Production refuses to start with unsafe settings and names all of them at once; `ecom config --check` lists them and
exits with 1. An exception needs a setting of its own (ALLOW_...), and the process logs it at each start.

Times are in seconds.

| setting | in development | in production | read by | what it is |
|---|---|---|---|---|
"""


def document() -> str:
    """The page."""
    return HEAD + "".join(_line(row) for row in TABLE)


def _line(row: Row) -> str:
    name = row.variable + " (secret)" * bool(row.secret)
    production = "the same" if row.production is None else _value(row.production)
    return f"| {name} | {_value(row.default)} | {production} | {_readers(row.roles)} | {row.means} |\n"


def _value(text: str) -> str:
    return f"`{text}`" if text else "none"


def _readers(roles: tuple[str, ...]) -> str:
    """The roles, with all services in two words."""
    if set(roles) == set(ROLES):
        return "every process"
    if set(SERVICES) <= set(roles):
        return ", ".join(["every service", *(role for role in roles if role not in SERVICES)])
    return ", ".join(roles)


def main() -> None:
    """Write the page."""
    FILE.write_text(document(), encoding="utf-8")
