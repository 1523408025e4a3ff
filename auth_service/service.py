"""The auth service: owns people, their sessions and the keys of services, and issues tokens."""

from __future__ import annotations

from auth_service import domain, models, passwords
from auth_service.accounts.entrypoints import Accounts
from auth_service.domain import Account
from auth_service.mail.door import door_of
from auth_service.mail.entrypoints import Mails
from auth_service.oidc import Providers
from auth_service.openid.entrypoints import OpenId
from auth_service.people.entrypoints import People
from auth_service.service_keys.entrypoints import ServiceKeys
from auth_service.sessions.entrypoints import Sessions
from auth_service.signing_in.entrypoints import SigningIn
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.hints import Hints
from shared.edge.http import Probes
from shared.edge.once import once
from shared.edge.resources import FromSettings
from shared.edge.settings import Setting
from shared.relay import Relay


class AuthService(SigningIn, Accounts, Sessions, People, ServiceKeys, OpenId, Mails, Probes):
    """Issues tokens, and says which are revoked. Services verify a token themselves, without a call to this service."""

    name = "auth_service"

    settings = Setting()
    db = Database()
    relay = Relay()
    context = Context()
    hints = Hints()
    mail_door = FromSettings(door_of)
    oidc = FromSettings(Providers)

    @once
    def add_development_users(self) -> None:
        """Add the users that the documentation names. Does nothing in production."""
        if self.settings.production:
            return
        with self.db.read() as session:
            missing = domain.DEVELOPMENT_PASSWORDS.keys() - models.names(session)
        accounts = [
            Account(name, name, password_hash=passwords.hash_of(domain.DEVELOPMENT_PASSWORDS[name]), roles=(name,))
            for name in sorted(missing)
        ]
        with self.db.begin() as session:
            models.add(session, accounts)
