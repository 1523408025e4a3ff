"""The web server of the probes of a service whose own port clients call."""

from __future__ import annotations

from shared.edge.green import shutdown_safe
from shared.edge.shares import Connections
from shared.edge.webserver import WebServer

# Probes come from a handful of programs.
MAX_PROBES = 64


class ProbeServer(WebServer):
    """Answers probes alone, on a port of their own: no load of clients keeps a probe out."""

    address_in = "PROBE_SERVER_ADDRESS"
    tls_in = ""  # programs on the same network ask it, and it tells no secret

    def limits(self) -> Connections:
        return Connections(MAX_PROBES)

    def not_ready_reason(self) -> str | None:
        """Nobody's requests depend on it."""
        return None

    def stop(self) -> None:
        """End at once, after everything else: a probe waits for nobody."""
        self.kill()
        for client in self.connections:
            shutdown_safe(client[1])
