"""Cursors as clients get them: signed, so that only a cursor that this API has handed out reaches a service.

The signature covers the route, too: a cursor of one list is no cursor of another. It is made with the key of the
tokens, under a prefix that no token has. Every gateway has that key, and while keys are changed each of them verifies.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from shared.auth import Keys
from shared.errors import InvalidCursor

_PURPOSE = "ecom cursor"
# 128 bits: nobody can guess one by trying. A longer signature would only make longer addresses.
_SIGNATURE_BYTES = 16


class Cursors:
    """Signs and opens the cursors of one route."""

    def __init__(self, keys: Keys, route: str) -> None:
        self._keys = keys
        self._route = route

    def sign(self, cursor: str) -> str:
        """The cursor of a service with its signature."""
        return f"{cursor}.{self._signature(self._keys[0][1], cursor)}"

    def open(self, signed: str) -> str:
        """The cursor of a service. Raises InvalidCursor unless `sign` made it for this route."""
        cursor, _, signature = signed.rpartition(".")
        given = signature.encode("utf-8", "replace")
        if not any(hmac.compare_digest(self._signature(key, cursor).encode(), given) for _, key in self._keys):
            raise InvalidCursor()
        return cursor

    def _signature(self, key: str, cursor: str) -> str:
        text = "\0".join((_PURPOSE, self._route, cursor)).encode("utf-8", "replace")
        digest = hmac.digest(key.encode(), text, hashlib.sha256)[:_SIGNATURE_BYTES]
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
