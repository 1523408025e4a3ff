"""Texts of settings made into values. Each parser raises ValueError with words that follow the setting's name."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import unquote, urlencode, urlsplit

from topology.broker_uri import TlsFiles, address_in

# RFC 7518 section 3.2: an HS256 key is at least as long as the hash.
MIN_SECRET_BYTES = 32
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_ADDRESS = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+"
_SENDER = re.compile(rf'{_ADDRESS}|([^"<>@,;:()\[\]\\]+|"[^"\\]+") <{_ADDRESS}>')
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "": False,
}


def one_of(*words: str) -> Callable[[str], str]:
    """A parser of one of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}, not {text!r}")
        return text

    return parse


def log_level(text: str) -> str:
    """The name of a level of the standard library's logging, in any case."""
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise ValueError(f"must be DEBUG, INFO, WARNING, ERROR or CRITICAL, not {text!r}")
    return text.upper()


def number(at_least: float) -> Callable[[str], float]:
    """A parser of a number that is not smaller."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"must be a number, not {text!r}") from None
        if not value >= at_least:
            raise ValueError(f"must be at least {at_least}, not {text}")
        return value

    return parse


def integer(at_least: int) -> Callable[[str], int]:
    """A parser of a whole number that is not smaller."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < at_least:
            raise ValueError(f"must be a whole number of at least {at_least}, not {text!r}")
        return int(text)

    return parse


def optional_broker_uri(text: str) -> str:
    """The URI of a broker, or nothing."""
    return broker_uri(text) if text else ""


def limit(text: str) -> int:
    """A whole number; 0 means no limit, which production refuses."""
    return integer(0)(text)


def mock(text: str) -> bool | None:
    """Whether something is on; None for `loopback`: on where only this machine can reach it."""
    return None if text == "loopback" else flag(text)


def flag(text: str) -> bool:
    """Whether something is on."""
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise ValueError(f"must be 1 or 0, not {text!r}") from None


def host(text: str) -> str:
    """A name or an address. An IPv6 address may be given in brackets, as in a URL."""
    found = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in found:
        try:
            ipaddress.IPv6Address(found)
        except ValueError as error:
            raise ValueError(f"must be a name or an address without a port: {error}") from None
    return found


def is_loopback(name: str) -> bool:
    """Whether a host is this machine and reached by no other one. Without a name it is a socket in a file."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name in ("", "localhost")


def http_url(text: str) -> str:
    """The URL of a server, or nothing. It holds no password: a URL is shown in logs."""
    if not text:
        return ""
    if "@" in text:
        raise ValueError("must name no user and no password")
    try:
        parts = urlsplit(text)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        is_whole = False
    if not is_whole or not text.isascii() or not text.isprintable() or set(" ?#") & set(text):
        raise ValueError(f"must read https://host, with a port and a path if need be, not {text!r}")
    return text


def mail_url(text: str) -> str:
    """The URL of a mail server, a folder for mails as `file:FOLDER`, or nothing."""
    if not text or (text.startswith("file:") and len(text) > len("file:")):
        return text
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("smtp", "smtps") and bool(parts.hostname) and parts.port != 0
        good = good and parts.path in ("", "/") and not parts.query and not parts.fragment
    except ValueError:  # of a port or an IPv6 address
        good = False
    if not good or not text.isprintable() or " " in text:
        raise ValueError("must read smtp://user:password@host, smtps://user:password@host or file:FOLDER")
    return text


def mail_sender(text: str) -> str:
    """Who sends mails: `shop@example.com` or `Shop <shop@example.com>`, or nothing."""
    if text and not (_SENDER.fullmatch(text) and text.isprintable()):
        raise ValueError(f"must read Name <name@host> or name@host, not {text!r}")
    return text


def broker_uri(text: str) -> str:
    """The URI of a broker."""
    if text:
        address_in(text)
    return text


def readable_file(path: str) -> str:
    """The path of a file that is read again and again, since it may be renewed."""
    if path and not os.access(path, os.R_OK):
        raise ValueError(f"names {path}, which cannot be read")
    return path


def key_file(path: str) -> str:
    """The path of a file that holds a private key."""
    return readable_file(path)


def with_verified_tls(url: str, files: TlsFiles) -> str:
    """A database's URL with libpq's parameters for TLS and these files, if there is a CA and the URL has no sslmode."""
    if not url or not files.ca or "sslmode=" in url.partition("?")[2]:
        return url
    given = {"sslmode": "verify-full", "sslrootcert": files.ca, "sslcert": files.certificate, "sslkey": files.key}
    parameters = urlencode({name: value for name, value in given.items() if value}, safe="/")
    return f"{url}{'&' if '?' in url else '?'}{parameters}"


def database_url(text: str) -> str:
    """The URL with the driver psycopg2. SQLAlchemy 2.1 would read a bare postgresql:// as psycopg 3."""
    for prefix in ("postgresql://", "postgres://"):
        if text.startswith(prefix):
            return "postgresql+psycopg2://" + text[len(prefix) :]
    return text


def masked_url(url: str) -> str:
    """The URL with *** in place of its password."""
    scheme, user, _, place = _parts(url)
    return f"{scheme}://{user}:***@{place}" if user is not None else url


def passwords_in(url: str) -> tuple[str, ...]:
    """The password in a URL, or none."""
    password = _parts(url)[2]
    return (unquote(password),) if password else ()


def _parts(url: str) -> tuple[str, str | None, str, str]:
    """Scheme, user, password and the rest of a URL. The user is None if there is no @."""
    head, at, rest = url.rpartition("@")
    scheme, separator, credentials = head.partition("://")
    if not at or not separator:
        return "", None, "", url
    user, _, password = credentials.partition(":")
    return scheme, user, password, rest


def named_keys(text: str) -> tuple[tuple[str, str], ...]:
    """The (kid, secret) pairs of kid:secret,kid:secret."""
    keys = []
    for part in words(text):
        kid, colon, secret = part.partition(":")
        if not colon or not kid:
            raise ValueError("must read kid:secret,kid:secret")
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"has a secret under {MIN_SECRET_BYTES} bytes: that of {kid!r}")
        keys.append((kid, secret))
    if len({kid for kid, _ in keys}) != len(keys):
        raise ValueError("names a kid twice")
    return tuple(keys)


def keys(text: str) -> tuple[str, ...]:
    """The keys of key,key."""
    found = words(text)
    if any(len(key.encode()) < MIN_SECRET_BYTES for key in found):
        raise ValueError(f"has a key under {MIN_SECRET_BYTES} bytes")
    return found


def networks(text: str) -> tuple[str, ...]:
    """Addresses and networks, each as a network."""
    found = []
    for piece in words(text):
        try:
            network = ipaddress.ip_network(piece)
        except ValueError as error:
            raise ValueError(f"must list addresses or networks (10.0.0.1,10.1.0.0/16,2001:db8::/32): {error}") from None
        if network.version == 6 and network.subnet_of(_MAPPED):
            # A proxy that calls by IPv4 is known by its IPv4 address: this form would match nobody.
            raise ValueError(f"must list {piece} as an IPv4 address or network")
        found.append(str(network))
    return tuple(found)


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, in the form in which browsers send them."""
    found = words(text)
    for origin in found:
        # The Origin of a request is compared letter by letter. A form that browsers never send would match nothing, and
        # nobody would notice.
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"must read https://shop.example,..., not {origin!r}")
    return found


def words(text: str) -> tuple[str, ...]:
    """The words between commas, without spaces around them and without empty ones."""
    return tuple(piece.strip() for piece in text.split(",") if piece.strip())
