"""What one client may hold open at a gateway. Each replica counts only what it holds itself."""

from __future__ import annotations

from shared.config import Settings
from shared.edge.http import HELD, Environ
from shared.edge.shares import Shares, network_of

# Sign-ins of one address that are under way. Checking a password takes 30 ms of a core of auth_service.
SIGN_INS_OF_ADDRESS = 20
# Of all addresses: each takes a worker of the gateway, of which there are 200, and others need workers, too.
SIGN_INS = 60

_ALL = "all"


class Held:
    """What the requests of a gateway hold. All is released when the answer of the request has ended."""

    def __init__(self, settings: Settings) -> None:
        self._requests = Shares("Too many requests of one address are under way.", settings.connections_per_address)
        self._waits = Shares("Too many waits, streams and exports of one user are open.", settings.waits_per_user)
        self._sign_ins_of_address = Shares("Too many sign-ins of one address are under way.", SIGN_INS_OF_ADDRESS)
        self._sign_ins = Shares("Too many sign-ins are under way.", SIGN_INS)

    def hold_request(self, address: str, environ: Environ) -> None:
        """Count a request that a proxy has passed on from this address. Raises TooManyConnections."""
        environ[HELD].enter_context(self._requests.held(network_of(address)))

    def hold_wait(self, user_id: str, environ: Environ) -> None:
        """Count a wait, a stream or an export of a user. Raises TooManyConnections."""
        environ[HELD].enter_context(self._waits.held(user_id))

    def hold_sign_in(self, address: str, environ: Environ) -> None:
        """Count a sign-in from an address. Raises TooManyConnections."""
        environ[HELD].enter_context(self._sign_ins_of_address.held(network_of(address)))
        environ[HELD].enter_context(self._sign_ins.held(_ALL))
