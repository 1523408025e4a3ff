"""`ecom mail`: what a stack of development has sent."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from auth_service.mail.door import Folder, Mail
from auth_service.mail.texts import write
from auth_service.proofs import About
from ops.cli.main import ecom
from shared.errors import CannotWork

ACCOUNT_URL = "https://shop.example/account"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of mails, with three."""
    monkeypatch.setenv("ECOM_ENV", "development")
    monkeypatch.setenv("SMTP_URL", f"file:{tmp_path / 'mail'}")
    door = Folder(tmp_path / "mail", "Shop <shop@shop.example>")
    asked = (
        (About.REGISTER, "ann@example.com", "to-ken_1"),
        (About.RESET, "ann@example.com", "to-ken_2"),
        (About.PASSWORD_CHANGED, "bob@example.com", "unused"),
    )
    for number, (about, address, token) in enumerate(asked):
        door.send(Mail(UUID(int=number), address, write(about, "en", ACCOUNT_URL, token, "Ann")))
    return tmp_path / "mail"


def ecom_mail(*arguments: str) -> Result:
    result = CliRunner().invoke(ecom, ["mail", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_newest_mail_comes_first(folder: Path) -> None:
    listed = json.loads(ecom_mail("ls", "--json").output)["mails"]
    assert [(one["to"], one["token"]) for one in listed] == [
        ("bob@example.com", None),
        ("ann@example.com", "to-ken_2"),
        ("ann@example.com", "to-ken_1"),
    ]
    assert len(json.loads(ecom_mail("ls", "--json", "--limit", "1").output)["mails"]) == 1
    text = ecom_mail("ls").output
    assert text.index("Your password has changed") < text.index("Set a new password") < text.index("Confirm your")
    only = json.loads(ecom_mail("ls", "Bob@Example.com", "--json").output)["mails"]
    assert [one["to"] for one in only] == ["bob@example.com"]


def test_the_newest_mail_to_an_address_is_shown_with_its_link(folder: Path) -> None:
    shown = json.loads(ecom_mail("show", "ann@example.com", "--json").output)
    assert shown["link"] == f"{ACCOUNT_URL}/reset?token=to-ken_2"
    assert (shown["to"], shown["subject"], shown["token"]) == ("ann@example.com", "Set a new password", "to-ken_2")
    assert shown["text"].startswith("Hello Ann,\n")
    text = ecom_mail("show", "ann@example.com").output
    assert f"{ACCOUNT_URL}/reset?token=to-ken_2\n" in text
    link = json.loads(ecom_mail("show", "bob@example.com", "--json").output)["link"]
    assert link == f"{ACCOUNT_URL}/reset"


def test_an_address_without_a_mail_is_a_finding(folder: Path) -> None:
    shown = ecom_mail("show", "eve@example.com")
    assert shown.exit_code == 1
    assert json.loads(ecom_mail("ls", "eve@example.com", "--json").output) == {"mails": []}


def test_a_half_written_mail_is_not_listed(folder: Path) -> None:
    (folder / f".{UUID(int=9)}.7").write_text("To: eve@example.com")
    assert len(json.loads(ecom_mail("ls", "--json").output)["mails"]) == 3


@pytest.mark.parametrize("smtp_url", ["", "smtp://mail.example"])
def test_mails_that_are_sent_are_no_files(monkeypatch: pytest.MonkeyPatch, smtp_url: str) -> None:
    monkeypatch.setenv("SMTP_URL", smtp_url)
    result = CliRunner().invoke(ecom, ["mail", "ls"])
    assert isinstance(result.exception, CannotWork)
    assert "SMTP_URL names no folder" in str(result.exception)
