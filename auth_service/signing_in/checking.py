"""Checking a password within the limits: the pauses before it, the failure after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from auth_service import derived, domain, models, passwords, records
from auth_service.domain import Account
from auth_service.records import Origin
from auth_service.signing_in import queries
from auth_service.signing_in.domain import buckets_without_device, check_pauses, device_bucket, kind_of
from shared.auth import Keys
from shared.config import Settings
from shared.edge.database import Sessions
from shared.errors import CannotWork, RateLimited, SignInPaused, Unauthenticated


@dataclass(frozen=True)
class Attempt:
    """A sign-in that no pause forbids: whose account it would be, and where its failure counts."""

    login: str
    account: Account | None
    buckets: Sequence[str]
    device_id: UUID | None = None  # of the device token, if it was made for this very user
    own: str = ""  # the bucket that is forgotten on success, because nobody else counts in it; empty if there is none


def begin(session: Session, keys: Keys, login: str, device_token: str | None, network: str | None) -> Attempt:
    """Begin a sign-in by a name or an address: two statements, whoever exists. Raises RateLimited."""
    account = models.find(session, login)
    device_id = None
    if account is not None and device_token:
        device_id = derived.device_of(keys, device_token, account.user_id, account.password_at)
    if account is not None and device_id is not None:
        buckets = [device_bucket(account.user_id, device_id)]
    else:
        buckets = buckets_without_device(login, network)
    failed = _not_paused(session, buckets)
    return Attempt(login, account, buckets, device_id, failed if device_id else "")


def begin_again(session: Session, account: Account, where: str) -> Attempt:
    """Begin to check the password of a known user: it counts only `where` it is asked for. Raises SignInPaused.

    Whoever has taken a token may guess a password there, and can keep nobody else from signing in.
    """
    buckets = [device_bucket(account.user_id, where)]
    with told_as_paused():
        return Attempt("", account, buckets, own=_not_paused(session, buckets))


@contextmanager
def told_as_paused() -> Iterator[None]:
    """Raises SignInPaused for a pause. Callers of the last release cannot read it: what they call goes without."""
    try:
        yield
    except RateLimited as error:
        raise SignInPaused(details=error.details) from None


def check(db: Sessions, settings: Settings, attempt: Attempt, password: str, origin: Origin) -> Account:
    """The account whose password it is; a failure counts. No transaction is open meanwhile.

    Raises Unauthenticated, and CannotWork if too many passwords are being checked.
    """
    account = attempt.account
    fits = passwords.fits(account.password_hash if account else None, password)
    if settings.production and domain.is_published(attempt.login, password):
        fits = False  # the database may come from a development stack
    try:
        signed_in = domain.sign_in(account, fits)
    except Unauthenticated:
        with db.begin() as session:
            for bucket in queries.count_failure(session, attempt.buckets):
                user_id = account.user_id if account else None
                records.record(session, "sign_in_paused", user_id, origin, of=kind_of(bucket))
        raise
    if passwords.is_outdated(signed_in.password_hash or ""):
        with suppress(CannotWork):  # it is renewed another time: this sign-in has succeeded
            new = passwords.hash_of(password)
            with db.begin() as session:
                models.replace_hash(session, signed_in, new)
    return signed_in


def succeed(session: Session, attempt: Attempt) -> None:
    """Forget what a device, or a session, has failed. What counts for a name or a network stays."""
    if attempt.own:
        queries.forget(session, attempt.own)


def _not_paused(session: Session, buckets: Sequence[str]) -> str:
    """Refuse a sign-in that is paused; the first of its buckets that has failures, or nothing. Raises RateLimited."""
    pauses = queries.pauses_left(session, buckets)
    check_pauses(pauses.values())
    return next(iter(pauses), "")
