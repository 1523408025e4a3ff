"""Who may open connections to whom, and at which port. Nothing else may: deploy/k8s/prod/network.yaml says the same.

Derived from the table of services where that knows it. Standard library and the table of services only.
"""

from __future__ import annotations

from dataclasses import dataclass

from topology.services import DATABASES, NAMES

# Commands that run as Jobs.
MIGRATE, TOPOLOGY, AUDIT = "migrate", "topology", "audit"
BROKER, DATABASE = "rabbitmq", "postgres"
# Who and what is not ours: each is a namespace of the cluster, or an address outside of it.
PROXY, PROMETHEUS, ROLLOUTS = "proxy", "prometheus", "rollouts"
DATABASE_OPERATOR, DNS = "database operator", "dns"
INTERNET, ANYWHERE = "internet", "anywhere"  # the internet has no private addresses

AMQPS, MANAGEMENT, POSTGRES, HTTPS, SUBMISSION = 5671, 15671, 5432, 443, 587
HTTP, PROBES = "http", "probes"  # ports of services, by the names that their manifests give them

# The services that clients reach through the proxy, and those that call the internet: at which ports.
PUBLIC = ("gateway",)
CALLS_OUT = {"payment": (HTTPS,), "auth": (HTTPS, SUBMISSION)}


@dataclass(frozen=True)
class Flow:
    """One that opens connections, one that accepts them, and the port: its number, or its name at a service."""

    source: str
    target: str
    port: int | str


FLOWS = (
    *(Flow(name, BROKER, AMQPS) for name in (*NAMES, TOPOLOGY)),
    Flow(TOPOLOGY, BROKER, MANAGEMENT),
    *(Flow(name, DATABASE, POSTGRES) for name in (*DATABASES, MIGRATE, AUDIT)),
    *(Flow(name, INTERNET, port) for name, ports in CALLS_OUT.items() for port in ports),
    *(Flow(who, name, HTTP) for name in PUBLIC for who in (PROXY, ROLLOUTS)),  # a new version is tried before it serves
    *(Flow(PROMETHEUS, name, PROBES) for name in NAMES),
    *(Flow(name, DNS, 53) for name in (*NAMES, MIGRATE, TOPOLOGY, AUDIT, BROKER, DATABASE)),
    # The servers and their peers. Metrics: 15691, 9187. Erlang's names and nodes: 4369, 25672.
    Flow(PROMETHEUS, BROKER, 15691),
    Flow(PROMETHEUS, DATABASE, 9187),
    Flow(BROKER, BROKER, 4369),
    Flow(BROKER, BROKER, 25672),
    Flow(DATABASE, DATABASE, POSTGRES),
    Flow(DATABASE, DATABASE, 8000),  # what each instance says of itself, to its peers and to the operator
    Flow(DATABASE_OPERATOR, DATABASE, 8000),
    Flow(DATABASE_OPERATOR, DATABASE, POSTGRES),
    # An instance asks the cluster's API, whose address no policy can name, and writes to the backup store.
    Flow(DATABASE, ANYWHERE, HTTPS),
    Flow(DATABASE, ANYWHERE, 6443),
)
