"""The address of the client behind trusted proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from shared.edge.http import Environ

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The proxies whose X-Forwarded-For is believed. Nobody else's is: any client can send one."""

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

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _parsed(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address  # a socket for both families reports ::ffff:192.0.2.7
