"""The week in a small shop is replayed: see tests/e2e/replayed.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from inventory_service.purchasing import reorder
from tests.e2e.replayed import Replayed
from tests.e2e.system import ROOT, System, eventually

TO_BE_HAD = "SELECT sku FROM availability WHERE sku = 'margherita' AND NOT sold_out"
SOLD = "SELECT sku FROM stock_movements WHERE sku = 'flour-00' AND cause = 'sale'"
PROPOSED = """
    SELECT sku FROM purchase_order_lines JOIN purchase_orders USING (po_id)
    WHERE status = 'PROPOSED' AND sku IN ('flour-00', 'mozzarella')
"""


class Week(Replayed):
    """The page's scenes: what another page says, and what is waited for."""

    codes = (0,)

    def first_order_by_curl(self) -> None:
        """`api` and `login` are as the README sets them, but for where the gateway is."""
        _, _, text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A first order by curl\n")
        (block,) = re.findall(r"^    api=.*?(?=^$)", text, re.MULTILINE | re.DOTALL)
        address = re.compile(r"http://127\.0\.0\.1:\d+")
        assert len(address.findall(block)) == 1
        code, printed = self.shell.paste(address.sub(self.system.url("gateway"), block))
        assert (code, printed) == (0, [""])

    def the_menu_has_heard(self) -> None:
        """The inventory service tells within two seconds that a margherita can be had."""
        eventually(lambda: self.system.databases.rows("catalog", TO_BE_HAD), bool, otherwise="not to be had")

    def what_was_sold_has_left(self) -> None:
        """The stock is committed a moment after the order is paid."""
        eventually(lambda: self.system.databases.rows("inventory", SOLD), bool, otherwise="nothing is sold")

    def a_minute_later(self) -> None:
        """What the timer does each minute, as the service's own user of the database; it may have been there before."""
        engine = create_engine(self.system.settings.database_url("inventory"))
        with Session(engine) as session:
            due = reorder.look(session, "")
            reorder.propose(session, due.skus, due.suppliers, "system:reorder")
            session.commit()
        engine.dispose()
        assert len(self.system.databases.rows("inventory", PROPOSED)) == 2


@pytest.mark.timeout(120)  # some thirty commands, one after the other
def test_every_command_of_the_week_prints_what_the_page_says(system: System, tmp_path: Path) -> None:
    with Week(system, tmp_path) as week:
        week.replay("stock.md")
    assert week.commands >= 25
