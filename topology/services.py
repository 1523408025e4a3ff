"""The services: one row for each. Every list of services in Python is derived from this table.

Standard library only, and nothing newer than Python 3.8: deploy/make_secrets.py runs on whatever Python a machine has.
tests/unit/test_services_table.py compares the lists that Python cannot derive (setup.cfg, .dockerignore,
docker-compose.yml) with this table and names each missing line.
"""

from __future__ import annotations

from dataclasses import dataclass

# RPC calls, batches and timers of one process share these workers. Each worker may hold a database connection.
MAX_WORKERS = 20

# Connections to the database beside one for each worker: consumers hold them for their batches.
POOL_SPARE = 5

# The connections of a service's role suffice for so many replicas, unless `ecom migrate --replicas` says otherwise.
# Those of an old version that are ending count as well.
REPLICAS = 4

# Those of a relay: it publishes on one, and listens on another.
RELAY_CONNECTIONS = 2


@dataclass(frozen=True)
class Service:
    """One service. Its Nameko class is in `<package>/service.py`.

    A service with a database also has domain.py, models.py and migrations/ in its package.
    """

    name: str
    package: str
    purpose: str  # one line for README.md, which `python -m ops.docs.contracts` writes
    start_order: int  # services that answer RPC start before the gateway, which calls them
    has_database: bool = True
    publishes: tuple[str, ...] = ()  # the first words of the event types it publishes, from an outbox and a relay
    workers: int = MAX_WORKERS
    needs: tuple[str, ...] = ()  # secret settings without which the service refuses to start
    calls: tuple[str, ...] = ()  # the services that it calls by RPC
    hints: str = ""  # "publishes" hints of changed orders or of revocations, or "hears" them
    replays: bool = False  # whether it reads every DLQ and sends dead messages back
    other_connections: int = 0  # to its database, beside those of its workers, consumers and relay

    @property
    def rpc_name(self) -> str:
        """The name by which others call it: that of its Nameko class."""
        return f"{self.name}_service"

    @property
    def connections(self) -> int:
        """How many connections to its database one process opens at most."""
        return self.workers + POOL_SPARE + RELAY_CONNECTIONS * bool(self.publishes) + self.other_connections

    @property
    def has_rpc(self) -> bool:
        """Whether other services may call it."""
        return any(self.name in caller.calls for caller in SERVICES)


# The order of the rows is the order of the ports: 8000 for the first row, 8001 for the second. Add new rows at the end.
SERVICES = (
    # A worker of the gateway is a greenlet that waits for an RPC and holds no database connection.
    Service(
        "gateway",
        "gateway",
        purpose="serves the HTTP API and the dashboard; checks tokens and requests and calls the others by RPC",
        start_order=100,
        has_database=False,
        workers=200,
        needs=("AUTH_KEYS",),
        calls=("order", "inventory", "payment", "auth", "ops", "catalog"),
        hints="hears",
    ),
    Service(
        "order",
        "order_service",
        purpose="owns orders; decides from each event what an order becomes; cancels orders at their deadline",
        start_order=5,
        publishes=("order", "inventory.release", "inventory.commit", "payment.refund"),
        calls=("catalog",),
        hints="publishes",
    ),
    # Inventory seals the release audit. Without a key rows would wait for a seal, and nobody would notice.
    Service(
        "inventory",
        "inventory_service",
        purpose="owns stock, recipes, reservations and purchase orders; writes and seals the release audit",
        start_order=2,
        publishes=("inventory", "stock"),
        needs=("AUDIT_KEY",),
    ),
    Service(
        "payment",
        "payment_service",
        purpose="owns payments and refunds; calls the payment provider; pauses while the provider is away",
        start_order=3,
        publishes=("payment",),
        other_connections=20,  # the mock provider's, for its ledger
    ),
    Service(
        "auth",
        "auth_service",
        purpose="owns people, their sessions and the keys of services; issues tokens, and says which are revoked",
        start_order=1,
        publishes=("user",),
        needs=("AUTH_KEYS",),
        hints="publishes",
    ),
    Service(
        "ops",
        "ops",
        purpose="counts, shows and replays dead messages; keeps the operators' ledger and copies of the audit's seals",
        start_order=6,
        replays=True,
        other_connections=40,  # sessions on a DLQ: the census, one for each call, and `ecom` at terminals
    ),
    Service(
        "catalog",
        "catalog_service",
        purpose="owns what is sold and its prices; tells the order service about each change of an offer",
        start_order=4,  # before the order service, which asks it where its copy of the offers leaves a doubt
        publishes=("catalog",),
    ),
)

BY_NAME = {service.name: service for service in SERVICES}
NAMES = tuple(service.name for service in SERVICES)
START_ORDER = tuple(service.name for service in sorted(SERVICES, key=lambda service: service.start_order))
DATABASES = tuple(service.name for service in SERVICES if service.has_database)
PUBLISHERS = tuple(service.name for service in SERVICES if service.publishes)


def publisher_of(event_type: str) -> str | None:
    """The service that publishes an event type: the row with the longest matching first words. None if no row matches.

    `inventory.release.requested` is a command of the order service, although its first word is `inventory`.
    """
    words = event_type.split(".")
    matches = [
        (len(first.split(".")), service.name)
        for service in SERVICES
        for first in service.publishes
        if words[: len(first.split("."))] == first.split(".")
    ]
    return max(matches)[1] if matches else None
