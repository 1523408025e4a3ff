"""Every list of services that Python cannot derive agrees with topology/services.py.

One function for each file returns the missing lines. Adding a row to the table makes these tests name, file by file,
each line that the new service needs. Nothing here looks for lines of a service that is gone.
"""

import configparser
import inspect
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from shared import config
from shared.edge.resources import POOL_SIZE, ExternalClient
from shared.edge.runner import service_class
from shared.events import CATALOGUE
from shared.relay import Relay
from topology import services
from topology.services import SERVICES, Service
from topology.table import CONSUMERS

ROOT = Path(__file__).resolve().parent.parent.parent
SETUP, IGNORE, COMPOSE = "setup.cfg", ".dockerignore", "docker-compose.yml"
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (SETUP, IGNORE, COMPOSE)}

# ops stands above the services: it imports them, speaks to the broker, and its coverage is not measured.
ABOVE = "ops"
# The containers that open every database, and those of the services that publish.
MIGRATE, OPS, GATEWAY = "migrate", "ops", "gateway"
TOPOLOGY = "topology"  # makes the broker's user of each service


def below_ops(rows):
    return [service for service in rows if service.name != ABOVE]


# The lines that each file must have, as (where, line).


def lines_of_setup_cfg(rows):
    """(section, item of a list in it)."""
    for service in rows:
        yield "options.packages.find", f"{service.package}*"
        yield "importlinter", service.package
        yield "importlinter:contract:nobody", service.package
        if service.has_database:
            yield service.name, f"script_location = {service.package}/migrations"
            yield "mypy-shared.*", f"{service.package}.domain"
    for service in below_ops(rows):
        yield "coverage:run", service.package
        yield "importlinter:contract:independence", service.package
        yield "importlinter:contract:layers", service.package
        yield "importlinter:contract:broker", service.package


def lines_of_compose(rows, ports):
    """(block of a service, line); for the list of secrets at the end of the file the block is `secrets`."""
    for service in rows:
        name = service.name
        yield name, f"command: [ecom, run, {name}]"
        yield name, f'deploy/ready, "{ports[name]}"'
        yield name, f"AMQP_URI_FILE: /run/secrets/amqp_uri_{name}"
        yield name, f"secret amqp_uri_{name}"
        yield TOPOLOGY, f"{name.upper()}_AMQP_URI_FILE: /run/secrets/amqp_uri_{name}"
        yield TOPOLOGY, f"secret amqp_uri_{name}"
        yield "secrets", f"amqp_uri_{name}: {{file: deploy/secrets/amqp_uri_{name}}}"
        opened_by = [name, MIGRATE] if service.has_database else []
        if service.publishes or name in CONSUMERS:
            yield OPS, f"{name.upper()}_DATABASE_URL: postgresql://postgres:5432/{name}"
        for block in opened_by:
            yield block, f"{name.upper()}_DATABASE_URL_FILE: /run/secrets/{name}_database_url"
            yield block, f"secret {name}_database_url"
        if service.has_database:
            yield "secrets", f"{name}_database_url: {{file: deploy/secrets/{name}_database_url}}"
        for setting in service.needs:
            yield name, f"{setting}_FILE: /run/secrets/{setting.lower()}"
            yield name, f"secret {setting.lower()}"
            yield "secrets", f"{setting.lower()}: {{file: deploy/secrets/{setting.lower()}}}"
        if name != GATEWAY:
            yield GATEWAY, f"{name}: {{condition: service_healthy}}"


# What is missing, one message for each line.


def missing_in_setup_cfg(text, rows):
    setup = configparser.ConfigParser()
    setup.read_string(text)
    missing = []
    for section, line in lines_of_setup_cfg(rows):
        found = next((name for name in setup.sections() if name.split(",")[0] == section), None)
        words = [] if found is None else [found]
        # A contract's name and its forbidden modules speak of services too, and list none.
        options = {} if found is None else setup[found]
        words += [f"{key} = {value}" for key, value in options.items() if key not in ("name", "forbidden_modules")]
        if not re.search(rf"(?<![\w.]){re.escape(line)}(?![\w.*])", "\n".join(words)):
            missing.append(f"{SETUP}: [{section}] lacks `{line}`")
    return missing


def missing_in_dockerignore(text, rows):
    allowed = [line.removeprefix("!") for line in text.splitlines() if line.startswith("!")]
    lacking = [row.package for row in rows if not any(fnmatch(row.package, pattern) for pattern in allowed)]
    return [f"{IGNORE}: lacks `!{package}`" for package in lacking]


def missing_in_compose(text, rows):
    compose = yaml.safe_load(text)
    missing = []
    for block, line in lines_of_compose(rows, ports_of(rows)):
        if not has_line(compose, block, line):
            missing.append(f"{COMPOSE}: {block} lacks `{line}`")
    return missing


def ports_of(rows):
    """Where each service answers its probes."""
    ports = {service.name: config.FIRST_PORT + place for place, service in enumerate(rows)}
    return ports | {name: config.PORTS[probe] for name, probe in config.PROBES.items()}


def has_line(compose, block, line):
    """Whether the parsed file says what the line says."""
    if block == "secrets":
        return yaml.safe_load(line).items() <= compose["secrets"].items()
    container = compose["services"].get(block, {})
    if line.startswith("secret "):
        return line.removeprefix("secret ") in container.get("secrets", ())
    if line.startswith("command"):
        return container.get("command") == yaml.safe_load(line)["command"]
    if line.startswith("deploy/ready,"):
        return line == '{}, "{}"'.format(*container.get("healthcheck", {}).get("test", ["", ""])[-2:])
    if line.endswith("{condition: service_healthy}"):
        return yaml.safe_load(line).items() <= container.get("depends_on", {}).items()
    return yaml.safe_load(line).items() <= container.get("environment", {}).items()


MISSING_IN = {
    SETUP: missing_in_setup_cfg,
    IGNORE: missing_in_dockerignore,
    COMPOSE: missing_in_compose,
}


@pytest.mark.parametrize("name", MISSING_IN)
def test_a_file_has_the_lines_of_every_service(name):
    missing = MISSING_IN[name](TEXTS[name], SERVICES)
    assert not missing, "\n".join(missing)


# Each line is left out of a copy in turn, and the message must name it.


def without(name, where, line):
    """The text of a file without one line of one of its blocks."""
    text = TEXTS[name]
    start, end = 0, len(text)
    if name == SETUP:
        start = re.search(rf"^\[{re.escape(where)}[\],]", text, re.M).start()
        end = text.find("\n[", start + 1) + 1 or end
        start = max(start, text.find("source_modules", start, end))
    elif name == COMPOSE:
        start = re.search(r"^secrets:$" if where == "secrets" else rf"^  {where}:( &{where})?$", text, re.M).end()
        end = start + re.search(r"\n  \w+:\n|\n\w+:\n|\Z", text[start:]).start() if where != "secrets" else end
    block = text[start:end]
    if line.startswith("secret "):
        pattern = rf"(?<=[ \[]){line.removeprefix('secret ')}(,|(?=[\]\n]))"
    else:
        pattern = rf"(?<![\w.]){re.escape(line)}(?![\w.*])"
    shorter, count = re.subn(pattern, "", block, count=1)
    assert count == 1, f"{name}: {where} has no `{line}`"
    return text[:start] + shorter + text[end:]


LINES = [
    *((SETUP, where, line) for where, line in lines_of_setup_cfg(SERVICES)),
    *((IGNORE, "", line) for line in ("!gateway", "!ops")),
    *((COMPOSE, where, line) for where, line in lines_of_compose(SERVICES, ports_of(SERVICES))),
]


@pytest.mark.parametrize(
    ("name", "where", "line"), [pytest.param(*line, id=" ".join(line)) for line in dict.fromkeys(LINES)]
)
def test_a_line_that_is_left_out_is_named_with_its_file(name, where, line):
    (message, *others) = MISSING_IN[name](without(name, where, line), SERVICES)
    assert message.startswith(f"{name}: ")
    assert f"`{line}`" in message
    assert where.strip() in message
    # One line may be asked for twice, never more: the database of ops is opened by ops.
    assert set(others) <= {message}


def test_a_service_without_any_line_is_told_all_of_them():
    new = Service("kiln", "kiln_service", "burns", start_order=0, publishes=("kiln",), needs=("CARRIER_KEY",))
    rows = (*SERVICES, new)
    port = f'"{config.FIRST_PORT + len(SERVICES)}"'
    missing = [message for name, find in MISSING_IN.items() for message in find(TEXTS[name], rows)]
    assert len(missing) == len(set(missing)) == 9 + 17
    assert all("kiln" in message or "carrier_key" in message or port in message for message in missing)


# The pages whose commands replace one service after the other.


REPLACE = "docker compose up --wait --no-deps"
BESIDE = {"gateway": ["gateway", "gateway2"]}  # the profile `proxy` has two of it


def ways_of(page):
    """The services that each loop of a page replaces, in its order, or those of its single lines."""
    text = (ROOT / page).read_text(encoding="utf-8")
    loops = re.findall(rf"for service in (.+); do {REPLACE} \$service; done", text)
    lines = re.findall(rf"(?m)^    {REPLACE} (\w+)", text)
    return [way.split() for way in loops] + [lines] * bool(lines)


def test_an_upgrade_of_containers_replaces_every_service_in_the_order_of_start_and_goes_back_the_other_way():
    forward = list(services.START_ORDER)
    assert ways_of("docs/upgrading.md") == [forward, forward[::-1]]
    with_proxy = [container for name in forward for container in BESIDE.get(name, [name])]
    assert ways_of("deploy/README.md") == [with_proxy]


# The table itself.


def test_ports_stay_as_they_were():
    known = {
        "gateway": 8000,
        "order": 8001,
        "inventory": 8002,
        "payment": 8003,
        "auth": 8004,
        "ops": 8005,
        "gateway_probe": 8099,
    }
    assert config.read({}).ports.items() >= known.items()


def test_the_gateway_starts_last():
    assert services.START_ORDER[-1] == GATEWAY


def test_no_name_package_or_place_in_the_start_order_is_used_twice():
    for values in zip(*((row.name, row.package, row.start_order) for row in SERVICES), strict=True):
        assert len(set(values)) == len(SERVICES)


def test_no_two_services_publish_the_same_first_words():
    words = [first for row in SERVICES for first in row.publishes]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("row", SERVICES, ids=lambda row: row.name)
def test_a_package_has_the_files_that_its_row_promises(row):
    assert (ROOT / row.package / "service.py").is_file()
    for name in ("domain.py", "models.py", "migrations"):
        assert (ROOT / row.package / name).exists() == row.has_database


def test_every_event_type_has_a_publisher():
    assert [type_ for type_ in CATALOGUE if services.publisher_of(type_) is None] == []


@pytest.mark.parametrize(
    ("event_type", "publisher"),
    [
        ("order.created", "order"),
        ("inventory.release.requested", "order"),
        ("payment.refund.requested", "order"),
        ("inventory.released", "inventory"),
        ("payment.refund_failed", "payment"),
        ("shipping.sent", None),
    ],
)
def test_the_longest_matching_first_words_name_the_publisher(event_type, publisher):
    assert services.publisher_of(event_type) == publisher


def test_events_are_published_by_services_with_a_database():
    assert set(services.PUBLISHERS) <= set(services.DATABASES)


def test_a_row_counts_every_connection_that_its_service_opens():
    for row in SERVICES:
        if row.has_database:
            parts = [part for _, part in inspect.getmembers(service_class(row.name))]
            pools = row.workers + services.POOL_SPARE
            pools += services.RELAY_CONNECTIONS * any(isinstance(part, Relay) for part in parts)
            pools += POOL_SIZE * any(isinstance(part, ExternalClient) for part in parts)
            # Each call of ops may open a session on a DLQ, the census has one, and people at terminals have some.
            pools += row.replays * 2 * row.workers
            assert row.connections == pools, row.name
