"""The catalog service: owns what is sold, and at which price."""

from __future__ import annotations

from shared import idempotency
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.http import Probes
from shared.edge.settings import Setting
from shared.edge.timer import every
from shared.relay import Relay


class CatalogService(Probes):
    """Keeps the menu and its prices, and publishes each change of an offer.

    Every change is made by a user whom a rule of domain.py allows it; to anybody else it raises RoleMissing.
    """

    name = "catalog_service"

    settings = Setting()
    db = Database()
    relay = Relay()
    context = Context()

    @every(3600)
    def forget_keys(self) -> None:
        """Delete the stored answers of idempotency keys that are older than promised."""
        with self.db.begin() as session:
            idempotency.purge(session)
