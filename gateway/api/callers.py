"""Who calls: the bearer token of a request, or the key of a service, which is changed into a token."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shared import auth, errors
from shared.auth import Claims
from shared.config import Settings
from shared.edge import green
from shared.edge.green import Semaphore
from shared.edge.http import Environ, Route, Shared
from shared.edge.revocation_feed import RevocationFeed
from shared.edge.rpc_proxy import CALL_TIMEOUT_S
from shared.edge.settings import settings_of

KEY_HEADER, NAME_HEADER = "X-API-Key", "X-Service-Name"
_KEY, _NAME = "HTTP_X_API_KEY", "HTTP_X_SERVICE_NAME"

# What cannot be a key or a name is refused without asking anybody.
_KEY_SHAPE = re.compile(r"ek_[0-9a-f]{32}_[A-Za-z0-9_-]{43}")
_NAME_SHAPE = re.compile(r"[a-z][a-z0-9-]{0,62}")

# Services that use their keys at one gateway within 15 minutes. A token takes about 600 bytes.
MOST_TOKENS = 1000
# Keys that are changed at once: strangers who try keys leave auth_service to others.
AT_ONCE = 8

Exchange = Callable[[str, str], str]


def bearer_token(environ: Environ) -> str:
    """The bearer token of a request. Raises Unauthenticated."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer":
        raise errors.Unauthenticated
    return str(token.strip())


def has_key(environ: Environ) -> bool:
    """Whether a request shows the key of a service."""
    return _KEY in environ


class ServiceTokens:
    """The access tokens of services that show their keys. Each is kept by a hash of its key, and verified as any other.

    So a key costs one call in 15 minutes, and a key that is revoked ends with its tokens.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.auth_keys
        self._tokens: OrderedDict[bytes, str] = OrderedDict()
        self._at_once = Semaphore(AT_ONCE)

    def __len__(self) -> int:
        return len(self._tokens)

    def claims(self, environ: Environ, exchange: Exchange, has_ended: Callable[[Claims], bool]) -> Claims:
        """The claims of the token of the service that shows its key.

        `exchange` brings a token for a name and a key, or raises InvalidGrant. `has_ended` says whether a token was
        revoked. Raises BadRequest for a key beside a token or without a name, InvalidToken for one that is not valid.
        """
        if "HTTP_AUTHORIZATION" in environ:
            raise errors.BadRequest(f"Send either Authorization or {KEY_HEADER}.")
        if _NAME not in environ:
            raise errors.BadRequest(f"{NAME_HEADER} must name the service that {KEY_HEADER} belongs to.")
        name, key = environ[_NAME], environ[_KEY]
        if not (_KEY_SHAPE.fullmatch(key) and _NAME_SHAPE.fullmatch(name)):
            raise errors.InvalidToken("The key is not valid, or no longer, or of another service.")
        place = hashlib.sha256(f"{name} {key}".encode()).digest()
        claims = self._known(place, has_ended)
        if claims is None:
            with self._turn():
                # Of many at once the first has asked meanwhile.
                claims = self._known(place, has_ended) or self._ask(place, name, key, exchange)
        if has_ended(claims):
            raise errors.InvalidToken
        return claims

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with green.Timeout(CALL_TIMEOUT_S, errors.ServiceUnavailable("too many keys of services are looked up")):
            self._at_once.acquire()
        try:
            yield
        finally:
            self._at_once.release()

    def _known(self, place: bytes, has_ended: Callable[[Claims], bool]) -> Claims | None:
        token = self._tokens.get(place)
        if token is None:
            return None
        try:
            claims = auth.verify(token, self._keys)
        except errors.InvalidToken:  # it is over
            claims = None
        if claims is None or has_ended(claims):
            self._tokens.pop(place, None)
            return None
        self._tokens.move_to_end(place)
        return claims

    def _ask(self, place: bytes, name: str, key: str, exchange: Exchange) -> Claims:
        try:
            token = exchange(name, key)
        except errors.InvalidGrant as error:
            raise errors.InvalidToken("The key is not valid, or no longer, or of another service.") from error
        claims = auth.verify(token, self._keys)
        self._tokens[place] = token
        while len(self._tokens) > MOST_TOKENS:
            self._tokens.popitem(last=False)
        return claims


class Verifying(Route):
    """A route that knows its caller by a token, and whether that was revoked. It asks nobody about a token."""

    revocations = RevocationFeed()
    service_tokens = Shared(ServiceTokens)

    def setup(self) -> None:
        super().setup()
        self._keys = settings_of(self.container).auth_keys

    def verify(self, environ: Environ) -> Claims:
        """The claims of the caller's token, or of that of their service's key. Raises Unauthenticated, BadRequest."""
        if has_key(environ):
            return self.service_tokens.made.claims(environ, self._exchange, self.has_ended)
        return self.not_ended(auth.verify(bearer_token(environ), self._keys))

    def has_ended(self, claims: Claims) -> bool:
        """Whether a token was revoked before its time."""
        return self.revocations.is_revoked(claims.identity.user_id, claims.version, claims.session_id)

    def not_ended(self, claims: Claims) -> Claims:
        """The same claims. Raises InvalidToken if their token was revoked."""
        if self.has_ended(claims):
            raise errors.InvalidToken
        return claims

    def _exchange(self, name: str, key: str) -> str:
        ask = self.revocations.replies.call
        answer: dict[str, Any] = ask("auth_service.exchange_key", [name, key], {}, {}, CALL_TIMEOUT_S)
        return str(answer["access_token"])
