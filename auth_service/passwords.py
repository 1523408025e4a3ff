"""Passwords as argon2id hashes. Hashing is slow on purpose, so it runs in threads and does not block the process."""

from __future__ import annotations

import os

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.edge.green import Semaphore, run_in_thread

# OWASP's second choice for argon2id: 19 MiB, two passes; about 30 ms of one core.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# At most this many hashes at once: each needs its memory. Half of the cores are left to everything else, so that many
# who sign in do not hold up those who have.
_AT_ONCE = Semaphore(max(1, min(4, len(os.sched_getaffinity(0)) // 2)))

# Verified for an unknown name, so that the answer takes as long as for a known name.
_DUMMY_HASH = _HASHER.hash("nobody has this password")


def hash_of(password: str) -> str:
    """Hash a password with a new salt."""
    with _AT_ONCE:
        return str(run_in_thread(_HASHER.hash, password))


def fits(password_hash: str | None, password: str) -> bool:
    """Whether the password matches the hash. None never matches, and takes the same time."""
    with _AT_ONCE:
        fitted = bool(run_in_thread(_verify, password_hash or _DUMMY_HASH, password))
    return fitted and password_hash is not None


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
