"""Addresses as trusted proxies report them: that of the client, and that under which clients know the gateway."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from shared.edge.http import Environ

_BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# What a Host header may hold: a name or an IPv4 address, or an IPv6 address in brackets, and a port.
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
# Shown to a client that sent no usable Host header.
UNKNOWN_ORIGIN = "https://the-address-of-this-page"


class Proxies:
    """The proxies whose X-Forwarded-... headers are believed. Nobody else's are: any client can send them."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def client_address(self, environ: Environ) -> str:
        """The last address that a trusted proxy has seen and that is not a trusted proxy itself.

        Each proxy appends the address it was called from, so the walk goes from the right. An entry that is not an
        address ends it: the client is then the proxy that reported this entry.
        """
        peer: str = environ["REMOTE_ADDR"]
        address = _parsed(peer)
        if not self._networks or address is None:
            return peer
        for entry in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
            if not self._trusts(address):
                break
            reported = _parsed(entry.strip())
            if reported is None:
                break
            address = reported
        return str(address)

    def origin(self, environ: Environ) -> str:
        """The scheme, host and port by which the client called the gateway, such as `https://shop.example`.

        The Host header, or X-Forwarded-Host and X-Forwarded-Proto of a trusted proxy. Of several proxies the first
        one knows what the client asked for.
        """
        scheme, host = environ.get("wsgi.url_scheme", "http"), environ.get("HTTP_HOST", "")
        peer = _parsed(environ["REMOTE_ADDR"])
        if peer is not None and self._trusts(peer):
            scheme = _first(environ.get("HTTP_X_FORWARDED_PROTO")) or scheme
            host = _first(environ.get("HTTP_X_FORWARDED_HOST")) or host
        known = scheme in ("http", "https") and _HOST.fullmatch(host)
        return f"{scheme}://{host}" if known else UNKNOWN_ORIGIN

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _first(header: str | None) -> str:
    return (header or "").partition(",")[0].strip()


def _parsed(text: str) -> Address | None:
    """An address of either kind. Some proxies write IPv6 as in a URL, in brackets and with a port."""
    match = _BRACKETED.fullmatch(text)
    try:
        address = ipaddress.ip_address(match[1] if match else text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address  # a socket for both families reports ::ffff:192.0.2.7
