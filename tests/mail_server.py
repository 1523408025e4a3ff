"""A real mail server, by aiosmtpd, in a process of its own: it takes mails, or treats them as bad servers do.

`python -m tests.mail_server FOLDER BEHAVIOUR [CERTIFICATE KEY]` prints its port, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.certificates import Issued

ROOT = Path(__file__).resolve().parent.parent
USER, PASSWORD = "shop", "a key that tests mails"

TAKES = "takes"
REFUSES_ADDRESS = "refuses the address"  # and repeats it, as servers do
REFUSES_MAIL = "refuses the mail"
IS_BUSY = "is busy"
STALLS = "stalls"
CUTS = "cuts"
DRIPS = "drips"  # a line of an answer now and then, for ever
AT_ONCE = "begins in TLS"


class Behaviour:
    """What the server does with a mail. Each that it takes becomes a line of `mails`."""

    def __init__(self, folder: Path, how: str) -> None:
        self.file = folder / "mails"
        self.how = how

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.how == REFUSES_ADDRESS:
            return f"550 5.1.1 no such user {address}"
        if self.how == IS_BUSY:
            return f"450 4.2.1 {address} gets too many mails"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.how == STALLS:
            await asyncio.sleep(3600)
        if self.how == CUTS:
            server.transport.abort()
            return "451 the connection is cut"
        while self.how == DRIPS and not server.transport.is_closing():
            await server.push("250-still at it")
            await asyncio.sleep(0.1)
        if self.how == REFUSES_MAIL:
            return f"554 5.7.1 mails to {envelope.rcpt_tos} look like spam"
        content = envelope.original_content
        assert isinstance(content, bytes)
        taken = {
            "sender": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "content": base64.b64encode(content).decode(),
            "encrypted": server.transport.get_extra_info("sslcontext") is not None,
            "signed_in": session.authenticated,
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(taken) + "\n")
        return "250 OK"


def _may_sign_in(server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any) -> AuthResult:
    right = LoginPassword(USER.encode(), PASSWORD.encode())
    return AuthResult(success=given == right, handled=False)


class MailServer:
    """A running server as tests see it."""

    def __init__(self, port: int, file: Path) -> None:
        self.port = port
        self._file = file

    def taken(self) -> list[dict[str, Any]]:
        """The mails that it has taken."""
        if not self._file.exists():
            return []
        mails = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        return [mail | {"content": base64.b64decode(mail["content"])} for mail in mails]


@contextmanager
def mail_server(folder: Path, how: str = TAKES, issued: Issued | None = None) -> Iterator[MailServer]:
    """A server with this behaviour, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [str(issued.certificate), str(issued.key)] if issued else []
    command = [sys.executable, "-m", "tests.mail_server", str(folder), how, *files]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield MailServer(int(process.stdout.readline()), folder / "mails")
        finally:
            process.stdin.close()
            process.wait(timeout=10)


async def _serve(folder: str, how: str, *files: str) -> None:
    tls = None
    if files:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*files)

    def session() -> SMTP:
        return SMTP(
            Behaviour(Path(folder), how),
            hostname="localhost",
            tls_context=tls if how != AT_ONCE else None,
            require_starttls=tls is not None and how != AT_ONCE,
            authenticator=_may_sign_in,
            auth_require_tls=tls is not None and how != AT_ONCE,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", 0, ssl=tls if how == AT_ONCE else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
