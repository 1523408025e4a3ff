"""The one door for clients: checks who asks and what, calls the services by RPC, and decides nothing else."""

from __future__ import annotations

from nameko.dependency_providers import Config

from gateway.operations import Operations
from gateway.orders import Orders
from gateway.payments import Payments
from gateway.releases import Releases
from gateway.site.routes import Site
from gateway.stock import Stocks
from gateway.tokens import Tokens
from shared.edge.http import Probes


class GatewayService(Tokens, Orders, Stocks, Releases, Payments, Operations, Site, Probes):
    """Everything under /api, and the site."""

    name = "gateway"
    config = Config()
