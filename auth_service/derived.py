"""Secrets that are derived and stored nowhere: refresh tokens, the proofs in mails, and device tokens.

Each is base64url of what it says and an HMAC over it. Who reads the database can forge none of them; who sends a forged
one costs no SQL; and the same one can be derived again, so that a lost answer is no lost token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shared.auth import Keys

REFRESH_PREFIX = "ert_"
_MAC = 32
_UUID = 16
_GENERATION = 4
MAX_LENGTH = 200


def _key(secret: str, purpose: str) -> bytes:
    """A key for one purpose, so that no token of one kind is ever valid as another."""
    return hmac.digest(secret.encode(), b"ecom " + purpose.encode(), "sha256")


def _mac(secret: str, purpose: str, *parts: bytes) -> bytes:
    """An HMAC over parts. Each goes with its length, so that no two lists of parts are one text."""
    said = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(_key(secret, purpose), said, "sha256")


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str, length: int) -> bytes | None:
    """The bytes of a token; None for what is no token of this length. Only the canonical spelling counts."""
    if len(text) > MAX_LENGTH or not text.isascii():
        return None
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    return raw if len(raw) == length and _encoded(raw) == text else None


def _fits(keys: Keys, purpose: str, mac: bytes, *parts: bytes) -> str | None:
    """The kid of the key by which a MAC was made, or None. Every key is tried, so that time tells nothing."""
    fitting = [kid for kid, secret in keys if hmac.compare_digest(_mac(secret, purpose, *parts), mac)]
    return fitting[0] if fitting else None


@dataclass(frozen=True)
class Refresh:
    """What a refresh token says: its session, and the how-manieth of that session it is. `kid` is its key's."""

    session_id: UUID
    generation: int
    kid: str


def refresh_token(keys: Keys, kid: str, session_id: UUID, generation: int) -> str:
    """The refresh token of a generation of a session, by the session's own key. Raises LookupError for a lost key."""
    said = session_id.bytes + generation.to_bytes(_GENERATION, "big")
    return REFRESH_PREFIX + _encoded(said + _mac(dict(keys)[kid], "refresh", said))


def read_refresh_token(keys: Keys, token: str) -> Refresh | None:
    """What a refresh token says; None for one that nobody here has made, or with a key that is not listed any more."""
    if not token.startswith(REFRESH_PREFIX):
        return None
    raw = _decoded(token.removeprefix(REFRESH_PREFIX), _UUID + _GENERATION + _MAC)
    if raw is None:
        return None
    said, mac = raw[:-_MAC], raw[-_MAC:]
    kid = _fits(keys, "refresh", mac, said)
    if kid is None:
        return None
    return Refresh(UUID(bytes=said[:_UUID]), int.from_bytes(said[_UUID:], "big"), kid)


def proof_token(keys: Keys, kind: str, proof_id: UUID, email: str) -> str:
    """The token in a mail, which shows that somebody reads the mails to this address."""
    return _encoded(proof_id.bytes + _mac(keys[0][1], "proof", kind.encode(), proof_id.bytes, email.encode()))


def proof_of(token: str) -> UUID | None:
    """The proof that a token is about, before anything is verified; None for what is no token."""
    raw = _decoded(token, _UUID + _MAC)
    return UUID(bytes=raw[:_UUID]) if raw else None


def is_proof(keys: Keys, token: str, kind: str, proof_id: UUID, email: str) -> bool:
    """Whether a token was made for this proof."""
    raw = _decoded(token, _UUID + _MAC)
    return raw is not None and bool(
        _fits(keys, "proof", raw[_UUID:], kind.encode(), proof_id.bytes, email.encode())
        and raw[:_UUID] == proof_id.bytes
    )


def device_token(keys: Keys, user_id: str, device_id: UUID, password_at: datetime | None) -> str:
    """What a device shows when its user signs in again. A new password makes it worthless."""
    return _encoded(device_id.bytes + _device_mac(keys[0][1], user_id, device_id, password_at))


def device_of(keys: Keys, token: str, user_id: str, password_at: datetime | None) -> UUID | None:
    """The device that a token names, if it was made for this very user; else None."""
    raw = _decoded(token, _UUID + _MAC)
    if raw is None:
        return None
    device_id = UUID(bytes=raw[:_UUID])
    fitting = [hmac.compare_digest(_device_mac(key, user_id, device_id, password_at), raw[_UUID:]) for _, key in keys]
    return device_id if any(fitting) else None


def _device_mac(secret: str, user_id: str, device_id: UUID, password_at: datetime | None) -> bytes:
    at = password_at.isoformat() if password_at else ""
    return _mac(secret, "device", user_id.encode(), device_id.bytes, at.encode())


def hash_of(secret: str) -> str:
    """SHA-256 in hex: of secrets that are long and random, which need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()
