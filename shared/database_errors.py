"""What an error of the database means: repeat the transaction, try it later, or wait for the server."""

from __future__ import annotations

import re

import psycopg2
from sqlalchemy.exc import DBAPIError, InterfaceError, TimeoutError

# PostgreSQL's undefined_table and undefined_column.
UNDEFINED_TABLE, UNDEFINED_COLUMN = "42P01", "42703"

# PostgreSQL's insufficient_privilege.
NOT_ALLOWED = "42501"


def is_conflict(error: BaseException) -> bool:
    """Whether repeating the transaction is the answer: serialization failure, deadlock."""
    return sqlstate(error) in ("40001", "40P01")


def is_hold_up(error: BaseException) -> bool:
    """Whether the transaction waited in vain: lock_timeout has passed, or statement_timeout has."""
    return sqlstate(error) in ("55P03", "57014")


def is_outage(error: BaseException) -> bool:
    """Whether the database itself is away or unable, so that nothing is wrong with the message in work."""
    if isinstance(error, TimeoutError):  # the pool is empty
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error)
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if state is None:
        return isinstance(error.orig, psycopg2.OperationalError)
    # Classes 08 connection, 53 resources (disk full, too many connections), 58 system; 57P0x shutting down or
    # starting; 25006 a standby that does not take writes; 42P01 and 42703 a table or a column is not there, so this is
    # not the schema of this version; 42501 a right is missing, as while another version's `ecom migrate` ran last.
    unable = ("25006", "25P03", NOT_ALLOWED, UNDEFINED_TABLE, UNDEFINED_COLUMN)
    return state[:2] in ("08", "53", "58") or state.startswith("57P") or state in unable


def refusal(error: BaseException) -> str | None:
    """Why the server let nobody connect, in its own words, such as a wrong password; None if it said nothing.

    psycopg2 has no code of such an error.
    """
    said = re.findall(r"FATAL: +(.+)", str(getattr(error, "orig", "")))
    return said[-1] if said else None


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error, such as 40P01 for a deadlock, or None."""
    return getattr(getattr(error, "orig", None), "pgcode", None)
