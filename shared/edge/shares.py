"""What clients hold open, and how much of it one of them may hold, so that nobody keeps others out."""

from __future__ import annotations

import ipaddress
import resource
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from shared.edge.green import shutdown_safe, wsgi
from shared.errors import TooManyConnections

# One household or server usually has a whole /64 network of IPv6.
IPV6_PREFIX = 64
# Most of what is held is released within a second.
RETRY_AFTER_S = 1
# 1,000 clients may wait for an order beside all others; one that waits costs about 40 kB.
MAX_CONNECTIONS = 4000


def max_connections() -> int:
    """Half of the process's file descriptors: the rest is for its database, its broker and its files."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Shares:
    """What is held under each name, at most `amount` under one; 0 means no limit."""

    def __init__(self, message: str, amount: int) -> None:
        self.message = message
        self.amount = amount
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold one more until the block ends. Raises TooManyConnections."""
        if self.amount and self._held[name] >= self.amount:
            raise TooManyConnections(self.message, {"limit": self.amount, "retry_after": RETRY_AFTER_S})
        self._held[name] += 1
        try:
            yield
        finally:
            _decrement(self._held, name)


class Client:
    """One open connection. Its items are those that eventlet reads and sets: the peer, the socket, the state."""

    def __init__(self, peer: tuple[Any, ...], sock: Any) -> None:
        self.address = network_of(peer[0])
        self._items = [peer, sock, wsgi.STATE_IDLE]

    def __getitem__(self, place: int) -> Any:
        return self._items[place]

    def __setitem__(self, place: int, item: Any) -> None:
        self._items[place] = item


class Connections:
    """The open connections of a server: at most `most`, and at most `of_address` of one address; 0 means no limit.

    A connection without a whole request makes room for a new one. The oldest such connection is closed: at the limit of
    an address, of this address; when the server is full, of the address that holds the most.
    """

    def __init__(self, most: int, of_address: int = 0) -> None:
        self.most = most
        self.of_address = of_address
        self._all: set[Client] = set()
        self._held: Counter[str] = Counter()
        # By address, those without a whole request, the oldest first.
        self._idle: dict[str, dict[Client, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Client]:
        return iter(tuple(self._all))

    def add(self, client: Client, is_proxy: bool = False) -> None:
        """Let a client in; a proxy, which speaks for many, also past the limit of an address.

        Raises TooManyRequests or ServiceUnavailable, if no connection can be closed for it.
        """
        if self.of_address and not is_proxy and self._held[client.address] >= self.of_address:
            if not self._make_room([client.address]):
                raise TooManyRequests("Too many connections of one address.")
        elif len(self) >= self.most and not self._make_room(self._idle):
            raise ServiceUnavailable("Too many connections.")
        self._all.add(client)
        self._held[client.address] += 1
        self.rest(client)

    def begin(self, client: Client) -> bool:
        """Keep the connection open until it rests: its request is whole. False if it was closed to make room."""
        self._forget(client)
        return client in self._all

    def rest(self, client: Client) -> None:
        """The connection has no request, so it may be closed to make room."""
        if client in self._all:
            self._idle.setdefault(client.address, {}).setdefault(client)

    def remove(self, client: Client) -> None:
        """The connection has ended. May be called again."""
        if client in self._all:
            self._all.remove(client)
            _decrement(self._held, client.address)
            self._forget(client)

    def _make_room(self, addresses: Iterable[str]) -> bool:
        """Close a connection of one of these addresses; whether there was one that could be closed."""
        holders = [address for address in addresses if address in self._idle]
        if not holders:
            return False
        oldest = next(iter(self._idle[max(holders, key=self._held.__getitem__)]))
        self.remove(oldest)
        shutdown_safe(oldest[1])
        return True

    def _forget(self, client: Client) -> None:
        idle = self._idle.get(client.address, {})
        idle.pop(client, None)
        if not idle:
            self._idle.pop(client.address, None)


def network_of(address: str) -> str:
    """The addresses that count as one client: one IPv4 address, or an IPv6 /64 network."""
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(whole.ipv4_mapped or ipaddress.IPv6Network((whole, IPV6_PREFIX), strict=False))


def _decrement(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
