"""Passwords as argon2id hashes. Hashing is slow on purpose, so it runs in threads and does not block the process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.edge.green import Semaphore, run_in_thread
from shared.errors import CannotWork

P = ParamSpec("P")
R = TypeVar("R")

# OWASP's second choice for argon2id: 19 MiB, two passes; about 30 ms of one core.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# At most this many hashes at once: each needs its memory. Half of the cores are left to everything else, so that many
# who sign in do not hold up those who have.
AT_ONCE = max(1, min(4, len(os.sched_getaffinity(0)) // 2))
_AT_ONCE = Semaphore(AT_ONCE)

# So many more may wait for their turn, a quarter of a second on one core. Each of them holds one of the 20 workers of a
# process: the others are left to those who refresh a token or show a key. Whoever comes then is asked to come back.
MAX_WAITING = 8

# Verified for an unknown name, so that the answer takes as long as for a known name.
_DUMMY_HASH = _HASHER.hash("nobody has this password")


class _Queue:
    """Those who wait for their turn. It is the process's own, as the cores are that they wait for."""

    def __init__(self) -> None:
        self.waiting = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it for the block. Raises CannotWork if too many wait already."""
        if not _AT_ONCE.acquire(blocking=False):
            if self.waiting >= MAX_WAITING:
                raise CannotWork("too many passwords are being checked")
            self.waiting += 1
            try:
                _AT_ONCE.acquire()
            finally:
                self.waiting -= 1
        try:
            yield
        finally:
            _AT_ONCE.release()


_queue = _Queue()


def _in_turn(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    with _queue.turn():
        return run_in_thread(function, *args, **kwargs)


def hash_of(password: str) -> str:
    """Hash a password with a new salt. Raises CannotWork if too many passwords are being checked."""
    return str(_in_turn(_HASHER.hash, password))


def fits(password_hash: str | None, password: str) -> bool:
    """Whether the password matches the hash. None never matches, and takes the same time. Raises CannotWork."""
    fitted = bool(_in_turn(_verify, password_hash or _DUMMY_HASH, password))
    return fitted and password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether a hash was made with other parameters than those of today."""
    return bool(_HASHER.check_needs_rehash(password_hash))


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
