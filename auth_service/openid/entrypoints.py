"""The entrypoints of signing in by a provider, and of what users have linked."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from auth_service import derived, models, proofs, records
from auth_service.accounts import queries as accounts
from auth_service.accounts.addresses import address_of
from auth_service.accounts.domain import FIRST_ROLES, may_use_account
from auth_service.domain import Account
from auth_service.domain import Kind as UserKind
from auth_service.oidc import Person, Providers
from auth_service.openid import domain, queries
from auth_service.openid.domain import Address, Then
from auth_service.proofs import About, Kind
from auth_service.records import Origin
from auth_service.sessions import opening
from shared import outbox
from shared.config import Settings
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.envelope import envelope
from shared.errors import (
    BadRequest,
    CannotWork,
    Conflict,
    EmailUnproven,
    Forbidden,
    IdentityRefused,
    IdentityTaken,
    LinkRequired,
    NotFound,
    SignInAgain,
    TokenInvalid,
    ValidationFailed,
)
from shared.events import Identity, Payload, UserCreated
from shared.ids import uuid7

# On whose behalf a mail is asked for by somebody who is not signed in.
OPENID = Identity("system:openid", ("system",))

MAX_DISPLAY_NAME = 100
# Somebody else who does the same at the same time changes what is known: then it is looked at again.
MOST_LOOKS = 3


class _Overtaken(Exception):
    """Somebody else has linked this identity, or taken this address, at the same time."""


@dataclass(frozen=True)
class _Found:
    """Somebody whom a provider has sent back: as whom, and who wants to link that."""

    provider: str
    subject: str
    email: str | None
    name: str | None
    linking: str | None
    session_id: UUID | None


class OpenId:
    """Base of the auth service: signing in by a provider. The service provides its dependencies.

    `origin` is what the gateway says of a request. No transaction is open while a provider is asked. A provider that
    does not answer raises CannotWork.
    """

    settings: Settings
    db: Database
    context: Context
    oidc: Providers

    @rpc
    def start_oauth(self, provider: str, redirect_uri: str, link: bool, origin: dict[str, Any]) -> dict[str, Any]:
        """Begin a sign-in at a provider: {authorization_url, attempt}. The client keeps `attempt`, and in no URL.

        With `link` the identity is linked to the caller, who must have signed in lately: else raises SignInAgain.
        Raises ValidationFailed for a provider or an address to come back to that is not one of the settings.
        """
        said = Origin.read(origin, self.context.identity if link else None)
        known = self.oidc.named(provider)
        if redirect_uri not in self.settings.oidc_redirects:
            raise ValidationFailed(details={"redirect_uri": ["Is not one of those that are listed."]})
        if link:
            self.context.require(may_use_account)
            with self.db.read() as session:
                if not accounts.is_fresh(session, self.context.identity.user_id, said.session_id):
                    raise SignInAgain
        state, nonce, verifier = (secrets.token_urlsafe(48) for _ in range(3))
        url = known.authorization_url(redirect_uri, state, nonce, verifier)
        attempt_id = uuid4()
        with self.db.begin() as session:
            queries.begin(
                session,
                domain.ATTEMPT_LIFE,
                attempt_id=attempt_id,
                provider=provider,
                state_hash=derived.hash_of(state),
                nonce=nonce,
                verifier=verifier,
                redirect_uri=redirect_uri,
                link_user_id=said.actor_id,
                link_session_id=said.session_id if link else None,
            )
        return {"authorization_url": url, "attempt": str(attempt_id)}

    @rpc
    def finish_oauth(
        self, provider: str, code: str, state: str, attempt: str, issuer: str | None, origin: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Come back from a provider: login's answer, or None if the identity is linked to whoever began.

        Raises BadRequest for a sign-in that was not begun, or not by this client, IdentityRefused, IdentityTaken,
        LinkRequired, EmailUnproven, and Forbidden for staff by a provider that is not one for them.
        """
        known = self.oidc.named(provider)
        with self.db.autocommit() as session:
            begun = queries.take(session, UUID(attempt), provider, derived.hash_of(state))
        if begun is None:
            raise BadRequest("This sign-in was not begun here, has ended, or took too long. Begin it again.")
        person = known.person(code, begun.verifier, begun.redirect_uri, begun.nonce, issuer)
        email, name = _address(person), _shown(person)
        found = _Found(provider, person.subject, email, name, begun.link_user_id, begun.link_session_id)
        for _ in range(MOST_LOOKS):
            try:
                return self._finish_openid(found, Origin.read(origin))
            except _Overtaken:
                continue
        raise CannotWork("others sign in by the same identity or address again and again")

    def _finish_openid(self, found: _Found, said: Origin) -> dict[str, Any] | None:
        refused: Exception
        with self.db.begin() as session:
            facts = queries.facts(session, found.provider, found.subject, found.email, found.linking)
            address = Address.UNPROVEN
            if found.email is not None:
                address = Address.TAKEN if facts.holder_id else Address.FREE
            owner = domain.owner_of(facts.owner_id, found.linking)
            then = domain.after_callback(domain.Callback(owner, found.linking is not None, address, facts.has_another))
            match then:
                case Then.SIGN_IN:
                    account = self._openid_account(session, facts.owner_id, found.provider)
                    return self._open_by_openid(session, account, said)
                case Then.CREATE:
                    return self._open_by_openid(session, self._create_openid_user(session, found, said), said)
                case Then.LINK | Then.LINKED:
                    self._link_openid(session, found, said, is_new=then == Then.LINK)
                    return None
                case Then.LINK_BY_MAIL:
                    self._mail_openid_link(
                        session, self._openid_account(session, facts.holder_id, found.provider), found, said
                    )
                    refused = LinkRequired()
                case Then.REFUSE_TAKEN:
                    refused = IdentityTaken()
                case Then.REFUSE_SECOND:
                    refused = IdentityTaken("Another identity of this provider is linked. Unlink it first.")
                case Then.REFUSE_UNPROVEN:
                    refused = EmailUnproven()
        raise refused  # after the commit: the mail stays

    @rpc
    def link_identity(self, token: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Link the identity that a mail is about, and sign in: login's answer.

        Raises TokenInvalid, IdentityTaken, and Forbidden for staff by a provider that is not one for them.
        """
        said = Origin.read(origin)
        with self.db.begin() as session:
            proof = proofs.use(session, self.settings.auth_keys, token, Kind.LINK)
            user = models.lock(session, proof.user_id or "")
            if user is None or user.email != proof.email or not _may_sign_in(models.account_of(user)):
                raise TokenInvalid
            account = models.account_of(user)
            assert proof.provider is not None
            assert proof.subject is not None
            self._check_openid_staff(account, proof.provider)
            if not queries.link(session, proof.provider, proof.subject, account.user_id):
                self._check_openid_owner(session, account, proof.provider, proof.subject)
            by = dataclasses.replace(said, actor_id=account.user_id)
            records.record(session, "identity_linked", account.user_id, by, provider=proof.provider, via="mail")
            return self._open_by_openid(session, account, said)

    @rpc
    def identities(self) -> dict[str, Any]:
        """The caller's identities: {items: provider, linked_at}."""
        self.context.require(may_use_account)
        with self.db.read() as session:
            return {"items": queries.of_user(session, self.context.identity.user_id)}

    @rpc
    def unlink_identity(self, provider: str, origin: dict[str, Any]) -> None:
        """Let the caller's identity at a provider sign in no more. Sessions go on.

        Raises NotFound, and Conflict if it is the only way in: a password must be there, or another identity.
        """
        self.context.require(may_use_account)
        said = Origin.read(origin, self.context.identity)
        user_id = self.context.identity.user_id
        with self.db.begin() as session:
            user = models.lock(session, user_id)
            if user is None or not queries.unlink(session, user_id, provider):
                raise NotFound("No identity of that provider is linked.")
            if user.password_hash is None and not queries.of_user(session, user_id):
                raise Conflict("It is the only way in. Set a password first.")
            records.record(session, "identity_unlinked", user_id, said, provider=provider)

    def _create_openid_user(self, session: Session, found: _Found, said: Origin) -> Account:
        """A new user, whose address the provider has proven."""
        assert found.email is not None
        account = Account(str(uuid7()), None, found.email, found.name, roles=FIRST_ROLES)
        added = queries.add_user(
            session, account.user_id, found.email, found.name, account.roles, account.locale
        ) and queries.link(session, found.provider, found.subject, account.user_id)
        if not added:
            raise _Overtaken
        self._check_openid_staff(account, found.provider)
        by = dataclasses.replace(said, actor_id=account.user_id)
        records.record(session, "registered", account.user_id, by, provider=found.provider)
        self._emit_of_openid(session, account.identity, UserCreated(account.user_id, account.roles, "oidc"))
        return account

    def _link_openid(self, session: Session, found: _Found, said: Origin, is_new: bool) -> None:
        """Link an identity to whoever began while signed in: if their session has not ended meanwhile."""
        assert found.linking is not None
        user = models.lock(session, found.linking)
        if user is None or accounts.live_session(session, user.user_id, found.session_id) is None:
            raise IdentityRefused
        account = models.account_of(user)
        if not _may_sign_in(account):
            raise IdentityRefused
        self._check_openid_staff(account, found.provider)
        if not is_new:
            return
        if not queries.link(session, found.provider, found.subject, account.user_id):
            raise _Overtaken
        by = dataclasses.replace(said, actor_id=account.user_id)
        records.record(session, "identity_linked", account.user_id, by, provider=found.provider, via="session")
        if account.email is not None:
            self._ask_for_openid_mail(
                session, Kind.NOTICE, About.IDENTITY_LINKED, account, said, provider=found.provider, limited=False
            )

    def _mail_openid_link(self, session: Session, account: Account, found: _Found, said: Origin) -> None:
        self._ask_for_openid_mail(
            session, Kind.LINK, About.LINK, account, said, provider=found.provider, subject=found.subject
        )

    def _openid_account(self, session: Session, user_id: str | None, provider: str) -> Account:
        """Who may sign in by a provider. Raises IdentityRefused, Forbidden."""
        account = accounts.by_id(session, user_id or "")
        if account is None or not _may_sign_in(account):
            raise IdentityRefused
        self._check_openid_staff(account, provider)
        return account

    def _check_openid_staff(self, account: Account, provider: str) -> None:
        if not domain.may_sign_in_by(provider, account.roles, self.settings.oidc_staff_providers):
            raise Forbidden("Users with these roles may not sign in by this provider.")

    def _check_openid_owner(self, session: Session, account: Account, provider: str, subject: str) -> None:
        """An identity that could not be linked is this user's already. Raises IdentityTaken."""
        if queries.facts(session, provider, subject, None, None).owner_id != account.user_id:
            raise IdentityTaken

    def _open_by_openid(self, session: Session, account: Account, said: Origin) -> dict[str, Any]:
        session_id = opening.open_session(session, self.settings.auth_keys, account, said)
        return opening.answer(self.settings.auth_keys, account, session_id, uuid7())

    def _ask_for_openid_mail(
        self,
        session: Session,
        kind: Kind,
        about: About,
        account: Account,
        said: Origin,
        limited: bool = True,
        **more: Any,
    ) -> None:
        asked = proofs.ask(
            session,
            kind,
            about,
            account.email or "",
            said.network or "",
            user_id=account.user_id,
            locale=account.locale,
            limited=limited,
            **more,
        )
        if asked is not None:
            self._emit_of_openid(session, OPENID, asked)

    def _emit_of_openid(self, session: Session, identity: Identity, payload: Payload) -> None:
        outbox.emit(session, [envelope("auth_service", payload, self.context.trace_id, identity)])


def _may_sign_in(account: Account) -> bool:
    return not account.disabled and account.kind == UserKind.PERSON


def _address(person: Person) -> str | None:
    """The proven address, as it is stored. What is no address proves nothing.

    `address_of` refuses a mailbox in letters beyond ASCII: brought into their usual form they may be those of another.
    """
    if person.email is None:
        return None
    try:
        return address_of(person.email)
    except ValidationFailed:
        return None


def _shown(person: Person) -> str | None:
    name = "".join(letter for letter in person.name or "" if letter.isprintable())
    return " ".join(name.split())[:MAX_DISPLAY_NAME].strip() or None
