"""The socket on which a web server listens, from its start to the last client that called before its end."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from shared.config import bracketed
from shared.edge.green import GreenSocket
from shared.errors import ConfigurationFault

# New connections that wait to be accepted. The kernel drops more, and their clients try again after a second or more.
BACKLOG = 4096


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigurationFault when it cannot, as when the port is taken."""
    try:
        sock = _listening(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationFault(f"port {port} on {host} is taken by another process") from error
        # create_server adds the address to the text of the error, which names it already.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigurationFault(f"cannot listen on {bracketed(host)}:{port}: {why}") from error
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
    return sock


def _listening(host: str, port: int) -> socket.socket:
    """On `::` it takes IPv4 connections, too.

    Of the addresses of a name it takes an IPv4 one if there is one: every client can call that.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda one: one[0] == socket.AF_INET6)
    # Not eventlet's own function: with its SO_REUSEPORT a second process would silently take half of the requests, and
    # whether `::` includes IPv4 would depend on the machine.
    return socket.create_server(
        address,
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=family == socket.AF_INET6 and ipaddress.ip_address(address[0]).is_unspecified,
    )


def waiting(listening: socket.socket) -> Iterator[tuple[Any, Any]]:
    """The sockets and addresses of the clients whom the kernel has accepted already; waits for no other.

    To close a listening socket resets the connections that wait at it, with the requests that were sent on them.
    """
    listening.settimeout(0)
    with suppress(OSError):  # nobody waits any more, or no file descriptor is left for one
        while True:
            sock, address = listening.accept()
            yield GreenSocket(sock), address
