"""Runs one service in this process: patches, reads the settings, waits for the schema, starts the container, stops it.

Import this module before any module that opens sockets, because eventlet must patch them first.
"""

from __future__ import annotations

# isort: off
from shared.edge import green
from shared.edge.green import Event
from shared.edge import patched  # noqa: F401

# isort: on
import gc
import importlib
import logging
import resource
import signal
from typing import Any

from nameko.containers import ServiceContainer

from shared import logs, unsafe
from shared.config import Settings
from shared.edge.schema_wait import wait_for_schema
from shared.edge.settings import sender_rules
from shared.errors import ConfigurationFault
from shared.senders import SenderRules
from topology.services import BY_NAME

log = logging.getLogger(__name__)

# Each client connection is an open file. The usual soft limit of 1,024 protects programs that call select(), which we
# do not.
MAX_FILES = 65_536

# New objects before a collection of the youngest, and collections of one generation before one of the next. Reference
# counts free nearly all objects before that.
COLLECT_AFTER = (10_000, 20, 20)


def service_class(service: str) -> Any:
    """The Nameko class of a service: the one class in its module that has a `name`."""
    module = importlib.import_module(f"{BY_NAME[service].package}.service")
    classes = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and item.__module__ == module.__name__ and isinstance(getattr(item, "name", 0), str)
    ]
    (found,) = classes
    return found


def nameko_config(settings: Settings, service: str, replica: int = 0) -> dict[str, Any]:
    """Build Nameko's configuration from the settings; there is no YAML. Raises ConfigurationFault for a missing one."""
    row = BY_NAME[service]
    config: dict[str, Any] = {
        "AMQP_URI": settings.amqp_uri,
        "WEB_SERVER_ADDRESS": settings.address(service, replica),
        "PROBE_SERVER_ADDRESS": settings.probe_address(service, replica),
        "DB_URIS": {},
        "serializer": "json",
        "max_workers": row.workers,
        "settings": settings,
    }
    if files := settings.https_files(service):
        config["WEB_SERVER_TLS"] = files
    for setting in row.needs:
        settings.require(setting)
    if row.has_database:
        config["DB_URIS"] = {f"{service}_service:Base": settings.database_url(service)}
    return config


def run(service: str, replica: int = 0) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code. Raises ConfigurationFault before anything is started."""
    if service not in BY_NAME:
        raise ConfigurationFault(f"there is no service {service!r}; one of {', '.join(BY_NAME)}")
    settings = unsafe.read_safe(service)
    raise_file_limit()
    logs.configure(settings.log_level, service=service, replica=replica)
    log_unchecked_senders(sender_rules(settings))
    for sentence in unsafe.allowed(settings, service) if settings.production else ():
        log.warning("%s", sentence)
    found, config = service_class(service), nameko_config(settings, service, replica)
    asked = Event()

    def ask_to_stop(number: int, frame: Any) -> None:
        if not asked.ready():
            asked.send(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)

    # Python runs a signal handler only when the hub wakes up, and an idle hub sleeps up to 60 s.
    green.spawn(_pulse)
    if BY_NAME[service].has_database and not wait_for_schema(service, found, config, asked):
        log.info("stopped on %s before it began to work", asked.wait())
        return 0
    container = ServiceContainer(found, config)

    def stop_when_asked() -> None:
        log.info("stopping on %s", asked.wait())
        container.stop()
        log.info("stopped")

    green.spawn(stop_when_asked)
    container.start()
    spare_the_collector()
    log.info("%s is up on %s", service, container.config["WEB_SERVER_ADDRESS"])
    container.wait()
    return 0


def log_unchecked_senders(rules: SenderRules) -> None:
    """Log it, once, if this process cannot or shall not refuse messages by their sender."""
    if not rules.checked:
        log.warning("AMQP_URI names no service's own user: nobody can tell who sent a message, so all are accepted")
    elif rules.unsigned:
        log.warning("ACCEPT_UNSIGNED is set: messages that do not say who sent them are accepted")


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit, at most MAX_FILES. Never lower it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def spare_the_collector() -> None:
    """Let the garbage collector leave alone what the process has loaded, and come less often.

    Else each full collection visits 120,000 objects that stay for ever, and nothing is answered meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _pulse() -> None:
    while True:
        green.sleep(0.25)
