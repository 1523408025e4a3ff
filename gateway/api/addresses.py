"""Addresses as trusted proxies report them: that of the client, and that under which clients know the gateway."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from shared.edge.framing import HOST
from shared.edge.http import Environ

_BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

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
        return self._walk(environ)[0]

    def trusts(self, peer: str) -> bool:
        """Whether the peer of a socket is one of these proxies."""
        address = _parsed(peer)
        return address is not None and self._trusts(address)

    def origin(self, environ: Environ) -> str:
        """The scheme, host and port by which the client called the gateway, such as `https://shop.example`.

        The Host header, or X-Forwarded-Host and X-Forwarded-Proto of trusted proxies. Of several, the one that the
        client called knows what it asked for. What stands before the entry of that proxy, the client wrote itself.
        """
        scheme, host = environ.get("wsgi.url_scheme", "http"), environ.get("HTTP_HOST", "")
        proxies = self._walk(environ)[1]
        if proxies:
            scheme = _entry(environ.get("HTTP_X_FORWARDED_PROTO", ""), proxies) or scheme
            host = _entry(environ.get("HTTP_X_FORWARDED_HOST", ""), proxies) or host
        known = scheme in ("http", "https") and HOST.fullmatch(host)
        return f"{scheme}://{host}" if known else UNKNOWN_ORIGIN

    def _walk(self, environ: Environ) -> tuple[str, int]:
        """The client's address, and how many trusted proxies stand between it and the gateway."""
        peer: str = environ["REMOTE_ADDR"]
        address = _parsed(peer)
        if not self._networks or address is None:
            return peer, 0
        proxies = 0
        for entry in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
            if not self._trusts(address):
                break
            proxies += 1
            reported = _parsed(entry.strip())
            if reported is None:
                break
            address = reported
        return str(address), proxies

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _entry(header: str, proxies: int) -> str:
    """What the first of so many proxies has written: each adds an entry, or replaces the header."""
    entries = header.split(",")
    return entries[-min(proxies, len(entries))].strip()


@lru_cache(4096)
def _parsed(text: str) -> Address | None:
    """An address of either kind. Some proxies write IPv6 as in a URL, in brackets and with a port."""
    match = _BRACKETED.fullmatch(text)
    try:
        address = ipaddress.ip_address(match[1] if match else text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address  # a socket for both families reports ::ffff:192.0.2.7
