"""The door of mails, against real servers that behave well and badly."""

from __future__ import annotations

import email
import email.policy
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from auth_service.mail import domain, door
from auth_service.mail.door import Folder, Mail, MailFailed, MailRefused, Server, door_of, message_of
from auth_service.mail.texts import TEXTS, Written, write
from auth_service.proofs import About
from shared import config
from tests import mail_server as servers
from tests.certificates import Authority
from tests.mail_server import mail_server
from tests.unit.test_http_provider import serving

SENDER = "Shop <shop@shop.example>"
ADDRESS = "ann@customers.example"
MAIL_ID = UUID("01a1fcf8-0515-7912-9139-7154577473a5")
WRITTEN = Written("Confirm", "https://shop.example/verify?token=t", "Hello,\n", "<p>Hello,</p>\n")


def mail(address: str = ADDRESS, written: Written = WRITTEN) -> Mail:
    return Mail(MAIL_ID, address, written)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this process trusts."""
    authority = Authority(tmp_path / "ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority


def url(port: int, scheme: str = "smtp", host: str = "127.0.0.1", password: str = servers.PASSWORD) -> str:
    return f"{scheme}://{servers.USER}:{password.replace(' ', '%20')}@{host}:{port}"


def failing(send: Callable[[], None], kind: type[Exception]) -> str:
    """What the fault says. It names nobody."""
    with pytest.raises(kind) as caught:
        send()
    assert ADDRESS not in str(caught.value)
    assert servers.PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("scheme", "how"), [("smtp", servers.TAKES), ("smtps", servers.AT_ONCE)])
def test_a_mail_is_sent_encrypted_by_a_server_that_knows_us(
    tmp_path: Path, authority: Authority, scheme: str, how: str
) -> None:
    with mail_server(tmp_path, how, authority.issue("127.0.0.1")) as server:
        Server(url(server.port, scheme), SENDER).send(mail())
        (taken,) = server.taken()
    assert taken["signed_in"]
    assert taken["encrypted"]
    assert (taken["sender"], taken["to"]) == ("shop@shop.example", [ADDRESS])
    message = email.message_from_bytes(taken["content"], policy=email.policy.default)
    assert (message["From"], message["To"], message["Subject"]) == (SENDER, ADDRESS, "Confirm")
    assert message["Message-ID"] == f"<{MAIL_ID}@shop.example>"
    assert message["Auto-Submitted"] == "auto-generated"
    plain, html = message.iter_parts()
    assert (plain.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert [part.get_content().replace("\r\n", "\n") for part in (plain, html)] == [WRITTEN.plain, WRITTEN.html]


@pytest.mark.parametrize("how", [servers.REFUSES_ADDRESS, servers.REFUSES_MAIL])
def test_what_a_server_refuses_is_refused_for_good_and_nobody_is_named(
    tmp_path: Path, authority: Authority, how: str
) -> None:
    with mail_server(tmp_path, how, authority.issue("127.0.0.1")) as server:
        said = failing(lambda: Server(url(server.port), SENDER).send(mail()), MailRefused)
    assert "code 55" in said


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (servers.IS_BUSY, "code 450"),
        (servers.CUTS, "SMTPServerDisconnected"),
        (servers.STALLS, "not sent within 2 s"),
        (servers.DRIPS, "not sent within 2 s"),
    ],
)
def test_a_server_that_does_not_answer_well_gets_the_mail_again_later(
    tmp_path: Path, authority: Authority, how: str, words: str
) -> None:
    with mail_server(tmp_path, how, authority.issue("127.0.0.1")) as server:
        said = failing(lambda: Server(url(server.port), SENDER, try_s=2).send(mail()), MailFailed)
        assert server.taken() == []
    assert words in said


def test_a_server_that_says_nothing_at_all_is_left() -> None:
    with serving() as server:  # it waits for a request, as no mail server does
        said = failing(lambda: Server(url(server.port), SENDER, try_s=0.5).send(mail()), MailFailed)
    assert "not sent within 0.5 s" in said or "TimeoutError" in said


def test_nothing_is_said_to_a_server_without_starttls(tmp_path: Path, authority: Authority) -> None:
    with mail_server(tmp_path) as server:
        said = failing(lambda: Server(url(server.port), SENDER).send(mail()), MailFailed)
        assert server.taken() == []
    assert "STARTTLS" in said


@pytest.mark.parametrize(("scheme", "how"), [("smtp", servers.TAKES), ("smtps", servers.AT_ONCE)])
@pytest.mark.parametrize("fault", ["of another host", "expired", "of another authority"])
def test_a_server_must_show_a_certificate_of_its_own(
    tmp_path: Path, authority: Authority, scheme: str, how: str, fault: str
) -> None:
    issued = {
        "of another host": lambda: authority.issue("mail.example"),
        "expired": lambda: authority.issue("127.0.0.1", expired=True),
        "of another authority": lambda: Authority(tmp_path / "other", "other").issue("127.0.0.1"),
    }[fault]()
    with mail_server(tmp_path, how, issued) as server:
        said = failing(lambda: Server(url(server.port, scheme), SENDER).send(mail()), MailFailed)
        assert server.taken() == []
    assert "SSL" in said


def test_a_wrong_password_is_a_fault_of_ours_and_no_refusal(tmp_path: Path, authority: Authority) -> None:
    with mail_server(tmp_path, servers.TAKES, authority.issue("127.0.0.1")) as server:
        said = failing(lambda: Server(url(server.port, password="wrong"), SENDER).send(mail()), MailFailed)
        assert server.taken() == []
    assert "535" in said


def test_a_server_that_is_not_there_gets_the_mail_later() -> None:
    with serving() as server:
        port = server.port
    failing(lambda: Server(url(port), SENDER).send(mail()), MailFailed)


def test_a_try_ends_before_the_mail_is_due_again() -> None:
    assert domain.PAUSES[0].total_seconds() > door.TRY_S
    assert [domain.pause_after(attempts) for attempts in (1, 2, 5, 6, 99)] == [
        *(domain.PAUSES[place] for place in (0, 1, 4, 4, 4)),
    ]


@pytest.mark.parametrize(
    "address",
    [
        "ann@a.example\r\nBcc: eve@b.example",
        "a b@c",
        "<a@b>",
        "ann@a.example\nX: y",
        "ann@a.example, eve@b.example",
        "a@b\0c",
        "",
        "ann",
    ],
)
def test_an_address_adds_no_header_and_no_second_address(tmp_path: Path, address: str) -> None:
    for to in (lambda: message_of(mail(address), SENDER), lambda: Folder(tmp_path, SENDER).send(mail(address))):
        with pytest.raises(MailRefused):
            to()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_gets_a_file_for_each_mail_that_only_its_owner_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    for _ in range(2):  # as after a crash: the same mail is one file
        Folder(folder, SENDER).send(mail())
    Folder(folder, SENDER).send(Mail(uuid4(), "jörg@müller.example", WRITTEN))
    assert len(list(folder.iterdir())) == 2
    file = folder / f"{MAIL_ID}.eml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert email.message_from_bytes(file.read_bytes(), policy=email.policy.default)["To"] == ADDRESS


def test_a_folder_that_cannot_be_written_gets_the_mail_later(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failing(lambda: Folder(tmp_path / "file" / "mails", SENDER).send(mail()), MailFailed)


def test_the_settings_choose_the_door(tmp_path: Path) -> None:
    def door_by(smtp_url: str) -> object:
        return door_of(config.read({"ECOM_ENV": "development", "SMTP_URL": smtp_url}))

    assert door_by("") is None
    assert isinstance(door_by(f"file:{tmp_path}"), Folder)
    assert isinstance(door_by("smtp://mail.example"), Server)


NAMES = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "Ann & Bob",
    "{provider}",
    "a\r\nBcc: b",
    "\u202eann",
]


@pytest.mark.parametrize("about", About)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_and_nothing_else(about: About, name: str) -> None:
    written = write(about, "en", "https://shop.example/", "to-ken", name, "google")
    assert "<img" not in written.html
    assert "<script" not in written.html
    assert "Ann & Bob" not in written.html
    assert "\u202e" not in written.html + written.plain
    assert "\r" not in written.plain
    assert written.plain.splitlines()[0].startswith("Hello")


@pytest.mark.parametrize("about", About)
def test_each_mail_has_a_text_with_one_link(about: About) -> None:
    written = write(about, "xx", "https://shop.example/account", "to-ken", "Ann", "google")
    text = TEXTS["en"][about]
    assert written.link == f"https://shop.example/account/{text.page}" + "?token=to-ken" * text.has_token
    assert written.plain.count("https://") == written.html.count("https://") == 1
    assert written.link in written.plain
    assert f'href="{written.link}"' in written.html
    assert "Hello Ann," in written.plain
    assert "Hello Ann," in written.html


@pytest.mark.parametrize("name", ["win at evil.example", "https://evil.example", "www.evil", "call me@evil"])
def test_a_name_that_mail_programs_would_make_a_link_of_is_left_out(name: str) -> None:
    assert "evil" not in write(About.RESET, "en", "https://shop.example", "t", name).plain
