"""The one door by which mails leave: a mail server, or a folder in development.

A mail is sent at least once: one that was taken, whose sender died before it could note that, is sent again with the
same Message-ID.
"""

from __future__ import annotations

import os
import re
import smtplib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import UUID

from auth_service.mail.texts import Written
from shared.config import Settings
from shared.edge import green

# One try, all steps together: shorter than the first pause after it.
TRY_S = 30.0
SUBMISSION_PORT, TLS_PORT = 587, 465
# No character ends a header, or makes two addresses of one. A local part in quotes is refused as well.
_ONE_ADDRESS = re.compile(r'[^\x00-\x20\x7f-\x9f()<>\[\],;:\\"@]+@[^\x00-\x20\x7f-\x9f()<>\[\],;:\\"@]+')
REFUSED_FOR_GOOD = range(500, 600)


@dataclass(frozen=True)
class Mail:
    """A mail to one address."""

    mail_id: UUID
    address: str
    written: Written


class MailFault(Exception):
    """A mail was not sent. The reason names nobody: servers repeat addresses in their answers, so these stay out."""


class MailRefused(MailFault):
    """The server refuses this mail for good, or nobody could send it."""


class MailFailed(MailFault):
    """The mail may be sent later."""


class Door(Protocol):
    """Where mails go."""

    def send(self, mail: Mail) -> None:
        """Send one mail. Raises MailRefused, MailFailed."""


def door_of(settings: Settings) -> Door | None:
    """The door of the settings; None if no mail is sent."""
    if not settings.smtp_url:
        return None
    if settings.smtp_url.startswith("file:"):
        return Folder(Path(settings.smtp_url.removeprefix("file:")), settings.mail_from)
    return Server(settings.smtp_url, settings.mail_from)


def message_of(mail: Mail, sender: str) -> EmailMessage:
    """The mail as a message. Raises MailRefused for an address that no header can hold."""
    name, address = parseaddr(sender)
    if not _ONE_ADDRESS.fullmatch(mail.address):
        raise MailRefused("it has no address that a header can hold")
    local, _, domain = mail.address.rpartition("@")
    message = EmailMessage(policy=SMTP)
    try:
        message["From"] = Address(name, addr_spec=address)
        message["To"] = Address(username=local, domain=domain)
        message["Subject"] = mail.written.subject
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = f"<{mail.mail_id}@{address.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # so that no machine answers
    except (ValueError, MessageError, IndexError) as error:
        raise MailRefused(f"its headers cannot be written: {type(error).__name__}") from None
    message.set_content(mail.written.plain)
    message.add_alternative(mail.written.html, subtype="html")
    return message


class Folder:
    """Writes each mail into a file of its own, for development: `ecom mail` reads them."""

    def __init__(self, directory: Path, sender: str) -> None:
        self.directory = directory
        self.sender = sender

    def send(self, mail: Mail) -> None:
        """Write one mail: the whole file is there at once. Raises MailRefused, MailFailed."""
        content = message_of(mail, self.sender).as_bytes(policy=SMTP.clone(utf8=True))
        fresh = self.directory / f".{mail.mail_id}.{os.getpid()}"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
            fresh.replace(self.directory / f"{mail.mail_id}.eml")
        except OSError as error:
            raise MailFailed(f"the folder of mails cannot be written: {error.strerror}") from error


class Server:
    """Hands mails to a server, on a connection that is always encrypted and whose other side is always verified.

    `smtps://` begins in TLS; `smtp://` asks for it by STARTTLS, and sends nothing to a server that does not offer it.
    The authorities are those of this machine; SSL_CERT_FILE names others.
    """

    def __init__(self, url: str, sender: str, try_s: float = TRY_S) -> None:
        self._url: SplitResult = urlsplit(url)
        self._sender = sender
        self._try_s = try_s
        self._tls = ssl.create_default_context()

    def send(self, mail: Mail) -> None:
        """Send one mail. Raises MailRefused, MailFailed."""
        message = message_of(mail, self._sender)
        try:
            with green.Timeout(self._try_s, False):  # of all steps together, however often the server says a little
                self._deliver(message, mail.address)
                return
        except smtplib.SMTPRecipientsRefused as error:
            ((code, _),) = error.recipients.values()
            raise _fault("the address", code) from None
        except smtplib.SMTPDataError as error:
            raise _fault("the mail", error.smtp_code) from None
        except smtplib.SMTPNotSupportedError:  # of STARTTLS, of AUTH, or of an address that is not ASCII
            if not mail.address.isascii():
                raise MailRefused("the server takes ASCII addresses only") from None
            raise MailFailed("the server offers no STARTTLS or no sign-in") from None
        except smtplib.SMTPResponseException as error:
            raise MailFailed(f"{type(error).__name__}, code {error.smtp_code}") from None
        except (OSError, smtplib.SMTPException) as error:
            raise MailFailed(f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'no answer'}") from None
        raise MailFailed(f"not sent within {self._try_s} s")

    def _deliver(self, message: EmailMessage, address: str) -> None:
        server = self._connect()
        try:
            if self._url.username:
                server.login(unquote(self._url.username), unquote(self._url.password or ""))
            server.send_message(message, to_addrs=[address])
        finally:
            server.close()  # without QUIT: the mail is taken or not, and a server that is silent now holds up nobody

    def _connect(self) -> smtplib.SMTP:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "smtps":
            return smtplib.SMTP_SSL(host, port or TLS_PORT, timeout=self._try_s, context=self._tls)
        server = smtplib.SMTP(host, port or SUBMISSION_PORT, timeout=self._try_s)
        try:
            server.starttls(context=self._tls)
            return server
        except BaseException:  # also the end of the time
            server.close()
            raise


def _fault(what: str, code: int) -> MailFault:
    if code in REFUSED_FOR_GOOD:
        return MailRefused(f"the server refuses {what}: code {code}")
    return MailFailed(f"the server does not take {what} now: code {code}")
