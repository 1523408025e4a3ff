"""Statements that PostgreSQL parses and plans a few times for each connection, instead of each time they are executed.

psycopg2 sends a statement with its values as one text, which the server reads and plans anew. A statement with the
execution option `prepared` is sent once by PREPARE, and then by EXECUTE with its values alone. After five executions
the server keeps one plan for all values, and makes it anew when it has analyzed the tables or they have changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event

_PARAMETER = re.compile(r"%\((\w+)\)s|%%")
_VERB, _TABLE = re.compile(r"\w+"), re.compile(r"\b(?:INTO|FROM|UPDATE) +(\w+)")


class Divided(NamedTuple):
    """A statement: what is sent before each EXECUTE, the text to prepare, and the names of its parameters in order."""

    head: str
    sql: str
    names: tuple[str, ...]

    def name(self, number: int) -> str:
        """What it is prepared as. pg_stat_activity shows this name and not the text: select_orders_3."""
        verb, table = _VERB.search(self.sql), _TABLE.search(self.sql)
        return "_".join([*(found[found.lastindex or 0].lower() for found in (verb, table) if found), str(number)])

    def execute(self, name: str, types: Sequence[str]) -> str:
        """What executes it when it is prepared by this name. An array of texts is not taken for one of ids: cast it."""
        values = ", ".join(f"%({name})s::{type_}" for name, type_ in zip(self.names, types, strict=True))
        return f"{self.head}EXECUTE {name}({values})" if values else f"{self.head}EXECUTE {name}"


def divided(statement: str) -> Divided:
    """Divide a statement as psycopg2 takes it: its parameters are written as %(name)s.

    What stands before its last semicolon, such as a SET, has no parameters.
    """
    head, semicolon, body = statement.rpartition(";")
    names = tuple(dict.fromkeys(match[1] for match in _PARAMETER.finditer(body) if match[1]))
    sql = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}" if match[1] else "%", body)
    return Divided(head + semicolon, sql, names)


def prepare_on(engine: Engine) -> None:
    """Prepare those statements on each connection of this engine when they are first executed there."""
    texts: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()  # what executes a statement, by connection

    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        """Whether the statement was executed here."""
        if not context.execution_options.get("prepared"):
            return False
        of_connection = texts.setdefault(cursor.connection, {})
        if statement not in of_connection:
            of_connection[statement] = _prepare(cursor, divided(statement), len(of_connection))
        cursor.execute(of_connection[statement], parameters)
        return True

    event.listen(engine, "do_execute", execute)


def _prepare(cursor: Any, statement: Divided, number: int) -> str:
    """Prepare a statement, and return what executes it. The number is its own on this connection."""
    name = statement.name(number)
    cursor.execute(f"PREPARE {name} AS {statement.sql}")
    cursor.execute(f"SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = '{name}'")
    ((types,),) = cursor.fetchall()
    return statement.execute(name, types)
