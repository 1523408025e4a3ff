"""The processes of a running system connect to what topology/flows.py lists, and to nothing else."""

from __future__ import annotations

import psutil
from sqlalchemy import make_url

from tests.e2e.system import System, eventually
from topology.flows import AMQPS, BROKER, DATABASE, FLOWS, POSTGRES, Flow
from topology.services import NAMES


def used(system: System) -> set[Flow]:
    """Every connection that a service has opened now. Ports are those that FLOWS gives the servers."""
    servers = {
        make_url(system.amqp_uri).port: (BROKER, AMQPS),
        make_url(system.settings.database_url("order")).port: (DATABASE, POSTGRES),
    }
    found = set()
    for service in NAMES:
        for pid in system.replicas_of(service).values():
            connections = psutil.Process(pid).net_connections("tcp")
            served = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
            itself = {one.laddr.port for one in connections}  # as eventlet's threads tell the loop that they are done
            opened = [one for one in connections if one.raddr and one.laddr.port not in served]
            others = {one.raddr.port for one in opened} - itself
            found |= {Flow(service, *servers.get(port, ("nobody known", port))) for port in others}
    return found


def test_services_connect_to_the_servers_that_the_list_says_and_to_nothing_else(system: System) -> None:
    flow = system.flow()
    flow.stock("flows", 1)
    flow.at_rest(flow.order("flows")["order_id"])
    known = {one for one in FLOWS if one.source in NAMES and one.target in (BROKER, DATABASE)}
    eventually(lambda: used(system), lambda found: found == known, 10, "these connections are open")
