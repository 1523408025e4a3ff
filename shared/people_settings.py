"""The settings of signing up and signing in: rows of the table in shared/config.py. Only auth_service reads them."""

from __future__ import annotations

from dataclasses import dataclass

from shared import parsers
from shared.oidc_providers import IN_PROVIDERS, OidcProvider, providers, redirects
from shared.setting import IN_URL, Row, one


@dataclass(frozen=True)
class PeopleSettings:
    """The settings of auth_service alone. Times are in seconds."""

    # fmt: off
    refresh_grace_s: float = one(Row(
        "REFRESH_GRACE_S", parsers.number(0), "so long a refresh token that was used is answered with its successor",
        ("auth",), "60",
    ))
    smtp_url: str = one(Row(
        "SMTP_URL", parsers.mail_url,
        "who sends mails: `smtp://user:password@host:587`, `smtps://...`, or `file:FOLDER` for one file a mail",
        ("auth",), secret=IN_URL,
    ))
    mail_from: str = one(Row(
        "MAIL_FROM", parsers.mail_sender, "whom mails come from: `Shop <shop@example.com>`", ("auth",),
        "Shop <shop@shop.example>", production="",
    ))
    account_url: str = one(Row(
        "ACCOUNT_URL", parsers.http_url, "the page that links in mails lead to: `<it>/verify?token=...` and others",
        ("auth",), "http://127.0.0.1:8000/account", production="",
    ))
    allow_no_mail: bool = one(Row(
        "ALLOW_NO_MAIL", parsers.flag, "1: production sends no mails, so nobody can register or reset a password",
        ("auth",), "0",
    ))
    oidc_providers: tuple[OidcProvider, ...] = one(Row(
        "OIDC_PROVIDERS", providers,
        "by whom people may sign in: a JSON list of {name, issuer, client_id, client_secret, scopes?}",
        ("auth",), secret=IN_PROVIDERS,
    ))
    oidc_redirects: tuple[str, ...] = one(Row(
        "OIDC_REDIRECTS", redirects,
        "`address,address`: where providers may send people back to, letter by letter", ("auth",),
    ))
    oidc_staff_providers: tuple[str, ...] = one(Row(
        "OIDC_STAFF_PROVIDERS", parsers.words,
        "`name,name`: the providers by which those may sign in who have other roles than customer", ("auth",),
    ))
    # fmt: on
