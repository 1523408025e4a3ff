"""Proofs: mails that are asked for here, and what the token in one of them shows when it comes back."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, insert, select, text, update
from sqlalchemy.orm import Session

from auth_service import derived
from auth_service.models import Proof
from shared.auth import Keys
from shared.errors import TokenInvalid
from shared.events import UserMailRequested
from shared.ids import uuid7


class Kind(StrEnum):
    """What a mail asks its reader to prove, or that it only tells them something."""

    REGISTER = "register"
    RESET = "reset"
    CHANGE_EMAIL = "change_email"
    LINK = "link"
    KEEP = "keep"
    NOTICE = "notice"


class About(StrEnum):
    """Which text a mail has. A notice has one of its own for each reason; any other kind has one."""

    REGISTER = "register"
    RESET = "reset"
    CHANGE_EMAIL = "change_email"
    LINK = "link"
    KEEP = "keep"
    ACCOUNT_EXISTS = "account_exists"
    NO_ACCOUNT = "no_account"
    EMAIL_CHANGING = "email_changing"
    PASSWORD_CHANGED = "password_changed"
    SESSION_REUSED = "session_reused"
    IDENTITY_LINKED = "identity_linked"


LIFE = {
    Kind.REGISTER: timedelta(hours=24),
    Kind.KEEP: timedelta(days=14),
    Kind.NOTICE: timedelta(days=1),  # it holds no token, and is worth sending after an outage
}
OTHER_LIFE = timedelta(minutes=30)

# So many mails may be asked for in an hour. Those about one thing keep those about another from nobody: a stranger who
# registers an address three times must not hold up the mail that resets its owner's password.
PER_ADDRESS, PER_NETWORK = 3, 10

# Two that ask at once must not both be the third: they take turns.
_TURNS = text(
    "SELECT pg_advisory_xact_lock(:lock_class, key) FROM"
    " (SELECT DISTINCT hashtext(given) AS key FROM unnest(CAST(:names AS text[])) AS given ORDER BY key) AS turns"
)
TURNS_OF_MAILS = 0x6D61696C


def ask(
    session: Session,
    kind: Kind,
    about: About,
    email: str,
    network: str,
    *,
    user_id: str | None = None,
    locale: str = "en",
    limited: bool = True,
    **more: Any,
) -> UserMailRequested | None:
    """Ask for a mail to an address, and return the event to emit: None if that is one too many in this hour.

    `limited` mails about one thing count against the address, and all mails against the network; what an account's
    owner must hear is sent in any case. `more`: display_name, provider, subject of the proof.
    """
    if limited and _is_too_much(session, about, email, network):
        return None
    proof_id = uuid7()
    life = LIFE.get(kind, OTHER_LIFE)
    session.execute(
        insert(Proof).values(
            proof_id=proof_id,
            kind=kind,
            about=about,
            email=email,
            user_id=user_id,
            locale=locale,
            network=network,
            expires_at=func.now() + life,
            **more,
        )
    )
    return UserMailRequested(proof_id, user_id, kind, locale)


def _is_too_much(session: Session, about: About, email: str, network: str) -> bool:
    session.execute(_TURNS, {"lock_class": TURNS_OF_MAILS, "names": [email, f"net:{network}"]})
    hour = func.now() - timedelta(hours=1)
    asked = (Proof.email == email, Proof.about == about, Proof.created_at > hour)
    of_address = select(func.count()).where(*asked).scalar_subquery()
    of_network = select(func.count()).where(Proof.network == network, Proof.created_at > hour).scalar_subquery()
    mails, mails_of_network = session.execute(select(of_address, of_network)).one()
    return mails >= PER_ADDRESS or mails_of_network >= PER_NETWORK


def use(session: Session, keys: Keys, token: str, *kinds: Kind) -> Proof:
    """The proof that a token shows, now used. Raises the same TokenInvalid for every fault.

    Its row stays locked until the transaction ends: a token works once.
    """
    proof = _valid(session, keys, token, kinds, select(Proof).with_for_update())
    proof.used_at = session.scalar(select(func.now()))
    return proof


def read(session: Session, keys: Keys, token: str, *kinds: Kind) -> Proof:
    """The proof that a token shows, which is not used by that. Raises the same TokenInvalid for every fault.

    For what takes long before the proof is used, such as hashing a password: strangers cannot make us do that.
    """
    return _valid(session, keys, token, kinds, select(Proof))


def void(session: Session, user_id: str, *kinds: Kind) -> None:
    """Let no mail of these kinds that a user has got work any more."""
    unused = update(Proof).where(Proof.user_id == user_id, Proof.kind.in_(kinds), Proof.used_at.is_(None))
    session.execute(unused.values(used_at=func.now()))


def _valid(session: Session, keys: Keys, token: str, kinds: Collection[Kind], query: Select[Proof]) -> Proof:
    proof_id: UUID | None = derived.proof_of(token)
    proof = session.scalar(query.where(Proof.proof_id == proof_id)) if proof_id else None
    if (
        proof is None
        or proof.kind not in kinds
        or not derived.is_proof(keys, token, proof.kind, proof.proof_id, proof.email)
        or proof.used_at is not None
        or not session.scalar(select(func.now() < proof.expires_at))
    ):
        raise TokenInvalid
    return proof
