"""Settings: environment variables, each also as NAME_FILE, read once and typed.

`Settings` is the table: each row says how a setting is read and which roles read it. A role is a service, or a group of
`ecom`'s commands. A process reads the settings of its role and no others: what it does not use cannot stop it. The code
that starts a process calls `read()`. No module reads the environment at import.

To add a setting, add a row. `ecom config` and the list in docs/settings.md follow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from shared import parsers
from shared.errors import ConfigurationFault
from shared.people_settings import PeopleSettings
from shared.setting import IN_URL, KEYS, NAMED_KEYS, WORD, Row, each, one
from topology import broker_uri, services
from topology.broker_uri import TlsFiles
from topology.table import CLASSIC, CONSUMERS, QUORUM, RPC_QUEUE_TYPES
from topology.users import SHELL

SERVICES, DATABASES = services.NAMES, services.DATABASES
FIRST_PORT = 8000
# Replica n of a service listens on its port + 100 n. So there can be up to 99 services.
PORTS_BETWEEN_REPLICAS = 100
# Clients call the gateway, so it answers probes on a port of its own. All other services answer nothing else.
PROBES = {"gateway": "gateway_probe"}
# The default of each port; the variable NAME_PORT selects another.
PORTS = {name: FIRST_PORT + place for place, name in enumerate(SERVICES)} | {
    PROBES["gateway"]: FIRST_PORT + PORTS_BETWEEN_REPLICAS - 1
}

_SERVICE_AT = {probe: name for name, probe in PROBES.items()}

DEVELOPMENT_KEY = "dev:development-only-secret-never-in-production"
DEVELOPMENT_AUDIT_KEY = "development-only-audit-key-never-in-production"
MOCK_METHODS = "mock_ok,mock_declined,mock_timeout,mock_timeout_charged,mock_refund_declined"

# The roles of commands: `ecom migrate`, `ecom topology`, `ecom audit`, `ecom user`, the commands with which operators
# look into queues and databases, and `make shell`.
MIGRATE, TOPOLOGY, AUDIT, USER, OPERATOR = "migrate", "topology", "audit", "user", "operator"
ROLES = (*SERVICES, MIGRATE, TOPOLOGY, AUDIT, USER, OPERATOR, SHELL)


# The commands that connect to the broker as the user of a service, or of the shell.
_COMMANDS_AS = {"ops": (TOPOLOGY, OPERATOR), SHELL: (TOPOLOGY, SHELL)}
_CLIENTS = (*SERVICES, MIGRATE, TOPOLOGY, AUDIT, USER, OPERATOR, SHELL)
_AT_THE_BROKER = (*SERVICES, TOPOLOGY, OPERATOR, SHELL)
# The databases that a role opens beside the one of its own name.
_OPENS = {
    MIGRATE: DATABASES,
    "ops": (*CONSUMERS, *services.PUBLISHERS),
    OPERATOR: ("ops", *CONSUMERS, *services.PUBLISHERS),
    AUDIT: ("ops", "inventory"),
    USER: ("auth",),
}


def _needing(variable: str) -> tuple[str, ...]:
    return tuple(service.name for service in services.SERVICES if variable in service.needs)


def _who_opens(database: str) -> tuple[str, ...]:
    return tuple(role for role in ROLES if role == database or database in _OPENS.get(role, ()))


@dataclass(frozen=True)
class Settings(PeopleSettings):
    """The settings of a process. Times are in seconds."""

    # fmt: off
    env: str = one(Row(
        "ECOM_ENV", parsers.one_of("development", "production"), "`development` or `production`", ROLES, "development",
        production="production",
    ))
    amqp_uri: str = one(Row(
        "AMQP_URI", parsers.broker_uri, "the broker, its user and its vhost", _AT_THE_BROKER,
        "amqp://guest:guest@127.0.0.1:5672//", production="", secret=IN_URL,
    ))
    amqp_uris: Mapping[str, str] = each({
        name: Row(
            f"{name.upper()}_AMQP_URI", parsers.optional_broker_uri,
            f"the broker as the user of {name}, for commands; AMQP_URI where it is not set",
            _COMMANDS_AS.get(name, (TOPOLOGY,)), secret=IN_URL,
        )
        for name in (*SERVICES, SHELL)
    })
    amqp_admin_uri: str = one(Row(
        "AMQP_ADMIN_URI", parsers.optional_broker_uri,
        "the broker as a user who may declare; AMQP_URI where it is not set", (TOPOLOGY,), secret=IN_URL,
    ))
    rpc_queue_type: str = one(Row(
        "RPC_QUEUE_TYPE", parsers.one_of(*RPC_QUEUE_TYPES),
        "of the queues of calls: `quorum` outlives a node of a cluster, `classic` writes to no disk", (TOPOLOGY,),
        CLASSIC, production=QUORUM,
    ))
    accept_unsigned: bool = one(Row(
        "ACCEPT_UNSIGNED", parsers.flag, "1: messages of a version that did not say who sent them are accepted",
        SERVICES, "0",
    ))
    heartbeat_s: float = one(Row(
        "AMQP_HEARTBEAT_S", parsers.number(1), "how often broker and client prove that they are there", _AT_THE_BROKER,
        "10",
    ))
    database_urls: Mapping[str, str] = each({
        name: Row(
            f"{name.upper()}_DATABASE_URL", parsers.database_url, f"the database of {name}", _who_opens(name),
            secret=IN_URL,
        )
        for name in DATABASES
    })
    database_admin_url: str = one(Row(
        "DATABASE_ADMIN_URL", parsers.database_url, "a role that may create roles and databases", (MIGRATE,),
        secret=IN_URL,
    ))
    reader_password: str = one(Row(
        "READER_PASSWORD", str, "of the database role that only reads, which cannot log in without one",
        (MIGRATE, "ops", OPERATOR, AUDIT), secret=WORD,
    ))
    operator_password: str = one(Row(
        "OPERATOR_PASSWORD", str, "of the database role that records which messages lie in a DLQ; the same",
        (MIGRATE, "ops", OPERATOR), secret=WORD,
    ))
    auth_keys: tuple[tuple[str, str], ...] = one(Row(
        "AUTH_KEYS", parsers.named_keys, "`kid:secret,kid:secret`: the first signs tokens, every one verifies",
        _needing("AUTH_KEYS"), DEVELOPMENT_KEY, production="", secret=NAMED_KEYS,
    ))
    auth_mock: bool | None = one(Row(
        "AUTH_MOCK", parsers.mock, "1: anybody gets a token for any user and roles; `loopback`: if HOST is loopback",
        ("auth",), "loopback", production="0",
    ))
    audit_keys: tuple[str, ...] = one(Row(
        "AUDIT_KEY", parsers.keys, "`key,key`: the first seals the release audit, every one verifies",
        (*_needing("AUDIT_KEY"), AUDIT), DEVELOPMENT_AUDIT_KEY, production="", secret=KEYS,
    ))
    payment_provider: str = one(Row(
        "PAYMENT_PROVIDER", str, "the payment provider: `http`, or `mock`, which moves no money", ("payment",), "mock",
        production="",
    ))
    payment_provider_url: str = one(Row(
        "PAYMENT_PROVIDER_URL", parsers.http_url, "where the provider `http` is: payment_service/http_provider.py",
        ("payment",),
    ))
    payment_methods: tuple[str, ...] = one(Row(
        "PAYMENT_METHODS", parsers.words, "`method,method`: the payment methods that an order may name", ("gateway",),
        MOCK_METHODS, production="",
    ))
    allow_mock_payments: bool = one(Row(
        "ALLOW_MOCK_PAYMENTS", parsers.flag, "1: production accepts the mock provider", ("payment",), "0"
    ))
    allow_plain_inside: bool = one(Row(
        "ALLOW_PLAIN_INSIDE", parsers.flag, "1: production accepts a broker and databases on other hosts without TLS",
        ROLES, "0",
    ))
    payment_mode: str = one(Row(
        "PAYMENT_MODE", str, "what the mock provider does: payment_service/mock_provider.py", ("payment",), "succeed"
    ))
    provider_timeout_s: float = one(Row(
        "PROVIDER_TIMEOUT_S", parsers.number(0.01), "how long a call to the payment provider may take", ("payment",),
        "5",
    ))
    provider_open_s: float = one(Row(
        "PROVIDER_OPEN_S", parsers.number(0.01), "how long no call is made to a provider that is away", ("payment",),
        "30",
    ))
    batch_wait_ms: float = one(Row(
        "BATCH_WAIT_MS", parsers.number(0), "how long a batch waits for more at most, in ms, where it fills fast",
        SERVICES, "40",
    ))
    order_deadline_s: float = one(Row(
        "ORDER_DEADLINE_S", parsers.number(1), "after this time an unpaid order is cancelled",
        ("order", "ops", OPERATOR), "900",
    ))
    max_open_orders_per_user: int = one(Row(
        "MAX_OPEN_ORDERS_PER_USER", parsers.limit, "orders of a user that are not paid yet; 0: any number", ("order",),
        "0", production="100",
    ))
    max_held_units_per_user: int = one(Row(
        "MAX_HELD_UNITS_PER_USER", parsers.limit, "units in the unpaid orders of a user; 0: any number", ("order",),
        "0", production="10000",
    ))
    max_orders_under_way: int = one(Row(
        "MAX_ORDERS_UNDER_WAY", parsers.limit,
        "new orders are refused while more than so many are not paid yet; 0: any number", ("order",), "10000",
    ))
    host: str = one(Row(
        "HOST", parsers.host, "the address at which the HTTP server listens", (*SERVICES, SHELL), "127.0.0.1"
    ))
    ports: Mapping[str, int] = each({
        name: Row(
            f"{name.upper()}_PORT", parsers.integer(1), f"the port of {name}; its replica n listens on port + 100 n",
            (name, SHELL) if name == "gateway" else (_SERVICE_AT.get(name, name),), str(port),
        )
        for name, port in PORTS.items()
    })
    tls_ca: str = one(Row(
        "TLS_CA_FILE", parsers.readable_file,
        "the CAs that broker and database are verified by; databases then need TLS", _CLIENTS,
    ))
    tls_certificate: str = one(Row(
        "TLS_CERT_FILE", parsers.readable_file, "the certificate with which this process shows who it is", _CLIENTS
    ))
    tls_key: str = one(Row(
        "TLS_KEY_FILE", parsers.key_file, "the private key of TLS_CERT_FILE", _CLIENTS
    ))
    gateway_tls_certificate: str = one(Row(
        "GATEWAY_TLS_CERT_FILE", parsers.readable_file, "with it the gateway speaks HTTPS, and nothing else",
        ("gateway",),
    ))
    gateway_tls_key: str = one(Row(
        "GATEWAY_TLS_KEY_FILE", parsers.key_file, "the private key of GATEWAY_TLS_CERT_FILE", ("gateway",)
    ))
    rate_shares: int = one(Row(
        "RATE_SHARES", parsers.integer(1), "how many gateways share the limits of rates below: each allows its part",
        ("gateway",), "1",
    ))
    rate_user_per_min: int = one(Row(
        "RATE_USER_PER_MIN", parsers.limit, "requests of a user in a minute; 0: any number", ("gateway",), "0",
        production="100",
    ))
    rate_address_per_min: int = one(Row(
        "RATE_ADDRESS_PER_MIN", parsers.limit, "requests of an address in a minute; 0: any number", ("gateway",),
        "0", production="1000",
    ))
    rate_proofs_per_min: int = one(Row(
        "RATE_PROOFS_PER_MIN", parsers.limit,
        "requests of an address in a minute that send mails, or bring tokens from them; 0: any number", ("gateway",),
        "0", production="20",
    ))
    connections_per_address: int = one(Row(
        "CONNECTIONS_PER_ADDRESS", parsers.limit,
        "connections of an address that are open at one gateway, a quarter of all; 0: any number", ("gateway",),
        "1000",
    ))
    waits_per_user: int = one(Row(
        "WAITS_PER_USER", parsers.limit,
        "waits, streams and exports of a user that are open at one gateway; 0: any number", ("gateway",), "100",
    ))
    trusted_proxies: tuple[str, ...] = one(Row(
        "TRUSTED_PROXIES", parsers.networks, "addresses or networks whose X-Forwarded-For is believed", ("gateway",)
    ))
    cors_origins: tuple[str, ...] = one(Row(
        "CORS_ORIGINS", parsers.origins, "the sites whose pages may call the API from a browser", ("gateway",)
    ))
    log_level: str = one(Row(
        "LOG_LEVEL", parsers.log_level, "the least severe messages that are logged", SERVICES, "INFO"
    ))
    # fmt: on

    @property
    def production(self) -> bool:
        """Whether development's conveniences (default secrets, mock tokens, demo users) are refused."""
        return self.env == "production"

    @property
    def tls(self) -> TlsFiles:
        """The files of this process as a client of broker and database."""
        return TlsFiles(self.tls_ca, self.tls_certificate, self.tls_key)

    def https_files(self, service: str) -> tuple[str, str] | None:
        """The paths of certificate and key with which a service speaks HTTPS; None if it speaks plain HTTP."""
        files = self.gateway_tls_certificate, self.gateway_tls_key
        return files if service == "gateway" and all(files) else None

    @property
    def broker_user(self) -> str:
        """The user as whom this process connects to the broker."""
        return broker_uri.parse(self.amqp_uri).user if self.amqp_uri else ""

    @property
    def administrator_uri(self) -> str:
        """The broker as a user who may declare exchanges, queues and users."""
        return self.amqp_admin_uri or self.amqp_uri

    def amqp_uri_of(self, service: str) -> str:
        """The URI of one service's user, or of `shell`; that of this process where each has not its own."""
        return self.amqp_uris.get(service, self.amqp_uri)

    @property
    def mock_tokens(self) -> bool:
        """Whether anybody gets a token for any user and roles."""
        return parsers.is_loopback(self.host) if self.auth_mock is None else self.auth_mock

    def database_url(self, database: str) -> str:
        """The SQLAlchemy URL of one service's database. Raises ConfigurationFault when it is not set."""
        try:
            return self.database_urls[database]
        except KeyError:
            raise ConfigurationFault(f"{database.upper()}_DATABASE_URL is not set") from None

    @property
    def audit_key(self) -> str:
        """The key that seals the release audit. Raises ConfigurationFault when it is not set."""
        self.require("AUDIT_KEY")
        return self.audit_keys[0]

    def require(self, variable: str) -> None:
        """Raise ConfigurationFault when the setting of this variable is not set."""
        if not BY_VARIABLE[variable].of(self):
            raise ConfigurationFault(f"{variable} is not set")

    def address(self, service: str, replica: int = 0) -> str:
        """Where a service's replica n listens, as in a URL: 127.0.0.1:8000, or [::1]:8000."""
        return f"{bracketed(self.host)}:{self.port(service, replica)}"

    def probe_address(self, service: str, replica: int = 0) -> str:
        """Where a service's replica n answers /readyz and /metrics, as in a URL."""
        return self.address(PROBES.get(service, service), replica)

    def port(self, name: str, replica: int = 0) -> int:
        """The port of replica n, counted from 0, of a service or of PROBES."""
        return self.ports[name] + PORTS_BETWEEN_REPLICAS * replica


_INHERITED = {item.name for item in fields(PeopleSettings)}
TABLE = tuple(
    row._replace(attribute=item.name, key=key)
    for item in sorted(fields(Settings), key=lambda item: item.name in _INHERITED)
    for key, row in item.metadata["rows"].items()
)
BY_VARIABLE = {row.variable: row for row in TABLE}


def read(environ: Mapping[str, str] | None = None, role: str | None = None) -> Settings:
    """The settings of a process with this role; the others keep their defaults. Without a role: all of them.

    Raises ConfigurationFault, naming the variable, for anything unusable.
    """
    environ = os.environ if environ is None else environ
    env = BY_VARIABLE["ECOM_ENV"].value_in(environ, "production")  # nobody is in development unless asked for
    values: dict[str, Any] = {}
    for row in TABLE:
        value = row.value_in(environ if role is None or role in row.roles else {}, env)
        if not row.key:
            values[row.attribute] = value
        elif value:
            values.setdefault(row.attribute, {})[row.key] = value
    return _with_tls(Settings(**values))


def _with_tls(settings: Settings) -> Settings:
    """The settings with the files of TLS in the URL of each server: a URL is all that a client needs."""
    for certificate, key in (("tls_certificate", "tls_key"), ("gateway_tls_certificate", "gateway_tls_key")):
        if bool(getattr(settings, certificate)) != bool(getattr(settings, key)):
            variables = [row.variable for row in TABLE if row.attribute in (certificate, key)]
            raise ConfigurationFault(f"set {' and '.join(variables)}, or neither")
    files = settings.tls
    return replace(
        settings,
        amqp_uri=broker_uri.with_tls(settings.amqp_uri, files),
        amqp_uris={name: broker_uri.with_tls(uri, files) for name, uri in settings.amqp_uris.items()},
        amqp_admin_uri=broker_uri.with_tls(settings.amqp_admin_uri, files),
        database_urls={name: parsers.with_verified_tls(url, files) for name, url in settings.database_urls.items()},
        database_admin_url=parsers.with_verified_tls(settings.database_admin_url, files),
    )


def environment_of(role: str, environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the settings that a process with this role does not read.

    AMQP_URI is that of the service's own user, where the environment has one.
    """
    foreign = {f"{row.variable}{ending}" for row in TABLE if role not in row.roles for ending in ("", "_FILE")}
    own = {f"AMQP_URI{ending}": environ.get(f"{role.upper()}_AMQP_URI{ending}") for ending in ("", "_FILE")}
    chosen = {name: value for name, value in own.items() if value} if role in SERVICES else {}
    foreign |= own.keys() if chosen else set()
    return {name: value for name, value in environ.items() if name not in foreign} | chosen


def masked(settings: Settings, role: str | None = None) -> dict[str, Any]:
    """The settings, or those that a role reads, with every secret as ***."""
    shown: dict[str, Any] = {}
    for row in TABLE:
        if role is not None and role not in row.roles:
            continue
        value = row.of(settings)
        if value is not None and row.secret:
            value = row.secret.masked(value)
        if not row.key:
            shown[row.attribute] = value
            continue
        shown.setdefault(row.attribute, {})
        if value is not None:
            shown[row.attribute][row.key] = value
    return shown


def bracketed(host: str) -> str:
    """A host as a URL writes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
