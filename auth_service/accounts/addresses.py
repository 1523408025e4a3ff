"""E-mail addresses and common passwords: what is read by a library, and what from a file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from email_validator import EmailNotValidError, validate_email

from shared.errors import ValidationFailed


def address_of(text: str) -> str:
    """An e-mail address as it is stored: in lower case, its domain in ASCII. Asks no name server.

    Raises ValidationFailed. What stands before the @ has ASCII characters only, as most mail servers want it.
    """
    try:
        valid = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True)
    except EmailNotValidError as error:
        raise ValidationFailed("The e-mail address is not valid.", {"email": [str(error)]}) from None
    return str(valid.ascii_email).lower()


@cache
def common_passwords() -> frozenset[str]:
    """The passwords that many people have, in lower case."""
    lines = files(__package__).joinpath("common_passwords.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
