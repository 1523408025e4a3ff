"""What an AMQP URI says: amqp://user:password@host:port/vhost, or amqps:// with the files of TLS as parameters.

The parameters of amqps:// are RabbitMQ's own: cacertfile, certfile and keyfile. A URI is thus all that a client needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from shared.errors import ConfigurationFault

PORT, TLS_PORT = 5672, 5671
PARAMETERS = {"cacertfile": "ca", "certfile": "certificate", "keyfile": "key"}


@dataclass(frozen=True)
class TlsFiles:
    """The PEM files of a TLS client: whose servers it believes, and who it is. Empty: the system's CAs, and nobody."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is, and as whom to connect."""

    host: str
    port: int
    user: str
    password: str
    vhost: str
    tls: TlsFiles | None  # None for a connection in clear text

    def __str__(self) -> str:
        return f"{self.host}:{self.port} (vhost {self.vhost})"


def parse(uri: str) -> BrokerAddress:
    """Read a URI as kombu and Nameko do: `//` at the end is the vhost `/`. Raises ConfigurationFault."""
    try:
        return address_in(uri)
    except ValueError as error:
        raise ConfigurationFault(f"AMQP_URI {error}") from None


def address_in(uri: str) -> BrokerAddress:
    """The same. Raises ValueError with words that follow the name of the setting."""
    parts = urlsplit(uri)
    host, port = parts.hostname or "127.0.0.1", parts.port
    if parts.scheme not in ("amqp", "amqps", "pyamqp"):
        raise ValueError("must read amqp://user:password@host:port/vhost, or amqps://")
    encrypted = parts.scheme == "amqps"
    return BrokerAddress(
        host=host,
        port=port or (TLS_PORT if encrypted else PORT),
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        vhost=unquote(parts.path[1:]) or "/",
        tls=_files(parts.query) if encrypted else None,
    )


def _files(query: str) -> TlsFiles:
    given = dict(parse_qsl(query))
    # A parameter that were ignored might be one by which somebody meant to ask for less or more than we do.
    if unknown := sorted(given.keys() - PARAMETERS):
        known = ", ".join(PARAMETERS)
        raise ValueError(f"has no parameter {unknown[0]}; those of amqps:// are {known}")
    return TlsFiles(**{PARAMETERS[name]: path for name, path in given.items()})


def with_tls(uri: str, files: TlsFiles) -> str:
    """The URI with these files as parameters, if it is amqps:// and has no parameters of its own."""
    parts = urlsplit(uri)
    if parts.scheme != "amqps" or parts.query:
        return uri
    given = {name: getattr(files, field) for name, field in PARAMETERS.items() if getattr(files, field)}
    return parts._replace(query=urlencode(given, safe="/")).geturl()
