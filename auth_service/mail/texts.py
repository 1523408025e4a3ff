"""What mails say. A table has a text for each reason and language; a mail is plain text, and the same as HTML.

What a stranger has typed never reaches somebody else's mailbox: a mail greets by the name that the owner of its address
gave, and by none where the address belongs to no account yet.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from urllib.parse import quote

from auth_service.proofs import About

DEFAULT_LOCALE = "en"
MAX_NAME = 100


@dataclass(frozen=True)
class Text:
    """A text: lines before and after its link, the page that the link leads to, and what the link is called.

    A link has the token of its proof, unless it only leads to a page.
    """

    subject: str
    before: tuple[str, ...]
    page: str
    action: str
    after: tuple[str, ...] = ()
    has_token: bool = True


@dataclass(frozen=True)
class Written:
    """A mail as it is sent."""

    subject: str
    link: str
    plain: str
    html: str


_NOT_YOU = "If that was not you, somebody may know your password. Set a new one, which signs out everybody else."

TEXTS: dict[str, dict[About, Text]] = {
    "en": {
        About.REGISTER: Text(
            "Confirm your e-mail address",
            ("Somebody wants to open an account with this address. If that is you, confirm it and choose a password.",),
            "verify",
            "Confirm the address",
            ("The link works for 24 hours, and once.", "If that is not you, do nothing: there will be no account."),
        ),
        About.RESET: Text(
            "Set a new password",
            ("Somebody has asked for a new password of your account.",),
            "reset",
            "Set a new password",
            ("The link works for 30 minutes, and once.", "If that was not you, do nothing: nothing changes."),
        ),
        About.CHANGE_EMAIL: Text(
            "Confirm your new e-mail address",
            ("Somebody wants to use this address for their account. If that is you, confirm it.",),
            "verify",
            "Confirm the address",
            ("The link works for 30 minutes, and once.", "If that is not you, do nothing: nothing changes."),
        ),
        About.LINK: Text(
            "Allow another way to sign in",
            (
                "Somebody has signed in with {provider}, which says that this address is theirs. There is an account"
                " with this address.",
                "Only if that was you just now: allow this identity to sign in to your account.",
            ),
            "link",
            "Allow it, and sign in",
            (
                "The link works for 30 minutes, and once.",
                "If that was not you, do not open the link: whoever it was could sign in to your account.",
            ),
        ),
        About.KEEP: Text(
            "Your account will be erased",
            ("Your account is closed, and will be erased in 14 days.",),
            "keep",
            "Keep the account",
            ("Until then the link brings it back.",),
        ),
        About.ACCOUNT_EXISTS: Text(
            "You have an account",
            ("Somebody wants to open an account with this address. There is one already, so nothing has changed.",),
            "reset",
            "Set a new password",
            ("If you have forgotten your password, set a new one there.",),
            has_token=False,
        ),
        About.NO_ACCOUNT: Text(
            "There is no account",
            ("Somebody has asked for a new password of an account with this address. There is no such account.",),
            "register",
            "Open an account",
            ("If that was not you, do nothing.",),
            has_token=False,
        ),
        About.EMAIL_CHANGING: Text(
            "Your e-mail address is about to change",
            ("Somebody who is signed in to your account wants to give it another e-mail address.",),
            "reset",
            "Set a new password",
            (_NOT_YOU,),
            has_token=False,
        ),
        About.PASSWORD_CHANGED: Text(
            "Your password has changed",
            ("The password of your account was changed, and all other devices are signed out.",),
            "reset",
            "Set a new password",
            (_NOT_YOU,),
            has_token=False,
        ),
        About.SESSION_REUSED: Text(
            "We have signed a device out",
            (
                "One of your devices was signed out, because the secret that keeps it signed in was used twice. That"
                " may be a fault of the app, or somebody has copied it.",
            ),
            "reset",
            "Set a new password",
            ("If it happens again, set a new password, which signs out everybody else.",),
            has_token=False,
        ),
        About.IDENTITY_LINKED: Text(
            "Another way to sign in",
            ("Somebody who is signed in to your account has allowed an identity at {provider} to sign in to it.",),
            "reset",
            "Set a new password",
            (_NOT_YOU,),
            has_token=False,
        ),
    }
}

_PAGE = """\
<!doctype html>
<html lang="{locale}">
<head><meta charset="utf-8"><title>{subject}</title></head>
<body>
{body}
</body>
</html>
"""

# What is no letter of one line: it could look like a line of ours, or turn the direction of what follows.
_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]+")


def text_of(about: About, locale: str) -> tuple[str, Text]:
    """The text in a language, and which language that is: the default one where there is none."""
    known = locale if locale in TEXTS else DEFAULT_LOCALE
    return known, TEXTS[known][about]


def write(
    about: About, locale: str, account_url: str, token: str, name: str | None = None, provider: str | None = None
) -> Written:
    """A mail. `token` goes into the link, if that has one. `name`: only of whoever owns the address."""
    locale, text = text_of(about, locale)
    link = f"{account_url.rstrip('/')}/{text.page}"
    if text.has_token:
        link += f"?token={quote(token, safe='')}"
    shown = _in_a_line(name or "")
    greeting = f"Hello {shown}," if shown else "Hello,"
    before = [greeting, *(line.format(provider=_in_a_line(provider or "")) for line in text.before)]
    plain = "\n\n".join([*before, f"{text.action}:\n{link}", *text.after]) + "\n"
    button = f'<a href="{html.escape(link)}">{html.escape(text.action)}</a>'
    paragraphs = [*map(html.escape, before), button, *map(html.escape, text.after)]
    body = "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return Written(text.subject, link, plain, _PAGE.format(locale=locale, subject=html.escape(text.subject), body=body))


def _in_a_line(name: str) -> str:
    """A name as part of a line. It holds no address of a page: mail programs make links of these."""
    shown = " ".join(_NOT_SHOWN.sub(" ", name).split())[:MAX_NAME]
    return "" if re.search(r"[:/@]|www\.|\w\.\w", shown) else shown
