"""`ecom mail`: the mails that a stack of development has written into its folder. Their links carry token=...

Only click and the standard library are imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.cli.console import FOUND, complain, json_option, print_json
from ops.cli.home import read
from ops.cli.tables import Table
from shared.errors import CannotWork, NotFound
from shared.times import timestamp

if TYPE_CHECKING:
    from email.message import EmailMessage

MAILS = Table(("when (UTC)", "to", "subject"), empty="no mail")
LISTED = 50

_LINK = re.compile(r"^\S+://\S+$", re.MULTILINE)
_TOKEN = re.compile(r"[?&]token=([A-Za-z0-9_-]+)")


@click.group()
def mail() -> None:
    """Mails that a stack of development has sent, as files."""


@mail.command("ls")
@click.argument("address", required=False)
@click.option("--limit", type=click.IntRange(1), default=LISTED, show_default=True, help="So many mails at most.")
@json_option
def mail_ls(address: str | None, limit: int, as_json: bool) -> None:
    """The newest mails, or those to ADDRESS, the newest first."""
    found = [_shown(one) for one, _ in zip(_mails(address), range(limit), strict=False)]
    if as_json:
        print_json({"mails": found})
        return
    MAILS.show((f"{datetime.fromisoformat(one['sent_at']):%F %T}", one["to"], one["subject"]) for one in found)


@mail.command("show")
@click.argument("address")
@json_option
def mail_show(address: str, as_json: bool) -> None:
    """The newest mail to ADDRESS. Exit 1 if there is none."""
    found = next(_mails(address), None)
    if found is None:
        complain(NotFound(f"there is no mail to {address}"))
        sys.exit(FOUND)
    shown = _shown(found)
    if as_json:
        print_json(shown)
        return
    click.echo(f"To: {shown['to']}\nSubject: {shown['subject']}\nDate: {shown['sent_at']}\n\n{shown['text']}", nl=False)


def _folder() -> Path:
    """Where mails are written. Raises CannotWork if they are sent."""
    smtp_url = read("auth").smtp_url
    if not smtp_url.startswith("file:"):
        raise CannotWork("mails are no files here: SMTP_URL names no folder (file:FOLDER)")
    return Path(smtp_url.removeprefix("file:"))


def _mails(address: str | None) -> Iterator[EmailMessage]:
    """The mails to an address, or all, the newest first. Ids of mails are in the order of their time."""
    import email  # here: it imports sockets, which a command that asks for help does without
    from email.message import EmailMessage
    from email.policy import default

    for file in sorted(_folder().glob("*.eml"), reverse=True):
        message = email.message_from_bytes(file.read_bytes(), policy=default)
        assert isinstance(message, EmailMessage)
        if address is None or str(message["To"]).lower() == address.lower():
            yield message


def _shown(message: EmailMessage) -> dict[str, Any]:
    body = message.get_body(("plain",))
    text = str(body.get_content()).replace("\r\n", "\n") if body else ""
    link = _LINK.search(text)
    token = _TOKEN.search(link[0]) if link else None
    date = message["Date"]
    return {
        "to": str(message["To"]),
        "subject": str(message["Subject"]),
        "sent_at": timestamp(date.datetime) if date else timestamp(datetime.fromtimestamp(0, UTC)),
        "text": text,
        "link": link[0] if link else None,
        "token": token[1] if token else None,
    }
