"""How a statement is divided into what is prepared once and what is sent each time."""

from __future__ import annotations

import pytest

from shared.edge.prepared import Divided, divided


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", Divided("", "SELECT 1", ())),
        ("SELECT %(a)s, %(b)s, %(a)s", Divided("", "SELECT $1, $2, $1", ("a", "b"))),
        ("SELECT 'a' LIKE '%%' || %(a)s::TEXT", Divided("", "SELECT 'a' LIKE '%' || $1::TEXT", ("a",))),
        ("SET LOCAL x = 1; SELECT %(a)s", Divided("SET LOCAL x = 1;", " SELECT $1", ("a",))),
    ],
    ids=["no parameter", "a parameter twice", "a percent sign", "a statement before it"],
)
def test_parameters_are_numbered_and_named_once(statement: str, expected: Divided) -> None:
    assert divided(statement) == expected


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("SELECT a FROM orders WHERE b = ANY (%(b)s)", "select_orders_7"),
        ("SET LOCAL x = 1; INSERT INTO outbox (a) SELECT a FROM unnest(%(a)s)", "insert_outbox_7"),
        ("UPDATE stock_items SET a = 1", "update_stock_items_7"),
        ("SELECT 1", "select_7"),
    ],
)
def test_a_statement_is_named_so_that_people_know_it(statement: str, name: str) -> None:
    assert divided(statement).name(7) == name


def test_values_are_cast_to_the_types_of_the_prepared_statement() -> None:
    assert Divided("SET x = 1;", "SELECT $1, $2", ("a", "b")).execute("s7", ["uuid[]", "text"]) == (
        "SET x = 1;EXECUTE s7(%(a)s::uuid[], %(b)s::text)"
    )
    assert Divided("", "SELECT 1", ()).execute("s0", []) == "EXECUTE s0"
