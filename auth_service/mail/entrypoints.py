"""The entrypoints of mails: a timer that sends them, and what another service needs to send one."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from auth_service import derived, records
from auth_service.mail import domain, queries, texts
from auth_service.mail.domain import Outcome
from auth_service.mail.door import Door, Mail, MailFault, MailRefused
from auth_service.proofs import About
from auth_service.records import Origin
from shared.config import Settings
from shared.edge import green
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.edge.timer import every
from shared.errors import NotFound
from shared.logs import Reminder
from shared.times import timestamp

log = logging.getLogger(__name__)

SEND_EVERY_S = 1
# So many mails are sent at once, each on a connection of its own.
AT_ONCE = 10

_reminder = Reminder()


class Mails:
    """Base of the auth service: mails to people. The service provides its dependencies."""

    settings: Settings
    db: Database
    context: Context
    mail_door: Door | None

    @every(SEND_EVERY_S)
    def send_mails(self) -> None:
        """Send the mails that are due, until none is. No transaction is open while a server is spoken to."""
        if self.mail_door is None:
            return
        while self._send_some_mails(self.mail_door) == AT_ONCE:
            pass

    def _send_some_mails(self, door: Door) -> int:
        with self.db.autocommit() as session:
            claimed = queries.claim(session, AT_ONCE, domain.PAUSES[0])
        for sending in [green.spawn(self._send_mail, door, mail) for mail in claimed]:
            sending.wait()
        return len(claimed)

    def _send_mail(self, door: Door, mail: Row[Any]) -> None:
        """Send a claimed mail and note what became of it: at once, since what is not noted is sent again."""
        outcome = Outcome.LATE if mail.is_late else self._try_to_send(door, mail)
        with self.db.begin() as session:
            queries.settle(session, mail.proof_id, mail.attempts, outcome, domain.pause_after(mail.attempts))
            if outcome == Outcome.REFUSED:
                records.record(
                    session, "mail_refused", mail.user_id, Origin(), mail_id=str(mail.proof_id), about=mail.about
                )

    def _try_to_send(self, door: Door, mail: Row[Any]) -> Outcome:
        try:
            door.send(Mail(mail.proof_id, mail.email, self._written_mail(mail)))
        except MailFault as fault:
            if _reminder.due(str(fault)):  # it names nobody
                log.warning("mail %s (%s) was not sent: %s", mail.proof_id, mail.about, fault)
            return Outcome.REFUSED if isinstance(fault, MailRefused) else Outcome.FAILED
        return Outcome.SENT

    def _written_mail(self, mail: Row[Any]) -> texts.Written:
        """What a mail says. Its token is derived anew each time: it is stored nowhere."""
        token = derived.proof_token(self.settings.auth_keys, mail.kind, mail.proof_id, mail.email)
        about = About(mail.about)
        return texts.write(about, mail.locale, self.settings.account_url, token, mail.display_name, mail.provider)

    @rpc
    def mail(self, mail_id: str) -> dict[str, Any]:
        """Return the address, the link and the text of a mail, for a service that sends mails.

        Raises RoleMissing, and NotFound for a mail that does not exist, or whose link is of no use any more.
        """
        self.context.require(domain.may_read_mails)
        with self.db.read() as session:
            mail = queries.find(session, UUID(mail_id))
        if mail is None:
            raise NotFound("There is no such mail, or its link is of no use any more.")
        written = self._written_mail(mail)
        return {
            "mail_id": mail_id,
            "user_id": mail.user_id,
            "address": mail.email,
            "about": mail.about,
            "locale": mail.locale,
            "subject": written.subject,
            "link": written.link,
            "text": written.plain,
            "html": written.html,
            "expires_at": timestamp(mail.expires_at),
        }
