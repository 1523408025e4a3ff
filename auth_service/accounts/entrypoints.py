"""The entrypoints of accounts: what people do with their own."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from auth_service import models, passwords, proofs, records
from auth_service.accounts import domain, forgetting, pages, queries
from auth_service.accounts.addresses import address_of, common_passwords
from auth_service.domain import Account
from auth_service.models import Proof, User
from auth_service.openid import queries as identities
from auth_service.proofs import About, Kind
from auth_service.records import Origin
from auth_service.sessions import opening
from auth_service.sessions.domain import Why
from auth_service.signing_in import checking
from shared import outbox
from shared.config import Settings
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.edge.timer import each_alone, every
from shared.envelope import envelope
from shared.errors import InvalidToken, NotFound, TokenInvalid, Unauthenticated, WrongPassword
from shared.events import Identity, Payload, UserCreated, UserDisabled, UserEnabled
from shared.ids import uuid7
from shared.times import timestamp

# On whose behalf a mail is asked for by somebody who is not signed in.
ACCOUNTS = Identity("system:accounts", ("system",))

# Mails that no longer work once the password or the address is another one.
CHANGING = (Kind.RESET, Kind.CHANGE_EMAIL, Kind.LINK)


class Accounts:
    """Base of the auth service: registration, passwords, addresses, and the end of an account.

    `origin` is what the gateway says of a request. Methods that take a token from a mail raise TokenInvalid alike for
    every fault of it, and PasswordRefused before it is used. The service provides its dependencies.
    """

    settings: Settings
    db: Database
    context: Context

    @rpc
    def register(self, email: str, name: str | None, locale: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Send a mail to an address: to become a user, or that they are one. Answers {} in either case.

        An address is no user until it is proven. Above the limit of mails none is sent, and nobody is told. Raises
        ValidationFailed for what is no address.
        """
        address, said = address_of(email), Origin.read(origin)
        with self.db.begin() as session:
            account = queries.by_email(session, address)
            kind, about = (Kind.NOTICE, About.ACCOUNT_EXISTS) if account else (Kind.REGISTER, About.REGISTER)
            self._mail(session, kind, about, address, said, account, locale, display_name=None if account else name)
        return {}

    @rpc
    def verify_email(self, token: str, password: str, name: str | None, origin: dict[str, Any]) -> dict[str, Any]:
        """Become the user of a proven address, or change one's address; login's answer.

        The password is set by the first. The second asks for the password of the account, since the address may be
        mistyped, and somebody else's: raises WrongPassword, SignInPaused. Both raise CannotWork if too many passwords
        are being checked.
        """
        said = Origin.read(origin)
        with self.db.read() as session:
            proof = proofs.read(session, self._keys, token, Kind.REGISTER, Kind.CHANGE_EMAIL)
        if proof.kind == Kind.CHANGE_EMAIL:
            return self._change_email(token, proof, password, said)
        domain.check_password(password, proof.email, common_passwords())
        password_hash = passwords.hash_of(password)
        with self.db.begin() as session:
            proof = proofs.use(session, self._keys, token, Kind.REGISTER)
            account = Account(
                str(uuid7()),
                None,
                proof.email,
                name or proof.display_name,
                password_hash,
                roles=domain.FIRST_ROLES,
                locale=proof.locale,
            )
            account = queries.add(session, account)
            records.record(session, "registered", account.user_id, _by(account, said))
            self._emit(session, account.identity, UserCreated(account.user_id, account.roles, "register"))
            return self._signed_in(session, account, said)

    @rpc
    def change_password(self, current_password: str, new_password: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Change one's password. All other sessions end; login's answer, for the one that goes on.

        Raises WrongPassword, PasswordRefused, SignInPaused, CannotWork.
        """
        said = self._origin(origin)
        account = self._check_own_password(current_password, said)
        domain.check_password(new_password, account.email, common_passwords(), "new_password")
        password_hash = passwords.hash_of(new_password)
        with self.db.begin() as session:
            user = self._locked(session, account)
            kept = queries.live_session(session, account.user_id, said.session_id)
            queries.set_password(session, user, password_hash)
            records.revoke_all(session, user, Why.PASSWORD_CHANGED, but=kept["session_id"] if kept else None)
            records.record(session, "password_changed", user.user_id, said)
            self._after_new_password(session, user, said)
            account = models.account_of(user)
            if kept is None:
                return self._signed_in(session, account, said)
        return opening.answer(self._keys, account, kept["session_id"], uuid7(), kept["generation"], kept["kid"])

    @rpc
    def request_password_reset(self, email: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Send a mail to an address: to set a new password, or that it has no account. Answers {} in either case.

        That there is none is told in a mail, too: the same is done whoever exists, and whoever has several addresses
        learns that it was another one. Raises ValidationFailed for what is no address.
        """
        address, said = address_of(email), Origin.read(origin)
        with self.db.begin() as session:
            account = queries.by_email(session, address)
            has_one = account is not None and not account.disabled
            kind, about = (Kind.RESET, About.RESET) if has_one else (Kind.NOTICE, About.NO_ACCOUNT)
            self._mail(session, kind, about, address, said, account, account.locale if account else "en")
        return {}

    @rpc
    def confirm_password_reset(self, token: str, password: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Set a new password by a mail. All sessions end, and no provider signs in any more; login's answer.

        A provider is linked again by its mail. Raises CannotWork.
        """
        said = Origin.read(origin)
        with self.db.read() as session:
            proof = proofs.read(session, self._keys, token, Kind.RESET)
        domain.check_password(password, proof.email, common_passwords())
        password_hash = passwords.hash_of(password)
        with self.db.begin() as session:
            user = models.lock(session, proof.user_id or "")  # first, so that two mails cannot deadlock
            proof = proofs.use(session, self._keys, token, Kind.RESET)
            if user is None or user.email != proof.email or models.account_of(user).disabled:
                raise TokenInvalid
            queries.set_password(session, user, password_hash)
            records.revoke_all(session, user, Why.PASSWORD_RESET)
            unlinked = identities.unlink_all(session, user.user_id)  # whoever knew the old password may have linked one
            account = models.account_of(user)
            records.record(session, "password_reset", user.user_id, _by(account, said), **unlinked)
            self._after_new_password(session, user, said)
            return self._signed_in(session, account, said)

    @rpc
    def me(self) -> dict[str, Any]:
        """One's own account: {id, email, name, roles, locale, has_password, created_at}."""
        with self.db.read() as session:
            return pages.shown(self._own(session))

    @rpc
    def update_me(self, changes: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
        """Change one's name or locale; the account as `me` answers it. `changes` may have name and locale."""
        said = self._origin(origin)
        with self.db.begin() as session:
            user = self._locked(session, self._own(session))
            if "name" in changes:
                user.display_name = changes["name"]
            if "locale" in changes:
                user.locale = changes["locale"]
            session.flush()
            records.record(session, "profile_changed", user.user_id, said, fields=sorted(changes))
            return pages.shown(models.account_of(user))

    @rpc
    def change_email(self, email: str, password: str, origin: dict[str, Any]) -> dict[str, Any]:
        """Send a proof to one's new address, and a notice to the old one. Answers {}, whoever has the new address.

        Raises ValidationFailed for what is no address, WrongPassword, SignInPaused, CannotWork.
        """
        self.context.require(domain.may_use_account)
        address, said = address_of(email), self._origin(origin)
        account = self._check_own_password(password, said)
        with self.db.begin() as session:
            taken = queries.is_taken(session, address)
            kind, about = (Kind.NOTICE, About.ACCOUNT_EXISTS) if taken else (Kind.CHANGE_EMAIL, About.CHANGE_EMAIL)
            self._mail(session, kind, about, address, said, account, account.locale)
            if account.email is not None:
                self._mail(
                    session, Kind.NOTICE, About.EMAIL_CHANGING, account.email, said, account, account.locale, False
                )
            records.record(session, "email_change_requested", account.user_id, said)
        return {}

    @rpc
    def erase_me(self, password: str | None, origin: dict[str, Any]) -> dict[str, Any]:
        """End one's account, and empty it in 14 days: {erase_after}. The mail about it holds the way back.

        Raises WrongPassword without the right password, unless the session is at most 10 minutes old; LastAdmin,
        SignInPaused, CannotWork.
        """
        said = self._origin(origin)
        with self.db.read() as session:
            account = self._own(session)
            fresh = queries.is_fresh(session, account.user_id, said.session_id)
        if password is not None or not fresh:
            account = self._check_own_password(password or "", said)
        with self.db.begin() as session:
            queries.check_admin_stays(session, account.user_id)
            user = self._locked(session, account)
            user.erase_after = records.now_of(session) + domain.ERASED_AFTER
            records.revoke_all(session, user, Why.ERASING)
            records.record(session, "erasure_requested", user.user_id, said)
            self._emit(session, self.context.identity, UserDisabled(user.user_id))
            if user.email is not None:
                self._mail(session, Kind.KEEP, About.KEEP, user.email, said, account, user.locale, False)
            return {"erase_after": timestamp(user.erase_after)}

    @rpc
    def keep_account(self, token: str, origin: dict[str, Any]) -> None:
        """Take back that an account is erased, as long as it is not. Its user signs in as before."""
        said = Origin.read(origin)
        with self.db.begin() as session:
            proof = proofs.use(session, self._keys, token, Kind.KEEP)
            user = models.lock(session, proof.user_id or "")
            if user is None or user.email != proof.email or user.erase_after is None or user.erased_at is not None:
                raise TokenInvalid
            user.erase_after = None
            session.flush()
            account = models.account_of(user)
            records.record(session, "erasure_withdrawn", user.user_id, _by(account, said))
            self._emit(session, account.identity, UserEnabled(user.user_id))

    @rpc
    def export_me(self, part: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """A page of what is kept here of oneself, but secrets: {items, next_cursor}. Raises InvalidCursor, NotFound.

        `part`: sessions, identities, events; the oldest first.
        """
        self.context.require(domain.may_use_account)
        with self.db.read() as session:
            items, next_cursor = pages.export(session, self.context.identity.user_id, part, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @every(3600)
    def erase_accounts(self) -> None:
        """Empty the accounts whose 14 days are over. Those that a lock holds up have their turn in the next run."""
        with self.db.read() as session:
            user_ids = forgetting.due(session)
        held_up = each_alone(user_ids, self._erase)
        if held_up is not None:
            raise held_up

    @every(3600)
    def forget(self) -> None:
        """Delete mails, sessions, failures, revocations and records that are older than promised."""
        purges = [partial(forgetting.purge, table=table) for table in forgetting.PURGES]
        for purge in (*purges, partial(forgetting.purge_events)):
            gone = forgetting.MOST_DELETED
            while gone == forgetting.MOST_DELETED:
                with self.db.begin() as session:
                    gone = purge(session)

    def _erase(self, user_id: str) -> None:
        with self.db.begin() as session:
            forgetting.erase(session, user_id)

    def _change_email(self, token: str, proof: Proof, password: str, said: Origin) -> dict[str, Any]:
        with self.db.read() as session:
            account = queries.by_id(session, proof.user_id or "")
            if account is None:
                raise TokenInvalid
        self._check_password(account, password, f"proof {proof.proof_id}", said)
        with self.db.begin() as session:
            user = self._locked(session, account)
            proof = proofs.use(session, self._keys, token, Kind.CHANGE_EMAIL)
            if queries.is_taken(session, proof.email):
                raise TokenInvalid
            user.email = proof.email
            try:
                session.flush()
            except IntegrityError:  # somebody else has proven it at this very moment; the database's words name it
                raise TokenInvalid from None
            proofs.void(session, user.user_id, *CHANGING)
            account = models.account_of(user)
            records.record(session, "email_changed", user.user_id, _by(account, said))
            return self._signed_in(session, account, said)

    def _after_new_password(self, session: Session, user: User, said: Origin) -> None:
        """No mail of before sets yet another one, and the owner of the account hears of it."""
        proofs.void(session, user.user_id, *CHANGING)
        if user.email is not None:
            account = models.account_of(user)
            self._mail(session, Kind.NOTICE, About.PASSWORD_CHANGED, user.email, said, account, user.locale, False)

    def _signed_in(self, session: Session, account: Account, said: Origin) -> dict[str, Any]:
        session_id = opening.open_session(session, self._keys, account, said)
        return opening.answer(self._keys, account, session_id, uuid7())

    def _check_own_password(self, password: str, said: Origin) -> Account:
        """The caller's account, if it is their password. A failure counts for their session alone."""
        with self.db.read() as session:
            account = self._own(session)
        self._check_password(account, password, f"session {said.session_id}", said)
        return account

    def _check_password(self, account: Account, password: str, where: str, said: Origin) -> None:
        with self.db.read() as session:
            attempt = checking.begin_again(session, account, where)
        try:
            checking.check(self.db, self.settings, attempt, password, said)
        except Unauthenticated:
            raise WrongPassword from None
        with self.db.begin() as session:
            checking.succeed(session, attempt)

    def _own(self, session: Session) -> Account:
        """The caller's account. Raises NotFound for one that is not stored, Forbidden for a service's, InvalidToken."""
        self.context.require(domain.may_use_account)
        account = queries.by_id(session, self.context.identity.user_id)
        if account is None:
            raise NotFound("There is no account of this user.")
        domain.check_person(account)
        if account.disabled:
            raise InvalidToken
        return account

    def _locked(self, session: Session, account: Account) -> User:
        """The user's row, locked, if they may still sign in by the same password. Raises InvalidToken."""
        user = models.lock(session, account.user_id)
        if user is None or models.account_of(user).disabled or user.version != account.version:
            raise InvalidToken
        return user

    def _origin(self, origin: dict[str, Any]) -> Origin:
        return Origin.read(origin, self.context.identity)

    def _mail(
        self,
        session: Session,
        kind: Kind,
        about: About,
        email: str,
        said: Origin,
        account: Account | None,
        locale: str,
        limited: bool = True,
        **more: Any,
    ) -> None:
        user_id = account.user_id if account else None
        network = said.network or ""
        asked = proofs.ask(
            session, kind, about, email, network, user_id=user_id, locale=locale, limited=limited, **more
        )
        if asked is not None:
            self._emit(session, ACCOUNTS if said.actor_id is None else self.context.identity, asked)

    def _emit(self, session: Session, identity: Identity, payload: Payload) -> None:
        outbox.emit(session, [envelope("auth_service", payload, self.context.trace_id, identity)])

    @property
    def _keys(self) -> Any:
        return self.settings.auth_keys


def _by(account: Account, said: Origin) -> Origin:
    """Whoever has a token from a mail is its user, though not signed in."""
    return dataclasses.replace(said, actor_id=account.user_id)
