"""Settings: environment variables, each also as NAME_FILE, read once and typed.

The code that starts a process calls `read()`. No module reads the environment at import.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from shared.errors import ConfigurationFault
from topology import services

SERVICES, DATABASES = services.NAMES, services.DATABASES
FIRST_PORT = 8000
# Replica n of a service listens on its port + 100 n. So there can be up to 100 services.
PORTS_BETWEEN_REPLICAS = 100

# RFC 7518 section 3.2: an HS256 key is at least as long as the hash.
MIN_SECRET_BYTES = 32
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
DEVELOPMENT_KEY = "dev:development-only-secret-never-in-production"
DEVELOPMENT_AUDIT_KEY = "development-only-audit-key-never-in-production"
SECRETS = frozenset({"auth_keys", "audit_keys", "amqp_uri", "database_urls", "database_admin_url", "reader_password"})


@dataclass(frozen=True)
class Settings:
    """The settings of a process. Times are in seconds."""

    env: str = "development"
    amqp_uri: str = "amqp://guest:guest@127.0.0.1:5672//"
    database_urls: Mapping[str, str] = field(default_factory=dict)
    database_admin_url: str = ""  # of a role that may create roles and databases; for `ecom migrate` only
    reader_password: str = ""  # of the read-only role, which cannot log in without one
    auth_keys: tuple[tuple[str, str], ...] = ()  # (kid, secret); the first signs
    auth_mock: bool = True
    audit_keys: tuple[str, ...] = ()  # the first seals, every one verifies
    payment_mode: str = "succeed"
    provider_timeout_s: float = 5.0
    provider_open_s: float = 30.0  # how long no call is made to a provider that is away
    order_deadline_s: float = 900.0
    host: str = "127.0.0.1"
    ports: Mapping[str, int] = field(default_factory=dict)
    rate_user_per_min: int = 0
    rate_address_per_min: int = 0
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks whose X-Forwarded-For is believed
    cors_origins: tuple[str, ...] = ()  # the sites whose pages may call the API from a browser
    heartbeat_s: float = 10.0
    log_level: str = "INFO"

    @property
    def production(self) -> bool:
        """Whether development's conveniences (default secrets, mock tokens, demo users) are refused."""
        return self.env == "production"

    def database_url(self, database: str) -> str:
        """The SQLAlchemy URL of one service's database. Raises ConfigurationFault when it is not set."""
        try:
            return self.database_urls[database]
        except KeyError:
            raise ConfigurationFault(f"{database.upper()}_DATABASE_URL is not set") from None

    @property
    def audit_key(self) -> str:
        """The key that seals the release audit. Raises ConfigurationFault when it is not set."""
        if not self.audit_keys:
            raise ConfigurationFault("AUDIT_KEY is not set")
        return self.audit_keys[0]

    def require(self, name: str) -> None:
        """Raise ConfigurationFault when the setting with this variable name is not set."""
        if not getattr(self, name.lower()):
            raise ConfigurationFault(f"{name} is not set")

    def address(self, service: str, replica: int = 0) -> str:
        """Where a service's replica n listens, as in a URL: 127.0.0.1:8000, or [::1]:8000."""
        return f"{bracketed(self.host)}:{self.port(service, replica)}"

    def port(self, service: str, replica: int = 0) -> int:
        """The port of a service's replica n, counted from 0."""
        return self.ports[service] + PORTS_BETWEEN_REPLICAS * replica


def bracketed(host: str) -> str:
    """A host as a URL writes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def psycopg2_url(url: str) -> str:
    """The URL with the driver psycopg2. SQLAlchemy 2.1 would read a bare postgresql:// as psycopg 3."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg2://" + url[len(prefix) :]
    return url


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def text(self, name: str, default: str) -> str:
        path = self.environ.get(name + "_FILE")
        if path and name in self.environ:
            raise ConfigurationFault(f"set {name} or {name}_FILE, not both")
        if path:
            try:
                with open(path, encoding="utf-8") as file:
                    return file.read().strip()
            except OSError as error:
                raise ConfigurationFault(f"{name}_FILE: {error}") from error
        return self.environ.get(name, default)

    def number(self, name: str, default: float, at_least: float = 0) -> float:
        text = self.text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            raise ConfigurationFault(f"{name} must be a number, not {text!r}") from None
        if not value >= at_least:
            raise ConfigurationFault(f"{name} must be at least {at_least}, not {text}")
        return value

    def integer(self, name: str, default: int, at_least: int = 0) -> int:
        text = self.text(name, str(default))
        if not text.isdecimal() or int(text) < at_least:
            raise ConfigurationFault(f"{name} must be a whole number of at least {at_least}, not {text!r}")
        return int(text)

    def flag(self, name: str, default: bool) -> bool:
        text = self.text(name, "1" if default else "0").lower()
        if text not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
            raise ConfigurationFault(f"{name} must be 1 or 0, not {text!r}")
        return text in ("1", "true", "yes", "on")


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises ConfigurationFault, naming the variable, for anything unusable."""
    reader = _Reader(os.environ if environ is None else environ)
    env = reader.text("ECOM_ENV", "development")
    if env not in ("development", "production"):
        raise ConfigurationFault(f"ECOM_ENV must be development or production, not {env!r}")
    production = env == "production"
    urls = {name: psycopg2_url(reader.text(f"{name.upper()}_DATABASE_URL", "")) for name in DATABASES}
    settings = Settings(
        env=env,
        amqp_uri=reader.text("AMQP_URI", Settings.amqp_uri),
        database_urls={name: url for name, url in urls.items() if url},
        database_admin_url=psycopg2_url(reader.text("DATABASE_ADMIN_URL", "")),
        reader_password=reader.text("READER_PASSWORD", ""),
        auth_keys=_keys(reader.text("AUTH_KEYS", "" if production else DEVELOPMENT_KEY), production),
        auth_mock=reader.flag("AUTH_MOCK", not production),
        audit_keys=_audit_keys(reader.text("AUDIT_KEY", "" if production else DEVELOPMENT_AUDIT_KEY), production),
        payment_mode=reader.text("PAYMENT_MODE", "succeed"),
        provider_timeout_s=reader.number("PROVIDER_TIMEOUT_S", 5.0, at_least=0.01),
        provider_open_s=reader.number("PROVIDER_OPEN_S", 30.0, at_least=0.01),
        order_deadline_s=reader.number("ORDER_DEADLINE_S", 900.0, at_least=1),
        host=_host(reader.text("HOST", Settings.host)),
        ports={
            name: reader.integer(f"{name.upper()}_PORT", FIRST_PORT + place, at_least=1)
            for place, name in enumerate(SERVICES)
        },
        rate_user_per_min=reader.integer("RATE_USER_PER_MIN", 100 if production else 0),
        rate_address_per_min=reader.integer("RATE_ADDRESS_PER_MIN", 1000 if production else 0),
        trusted_proxies=_networks(reader.text("TRUSTED_PROXIES", "")),
        cors_origins=_origins(reader.text("CORS_ORIGINS", "")),
        heartbeat_s=reader.number("AMQP_HEARTBEAT_S", 10.0, at_least=1),
        log_level=reader.text("LOG_LEVEL", "INFO").upper(),
    )
    if not settings.amqp_uri.startswith("amqp://"):
        # Treating amqps:// as amqp:// would send the password in clear text.
        raise ConfigurationFault("AMQP_URI must begin with amqp://; TLS to the broker is not supported yet")
    if production and settings.auth_mock:
        raise ConfigurationFault("AUTH_MOCK issues tokens to anyone: it is refused in production")
    return settings


def _host(text: str) -> str:
    """A name or an address. An IPv6 address may be given in brackets, as in a URL."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ConfigurationFault(f"HOST must be a name or an address without a port: {error}") from None
    return host


# Most processes need no key. Those that do name it in topology/services.py or ask for it, and raise if it is missing.
def _keys(text: str, production: bool) -> tuple[tuple[str, str], ...]:
    keys = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        kid, colon, secret = part.partition(":")
        if not colon or not kid:
            raise ConfigurationFault("AUTH_KEYS must read kid:secret,kid:secret")
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise ConfigurationFault(f"the secret of key {kid!r} in AUTH_KEYS is under {MIN_SECRET_BYTES} bytes")
        if production and part == DEVELOPMENT_KEY:
            raise ConfigurationFault("AUTH_KEYS holds the development key: it is refused in production")
        keys.append((kid, secret))
    if len({kid for kid, _ in keys}) != len(keys):
        raise ConfigurationFault("AUTH_KEYS names a kid twice")
    return tuple(keys)


def _audit_keys(text: str, production: bool) -> tuple[str, ...]:
    keys = tuple(piece.strip() for piece in text.split(",") if piece.strip())
    if any(len(key.encode()) < MIN_SECRET_BYTES for key in keys):
        raise ConfigurationFault(f"a key in AUDIT_KEY is under {MIN_SECRET_BYTES} bytes")
    if production and DEVELOPMENT_AUDIT_KEY in keys:
        raise ConfigurationFault("AUDIT_KEY holds the development key: it is refused in production")
    return keys


def _networks(text: str) -> tuple[str, ...]:
    networks = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            network = ipaddress.ip_network(piece)
        except ValueError as error:
            raise ConfigurationFault(
                f"TRUSTED_PROXIES must list addresses or networks (10.0.0.1,10.1.0.0/16,2001:db8::/32): {error}"
            ) from None
        if network.version == 6 and network.subnet_of(_MAPPED):
            # A proxy that calls by IPv4 is known by its IPv4 address: this form would match nobody.
            raise ConfigurationFault(f"TRUSTED_PROXIES must list {piece} as an IPv4 address or network")
        networks.append(str(network))
    return tuple(networks)


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(piece.strip() for piece in text.split(",") if piece.strip())
    for origin in origins:
        # The Origin of a request is compared letter by letter. A form that browsers never send would match nothing, and
        # nobody would notice.
        if not _ORIGIN.fullmatch(origin):
            raise ConfigurationFault(f"CORS_ORIGINS must read https://shop.example,..., not {origin!r}")
    return origins


def masked(settings: Settings) -> dict[str, Any]:
    """The settings for `ecom config`, with every secret as ***."""
    shown: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in SECRETS:
            if isinstance(value, Mapping):
                value = {name: _mask_url(url) for name, url in value.items()}
            elif item.name in ("amqp_uri", "database_admin_url"):
                value = _mask_url(value)
            elif item.name == "auth_keys":
                value = [f"{kid}:***" for kid, _ in value]
            elif item.name == "audit_keys":
                value = ["***" for _ in value]
            else:
                value = "***" if value else ""
        elif isinstance(value, Mapping):
            value = dict(value)
        shown[item.name] = value
    return shown


def _mask_url(url: str) -> str:
    head, at, tail = url.rpartition("@")
    scheme, separator, credentials = head.partition("://")
    if not at or not separator:
        return url
    user, _, _ = credentials.partition(":")
    return f"{scheme}://{user}:***@{tail}"
