"""`make status` and `ecom status`: what runs, where, and whether it works. Standard library only."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ops.local.processes import StackFault
from ops.local.server import LOOPBACK, Server
from ops.local.stack import Stack, probe_url_of, project_environment
from ops.local.supervisor import READY, State, in_words, readiness
from shared import config
from shared.errors import IN_ALARM, ConfigurationFault
from topology.services import DATABASES, NAMES
from topology.users import SHELL

CONNECT_TIMEOUT_S = 2.0
# The broker reports an alarm only to connections that publish. The services have such connections and name the alarm
# in /readyz.
ALARM = f"{IN_ALARM}: (.*)"
DEFAULT_PORTS = {"RabbitMQ": 5672, "PostgreSQL": 5432}


@dataclass(frozen=True)
class Condition:
    """A replica of a service, or a server: where it listens, and whether it works."""

    name: str
    address: str
    state: State

    def __str__(self) -> str:
        place = f"  {self.name:14} {self.address:23} "
        return (
            place + self.state.word + ": " * bool(self.state.reasons) + f"\n{' ' * len(place)}".join(self.state.reasons)
        )

    def facts(self) -> dict[str, Any]:
        """The same for programs."""
        state = self.state
        why = {"warnings" if state.works else "reasons": list(state.reasons)}
        return {"name": self.name, "address": self.address, "ready": state.works, "state": state.word, **why}


def show(stack: Stack, as_json: bool = False) -> bool:
    """Print the stack's condition, passwords by --json only; whether everything works."""
    conditions = look(stack)
    started = bool(stack.state.get("ready"))
    ready = started and all(condition.state.works for condition in conditions)
    if as_json:
        print(json.dumps({"running": True, "ready": ready, **_facts(stack, conditions)}, indent=1))
        return ready
    for condition in conditions:
        print(condition)
    if not started:
        print("  the stack is still starting, or stopping")
    if any(server.process for server in stack.own_servers().each()):
        print(f"  {'passwords':14} make status ARGS=--json")
    if ready:
        gateway = stack.gateway_url()
        print(f"  {'try':14} curl -s {gateway}/api/auth/token -H 'Content-Type: application/json' \\")
        print(f'  {"":14}   -d \'{{"username": "customer", "password": "demo-customer"}}\'', flush=True)
    return ready


def look(stack: Stack) -> list[Condition]:
    """Ask every replica and both servers, all at the same time: this takes about 4 s at most."""
    questions: list[tuple[str, str, Callable[[], State]]] = [
        (name, child["url"], partial(_service_state, child)) for name, child in stack.state.get("children", {}).items()
    ]
    own = stack.own_servers()
    questions += [(server.title, f"{LOOPBACK}:{server.port}", partial(_server_state, server)) for server in own.each()]
    for title, host, port in _brought(stack, broker=not own.broker, databases=not own.postgres):
        questions.append((title, f"{host}:{port}", partial(_connection_state, (host, port))))
    with ThreadPoolExecutor(max(1, len(questions))) as threads:
        states = list(threads.map(lambda question: question[2](), questions))
    alarms = {found[0] for state in states for reason in state.reasons if (found := re.findall(ALARM, reason))}
    return [
        Condition(name, address, State("in alarm", tuple(alarms)) if name == "RabbitMQ" and alarms else state)
        for (name, address, _), state in zip(questions, states, strict=True)
    ]


def _service_state(child: dict[str, Any]) -> State:
    return readiness(probe_url_of(child)) if child["pid"] else State("down", ("it died and will be started again",))


def _server_state(server: Server) -> State:
    if server.process is None:
        return State("down")
    return READY if server.answers() else State("does not answer")


def _connection_state(address: tuple[str, int]) -> State:
    try:
        socket.create_connection(address, CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return State("does not answer", (in_words(error),))
    return READY


def _brought(stack: Stack, broker: bool, databases: bool) -> list[tuple[str, str, int]]:
    """Title, host and port of each server that the user brings, each once."""
    if not (broker or databases):
        return []
    try:
        settings = config.read(project_environment(stack.environment))
    except ConfigurationFault as fault:
        raise StackFault(str(fault)) from fault
    found = [("RabbitMQ", settings.amqp_uri)] if broker else []
    found += [("PostgreSQL", url) for url in settings.database_urls.values()] if databases else []
    places = []
    for title, url in found:
        parts = urlsplit(url)
        places.append((title, parts.hostname or LOOPBACK, parts.port or DEFAULT_PORTS[title]))
    return list(dict.fromkeys(places))


def _facts(stack: Stack, conditions: list[Condition]) -> dict[str, Any]:
    """What programs get to know, passwords and pids among it."""
    environment = project_environment(stack.environment)
    urls = {name: environment.get(f"{name.upper()}_DATABASE_URL", "") for name in DATABASES}
    uris = {name: environment.get(f"{name.upper()}_AMQP_URI", "") for name in (*NAMES, SHELL)}
    servers = {server.name: process.pid for server in stack.own_servers().each() if (process := server.process)}
    children = {name: child["pid"] for name, child in stack.state.get("children", {}).items()}
    return {
        "parts": [condition.facts() for condition in conditions],
        "urls": stack.urls(),
        "amqp_uri": environment.get("AMQP_URI", ""),
        "amqp_uris": {name: uri for name, uri in uris.items() if uri},
        "database_urls": {name: url for name, url in urls.items() if url},
        "database_admin_url": environment.get("DATABASE_ADMIN_URL", ""),
        "pids": servers | children,
    }
