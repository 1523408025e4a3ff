"""The HTTP API for clients, and the site for people.

The gateway checks each request and its sender and calls the services by RPC. It decides nothing else.
"""

from __future__ import annotations

from gateway.accounts import Accounts
from gateway.api.versions import Versions
from gateway.feed import Feed
from gateway.menu import Menu
from gateway.menu_editor import MenuEditor
from gateway.openid import OpenId
from gateway.operations import Operations
from gateway.order_notes import OrderNotes
from gateway.orders import Orders
from gateway.payments import Payments
from gateway.people import People
from gateway.purchasing import Purchasing
from gateway.recipes import Recipes
from gateway.releases import Releases
from gateway.service_keys import ServiceKeys
from gateway.sessions import Sessions
from gateway.site.routes import Site
from gateway.stock import Stocks
from gateway.stock_books import StockBooks
from gateway.suppliers import Suppliers
from gateway.tokens import Tokens
from shared.edge.http import ProbesApart
from shared.edge.settings import Setting


class GatewayService(
    Tokens,
    Accounts,
    OpenId,
    People,
    Sessions,
    ServiceKeys,
    Orders,
    OrderNotes,
    Feed,
    Menu,
    MenuEditor,
    Stocks,
    StockBooks,
    Recipes,
    Suppliers,
    Purchasing,
    Releases,
    Payments,
    Operations,
    Site,
    ProbesApart,
):
    """Every route of the gateway, by subject."""

    name = "gateway"
    api_versions = Versions()
    settings = Setting()
