"""The limits of sign-ins that fail. The functions take and return plain values; queries.py counts.

A sign-in that fails counts in buckets. One with the device token of its very user counts for that device alone: nobody
else can pause it. All others count for the name that was typed, and for the network that they came from.

A pause ends by itself, and counting begins anew. Pauses that follow each other get longer. A sign-in that succeeds
takes back nothing of what others have failed: whoever has an account of their own could clear their network with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from shared.errors import RateLimited


class Kind(StrEnum):
    """What a bucket counts for."""

    DEVICE = "dev"  # a device of a user
    ACCOUNT = "acct"  # a name as typed, whether anybody has it or not
    NETWORK = "net"


@dataclass(frozen=True)
class Limit:
    """So many failures within a time make a pause: the first of `pause`, each that follows twice as long."""

    failures: int
    within: timedelta
    pause: timedelta
    longest: timedelta


_WITHIN = timedelta(minutes=15)

LIMITS = {
    Kind.DEVICE: Limit(10, _WITHIN, timedelta(minutes=15), timedelta(minutes=15)),
    Kind.ACCOUNT: Limit(10, _WITHIN, timedelta(minutes=1), timedelta(minutes=15)),
    Kind.NETWORK: Limit(100, _WITHIN, timedelta(minutes=1), timedelta(minutes=15)),
}


def device_bucket(user_id: str, device_id: UUID | str) -> str:
    """The bucket of a device of a user, or of another place where a known user gives their password."""
    return _bucket(Kind.DEVICE, f"{user_id} {device_id}")


def buckets_without_device(login: str, network: str | None) -> list[str]:
    """The buckets of a sign-in from no known device. A name counts without its case, since an address has none."""
    account = _bucket(Kind.ACCOUNT, login.casefold())
    return [account, _bucket(Kind.NETWORK, network)] if network else [account]


def _bucket(kind: Kind, who: str) -> str:
    # Hashed: what people type into the field of the name is now and then their password, and a user's id is theirs.
    return f"{kind}:{hashlib.sha256(who.encode()).hexdigest()}"


def kind_of(bucket: str) -> Kind:
    """What a bucket counts for."""
    return Kind(bucket.partition(":")[0])


def check_pauses(left_s: Iterable[float]) -> None:
    """Refuse a sign-in one of whose buckets is paused for so many seconds still. Raises RateLimited."""
    longest = max(left_s, default=0.0)
    if longest > 0:
        raise RateLimited("Too many sign-ins failed.", {"retry_after": math.ceil(longest)})


def seconds_of(limits: Mapping[Kind, Limit] = LIMITS) -> dict[str, list[str | float]]:
    """The limits as columns of a table."""
    return {
        "kinds": [kind.value for kind in limits],
        "failures": [limit.failures for limit in limits.values()],
        "within": [limit.within.total_seconds() for limit in limits.values()],
        "pause": [limit.pause.total_seconds() for limit in limits.values()],
        "longest": [limit.longest.total_seconds() for limit in limits.values()],
    }
