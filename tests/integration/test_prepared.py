"""Prepared statements on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from shared.config import Settings
from shared.edge.postgres import connect
from tests.databases import Databases

_CLAIM = text("INSERT INTO stock_items (sku, on_hand) VALUES (:sku, :on_hand)").execution_options(prepared=True)
_PREPARED = text("SELECT statement, generic_plans + custom_plans FROM pg_prepared_statements")


@pytest.fixture
def engine(settings: Settings, database: Databases) -> Iterator[Engine]:
    engine = connect(settings.database_url("inventory"), "test", pool_size=1)
    yield engine
    engine.dispose()


def test_a_statement_is_prepared_once_for_each_connection_and_executed_each_time(engine: Engine) -> None:
    with engine.begin() as connection:
        for number in range(3):
            connection.execute(_CLAIM, {"sku": f"sku-{number}", "on_hand": number})
        assert connection.execute(_PREPARED).all() == [
            ("PREPARE insert_stock_items_0 AS INSERT INTO stock_items (sku, on_hand) VALUES ($1, $2)", 3)
        ]
    engine.dispose()
    with engine.begin() as connection:
        assert connection.execute(_PREPARED).all() == []
        connection.execute(_CLAIM, {"sku": "sku-3", "on_hand": 3})
        assert connection.execute(text("SELECT sum(on_hand) FROM stock_items")).scalar_one() == 6


def test_a_statement_stays_prepared_when_it_fails_and_is_rolled_back(engine: Engine) -> None:
    row = {"sku": "sku-1", "on_hand": 1}
    with engine.begin() as connection:
        connection.execute(_CLAIM, row)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(_CLAIM, row)
    with engine.begin() as connection:
        connection.execute(_CLAIM, {**row, "sku": "sku-2"})
        assert len(connection.execute(_PREPARED).all()) == 1


def test_a_statement_that_cannot_be_prepared_can_be_tried_again(engine: Engine, database: Databases) -> None:
    """For example because its table is not there yet, while an old and a new version run side by side."""
    late = text("SELECT count(*) FROM comes_late").execution_options(prepared=True)
    with pytest.raises(Exception, match="comes_late"), engine.begin() as connection:
        connection.execute(late)
    database.run("inventory", "CREATE TABLE comes_late (); GRANT SELECT ON comes_late TO PUBLIC")
    try:
        with engine.begin() as connection:
            assert connection.execute(late).scalar_one() == 0
    finally:
        database.run("inventory", "DROP TABLE comes_late")
