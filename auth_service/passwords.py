"""Passwords as argon2id hashes. Hashing takes long on purpose, so it runs in threads beside the hub."""

from __future__ import annotations

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.edge.green import Semaphore, run_in_thread

# OWASP's second choice for argon2id: 19 MiB, two passes; about 30 ms of one core.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# Each holds its memory; more at once than cores only makes all of them slower.
_AT_ONCE = Semaphore(4)

# Checked for a name that is unknown, so that it takes as long as one that is known.
_NOBODYS = _HASHER.hash("nobody has this password")


def hash_of(password: str) -> str:
    """A new salted hash."""
    with _AT_ONCE:
        return str(run_in_thread(_HASHER.hash, password))


def fits(password_hash: str | None, password: str) -> bool:
    """Whether the password made the hash; None costs the same work and never fits."""
    with _AT_ONCE:
        fitted = bool(run_in_thread(_verify, password_hash or _NOBODYS, password))
    return fitted and password_hash is not None


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
